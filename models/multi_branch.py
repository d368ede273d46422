"""Networks that are trained with several branches for each layer of the network that is deployed.

    RepVGG      relu(k3(x) + k1(x) + bn(x))               (Ding, Zhang, Ma, Han, Ding, Sun 2021, arXiv 2101.03697)
    ACNet       relu(k3(x) + k3x1(x) + k1x3(x))           (Ding, Guo, Ding, Han 2019, arXiv 1908.03930)
    DBB         relu(k3(x) + k1(x) + k3(k1'(x)) + avg(k1(x)))     (Ding, Zhang, Han, Ding 2021, arXiv 2103.13425)
    MobileOne   relu(sum_i k3_i(x) + k1(x) + bn(x)), depthwise; then relu(sum_i k1_i(x) + bn(x))
                                                          (Vasu, Gabriel, Zhu, Tuzel, Ranjan 2023, arXiv 2206.04040)

Each k is a convolution with a batch norm, and bn a batch norm alone, where stride and channels allow it. The branch
k3(k1') of a DBB pads the result of its first batch norm with what that norm makes of zero, so that its composition is
exact on the border. avg is a 3x3 average pool over the same padded value. As published: RepVGG-A0, a VGG-16 for
CIFAR-10 of ACNet's and of DBB's blocks, MobileOne-S0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.models.blocks import Branches, Head, conv, conv_bn, he_normal, stack
from reparam.models.registry import register

__all__ = ["MultiBranchNet", "PadWithBorder", "acb", "dbb", "mobileone_block", "repvgg_block"]

Block = Callable[[int, int, int], nn.Module]


class PadWithBorder(nn.Module):
    """A batch norm, and a ring around it of what it makes of zero: (N, C, H, W) -> (N, C, H + 2, W + 2).

    While it trains, that value comes from the running statistics.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.bn.running_mean, self.bn.running_var
        assert mean is not None and var is not None
        border = (self.bn.bias - mean * self.bn.weight / torch.sqrt(var + self.bn.eps)).reshape(-1, 1, 1)
        return F.pad(self.bn(x) - border, (1, 1, 1, 1)) + border


def repvgg_block(c_in: int, c_out: int, stride: int) -> nn.Module:
    """3x3, 1x1 and the identity: (N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""
    same = stride == 1 and c_in == c_out
    branches = [conv_bn(c_in, c_out, 3, stride), conv_bn(c_in, c_out, 1, stride)]
    return nn.Sequential(Branches(*branches, *([nn.BatchNorm2d(c_in)] if same else [])), nn.ReLU())


def acb(c_in: int, c_out: int, stride: int) -> nn.Module:
    """3x3, 3x1 and 1x3 (an asymmetric convolution block): (N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""

    def line(kernel: tuple[int, int]) -> nn.Module:
        padding = (kernel[0] // 2, kernel[1] // 2)
        return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False), nn.BatchNorm2d(c_out))

    return nn.Sequential(Branches(conv_bn(c_in, c_out, 3, stride), line((3, 1)), line((1, 3))), nn.ReLU())


def dbb(c_in: int, c_out: int, stride: int) -> nn.Module:
    """A diverse branch block: (N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""
    sequence = nn.Sequential(
        conv(c_in, c_in, 1),
        PadWithBorder(c_in),
        nn.Conv2d(c_in, c_out, 3, stride, bias=False),
        nn.BatchNorm2d(c_out),
    )
    pooled = nn.Sequential(conv(c_in, c_out, 1), PadWithBorder(c_out), nn.AvgPool2d(3, stride), nn.BatchNorm2d(c_out))
    return nn.Sequential(
        Branches(conv_bn(c_in, c_out, 3, stride), conv_bn(c_in, c_out, 1, stride), sequence, pooled), nn.ReLU()
    )


def mobileone_block(c_in: int, c_out: int, stride: int, copies: int = 4) -> nn.Module:
    """A depthwise layer of `copies` + 2 branches, then a pointwise one: (N, c_in, H, W) -> (N, c_out, H/s, W/s)."""
    depthwise = [conv_bn(c_in, c_in, 3, stride, c_in) for _ in range(copies)]
    depthwise.append(conv_bn(c_in, c_in, 1, stride, c_in))
    pointwise = [conv_bn(c_in, c_out, 1) for _ in range(copies)]
    return nn.Sequential(
        Branches(*depthwise, *([nn.BatchNorm2d(c_in)] if stride == 1 else [])),
        nn.ReLU(),
        Branches(*pointwise, *([nn.BatchNorm2d(c_in)] if c_in == c_out else [])),
        nn.ReLU(),
    )


def mobileone_stem(c_in: int, c_out: int, stride: int, copies: int = 4) -> nn.Module:
    """MobileOne's first layer, not depthwise: (N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""
    branches = [conv_bn(c_in, c_out, 3, stride) for _ in range(copies)]
    return nn.Sequential(Branches(*branches, conv_bn(c_in, c_out, 1, stride)), nn.ReLU())


class MultiBranchNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes): a stem and stages of one kind of block.

    stages: (channels, blocks, stride of the first block) of each.
    """

    def __init__(
        self, stem: nn.Module, c_in: int, block: Block, stages: Sequence[tuple[int, int, int]], num_classes: int
    ) -> None:
        super().__init__()
        plan = [(c_out, stride if i == 0 else 1) for c_out, count, stride in stages for i in range(count)]
        self.stem = stem
        self.blocks, c_in = stack(block, c_in, plan)
        self.head = Head(c_in, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)))
        return y


Stages = Sequence[tuple[int, int, int]]
SMALL = {"stem": 8, "stages": ((8, 2, 1), (12, 1, 2)), "num_classes": 10}
VGG16 = {"stem": 64, "stages": ((64, 1, 1), (128, 2, 2), (256, 3, 2), (512, 3, 2), (512, 3, 2)), "num_classes": 10}


@register(
    "repvgg",
    small=SMALL,
    published={"stem": 48, "stages": ((48, 2, 2), (96, 4, 2), (192, 14, 2), (1280, 1, 2)), "stride": 2},
    small_input=(3, 16, 16),
    published_input=(3, 224, 224),
)
def repvgg(stem: int, stages: Stages, stride: int = 1, num_classes: int = 1000) -> MultiBranchNet:
    """RepVGG; stem: its channels, stride: its stride."""
    return MultiBranchNet(repvgg_block(3, stem, stride), stem, repvgg_block, stages, num_classes)


@register("acnet", small=SMALL, published=VGG16, small_input=(3, 16, 16), published_input=(3, 32, 32))
def acnet(stem: int, stages: Stages, num_classes: int = 10) -> MultiBranchNet:
    """A plain network of asymmetric convolution blocks."""
    return MultiBranchNet(acb(3, stem, 1), stem, acb, stages, num_classes)


@register("dbbnet", small=SMALL, published=VGG16, small_input=(3, 16, 16), published_input=(3, 32, 32))
def dbbnet(stem: int, stages: Stages, num_classes: int = 10) -> MultiBranchNet:
    """A plain network of diverse branch blocks."""
    return MultiBranchNet(dbb(3, stem, 1), stem, dbb, stages, num_classes)


@register(
    "mobileone",
    small={**SMALL, "copies": 2},
    published={"stem": 48, "stages": ((48, 2, 2), (128, 8, 2), (256, 10, 2), (1024, 1, 2)), "stride": 2},
    small_input=(3, 16, 16),
    published_input=(3, 224, 224),
)
def mobileone(stem: int, stages: Stages, stride: int = 1, copies: int = 4, num_classes: int = 1000) -> MultiBranchNet:
    """MobileOne; copies: how many times each layer is over-parameterised."""

    def block(c_in: int, c_out: int, s: int) -> nn.Module:
        return mobileone_block(c_in, c_out, s, copies)

    return MultiBranchNet(mobileone_stem(3, stem, stride, copies), stem, block, stages, num_classes)
