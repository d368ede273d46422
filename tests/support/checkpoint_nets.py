"""A small network for checkpoints of every layout, and its weights with statistics of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SPEC = f"{__name__}:Small"


class Small(nn.Module):
    """A convolution, a batch norm and a classifier."""

    input_shapes = ((3, 8, 8),)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        logits: Tensor = self.fc(features)
        return logits


class LazySmall(nn.Module):
    """The same with layers that take their widths from what they first see."""

    input_shapes = ((3, 8, 8),)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(4, 3, bias=False)
        self.norm = nn.LazyBatchNorm2d()
        self.fc = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return logits


def small_state(seed: int = 1) -> dict[str, Tensor]:
    """The state of a `Small` with random statistics."""
    torch.manual_seed(seed)
    net = Small()
    net.norm.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
    net.norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return dict(net.state_dict())
