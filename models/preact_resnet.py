"""Pre-activation ResNet (He, Zhang, Ren, Sun 2016, "Identity mappings in deep residual networks", arXiv 1603.05027).

    z = relu(bn(x)),    y = s + c(relu(bn(b(relu(bn(a(z)))))))        a: 1x1, b: 3x3, c: 1x1 to 4 widths

s = x, or, where the shape changes, a strided 1x1 convolution of z: it shares the first batch norm and ReLU. Depth
9n + 2 for three stages of n blocks with 64, 128 and 256 channels behind a stem of 16. As published: 1001 layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reparam.models.blocks import Head, conv, he_normal, spread, stack, units
from reparam.models.registry import register

__all__ = ["Block", "PreActResNet"]


class Block(nn.Module):
    """(N, c_in, H, W) -> (N, 4*width, H/stride, W/stride)."""

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), conv(c_in, width, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3, stride)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), conv(width, out, 1)
        self.shortcut = conv(c_in, out, 1, stride) if stride > 1 or c_in != out else None

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.bn1(x))
        y: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(z))))
        y = self.conv3(torch.relu(self.bn3(y)))
        skip: Tensor = x if self.shortcut is None else self.shortcut(z)
        return y + skip


@register(
    "preact_resnet",
    small={"depth": 20, "width": 4},
    published={"depth": 1001},
    small_input=(3, 16, 16),
    published_input=(3, 32, 32),
)
class PreActResNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes). Raises ValueError when depth is not 9n + 2."""

    def __init__(self, depth: int = 1001, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        n = units(depth, 9, 2)
        self.stem = conv(3, width)
        self.blocks, c_in = stack(Block, width, spread((width, 2 * width, 4 * width), (n, n, n)), growth=4)
        self.bn = nn.BatchNorm2d(c_in)
        self.head = Head(c_in, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.bn(self.blocks(self.stem(x)))))
        return y
