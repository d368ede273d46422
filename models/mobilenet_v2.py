"""MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov, Chen 2018, arXiv 1801.04381).

    y = p(relu6(d(relu6(e(x)))))  [+ x]        e: 1x1 to t*C_in, d: depthwise 3x3 (it has the stride), p: 1x1, linear

Every convolution is followed by a batch norm; the sum is there where stride and channels allow it.
"""

from __future__ import annotations

from torch import Tensor, nn

from reparam.models.blocks import Head, conv_bn, he_normal
from reparam.models.registry import register

__all__ = ["InvertedResidual", "MobileNetV2"]

PUBLISHED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H/stride, W/stride). expand: the factor t."""

    def __init__(self, c_in: int, c_out: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = c_in * expand
        layers: list[nn.Module] = [conv_bn(c_in, wide, 1), nn.ReLU6()] if expand > 1 else []
        layers += [conv_bn(wide, wide, 3, stride, groups=wide), nn.ReLU6(), conv_bn(wide, c_out, 1)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


@register(
    "mobilenet_v2",
    small={"stages": ((1, 8, 1, 1), (4, 8, 2, 2), (4, 12, 2, 1)), "stem": 8, "last": 32, "num_classes": 10},
    published={},
    small_input=(3, 32, 32),
    published_input=(3, 224, 224),
)
class MobileNetV2(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes). stages: (t, channels, blocks, stride of the first block) of each."""

    def __init__(
        self,
        stages: tuple[tuple[int, int, int, int], ...] = PUBLISHED,
        stem: int = 32,
        last: int = 1280,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, stem, 3, 2), nn.ReLU6()]
        c_in = stem
        for expand, c_out, count, stride in stages:
            for i in range(count):
                layers.append(InvertedResidual(c_in, c_out, stride if i == 0 else 1, expand))
                c_in = c_out
        self.features = nn.Sequential(*layers, conv_bn(c_in, last, 1), nn.ReLU6())
        self.head = Head(last, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x))
        return y
