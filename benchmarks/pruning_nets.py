"""Small networks for digits at 16x16 whose channels are tied in different ways; run it to see their sizes."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o))


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = conv_bn(i, o, 3, stride), conv_bn(o, o)
        self.short = conv_bn(i, o, 1, stride) if stride > 1 or i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(F.relu(self.one(x))) + self.short(x))


class ResNet(nn.Module):
    """Stages of basic blocks, each twice as wide as the one before and half as high (He et al., 2016)."""

    def __init__(self, stages: int, depth: int, width: int = 16) -> None:
        super().__init__()
        self.stem, channels, blocks = conv_bn(1, width), width, list[nn.Module]()
        for stage in range(stages):
            for block in range(depth):
                halves = stage > 0 and block == 0
                blocks.append(BasicBlock(channels, width << stage, 2 if halves else 1))
                channels = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def resnet20() -> ResNet:
    """10.13 M multiply-accumulates."""
    return ResNet(stages=3, depth=3)


def resnet18() -> ResNet:
    """As ResNet-18, a quarter as wide and without the pooling behind its first convolution."""
    return ResNet(stages=4, depth=2)


class Inverted(nn.Module):
    def __init__(self, i: int, o: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        h = i * expansion
        self.expand, self.depth = conv_bn(i, h, 1), conv_bn(h, h, 3, stride, groups=h)
        self.project, self.adds = conv_bn(h, o, 1), stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(F.relu6(self.depth(F.relu6(self.expand(x)))))
        return x + y if self.adds else y


class Mobile(nn.Module):
    """Inverted bottlenecks as in MobileNetV2 (Sandler et al., 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 16)
        plan = [(16, 16, 1), (16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1)]
        self.blocks = nn.Sequential(*(Inverted(*p) for p in plan))
        self.last, self.head = conv_bn(40, 128, 1), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu6(self.last(self.blocks(F.relu6(self.stem(x))))).mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, i: int, growth: int) -> None:
        super().__init__()
        self.norm, self.inner = nn.BatchNorm2d(i), nn.Conv2d(i, 4 * growth, 1, bias=False)
        self.second, self.conv = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.second(self.inner(F.relu(self.norm(x))))))], 1)


class Dense(nn.Module):
    """Three dense blocks with transitions, as in DenseNet-BC (Huang et al., 2017)."""

    def __init__(self, growth: int = 12, depth: int = 4) -> None:
        super().__init__()
        width, layers = 24, [nn.Conv2d(1, 24, 3, padding=1, bias=False)]
        body: list[nn.Module] = list(layers)
        for stage in range(3):
            for _ in range(depth):
                body.append(DenseLayer(width, growth))
                width += growth
            if stage < 2:
                body += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
                width //= 2
        self.body, self.norm, self.head = nn.Sequential(*body), nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.body(x))).mean((2, 3)))


class RepBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.three, self.one = conv_bn(i, o, 3, stride), conv_bn(i, o, 1, stride)
        self.skip = nn.BatchNorm2d(i) if stride == 1 and i == o else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.three(x) + self.one(x)
        return F.relu(y if self.skip is None else y + self.skip(x))


class RepVGG(nn.Module):
    """Blocks of three branches that become one convolution (Ding et al., 2021)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        plan = [(1, width, 1), *[(width, width, 1)] * 3, (width, 2 * width, 2), *[(2 * width, 2 * width, 1)] * 3]
        plan += [(2 * width, 4 * width, 2), *[(4 * width, 4 * width, 1)] * 3]
        self.blocks = nn.Sequential(*(RepBlock(*p) for p in plan))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": resnet20,
    "resnet18": resnet18,
    "mobile": Mobile,
    "dense": Dense,
    "repvgg": RepVGG,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    for name, make in NETS.items():
        print(f"{name}: {sum(p.numel() for p in make().parameters()):,} parameters")


if __name__ == "__main__":
    main()
