"""The options of the target `plain`: what they are called, what they may be, and their defaults, in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from .errors import InputError

CARRY = ("auto", "grouped", "dense", "measured")
_SPLIT = re.compile(r"split=(\d{1,4})")


class MaxPool(StrEnum):
    """What happens to a max-pool beside something that has to be carried past it."""

    keep = "keep"
    relu = "relu"


class Signed(StrEnum):
    """How signed channels are carried past a ReLU."""

    prelu = "prelu"
    relu = "relu"


@dataclass(frozen=True)
class PlainOptions:
    """How the target `plain` writes a chain. Raises InputError for a value that an option does not have.

    carry: how layers carry channels: auto (fewest multiply-accumulates), grouped, dense, split=G (partial sums over G
        slices), or measured (auto or dense, by the clock of this machine).
    max_pool: keep, or relu to spell max-pools beside other values as max(a, b) = a + relu(b - a).
    signed: prelu, or relu to carry signed values past ReLUs as x = relu(x) - relu(-x), without PReLU.
    max_cost: how many times the multiply-accumulates of a block its chain may cost; a dearer block stays as it is.
    """

    carry: str = "auto"
    max_pool: str = "keep"
    signed: str = "prelu"
    max_cost: float = 32.0

    def __post_init__(self) -> None:
        if not isinstance(self.max_cost, (int, float)) or isinstance(self.max_cost, bool) or not self.max_cost > 0:
            raise InputError(
                f"max_cost is {self.max_cost!r:.40}; give a number above 0, such as 32, or inf for no bound"
            )
        found = _SPLIT.fullmatch(str(self.carry))
        if self.carry not in CARRY and (found is None or int(found[1]) < 2):
            ways = ", ".join(CARRY)
            raise InputError(
                f"unknown carry '{str(self.carry)[:60]}'; choose from {ways} or split=G, with G = 2, 3, ..."
            )
        for name, choice, choices in (("max_pool", self.max_pool, MaxPool), ("signed", self.signed, Signed)):
            if choice not in list(choices):
                raise InputError(f"unknown {name} '{str(choice)[:60]}'; choose from {', '.join(choices)}")

    @property
    def slices(self) -> int | None:
        """G of split=G; None for every other way to carry channels."""
        found = _SPLIT.fullmatch(self.carry)
        return None if found is None else int(found[1])


DEFAULTS = PlainOptions()
