"""Stages: one layer of a chain, from the register before it to the register after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reparam.algebra import Window
from reparam.ir import Refusal

from .activation import Joint
from .linear_form import LinearForm, Map, RegisterValue, reference

Levels = Mapping[int, float | None]
Register = tuple[RegisterValue, ...]


@dataclass(frozen=True)
class Stage:
    """One layer of the chain: from the register `before` to the register `after`.

    forms: of the values that come into being, over `before`; the rest is carried. window: of the joint convolution.
    serial: equal stages of one planner are one object, with one number.
    """

    before: tuple[RegisterValue, ...]
    after: tuple[RegisterValue, ...]
    forms: tuple[tuple[RegisterValue, LinearForm], ...]
    window: Window
    joint: Joint
    serial: int

    @property
    def kind(self) -> str:
        return self.forms[0][0].kind

    @property
    def positions(self) -> int:
        return self.after[0].positions

    def blocks(self) -> list[tuple[RegisterValue, RegisterValue, Map]]:
        """(result, operand, map) of everything that the layer computes or carries."""
        created = {v for v, _ in self.forms}
        out = [(v, u, m) for v, form in self.forms for u, m in form.maps]
        return out + [(v, v, carry(v)) for v in self.after if v not in created]


def carry(value: RegisterValue) -> Map:
    """The identity on all channels of a value."""
    return reference(value).maps[0][1]


@dataclass(frozen=True)
class Schedule:
    """A valid schedule: its layers in order."""

    levels: tuple[tuple[int, float | None], ...]
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Infeasible:
    """An assignment of levels that is no schedule: everything that is wrong with it, the first thing first."""

    refusals: tuple[Refusal, ...]

    @property
    def faults(self) -> int:
        return len(self.refusals)

    @property
    def refusal(self) -> Refusal:
        """The first of them."""
        return self.refusals[0]
