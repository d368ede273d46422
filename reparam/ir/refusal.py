"""`Refusal`: the one way in which an analysis or a rewrite says no."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .program import place_of


@dataclass(frozen=True)
class Refusal:
    """Why something cannot be done.

    reason: says what is in the way, in words for the user. node: where it is; None when it concerns the whole, or when
    only the caller knows the place. hint: what would make it possible.
    """

    reason: str
    node: fx.Node | None = None
    hint: str = ""

    @property
    def located(self) -> str:
        """The reason, with the place of the node."""
        return self.reason if self.node is None else f"{self.reason} (at '{place_of(self.node)}')"

    @property
    def sentence(self) -> str:
        """The reason, and the hint behind it."""
        return f"{self.reason}; {self.hint}" if self.hint else self.reason
