"""Parts that several reference architectures share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Branches",
    "Head",
    "PooledShortcut",
    "conv",
    "conv_bn",
    "gaussian_mean",
    "he_normal",
    "spread",
    "stack",
    "units",
]


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, *, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size of its input but for the stride: (N, c_in, H, W) -> (N, c_out, H/s, W/s)."""
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=bias)


def conv_bn(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without a bias and its batch norm, under the keys `conv` and `bn`."""
    layers = nn.Sequential()
    layers.add_module("conv", conv(c_in, c_out, kernel, stride, groups=groups))
    layers.add_module("bn", nn.BatchNorm2d(c_out))
    return layers


def he_normal(module: nn.Module, slope: float = 0.0) -> None:
    """Var(w) = 2/((1 + slope^2)*fan_in), zero biases, for every convolution and linear layer (He et al. 2015)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, a=slope, nonlinearity="leaky_relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def spread(widths: tuple[int, ...], repeats: tuple[int, ...]) -> list[tuple[int, int]]:
    """(width, stride) of each block: the first block of every stage but the first has stride 2."""
    return [
        (width, 2 if stage and block == 0 else 1)
        for stage, (width, count) in enumerate(zip(widths, repeats, strict=True))
        for block in range(count)
    ]


def units(depth: int, layers: int, rest: int) -> int:
    """n of a network of `layers`*n + `rest` layers, at least one. Raises ValueError for another depth."""
    n, odd = divmod(depth - rest, layers)
    if n < 1 or odd:
        raise ValueError(f"the depth is {depth}; it must be {layers}n + {rest}")
    return n


def stack(
    make: Callable[[int, int, int], nn.Module], c_in: int, plan: Iterable[tuple[int, int]], growth: int = 1
) -> tuple[nn.Sequential, int]:
    """The blocks `make`(channels in, width, stride) of a plan by `spread`, and the channels that the last one gives.

    growth: the channels that a block gives for each of its width.
    """
    blocks: list[nn.Module] = []
    for width, stride in plan:
        blocks.append(make(c_in, width, stride))
        c_in = growth * width
    return nn.Sequential(*blocks), c_in


class PooledShortcut(nn.Module):
    """A shortcut without weights: average pool over stride x stride, then channels of zeros.

    forward: (N, c_in, H, W) -> (N, c_out, H/stride, W/stride).
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return F.pad(x, (0, 0, 0, 0, 0, self.extra)) if self.extra else x


class Branches(nn.Module):
    """The sum of parallel branches that read one value. forward: (N, C_in, H, W) -> (N, C_out, H', W')."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.branches
        y: Tensor = first(x)
        for branch in rest:
            y = y + branch(x)
        return y


class Head(nn.Sequential):
    """Global average pool and a classifier: (N, C, H, W) -> (N, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc", nn.Linear(channels, classes))


def gaussian_mean(function: Callable[[Tensor], Tensor], points: int = 400_000, limit: float = 12.0) -> float:
    """E[function(X)] for X ~ N(0, 1), by the trapezoidal rule over -limit .. limit in float64.

    It converges exponentially for smooth functions. The number of points is even, so that none is at zero, where some
    functions have a kink, and some slopes a jump.
    """
    x = torch.linspace(-limit, limit, points, dtype=torch.float64, device="cpu")
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(function(x) * density, x))
