"""What a norm makes of the sizes of its operand: its derivative, taken on absolute values."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.check.rounding_bound import EPS
from reparam.ir import Program
from support.helpers import doubles
from support.magnitudes import captured, size_of

X, Y = doubles(2, 4, 3, 3, seed=1), doubles(2, 4, 3, 3, seed=2)


def own_statistics(x: Tensor, m: Tensor, groups: list[Tensor], eps: float, mean: bool = True) -> Tensor:
    """(M + mean M + |z| mean |z|M) / s, one set of values that are normalised together after the other."""
    flat, sizes, made = x.flatten(), m.flatten(), torch.zeros(x.numel(), dtype=torch.float64)
    for at in groups:
        v, size = flat[at], sizes[at]
        v = v - v.mean() if mean else v
        s = math.sqrt(float((v * v).mean()) + eps)
        z = v.abs() / s
        made[at] = (size + (size.mean() if mean else 0.0) + z * (z * size).mean()) / s
    return made.reshape(x.shape)


AT = torch.arange(X.numel()).reshape(X.shape)
SAMPLES, CHANNELS = list(AT.flatten(0, 1).flatten(1)), list(AT.transpose(0, 1).flatten(1))
GAMMA, BETA = torch.tensor([-2.0, 0.5, 3.0, 1.0]).double(), torch.tensor([1.0, -4.0, 0.0, 2.0]).double()
COLUMN = (4, 1, 1)
NORMS: dict[str, tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {
    "of a batch": (
        nn.BatchNorm2d(4, eps=0.1, track_running_stats=False),
        lambda x, m: own_statistics(x, m, CHANNELS, 0.1),
        GAMMA.reshape(COLUMN),
        BETA.reshape(COLUMN),
    ),
    "of an instance": (
        nn.InstanceNorm2d(4, eps=0.1, affine=True),
        lambda x, m: own_statistics(x, m, SAMPLES, 0.1),
        GAMMA.reshape(COLUMN),
        BETA.reshape(COLUMN),
    ),
    "of groups": (
        nn.GroupNorm(2, 4, eps=0.1),
        lambda x, m: own_statistics(x, m, list(AT.reshape(4, -1)), 0.1),
        GAMMA.reshape(COLUMN),
        BETA.reshape(COLUMN),
    ),
    "of a layer": (
        nn.LayerNorm(3, eps=0.1),
        lambda x, m: own_statistics(x, m, list(AT.reshape(-1, 3)), 0.1),
        GAMMA[:3],
        BETA[:3],
    ),
    "of two axes": (
        nn.LayerNorm((3, 3), eps=0.1, elementwise_affine=False),
        lambda x, m: own_statistics(x, m, SAMPLES, 0.1),
        torch.ones(()),
        torch.zeros(()),
    ),
    "of a root mean square": (
        nn.RMSNorm(3, eps=0.1),
        lambda x, m: own_statistics(x, m, list(AT.reshape(-1, 3)), 0.1, mean=False),
        GAMMA[:3],
        torch.zeros(()),
    ),
    "without an epsilon": (
        nn.RMSNorm(3),
        lambda x, m: own_statistics(x, m, list(AT.reshape(-1, 3)), EPS, mean=False),
        GAMMA[:3],
        torch.zeros(()),
    ),
    "of an instance by known statistics": (
        nn.InstanceNorm2d(4, eps=0.1, affine=True, track_running_stats=True),
        lambda x, m: (m + torch.tensor([1.0, 2, 0, 3]).reshape(COLUMN)) / torch.tensor(2.0).double().sqrt(),
        GAMMA.reshape(COLUMN),
        BETA.reshape(COLUMN),
    ),
    "by known statistics": (
        nn.BatchNorm2d(4, eps=0.1),
        lambda x, m: (m + torch.tensor([1.0, 2, 0, 3]).reshape(COLUMN)) / torch.tensor(2.0).double().sqrt(),
        GAMMA.reshape(COLUMN),
        BETA.reshape(COLUMN),
    ),
}


def behind_a_difference(name: str) -> Callable[..., Tensor]:
    return lambda m, x, y: m.norms[name](x - y)


@functools.cache
def norms(affine: bool) -> Program:
    parts = nn.ModuleDict({name: copy.deepcopy(norm) for name, (norm, *_) in NORMS.items()})
    for name, (_, _, gamma, beta) in NORMS.items():
        norm = parts[name]
        with torch.no_grad():
            for parameter, value, nothing in zip(norm.parameters(), (gamma, beta), (1.0, 0.0), strict=False):
                parameter.copy_(value.flatten() if affine else torch.tensor(nothing))
            if getattr(norm, "running_mean", None) is not None:
                norm.running_mean.copy_(torch.tensor([1.0, -2.0, 0.0, 3.0]))
                norm.running_var.copy_(torch.full((4,), 1.9))
    return captured({name: behind_a_difference(name) for name in NORMS}, X, Y, norms=parts)()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_bounded_by_its_derivative_on_absolute_values(name: str, affine: bool) -> None:
    _, expected, gamma, beta = NORMS[name]
    x = torch.cat([X[:1], 3 + 1e-3 * X[1:]])  # a nearly constant one amplifies the most
    bound = expected(x - 1, x.abs() + 1)
    bound = bound * gamma.abs() + beta.abs() if affine else bound
    torch.testing.assert_close(size_of(norms(affine), NORMS, name, x, 0 * x + 1), bound, rtol=1e-7, atol=0)
