"""E f(X) and Cov(f(X), f(X')) for functions of normal variables, by quadrature.

    X = mean + C + S + P    as in `power`; two places of a sample share C + S, two samples share C

Each integral is a trapezoidal sum, which converges exponentially for smooth functions; where a function has a kink, the
error is a twelfth of the squared step. Gauss-Hermite rules of the same size do no better on smooth functions and much
worse on kinks.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .power import Power

FINE, COARSE = 4000, 141  # points of the sums for E f and E f^2, and for each of the two sums of a covariance
LIMIT, NARROW = 10.0, 6.5  # where they end, in standard deviations


@functools.cache
def _rule(points: int, limit: float) -> tuple[Tensor, Tensor]:
    """Points and weights for X ~ N(0, 1). With an even number of points, none is at zero, where most kinks are."""
    x = torch.linspace(-limit, limit, points, dtype=torch.float64, device="cpu")
    w = torch.exp(-x.square() / 2)
    return x, w / w.sum()


def points_of(power: Power) -> Tensor:
    """Where a function has to be known for `power_of`: (FINE + 2*COARSE^2,)."""
    x, _ = _rule(FINE, LIMIT)
    y, _ = _rule(COARSE, NARROW)
    deviation = math.sqrt(max(0.0, power.variance))
    parts = [power.mean + deviation * x]
    for shared in (power.channel + power.sample, power.channel):
        own = math.sqrt(max(0.0, power.variance - shared))
        pairs = power.mean + math.sqrt(max(0.0, shared)) * y.unsqueeze(1) + own * y
        parts.append(pairs.flatten())
    return torch.cat(parts)


def power_of(values: Tensor) -> Power:
    """The power of f(X), from f at the points of X: (K, points), with a row for each of K groups of channels."""
    _, w = _rule(FINE, LIMIT)
    _, v = _rule(COARSE, NARROW)
    values = values.to(torch.float64).reshape(-1, FINE + 2 * COARSE**2)
    one = values[:, :FINE]
    mean = one @ w
    variance = (one - mean.unsqueeze(1)).square() @ w
    covariances = []
    for part in values[:, FINE:].split(COARSE**2, dim=1):
        given = part.reshape(-1, COARSE, COARSE) @ v  # E[f | what is shared]
        centred = given - (given @ v).unsqueeze(1)
        covariances.append(centred.square() @ v)
    same_sample = torch.minimum(covariances[0], variance)
    same_channel = torch.minimum(covariances[1], same_sample)
    overall = float(mean.mean())
    channel = float((same_channel + mean.square()).mean()) - overall * overall
    return Power(
        overall,
        max(0.0, channel),
        float((same_sample - same_channel).mean()),
        float((variance - same_sample).mean()),
    )


def at_points(values: Tensor, power: Power, x: Tensor) -> Tensor:
    """f at x, of any shape, from f at the points of X, whose power is given; between points, along straight lines.

    Of K rows, the mean is taken.
    """
    one = values.to(torch.float64).reshape(-1, FINE + 2 * COARSE**2)[:, :FINE].mean(0)
    deviation = math.sqrt(max(power.variance, 1e-300))
    at = ((x - power.mean) / deviation + LIMIT) * ((FINE - 1) / (2 * LIMIT))
    at = at.clamp(0, FINE - 1.001)
    low = at.floor()
    found: Tensor = torch.lerp(one[low.long()], one[low.long() + 1], at - low)
    return found
