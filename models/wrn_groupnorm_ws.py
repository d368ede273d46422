"""Wide ResNet with group norm and standardised weights, for differentially private training (De, Berrada, Hayes, Smith,
Balle 2022, "Unlocking high-accuracy differentially private image classification through scale", arXiv 2204.13650).

    layer(x) = conv'(group_norm_16(relu(x))),    y = x + layer_2(layer_1(x))        conv': standardised weights

Nothing depends on the batch, so that gradients can be taken and clipped for each sample. Depth 6n + 4, three stages of
n blocks with 16k, 32k and 64k channels; where the shape changes, the shortcut is a 1x1 layer of its own. As published:
WRN-40-4 (`wrn_groupnorm_ws`); WRN-16-4 is `--arch-args '{"depth": 16}'`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from reparam.models.blocks import Head, spread, stack, units
from reparam.models.registry import register
from reparam.models.standardised import StandardisedConv

__all__ = ["WideResNet"]


class Layer(nn.Module):
    """relu, group norm, convolution: (N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, c_in)
        self.conv = StandardisedConv(c_in, c_out, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.norm(torch.relu(x)))
        return y


class Block(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int, groups: int) -> None:
        super().__init__()
        self.first = Layer(c_in, c_out, 3, stride, groups)
        self.second = Layer(c_out, c_out, 3, 1, groups)
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else Layer(c_in, c_out, 1, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x)) + self.shortcut(x)
        return y


@register(
    "wrn_groupnorm_ws",
    small={"depth": 10, "base": 8, "factor": 1, "groups": 4},
    published={},
    small_input=(3, 16, 16),
    published_input=(3, 32, 32),
)
class WideResNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes). factor: k. Raises ValueError when depth is not 6n + 4."""

    def __init__(
        self, depth: int = 40, factor: int = 4, base: int = 16, groups: int = 16, num_classes: int = 10
    ) -> None:
        super().__init__()
        n = units(depth, 6, 4)
        self.stem = StandardisedConv(3, base)
        plan = spread((base * factor, 2 * base * factor, 4 * base * factor), (n, n, n))
        self.blocks, c_in = stack(functools.partial(Block, groups=groups), base, plan)
        self.norm = nn.GroupNorm(groups, c_in)
        self.head = Head(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(torch.relu(self.blocks(self.stem(x)))))
        return y
