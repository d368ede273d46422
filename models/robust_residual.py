"""Residual networks without batch norm (Civitelli, Sortino, Lapucci, Bagattini, Galvan 2021, arXiv 2112.12299).

    y = c*(h(x) + f(x)),    f(x) = b(relu(a(relu(x))))

With He's initialisation E|f(x)|^2 = E|x|^2, so that every block doubles the variance when c = 1: by 2^n after n blocks.
c = sqrt(1/2) keeps it. Three ways to have it (`scale`): "fixed"; "learned", a parameter for each block that starts
there; "conv", which has a 1x1 convolution in the shortcut of every block, too.
h is the identity, or a strided 1x1 convolution where the shape changes. As published: 18 layers for images of 32 x 32.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from reparam.models.blocks import Head, conv, he_normal, spread, stack
from reparam.models.registry import register

__all__ = ["Block", "RobustResNet"]


class Block(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H/stride, W/stride). c: what the sum is multiplied by. kernel: of a and b."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        stride: int = 1,
        scale: str = "fixed",
        c: float = math.sqrt(0.5),
        kernel: int = 3,
    ) -> None:
        super().__init__()
        self.first = conv(c_in, c_out, kernel, stride, bias=True)
        self.second = conv(c_out, c_out, kernel, bias=True)
        project = scale == "conv" or stride > 1 or c_in != c_out
        self.shortcut = conv(c_in, c_out, 1, stride, bias=True) if project else nn.Identity()
        self.scale: float | nn.Parameter = nn.Parameter(torch.tensor(c)) if scale == "learned" else c
        he_normal(self)
        if isinstance(self.shortcut, nn.Conv2d):
            nn.init.normal_(self.shortcut.weight, std=math.sqrt(1 / c_in))  # it reads signed values: fan_in, not half

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(torch.relu(x))))
        out: Tensor = (self.shortcut(x) + y) * self.scale
        return out


@register(
    "robust_residual",
    small={"width": 8, "repeats": (2, 1)},
    published={},
    small_input=(3, 16, 16),
    published_input=(3, 32, 32),
)
class RobustResNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes). Raises ValueError for an unknown scale."""

    def __init__(
        self, width: int = 64, repeats: tuple[int, ...] = (2, 2, 2, 2), scale: str = "fixed", num_classes: int = 10
    ) -> None:
        super().__init__()
        if scale not in ("fixed", "learned", "conv"):
            raise ValueError(f"unknown scale '{scale}'; choose from fixed, learned, conv")
        self.stem = conv(3, width, bias=True)
        nn.init.normal_(self.stem.weight, std=math.sqrt(1 / 27))
        plan = spread(tuple(width << i for i in range(len(repeats))), repeats)
        self.blocks, c_in = stack(functools.partial(Block, scale=scale), width, plan)
        self.head = Head(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.blocks(self.stem(x))))
        return y
