"""Networks that initial weights are tried on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Features (N, width) through residual blocks x + f(x), f = second(relu(first(x))); outer: of relu(x)."""

    def __init__(self, width: int = 40, depth: int = 6, inputs: int = 16, outer: bool = False) -> None:
        super().__init__()
        self.stem, self.head, self.outer = nn.Linear(inputs, width), nn.Linear(width, 4), outer
        self.first, self.second = (nn.ModuleList(nn.Linear(width, width) for _ in range(depth)) for _ in range(2))

    def stream(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(torch.relu(first(torch.relu(x) if self.outer else x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.stream(self.stem(x)))
        return y


def plain(depth: int, width: int, act: type[nn.Module], **more: Any) -> nn.Sequential:
    """Features through `depth` layers."""
    layers = [part for _ in range(depth - 1) for part in (nn.Linear(width, width), act(**more))]
    return nn.Sequential(*layers, nn.Linear(width, width))


def second_moment(x: Tensor) -> float:
    return float(x.detach().square().mean())
