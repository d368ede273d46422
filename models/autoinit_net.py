"""Networks whose weights are scaled by the moments of what they read (Bingham and Miikkulainen 2021, "AutoInit:
analytic signal-preserving weight initialization for neural networks", arXiv 2109.08958).

    Var(W) = 1/(fan_in*(v + m^2)),    so that the output has mean 0 and variance 1 when the input has mean m, variance v
    activation f behind such a layer:  m = E[f(X)], v = Var[f(X)], X ~ N(0, 1);    dropout:  v/(1 - p)

For an activation alone, 1/(v + m^2) = 1/E[f(X)^2]: 2 for ReLU, which is He's initialisation. Weights are drawn from a
normal distribution cut off at two standard deviations, and kept as g*W, W of variance 1/fan_in: g = 1/sqrt(v + m^2) is
learned with them. The network is the all-convolutional one of the paper's experiments, without pools and norms. As
published: ten layers, for images of 32 x 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.models.blocks import gaussian_mean
from reparam.models.registry import register

__all__ = ["FUNCTIONS", "AutoInitNet", "Gained", "moments"]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "elu": F.elu,
    "mish": F.mish,
}
CUT = 0.87962566103423978  # standard deviation of a normal variable that is cut off at two of its own


def moments(function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Mean and variance of function(X), X ~ N(0, 1)."""
    mean = gaussian_mean(function)
    return mean, gaussian_mean(lambda x: function(x).square()) - mean**2


class Gained(nn.Conv2d):
    """g*(W x) + b, for an input of given moments: (N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, mean: float, variance: float) -> None:
        super().__init__(c_in, c_out, kernel, stride, kernel // 2)
        std = 1 / math.sqrt(c_in * kernel * kernel) / CUT
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        self.gain = nn.Parameter(torch.tensor(1 / math.sqrt(variance + mean**2)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.gain * self.weight, self.bias, self.stride, self.padding)


@register(
    "autoinit_net",
    small={"layers": ((8, 3, 1), (8, 3, 2), (12, 3, 1)), "dropout": (0.2, 0.5)},
    published={},
    small_input=(3, 16, 16),
    published_input=(3, 32, 32),
)
class AutoInitNet(nn.Module):
    """images (N, 3, H, W), normalised, -> (N, num_classes).

    layers: (channels, kernel, stride). dropout: of the input, and behind every layer with a stride. Raises ValueError
    for an unknown activation.
    """

    def __init__(
        self,
        layers: tuple[tuple[int, int, int], ...] = (
            *((96, 3, 1), (96, 3, 1), (96, 3, 2)),
            *((192, 3, 1), (192, 3, 1), (192, 3, 2)),
            *((192, 3, 1), (192, 1, 1)),
        ),
        function: str = "relu",
        dropout: tuple[float, float] = (0.2, 0.5),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if function not in FUNCTIONS:
            raise ValueError(f"unknown activation '{function}'; choose from {', '.join(FUNCTIONS)}")
        self.function = FUNCTIONS[function]
        after = moments(self.function)
        mean, variance = 0.0, 1 / (1 - dropout[0])
        self.input_dropout = nn.Dropout(dropout[0])
        convs: list[nn.Module] = []
        drops: list[nn.Module] = []
        c_in = 3
        for channels, kernel, stride in layers:
            convs.append(Gained(c_in, channels, kernel, stride, mean, variance))
            rate = dropout[1] if stride > 1 else 0.0
            drops.append(nn.Dropout(rate))
            mean, variance = after[0], after[1] / (1 - rate)
            c_in = channels
        self.convs, self.drops = nn.ModuleList(convs), nn.ModuleList(drops)
        self.last = Gained(c_in, num_classes, 1, 1, mean, variance)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_dropout(x)
        for conv, drop in zip(self.convs, self.drops, strict=True):
            x = drop(self.function(conv(x)))
        y: Tensor = self.last(x).mean((2, 3))
        return y
