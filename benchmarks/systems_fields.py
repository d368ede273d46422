"""The effective receptive field (Luo et al. 2016; docs/systems.md), measured as in systems.py.

Theory for n layers of kernel k: the gradient of an output has the deviation sqrt(n(k^2 - 1)/12). Conversion leaves it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import subject
from systems import Figure, print_table
from torch import Tensor

from reparam.conversion import convert


def gradient_map(layers: int) -> Tensor:
    """|dy/dx| of the centre of `layers` convolutions of 3 x 3, all weights 1/9: (2*layers + 1, the same).

    It is also the mean of the squared gradient over random weights of one variance and many channels, as a share.
    """
    x = torch.zeros(1, 1, 2 * layers + 1, 2 * layers + 1, dtype=torch.float64, requires_grad=True)
    y = x
    for _ in range(layers):
        y = F.conv2d(y, torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64))
    (seen,) = torch.autograd.grad(y.sum(), x)
    return seen[0, 0]


def deviation_of_map(layers: int) -> float:
    """Of the place along one axis, in pixels."""
    share = gradient_map(layers).sum(0)
    place = torch.arange(-layers, layers + 1, dtype=torch.float64)
    return float(((share * place.square()).sum() / share.sum()).sqrt())


def effective_field(layers: int) -> float:
    """The root of the number of pixels above 1 - 0.9545 of the centre, over the receptive field's 2*layers + 1."""
    seen = gradient_map(layers)
    return math.sqrt(int((seen > (1 - 0.9545) * seen.max()).sum())) / len(seen)


def change_of_map(to: str) -> float:
    """The largest difference of d(first output)/dx by conversion, over the largest gradient."""
    made = subject("reparam/resnet_small")
    torch.manual_seed(0)
    module, x = made.module.double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def gradient(network: Callable[..., Tensor]) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(network(leaf)[:, 0].sum(), leaf)[0]

    before, after = gradient(module), gradient(convert(module, x, to=to).module)
    return float((before - after).abs().max() / before.abs().max())


FIGURES = (
    *(
        Figure(4, f"σ of the gradient, {n} layers", math.sqrt(n * 8 / 12), 1e-9, lambda n=n: deviation_of_map(n))
        for n in (5, 10, 20, 40)
    ),
    *(
        Figure(4, f"√area/RF, {n} layers", value, 2e-3, lambda n=n: effective_field(n))
        for n, value in ((5, 0.755), (10, 0.557), (20, 0.394), (40, 0.281))
    ),
    *(
        Figure(4, f"change of the gradient by conversion, {to}", 0, 1e-13, lambda to=to: change_of_map(to))
        for to in ("fused", "plain")
    ),
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print_table(FIGURES)


if __name__ == "__main__":
    main()
