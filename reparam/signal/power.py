"""The size of a value of a network, as four numbers.

    y[n, c, p] = mean + C[c] + S[n, c] + P[n, c, p]

n counts samples, c channels, p places (pixels, tokens). C, S and P are uncorrelated, of mean zero, with the variances
`channel`, `sample` and `place`. C is the same for every sample: power that lies in the means of channels. An average
over places leaves C and S as they are, a batch norm removes mean and C, and a layer with independent weights of mean
zero turns mean^2 + C into C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Roles = tuple[frozenset[str], ...]  # of each axis: whether it counts samples ("n"), channels ("c"), places ("p")
MANY = 16
LARGE_DRAW = 1 << 16
LARGE = 1e100  # beyond it, and below its inverse, squares are taken of values that are scaled
SAMPLE, CHANNEL, PLACE = frozenset("n"), frozenset("c"), frozenset("p")


@dataclass(frozen=True)
class Power:
    """mean: over everything. channel, sample, place: variances of the three parts, see above."""

    mean: float = 0.0
    channel: float = 0.0
    sample: float = 0.0
    place: float = 0.0

    @property
    def variance(self) -> float:
        """Var y, over samples, channels and places."""
        return self.channel + self.sample + self.place

    @property
    def second(self) -> float:
        """E y^2."""
        return self.mean * self.mean + self.variance

    @property
    def share_of_means(self) -> float:
        """The share of E y^2 that lies in the means of channels."""
        return (self.mean * self.mean + self.channel) / self.second if self.second > 0 else 0.0

    @property
    def finite(self) -> bool:
        return math.isfinite(self.second)

    def scaled(self, factor: float) -> Power:
        """Of factor*y."""
        q = factor * factor
        return Power(self.mean * factor, self.channel * q, self.sample * q, self.place * q)

    def plus(self, other: Power) -> Power:
        """Of x + y, uncorrelated."""
        return Power(
            self.mean + other.mean,
            self.channel + other.channel,
            self.sample + other.sample,
            self.place + other.place,
        )

    def times(self, other: Power) -> Power:
        """Of x*y, independent."""
        mean = self.mean * other.mean
        parts = [
            (self.mean * self.mean, other.mean * other.mean),
            (self.mean * self.mean + self.channel, other.mean * other.mean + other.channel),
            (self.second - self.place, other.second - other.place),
            (self.second, other.second),
        ]
        one, two, three, four = (a * b for a, b in parts)
        return Power(mean, two - one, three - two, four - three)

    def weighed(self, gain: float) -> Power:
        """Behind a layer of independent weights of mean zero; gain: fan_in*E w^2."""
        return Power(0.0, gain * (self.mean * self.mean + self.channel), gain * self.sample, gain * self.place)

    def averaged(self, places: float) -> Power:
        """The mean over so many places at a time, uncorrelated among themselves."""
        return replace(self, place=self.place / places)

    def without_places(self) -> Power:
        """What has one place: what varied over places varies over samples."""
        return replace(self, sample=self.sample + self.place, place=0.0)


def mixed(parts: Sequence[tuple[float, Power]], *, channels: bool) -> Power:
    """Values side by side, each with its share; along the channels, or along the places."""
    mean = sum(w * p.mean for w, p in parts)
    total = sum(w * p.second for w, p in parts)
    if channels:
        channel = sum(w * (p.channel + p.mean * p.mean) for w, p in parts) - mean * mean
        return Power(mean, channel, sum(w * p.sample for w, p in parts), sum(w * p.place for w, p in parts))
    channel = sum(w * w * p.channel for w, p in parts)
    sample = sum(w * w * p.sample for w, p in parts)
    return Power(mean, channel, sample, max(0.0, total - mean * mean - channel - sample))


def measured(value: Tensor, roles: Roles) -> Power:
    """The power of a tensor: E y^2, and its parts by the analysis of variance, without what finite numbers add to them.

    roles: one for each axis; an axis of channels and places counts as channels.
    """
    found = Batches()
    found.add(value, roles)
    return found.power


@dataclass(frozen=True)
class _Batch:
    """Of values (samples, channels, places), each over `scale`. means: over places (samples, channels)."""

    scale: float
    means: Tensor
    places: int
    variance: float
    square: float


class Batches:
    """The power of a value over all samples of several batches, of which no more than the means of places are kept."""

    def __init__(self) -> None:
        self._found: list[_Batch] = []

    def add(self, value: Tensor, roles: Roles) -> None:
        """One batch; see `measured`."""
        kinds = [("c" if "c" in r else "p" if "p" in r else "n") if r else "p" for r in roles]
        order = sorted(range(value.dim()), key=lambda i: "ncp".index(kinds[i]))
        sizes = [math.prod(value.shape[i] for i in range(value.dim()) if kinds[i] == k) for k in "ncp"]
        y = value.detach().to(torch.float64).permute(order).reshape(sizes)
        if not y.numel():
            return
        most = float(y.abs().max())
        scale = most if math.isfinite(most) and most > 0 and not 1 / LARGE <= most <= LARGE else 1.0
        y = y / scale if scale != 1 else y
        variance = float(y.var(2).mean()) if y.shape[2] > 1 else 0.0
        self._found.append(_Batch(scale, y.mean(2), y.shape[2], variance, float(y.square().mean())))

    def __bool__(self) -> bool:
        """Whether anything was added."""
        return bool(self._found)

    @property
    def power(self) -> Power:
        """Over all samples; over the batches, where these have unlike channels."""
        if len({b.means.shape[1] for b in self._found}) <= 1:
            return _over_samples(self._found)
        alone = [_over_samples([b]) for b in self._found]
        return Power(*(sum(getattr(p, k) for p in alone) / len(alone) for k in ("mean", "channel", "sample", "place")))


def _over_samples(batches: Sequence[_Batch]) -> Power:
    """Of batches with the same channels."""
    if not batches:
        return Power()
    scale = max(b.scale for b in batches)
    means = torch.cat([b.means * (b.scale / scale) for b in batches])
    samples, channels = means.shape

    def over_all(figures: Sequence[float]) -> float:
        return sum(f * len(b.means) for f, b in zip(figures, batches, strict=True)) / samples

    place = over_all([b.variance * (b.scale / scale) ** 2 for b in batches])
    within = over_all([b.variance * (b.scale / scale) ** 2 / b.places for b in batches])  # of a mean over places
    sample = max(0.0, float(means.var(0).mean()) - within) if samples > 1 else 0.0
    channel = float(means.mean(0).var(correction=0)) if channels > 1 else 0.0
    channel = max(0.0, channel - (sample + within) / samples)
    mean, parts = float(means.mean()), channel + sample + place
    known = max(0.0, over_all([b.square * (b.scale / scale) ** 2 for b in batches]) - mean * mean)
    share = known / parts if parts > 0 else 0.0  # places whose sum is fixed, as behind a softmax, vary together
    return Power(mean, channel * share, sample * share, place * share).scaled(scale)


def scaled(value: Tensor) -> Tensor:
    """The value over its largest entry, so that its squares are numbers of float64; as it is where that is zero."""
    most = value.abs().max() if value.numel() else value.new_zeros(())
    return value / most if most > 0 else value


def drawn(power: Power, roles: Roles, shape: Sequence[int], generator: torch.Generator, *, sign: float = 1.0) -> Tensor:
    """A Gaussian tensor of that power, in float64. Each part that has many entries has its power exactly; its mean is
    not taken out, so that entries are uncorrelated. sign: -1 for the same one, mirrored at the mean."""
    result = torch.full(tuple(shape), power.mean, dtype=torch.float64)
    for variance, wanted in ((power.channel, {"c"}), (power.sample, {"n", "c"}), (power.place, {"n", "c", "p"})):
        if variance > 0:
            sizes = [s if r & wanted else 1 for s, r in zip(shape, roles, strict=True)]  # repeated along other axes
            kind = torch.float32 if math.prod(sizes) >= LARGE_DRAW else torch.float64  # four times as fast
            part = torch.randn(sizes, generator=generator, dtype=kind).to(torch.float64)
            if part.numel() >= MANY:
                part = part / part.square().mean().sqrt()
            result = result + sign * math.sqrt(variance) * part
    return result
