"""Notes that rules and analyses keep beside a program: one for each type, made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Scratchpad:
    """One note for each type. A copy of a program starts without any: notes speak of the nodes of one graph.

    What a rule learns from a rewrite belongs into `Rewrite.notes`, which the driver puts here once the rewrite is
    accepted. What is put here otherwise must hold whether or not a rewrite is accepted: a memo of something computed.
    """

    def __init__(self) -> None:
        self._notes: dict[type[Any], Any] = {}

    def get(self, kind: type[T], make: Callable[[], T]) -> T:
        """The note of type `kind`, from `make` the first time."""
        if kind not in self._notes:
            self._notes[kind] = make()
        note: T = self._notes[kind]
        return note

    def find(self, kind: type[T]) -> T | None:
        """The note of type `kind`, None when there is none yet."""
        return self._notes.get(kind)

    def put(self, note: object) -> None:
        """Keeps `note` in place of an earlier one of its type."""
        self._notes[type(note)] = note
