"""Outputs against those of another model on the same samples: equal decisions, errors, and the samples that differ."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from reparam.errors import InputError

from .score import decisions

NAMED = 10  # samples that are named, of those whose class changed and of those with the largest errors


class UnlikeOutputsError(InputError):
    """Two models give outputs that cannot be compared: of other shapes, or decisions that are not those of scores."""


@dataclass(frozen=True)
class Difference:
    """One sample on which two models differ.

    input: its name. error: the RMS of the difference of its outputs, relative to the RMS of the first model's outputs
    on all samples; of outputs that are decisions, the share of those that differ. first, second: the classes that they
    give it; None where they give none, or one for each pixel.
    """

    input: str
    error: float
    first: int | None = None
    second: int | None = None

    @property
    def changed(self) -> bool:
        """Whether it gets another class."""
        return self.first != self.second


@dataclass(frozen=True)
class Agreement:
    """How close outputs are to those of another model.

    share: of equal decisions (of samples, or of pixels), None where outputs decide nothing. error: the RMS of the
    difference, relative to the RMS of the other's outputs; where whole, the share of outputs that differ. changed: how
    many samples get another class. differing: up to `NAMED` of those, the largest errors first, and behind them up to
    `NAMED` others with the largest errors. whole: whether the outputs are decisions themselves, that is whole numbers
    or truth values.
    """

    samples: int
    share: float | None
    error: float
    changed: int
    differing: tuple[Difference, ...]
    whole: bool = False

    @property
    def worst(self) -> Difference | None:
        """The sample with the largest error; None where there is no error."""
        found = max(self.differing, key=lambda d: d.error, default=None)
        return found if found is not None and found.error > 0.0 else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        worst = self.worst
        return asdict(self) | {
            "differing": [asdict(d) | {"changed": d.changed} for d in self.differing],
            "worst": None if worst is None else asdict(worst),
        }


class Comparison:
    """Adds up how far outputs are from those of another model. name: of the model, for messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples = self.equal = self.decided = self.changed = 0
        self.wrong = self.size = 0.0
        self.numbers = 0
        self.whole = False
        self.flipped: list[tuple[float, int, Difference]] = []
        self.others: list[tuple[float, int, Difference]] = []

    def add(self, names: Sequence[str], wanted: Sequence[Tensor], got: Sequence[Tensor]) -> None:
        """One batch. wanted, got: floating outputs (N, ...), or whole ones alone, which are taken for decisions.

        Where one model gives scores and the other decisions, the decisions are compared. Raises UnlikeOutputsError.
        """
        wanted, got = _alike(wanted, got)
        if list(map(_kind, wanted)) != list(map(_kind, got)) or not wanted:
            shapes = [" ".join("x".join(map(str, v.shape)) for v in values) or "none" for values in (got, wanted)]
            kinds = [", ".join(dict.fromkeys(_kind(v)[0] for v in values)) or "outputs" for values in (got, wanted)]
            theirs = shapes[1] if kinds[0] == kinds[1] else f"{kinds[1]} of {shapes[1]}"
            raise UnlikeOutputsError(
                f"{self.name} gives {kinds[0]} of {shapes[0]}, where the first model gives {theirs}"
            )
        count = len(names)
        self.whole = not wanted[0].is_floating_point()
        squares = torch.zeros(count, dtype=torch.float64)
        numbers = sum(v[0].numel() for v in wanted)
        for a, b in zip(wanted, got, strict=True):
            apart = ((a != b).double() if self.whole else a.double() - b.double()).reshape(count, -1)
            same = a.reshape(count, -1) == b.reshape(count, -1)  # equal infinities have no distance
            squares += torch.where(same, 0.0, apart).square().sum(1)
            self.size += a.numel() if self.whole else float(a.double().square().sum())
        squares = torch.nan_to_num(squares, nan=math.inf)
        self.wrong += float(squares.sum())
        self.numbers += count * numbers
        first, second = self._decided(wanted, got)
        for i, name in enumerate(names):
            pair = (None, None) if first is None or second is None else (int(first[i]), int(second[i]))
            found = Difference(name, self._error(float(squares[i]) / numbers), *pair)
            self.changed += found.changed
            _keep(self.flipped if found.changed else self.others, found, self.samples + i)
        self.samples += count

    def _decided(self, wanted: Sequence[Tensor], got: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Counts equal decisions; the classes of the samples where there is one for each."""
        a, b = decisions(wanted), decisions(got)
        if a is None or b is None:
            return None, None
        self.equal, self.decided = self.equal + int((a == b).sum()), self.decided + a.numel()
        return (a, b) if a.dim() == 1 else (None, None)

    def result(self) -> Agreement:
        """What was added up."""
        numbers = max(self.numbers, 1)
        rms = self._error(self.size / numbers)
        named = [d for kept in (self.flipped, self.others) for *_, d in sorted(kept, reverse=True)]
        differing = tuple(
            Difference(d.input, _ratio(d.error, rms), d.first, d.second) for d in named if d.changed or d.error > 0.0
        )
        return Agreement(
            self.samples,
            self.equal / self.decided if self.decided else None,
            _ratio(self._error(self.wrong / numbers), rms),
            self.changed,
            differing,
            self.whole,
        )

    def _error(self, mean: float) -> float:
        """Of a mean of squares the root; of decisions, where each is 0 or 1, the share that the mean is."""
        return mean if self.whole else math.sqrt(mean)


def _alike(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The outputs; of scores beside what was decided of such scores, what both decide."""
    a, b = decisions(wanted), decisions(got)
    if a is None or b is None or a.shape != b.shape or len(wanted) != len(got):
        return wanted, got
    if wanted[0].is_floating_point() == got[0].is_floating_point():
        return wanted, got
    return [a, *wanted[1:]], [b, *got[1:]]


def _kind(value: Tensor) -> tuple[str, list[int]]:
    return "floating outputs" if value.is_floating_point() else "decisions", list(value.shape)


def _keep(kept: list[tuple[float, int, Difference]], found: Difference, index: int) -> None:
    """Keeps those with the largest errors; of equal ones those that come first."""
    entry = (found.error, -index, found)
    if len(kept) < NAMED:
        heapq.heappush(kept, entry)
    else:
        heapq.heappushpop(kept, entry)


def _ratio(error: float, size: float) -> float:
    return error / size if size else (0.0 if error == 0.0 else math.inf)
