"""One round of the comparison of two networks: inputs, the truth on them, and the bar for what they may differ by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reparam.ir import WEIGHTED, Feed, Program, is_call

from .input_plan import Plan
from .values import all_finite, first_shape, largest_difference


def depth_limit(program: Program) -> float:
    """The float64 bar: 1e-10 up to fifty weighted layers, growing with depth to 1e-9 at most."""
    depth = sum(is_call(n, WEIGHTED) for n in program.calls())
    return min(1e-9, 1e-10 * max(1.0, depth / 50))


@dataclass(frozen=True)
class Round:
    """Inputs that were run by a plan, the float64 truth (the original's outputs), and the relative bar that applied.

    unclaimed: smaller images than the program is said to hold for, which it need not take. own: what the original gives
    in its own dtype, where that is known.
    """

    values: Feed
    truth: list[Any]
    plan: Plan
    limit: float
    unclaimed: bool = False
    own: list[Any] | None = None

    @property
    def inputs(self) -> int:
        """How many inputs these are, one for each sample of the batch."""
        return self.plan.inputs

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first tensor among the inputs."""
        return first_shape(self.values)


def all_samples_alike(rounds: Sequence[Round]) -> bool:
    """Whether every output of floats is the same for all samples of every batch, whatever was drawn.

    Then the comparison says little, as where all that a network computes is below the ReLUs that end it.
    """
    batches = [
        value
        for r in rounds
        for value in r.truth
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() and len(value) > 1
    ]
    return bool(batches) and all(bool((value == value[:1]).all()) for value in batches)


@dataclass(frozen=True)
class Try:
    """One feed, the truth, and what the converted program gives; None where one of them does not run.

    unclaimed: as in `Round`.
    """

    values: Feed
    truth: list[Any] | None
    other: list[Any] | None
    unclaimed: bool = False

    @property
    def gap(self) -> float:
        """The relative difference; infinite where there is nothing to compare."""
        if self.truth is None or self.other is None or not all_finite(self.truth):
            return math.inf
        return largest_difference(self.truth, self.other)
