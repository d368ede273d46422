"""RevNet: reversible residual networks (Gomez, Ren, Urtasun, Grosse 2017, arXiv 1707.04585).

    y1 = x1 + F(x2),    y2 = x2 + G(y1)        and back:    x2 = y2 - G(y1),    x1 = y1 - F(y2 - G(y1))

x1 and x2 are the two halves of the channels. F and G: batch norm, relu, 3x3 convolution, twice. In the first block of a
stage that halves the resolution, F has the stride, and both halves are added through an average pool and channels of
zeros; such a block has no inverse. As published: RevNet-110 for images of 32 x 32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reparam.models.blocks import Head, PooledShortcut, conv, he_normal, spread, stack
from reparam.models.registry import register

__all__ = ["Block", "RevNet", "residual_function"]


def residual_function(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """F or G: (N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""
    return nn.Sequential(
        nn.BatchNorm2d(c_in),
        nn.ReLU(),
        conv(c_in, c_out, 3, stride),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
        conv(c_out, c_out),
    )


class Block(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H/stride, W/stride); both widths are even."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.f = residual_function(c_in // 2, c_out // 2, stride)
        self.g = residual_function(c_out // 2, c_out // 2)
        self.first, self.second = (PooledShortcut(c_in // 2, c_out // 2, stride) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, 1)
        y1 = self.first(x1) + self.f(x2)
        y2 = self.second(x2) + self.g(y1)
        return torch.cat((y1, y2), 1)

    def inverse(self, y: Tensor) -> Tensor:
        """The input of a block that keeps the shape, from its result."""
        y1, y2 = y.chunk(2, 1)
        x2 = y2 - self.g(y1)
        return torch.cat((y1 - self.f(x2), x2), 1)


@register(
    "revnet",
    small={"units": 1, "widths": (8, 12)},
    published={},
    small_input=(3, 16, 16),
    published_input=(3, 32, 32),
)
class RevNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes). units: blocks in each stage. widths: of both halves together."""

    def __init__(
        self, units: int = 9, widths: tuple[int, ...] = (32, 64, 128), stem: int | None = None, num_classes: int = 10
    ) -> None:
        super().__init__()
        self.stem = conv(3, stem or widths[0])
        self.blocks, c_in = stack(Block, stem or widths[0], spread(widths, (units,) * len(widths)))
        self.bn = nn.BatchNorm2d(c_in)
        self.head = Head(c_in, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.bn(self.blocks(self.stem(x)))))
        return y
