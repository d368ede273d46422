"""ZerO: networks that start from zeros and ones alone (Zhao, Schaefer, Anandkumar 2021, arXiv 2110.12661).

    W (m x n), m <= n:    the partial identity
    m > n:                I(m, p) * H_p/2^(log2(p)/2) * I(p, n),    p = 2^ceil(log2 m),    H_p the Hadamard matrix
    convolution:          that matrix at the centre of the kernel, zeros elsewhere
    last convolution of a residual branch, and the classifier behind them:    zeros

Without the Hadamard matrix, a layer that widens n to m would leave m - n neurons at zero, where a ReLU has no slope, so
that they stay there, and what training adds to a later square layer would have rank n at most.

Two networks: a post-activation ResNet-18 with batch norm, as in the paper, and a multi-layer perceptron of the paper's
analysis, 64-64-256-256-10, which has no branches and no layer of zeros. Its classifier, a partial identity, reads only
the first ten of its neurons at first; that tells neurons apart that the Hadamard matrix makes equal, since the first n
columns of H_p repeat every 2^ceil(log2 n) rows.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from reparam.models.registry import register
from reparam.models.resnet import Basic, ResNet

__all__ = ["ZeroMLP", "hadamard", "partial_identity", "zero_matrix", "zero_net"]


def hadamard(p: int) -> Tensor:
    """Sylvester's Hadamard matrix (p, p), entries +-1; p is a power of two."""
    h = torch.ones(1, 1)
    while len(h) < p:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return h


def partial_identity(m: int, n: int) -> Tensor:
    """(m, n): ones where row and column are equal."""
    return torch.eye(m, n)


def zero_matrix(m: int, n: int) -> Tensor:
    """The initial weight (m, n) of a layer from n to m."""
    if m <= n:
        return partial_identity(m, n)
    p = 1 << (m - 1).bit_length()
    return partial_identity(m, p) @ (hadamard(p) / math.sqrt(p)) @ partial_identity(p, n)


def _fill(weight: Tensor, matrix: Tensor) -> None:
    """weight: (m, n) or (m, n, k, k), of which the centre is filled."""
    with torch.no_grad():
        weight.zero_()
        (weight if weight.dim() == 2 else weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]).copy_(matrix)


def zero_net_(model: nn.Module) -> None:
    """Fills every convolution and linear layer as the paper prescribes, the last of each `Basic` block with zeros."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            _fill(layer.weight, zero_matrix(*layer.weight.shape[:2]))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in model.modules():
        if isinstance(block, Basic):
            nn.init.zeros_(block.conv2.weight)


@register(
    "zero_net",
    small={"layers": (1, 1), "width": 8, "num_classes": 10},
    published={"layers": (2, 2, 2, 2), "num_classes": 10},
    small_input=(3, 16, 16),
    published_input=(3, 32, 32),
)
def zero_net(layers: tuple[int, ...], width: int = 64, num_classes: int = 10) -> ResNet:
    """A ResNet of basic blocks for images of 32 x 32, initialised by ZerO."""
    model = ResNet("basic", layers, width, num_classes, stem="small")
    zero_net_(model)
    nn.init.zeros_(model.fc.weight)
    return model


@register(
    "zero_mlp",
    small={"widths": (16, 16, 32, 32, 10)},
    published={},
    small_input=(16,),
    published_input=(64,),
)
class ZeroMLP(nn.Module):
    """features (N, widths[0]) -> (N, widths[-1]), ReLU between layers.

    hadamard: False leaves partial identities everywhere, which the paper compares with.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 64, 256, 256, 10), hadamard: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in itertools.pairwise(widths))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            m, n = layer.weight.shape
            _fill(layer.weight, zero_matrix(m, n) if hadamard else partial_identity(m, n))
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.relu(layer(x))
        y: Tensor = last(x)
        return y
