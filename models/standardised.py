"""Convolutions with standardised weights (Qiao et al. 2019, arXiv 1903.10520; Brock, De, Smith 2021, arXiv 2101.08692).

    W' = g*(W - mean)*rsqrt(max(var*fan_in, 1e-4))

Mean and variance are over the fan-in of each output channel, so that a row has norm g.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["StandardisedConv"]


class StandardisedConv(nn.Conv2d):
    """(N, c_in, H, W) -> (N, c_out, H/stride, W/stride), size kept but for the stride. gain: one for each channel."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__(c_in, c_out, kernel, stride, kernel // 2, groups=groups)
        self.gain = nn.Parameter(torch.ones(c_out, 1, 1, 1))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def standardised(self) -> Tensor:
        """W', (c_out, c_in/groups, kernel, kernel)."""
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        fan_in = self.weight[0].numel()
        return (self.weight - mean) * torch.rsqrt((var * fan_in).clamp(min=1e-4)) * self.gain

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standardised(), self.bias, self.stride, self.padding, self.dilation, self.groups)
