"""ResNet, post-activation (He, Zhang, Ren, Sun 2016, "Deep residual learning for image recognition", arXiv 1512.03385).

    basic:       y = relu(b(relu(a(x))) + s(x))                 a, b: 3x3
    bottleneck:  y = relu(c(relu(b(relu(a(x))))) + s(x))        a: 1x1, b: 3x3 (it has the stride), c: 1x1 to 4 widths

Every convolution is followed by a batch norm. s is the identity, or a strided 1x1 convolution with a batch norm where
the shape changes. Keys are torchvision's. As published: ResNet-50.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reparam.models.blocks import conv
from reparam.models.registry import register

__all__ = ["Basic", "Bottleneck", "ResNet"]


class Basic(nn.Module):
    """The basic block: (N, c_in, H, W) -> (N, width, H/stride, W/stride). act: makes its activations."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(c_in, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width), nn.BatchNorm2d(width)
        self.relu = act()
        self.downsample = _projection(c_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return out


class Bottleneck(nn.Module):
    """The bottleneck block: (N, c_in, H, W) -> (N, 4*width, H/stride, W/stride)."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1, self.bn1 = conv(c_in, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, out, 1), nn.BatchNorm2d(out)
        self.relu = act()
        self.downsample = _projection(c_in, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return out


def _projection(c_in: int, c_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and c_in == c_out:
        return None
    return nn.Sequential(conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))


@register(
    "resnet",
    small={"block": "basic", "layers": (1, 2, 1), "width": 8, "num_classes": 10, "stem": "small"},
    published={},
    small_input=(3, 32, 32),
    published_input=(3, 224, 224),
)
class ResNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes).

    block: basic or bottleneck. layers: blocks in each stage; the width doubles from stage to stage. stem: "large" is a
    7x7 convolution of stride 2 and a max-pool, "small" a 3x3 one, for images of 32 x 32. act: makes the activations.
    """

    def __init__(
        self,
        block: str = "bottleneck",
        layers: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        num_classes: int = 1000,
        stem: str = "large",
        act: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        kinds: dict[str, type[Basic] | type[Bottleneck]] = {"basic": Basic, "bottleneck": Bottleneck}
        kind = kinds[block]
        large = stem == "large"
        self.conv1 = conv(3, width, 7, 2) if large else conv(3, width)
        self.bn1, self.relu = nn.BatchNorm2d(width), act()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        c_in = width
        self.stages = len(layers)
        for stage, count in enumerate(layers):
            blocks: list[nn.Module] = []
            for i in range(count):
                blocks.append(kind(c_in, width << stage, 2 if stage and i == 0 else 1, act))
                c_in = (width << stage) * kind.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        y: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return y
