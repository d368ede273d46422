"""Errors of one output, added up over inputs, and the bar that they must meet."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

# How many times the first model's own loss the second may be off: it rounds at other places, and its weights as well.
SLACK = 4.0


@dataclass(frozen=True)
class OutputError:
    """One output over all random inputs, against the first model in float64. Errors are RMS; `bar` is the most allowed.

    difference: of the second model in float64. error_a: of the first in the coarser dtype of the two. error_b: of the
    second in its own. size: of the output.
    peak, peak_bar: the largest element of the difference, and the most allowed for it.
    """

    index: int
    difference: float
    error_a: float
    error_b: float
    size: float
    bar: float
    peak: float
    peak_bar: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.bar and self.error_b <= self.bar and self.peak <= self.peak_bar

    @property
    def complaint(self) -> str:
        """What is too large, for an output that is not ok."""
        rms = max(self.difference, self.error_b)
        if not rms <= self.bar:
            return f"output {self.index} differs by {rms:.3g} (RMS), where {self.bar:.3g} is allowed"
        return f"an element of output {self.index} differs by {self.peak:.3g}, where {self.peak_bar:.3g} is allowed"


@dataclass
class ErrorSums:
    """Squared errors, the largest ones, and the squared truth of one output, added up over all inputs.

    others: squared errors of other runs of the first model, and of how many numbers, by what is other about them.
    """

    difference: float = 0.0
    error_a: float = 0.0
    error_b: float = 0.0
    size: float = 0.0
    peaks: tuple[float, float, float] = (0.0, 0.0, 0.0)
    count: int = 0
    others: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, truth: Tensor, other: Tensor, own_a: Tensor, own_b: Tensor) -> None:
        if not truth.numel():
            return
        self.difference += float((other - truth).square().sum())
        self.error_a += float((own_a - truth).square().sum())
        self.error_b += float((own_b - truth).square().sum())
        self.size += float(truth.square().sum())
        now = (float(v.abs().max()) for v in (other - truth, own_a - truth, truth))
        self.peaks = tuple(max(p, q) for p, q in zip(self.peaks, now, strict=True))  # type: ignore[assignment]
        self.count += truth.numel()

    def widen(self, truth: Tensor, off: Tensor, how: str) -> None:
        """Takes the errors of one more run of the first model, which rounds otherwise; `how` says what is other there.

        Its largest error counts where it is larger, and so does the RMS of all runs of its kind: a single one may be
        lucky.
        """
        if truth.numel():
            b, own, size = self.peaks
            self.peaks = b, max(own, float((off - truth).abs().max())), size
            before, count = self.others.get(how, (0.0, 0))
            self.others[how] = before + float((off - truth).square().sum()), count + truth.numel()

    def result(self, index: int, floor: float) -> OutputError:
        n = max(self.count, 1)
        difference, error_a, error_b, size = (
            math.sqrt(v / n) for v in (self.difference, self.error_a, self.error_b, self.size)
        )
        others = (math.sqrt(squares / count) for squares, count in self.others.values())
        bar = SLACK * max([error_a, *others]) + floor * size
        peak_bar = SLACK * self.peaks[1] + floor * self.peaks[2]
        return OutputError(index, difference, error_a, error_b, size, bar, self.peaks[0], peak_bar)
