"""Normaliser-free networks (Brock, De, Smith, Simonyan 2021, arXiv 2102.06171), as De et al. 2022 (arXiv 2204.13650)
train them with differential privacy.

    z = beta*act(x),    y = s + 0.2*gain*squeeze_excite(f(z))        every convolution with standardised weights

beta = 1/expected standard deviation of x: std^2 grows by 0.2^2 in each block, from 1 again in the first of a
stage, whose shortcut s is a convolution (of an average pool where it strides) of z instead of x. act is scaled by a
constant that keeps the variance of a standard normal. gain is learned and starts at zero.

    nfnet:        f = 1x1, two grouped 3x3, 1x1, with squeeze-excite and gelu; as published: NFNet-F3
    nf_resnet:    f = 1x1, 3x3, 1x1, relu; as published: NF-ResNet-50
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.models.blocks import Head
from reparam.models.registry import register
from reparam.models.standardised import StandardisedConv

__all__ = ["GAINS", "NFNet", "betas"]

ALPHA = 0.2
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
GAINS = {"relu": 1.7139588594436646, "gelu": 1.7015043497085571, "silu": 1.7881293296813965}  # of the authors' code


@dataclass(frozen=True)
class Design:
    """How blocks are made. ratio: of inner to outer width. group: channels in each group, 0 for one group."""

    act: str
    ratio: float
    group: int
    middles: int
    excite: bool


DESIGNS = {"nfnet": Design("gelu", 0.5, 128, 2, True), "nf_resnet": Design("relu", 0.25, 0, 1, False)}


def betas(count: int, first: float = 1.0) -> list[float]:
    """beta of each of `count` blocks in a stage; first: the expected standard deviation at its start."""
    variance, found = first**2, []
    for block in range(count):
        found.append(variance**-0.5)
        variance = 1.0 if block == 0 else variance  # a projection takes its shortcut from normalised values
        variance += ALPHA**2
    return found


class Act(nn.Module):
    """gain*act(x), of any shape."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function, self.gain = FUNCTIONS[name], GAINS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) * self.gain


class SqueezeExcite(nn.Module):
    """2*x*sigmoid(fc2(relu(fc1(mean of x)))): (N, C, H, W) -> the same shape."""

    def __init__(self, channels: int, ratio: float = 0.5) -> None:
        super().__init__()
        inner = max(1, int(channels * ratio))
        self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return 2 * (x * gate)


class Block(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H/stride, W/stride). beta: what act's result is multiplied by."""

    def __init__(self, c_in: int, c_out: int, stride: int, beta: float, design: Design) -> None:
        super().__init__()
        inner = int(c_out * design.ratio)
        groups = inner // design.group if design.group else 1
        self.act, self.beta = Act(design.act), beta
        self.enter = StandardisedConv(c_in, inner, 1)
        self.middle = nn.ModuleList(
            StandardisedConv(inner, inner, 3, stride if i == 0 else 1, groups) for i in range(design.middles)
        )
        self.leave = StandardisedConv(inner, c_out, 1)
        self.excite = SqueezeExcite(c_out) if design.excite else nn.Identity()
        self.gain = nn.Parameter(torch.zeros(()))
        self.stride = stride
        self.shortcut = StandardisedConv(c_in, c_out, 1) if stride > 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x) * self.beta
        skip = x
        if self.shortcut is not None:
            skip = self.shortcut(F.avg_pool2d(z, 2) if self.stride > 1 else z)
        y = self.enter(z)
        for layer in self.middle:
            y = layer(self.act(y))
        out: Tensor = self.excite(self.leave(self.act(y))) * self.gain * ALPHA + skip
        return out


@register(
    "nfnet",
    small={"group": 4, "widths": (16, 24), "repeats": (2, 1), "stem": (8, 16), "last": 0},
    published={"widths": (256, 512, 1536, 1536), "repeats": (4, 8, 24, 12), "stem": (16, 32, 64, 128)},
    small_input=(3, 16, 16),
    published_input=(3, 320, 320),
)
@register(
    "nf_resnet",
    small={"design": "nf_resnet", "widths": (16, 32), "repeats": (2, 2), "stem": (8,), "last": 0, "num_classes": 10},
    published={"design": "nf_resnet", "widths": (256, 512, 1024, 2048), "repeats": (3, 4, 6, 3), "last": 0},
    small_input=(3, 16, 16),
    published_input=(3, 224, 224),
)
class NFNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes).

    design: nfnet or nf_resnet. stem: widths of its 3x3 convolutions, of which the first and the last have stride 2
    where there are two or more; one alone has stride 1. () is one 7x7 of stride 2 and a max-pool, 64 channels wide.
    last: channels of a 1x1 convolution before the head, 0 for none. group: channels in each group of a 3x3, when not
    those of the design.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        repeats: tuple[int, ...],
        stem: tuple[int, ...] = (),
        design: str = "nfnet",
        last: int = 3072,
        group: int | None = None,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        made = DESIGNS[design] if group is None else replace(DESIGNS[design], group=group)
        self.act = Act(made.act)
        layers: list[nn.Module] = []
        c_in = 3
        for i, width in enumerate(stem):
            edge = len(stem) > 1 and i in (0, len(stem) - 1)
            layers += [*([self.act] if i else []), StandardisedConv(c_in, width, 3, 2 if edge else 1)]
            c_in = width
        if not stem:
            layers, c_in = [StandardisedConv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
        self.stem = nn.Sequential(*layers)
        blocks: list[nn.Module] = []
        std = 1.0
        for stage, (width, count) in enumerate(zip(widths, repeats, strict=True)):
            for i, beta in enumerate(betas(count, std)):
                blocks.append(Block(c_in, width, 2 if stage and i == 0 else 1, beta, made))
                c_in = width
            std = (1 + count * ALPHA**2) ** 0.5
        self.blocks = nn.Sequential(*blocks)
        self.final = StandardisedConv(c_in, last, 1) if last else nn.Identity()
        self.head = Head(last or c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.act(self.final(self.blocks(self.stem(x)))))
        return y
