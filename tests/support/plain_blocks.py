"""Networks for the tests of the target `plain`: one of each kind of block that a register can hold, and near misses.

Each is a module in float64 with healthy statistics. Widths are tiny; what matters is the wiring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.helpers import Lambda, conv_bn, healthy

Act = Callable[[Tensor], Tensor]


def stem(c: int = 4, act: nn.Module | None = None) -> nn.Sequential:
    """What stands before a block, so that its input is never negative (behind a ReLU)."""
    return nn.Sequential(*conv_bn(3, c, padding=1), act or nn.ReLU())


def net(*blocks: nn.Module, c: int = 4, act: nn.Module | None = None) -> nn.Module:
    """A stem and blocks."""
    torch.manual_seed(0)
    return healthy(nn.Sequential(stem(c, act), *blocks))


# ---- residual blocks -------------------------------------------------------------------------------------------------


def basic(c: int = 4, out: int = 0, stride: int = 1, shortcut: nn.Module | None = None) -> nn.Module:
    """relu(b(relu(a(x))) + shortcut(x))"""
    out = out or c
    return Lambda(
        lambda m, x: F.relu(m.b(F.relu(m.a(x))) + m.shortcut(x)),
        a=conv_bn(c, out, 3, padding=1, stride=stride, bias=False),
        b=conv_bn(out, out, 3, padding=1, bias=False),
        shortcut=shortcut or nn.Identity(),
    )


def bottleneck(c: int, middle: int, out: int = 0, stride: int = 1, shortcut: nn.Module | None = None) -> nn.Module:
    """relu(c(relu(b(relu(a(x))))) + shortcut(x))"""
    out = out or c
    return Lambda(
        lambda m, x: F.relu(m.c(F.relu(m.b(F.relu(m.a(x))))) + m.shortcut(x)),
        a=conv_bn(c, middle, 1, bias=False),
        b=conv_bn(middle, middle, 3, padding=1, stride=stride, bias=False),
        c=conv_bn(middle, out, 1, bias=False),
        shortcut=shortcut or nn.Identity(),
    )


def projection(c: int, out: int, stride: int = 1) -> nn.Module:
    return conv_bn(c, out, 1, stride=stride, bias=False)


def pre_activation(c: int, out: int = 0, stride: int = 1) -> nn.Module:
    """x + b(relu(bn(a(relu(bn(x)))))), or, where it changes the dimensions, w*z + ... with z = relu(bn(x))."""
    out = out or c

    def forward(m: Any, x: Tensor) -> Tensor:
        z = F.relu(m.first(x))
        return m.b(F.relu(m.second(m.a(z)))) + (m.w(z) if m.w is not None else x)

    return Lambda(
        forward,
        first=nn.BatchNorm2d(c),
        a=nn.Conv2d(c, out, 3, padding=1, stride=stride, bias=False),
        second=nn.BatchNorm2d(out),
        b=nn.Conv2d(out, out, 3, padding=1, bias=False),
        w=nn.Conv2d(c, out, 1, stride=stride, bias=False) if stride > 1 or out != c else None,
    )


def inverted(c: int = 4, wide: int = 12) -> nn.Module:
    """MobileNetV2: x + project(relu6(depthwise(relu6(expand(x)))))."""
    return Lambda(
        lambda m, x: x + m.project(F.relu6(m.depthwise(F.relu6(m.expand(x))))),
        expand=conv_bn(c, wide, 1, bias=False),
        depthwise=conv_bn(wide, wide, 3, padding=1, groups=wide, bias=False),
        project=conv_bn(wide, c, 1, bias=False),
    )


def pooled(c: int, out: int, *, ceil: bool = False) -> nn.Module:
    """ResNet-D: a strided block beside an average pool and a projection."""
    pool = nn.AvgPool2d(2, 2, ceil_mode=ceil, count_include_pad=False)
    return basic(c, out, 2, nn.Sequential(pool, projection(c, out)))


class ZeroChannels(nn.Module):
    """Stochastic depth's shortcut: a pooled map and channels of zeros behind it."""

    def __init__(self, more: int, how: str) -> None:
        super().__init__()
        self.more, self.how = more, how

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(x, 2)
        if self.how == "pad":
            return F.pad(y, (0, 0, 0, 0, 0, self.more))
        zeros = {
            "zeros_like": lambda: torch.zeros_like(y),
            "mul": lambda: y * 0.0,
            "new_zeros": lambda: y.new_zeros(y.shape[0], self.more, y.shape[2], y.shape[3]),
            "zeros": lambda: torch.zeros(y.shape[0], self.more, y.shape[2], y.shape[3], dtype=y.dtype),
        }[self.how]()
        return torch.cat([y, zeros], 1)


class Every(nn.Module):
    """Every second pixel, and channels of zeros around: the shortcut without weights of He et al. for CIFAR."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


# ---- concatenation, branches, splits ---------------------------------------------------------------------------------


def dense(c: int = 4, growth: int = 2, layers: int = 3) -> nn.Module:
    """DenseNet: each layer reads the concatenation of all before it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        for i in range(layers):
            x = torch.cat([x, m.convs[i](F.relu(m.norms[i](x)))], 1)
        return x

    widths = [c + i * growth for i in range(layers)]
    return Lambda(
        forward,
        norms=nn.ModuleList(nn.BatchNorm2d(w) for w in widths),
        convs=nn.ModuleList(nn.Conv2d(w, growth, 3, padding=1, bias=False) for w in widths),
    )


def inception(c: int = 4) -> nn.Module:
    """Branches of one, two and three layers, concatenated."""

    def unit(a: int, b: int, k: int) -> nn.Sequential:
        return nn.Sequential(*conv_bn(a, b, k, padding=k // 2, bias=False), nn.ReLU())

    return Lambda(
        lambda m, x: torch.cat([m.one(x), m.two(x), m.three(x)], 1),
        one=unit(c, 2, 1),
        two=nn.Sequential(unit(c, 3, 1), unit(3, 2, 3)),
        three=nn.Sequential(unit(c, 2, 1), unit(2, 3, 3), unit(3, 2, 3)),
    )


def cross_stage(c: int = 4) -> nn.Module:
    """CSP: one half of the channels passes a residual block, the other goes past it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.wide(x).chunk(2, 1)
        return F.relu(m.join(torch.cat([a, m.block(b)], 1)))

    return Lambda(
        forward,
        wide=nn.Sequential(*conv_bn(c, 2 * c, 1, bias=False), nn.ReLU()),
        block=basic(c),
        join=conv_bn(2 * c, c, 1, bias=False),
    )


def reversible(c: int = 4) -> nn.Module:
    """RevNet: y1 = x1 + f(x2), y2 = x2 + g(y1)."""
    half = c // 2

    def unit() -> nn.Sequential:
        return nn.Sequential(
            *conv_bn(half, half, padding=1, bias=False), nn.ReLU(), nn.Conv2d(half, half, 3, padding=1, bias=False)
        )

    def forward(m: Any, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, 1)
        y1 = x1 + m.f(x2)
        return torch.cat([y1, x2 + m.g(y1)], 1)

    return Lambda(forward, f=unit(), g=unit())


def momentum(c: int = 4, steps: int = 3, gamma: float = 0.9) -> nn.Module:
    """v <- gamma v + (1 - gamma) f(x), x <- x + v"""

    def forward(m: Any, x: Tensor) -> Tensor:
        v = torch.zeros_like(x)
        for f in m.fs:
            v = gamma * v + (1 - gamma) * f(x)
            x = x + v
        return x

    def unit() -> nn.Sequential:
        return nn.Sequential(
            *conv_bn(c, c, padding=1, bias=False), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1, bias=False)
        )

    return Lambda(forward, fs=nn.ModuleList(unit() for _ in range(steps)))


def squeezed(c: int = 4, squash: Act = torch.sigmoid) -> nn.Module:
    """SE-ResNet: relu(gate(b(relu(a(x)))) + x)."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.b(F.relu(m.a(x)))
        g = squash(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1)))))
        return F.relu(y * g + x)

    return Lambda(
        forward,
        a=conv_bn(c, c, padding=1, bias=False),
        b=conv_bn(c, c, padding=1, bias=False),
        down=nn.Conv2d(c, 2, 1),
        up=nn.Conv2d(2, c, 1),
    )


def perceptron(c: int = 5, wide: int = 8, act: Act = F.relu) -> nn.Module:
    """x + b(act(a(x))) of linear layers."""
    return Lambda(lambda m, x: x + m.b(act(m.a(x))), a=nn.Linear(c, wide), b=nn.Linear(wide, c))
