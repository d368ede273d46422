"""Re-parameterisation blocks as their papers define them.

They are written from the papers' descriptions, with the names of none of reparam's own parts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.helpers import conv_bn


def branch(c_in: int, c_out: int, k: int | tuple[int, int], **options: Any) -> nn.Sequential:
    return conv_bn(c_in, c_out, k, bias=False, **options)


# ---- RepVGG and its relatives ------------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(F.relu(self.down(gate))))


class RepVGG(nn.Module):
    """Ding et al. 2021: relu(SE(bn(conv3x3) + bn(conv1x1) + bn(x)))."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, groups: int = 1, se: bool = False) -> None:
        super().__init__()
        self.dense = branch(c_in, c_out, 3, stride=stride, padding=1, groups=groups)
        self.one = branch(c_in, c_out, 1, stride=stride, groups=groups)
        self.identity = nn.BatchNorm2d(c_in) if c_in == c_out and stride == 1 else None
        self.se = SqueezeExcite(c_out) if se else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.identity is None else self.identity(x)
        return F.relu(self.se(self.dense(x) + self.one(x) + identity))


class RepConv(nn.Module):
    """The YOLO series' RepConv: 3x3, 1x1 and identity norms under SiLU."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(c_in) if c_in == c_out and stride == 1 else None
        self.conv1 = branch(c_in, c_out, 3, stride=stride, padding=1, groups=groups)
        self.conv2 = branch(c_in, c_out, 1, stride=stride, groups=groups)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.identity is None:
            return self.act(self.conv1(x) + self.conv2(x))
        return self.act(self.conv1(x) + self.conv2(x) + self.identity(x))


class QARepVGG(nn.Module):
    """Chu et al. 2022: bn(bn(conv3x3(x)) + conv1x1(x) + x), with one norm kept after the sum."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense = branch(c_in, c_out, 3, stride=stride, padding=1, groups=groups)
        self.one = nn.Conv2d(c_in, c_out, 1, stride=stride, groups=groups, bias=False)
        self.skip = c_in == c_out and stride == 1
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.one(x)
        return F.relu(self.bn(y + x if self.skip else y))


class MobileOne(nn.Module):
    """Vasu et al. 2022: n copies of a k x k branch, a 1x1 scale branch and an identity norm."""

    def __init__(self, c_in: int, c_out: int, k: int = 3, stride: int = 1, groups: int = 1, copies: int = 4) -> None:
        super().__init__()
        options: dict[str, Any] = {"stride": stride, "groups": groups}
        self.skip = nn.BatchNorm2d(c_in) if c_in == c_out and stride == 1 else None
        self.convs = nn.ModuleList(branch(c_in, c_out, k, padding=k // 2, **options) for _ in range(copies))
        self.scale = branch(c_in, c_out, 1, **options) if k > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = 0 if self.scale is None else self.scale(x)
        out = out + (0 if self.skip is None else self.skip(x))
        for conv in self.convs:
            out = out + conv(x)
        return F.relu(out)


# ---- asymmetric, dilated and large kernels -----------------------------------------------------------------------


class ACNet(nn.Module):
    """Ding et al. 2019: bn(conv k x k) + bn(conv k x 1) + bn(conv 1 x k)."""

    def __init__(self, c_in: int, c_out: int, k: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        p = k // 2
        options: dict[str, Any] = {"stride": stride, "groups": groups}
        self.square = branch(c_in, c_out, k, padding=p, **options)
        self.tall = branch(c_in, c_out, (k, 1), padding=(p, 0), **options)
        self.wide = branch(c_in, c_out, (1, k), padding=(0, p), **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.square(x) + self.tall(x) + self.wide(x)


class DilatedReparam(nn.Module):
    """Ding et al. 2024 (UniRepLKNet): a large depthwise kernel and parallel small dilated ones inside it."""

    def __init__(self, channels: int, k: int = 9, stride: int = 1) -> None:
        super().__init__()
        dilated = {9: [(5, 1), (5, 2), (3, 3), (3, 4)], 7: [(5, 1), (3, 2), (3, 3)]}[k]
        options: dict[str, Any] = {"groups": channels, "stride": stride}
        self.large = branch(channels, channels, k, padding=k // 2, **options)
        self.small = nn.ModuleList(
            branch(channels, channels, s, padding=d * (s - 1) // 2, dilation=d, **options) for s, d in dilated
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.large(x)
        for small in self.small:
            out = out + small(x)
        return out


class LargeKernel(nn.Module):
    """Ding et al. 2022 (RepLKNet): a large depthwise kernel beside a small one."""

    def __init__(self, channels: int, k: int = 13, small: int = 5, stride: int = 1) -> None:
        super().__init__()
        self.large = branch(channels, channels, k, padding=k // 2, groups=channels, stride=stride)
        self.small = branch(channels, channels, small, padding=small // 2, groups=channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.large(x) + self.small(x))


# ---- blocks whose skip is not a plain norm -----------------------------------------------------------------------


class RepMixer(nn.Module):
    """Vasu et al. 2023 (FastViT): x + gamma * (mixer(x) - norm(x)), both MobileOne blocks without activation."""

    def __init__(self, channels: int, k: int = 3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.skip = nn.BatchNorm2d(channels)
        self.conv = branch(channels, channels, k, padding=k // 2, groups=channels)
        self.scale = branch(channels, channels, 1, groups=channels)
        self.gamma = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.conv(x) + self.scale(x) + self.skip(x)
        return x + self.gamma * (mixed - self.norm(x))


class RepViTMixer(nn.Module):
    """Wang et al. 2023: bn(bn(dw3x3(x)) + dw1x1(x) + x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = branch(channels, channels, 3, padding=1, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn((self.conv(x) + self.conv1(x)) + x)


class RepGhost(nn.Module):
    """Chen et al. 2022: relu(bn(dw3x3(x)) + bn(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cheap = branch(channels, channels, 3, padding=1, groups=channels)
        self.fusion = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.cheap(x) + self.fusion(x))


class ResidualDepthwise(nn.Module):
    """RepViT and EfficientViT: x + bn(dw(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = branch(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


# ---- diverse branch block ----------------------------------------------------------------------------------------


class NormAndPad(nn.Module):
    """A norm, then a border that holds what the norm makes of zero, so that a following k x k sees no other value.

    The border is written with slice assignments, as published models do.
    """

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        if self.pad == 0:
            return y
        assert self.bn.running_mean is not None and self.bn.running_var is not None
        value = self.bn.bias.detach() - self.bn.running_mean * self.bn.weight.detach() / torch.sqrt(
            self.bn.running_var + self.bn.eps
        )
        y = F.pad(y, [self.pad] * 4)
        value = value.view(1, -1, 1, 1)
        y[:, :, 0 : self.pad, :] = value
        y[:, :, -self.pad :, :] = value
        y[:, :, :, 0 : self.pad] = value
        y[:, :, :, -self.pad :] = value
        return y


class IdentityBased1x1(nn.Module):
    """A pointwise convolution whose kernel is stored as its difference from the identity."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.register_buffer("eye", torch.eye(channels // groups).repeat(groups, 1)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight + self.eye, None, groups=self.conv.groups)


def branch_1x1_kxk(c_in: int, c_out: int, k: int, stride: int, groups: int, inner: int | None) -> nn.Module:
    first: nn.Module = (
        IdentityBased1x1(c_in, groups) if inner is None else nn.Conv2d(c_in, inner, 1, groups=groups, bias=False)
    )
    width = c_in if inner is None else inner
    return nn.Sequential(
        first, NormAndPad(width, k // 2), branch(width, c_out, k, stride=stride, padding=0, groups=groups)
    )


def branch_1x1_avg(c_in: int, c_out: int, k: int, stride: int, groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 1, groups=groups, bias=False),
        NormAndPad(c_out, k // 2),
        nn.AvgPool2d(k, stride, 0),
        nn.BatchNorm2d(c_out),
    )


class DiverseBranch(nn.Module):
    """Ding et al. 2021: k x k, 1x1, 1x1-kxk and 1x1-avg branches (avg alone where depthwise), each with its norms."""

    def __init__(
        self, c_in: int, c_out: int, k: int = 3, stride: int = 1, groups: int = 1, inner: int | None = None
    ) -> None:
        super().__init__()
        p = k // 2
        self.origin = branch(c_in, c_out, k, stride=stride, padding=p, groups=groups)
        branches: list[nn.Module] = [branch_1x1_kxk(c_in, c_out, k, stride, groups, inner)]
        if groups < c_out:
            branches += [branch(c_in, c_out, 1, stride=stride, groups=groups)]
            branches += [branch_1x1_avg(c_in, c_out, k, stride, groups)]
        else:
            branches += [nn.Sequential(nn.AvgPool2d(k, stride, p), nn.BatchNorm2d(c_out))]
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        y = self.origin(x)
        for other in self.branches:
            y = y + other(x)
        return F.relu(y)


class PaddedPointwise(nn.Module):
    """A 1x1 that is itself padded, so that its border is its own bias: 1x1 (padding p), then k x k without."""

    def __init__(self, c_in: int, inner: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(c_in, inner, 1, padding=1)
        self.second = branch(inner, c_out, 3, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))
