"""Figures of trained networks that the papers of docs/systems.md lead one to expect, measured as in systems.py.

ZerO: the perceptron 64-64-256-256-10 on scikit-learn's digits (pixels from 0 to 1, 1,437 for training, 360 others), 60
epochs of SGD at 0.1 in batches of 64, float64. Its rank is the number of singular values of W3 - I above 1e-4.

NormalVar: sets of 64 numbers from N(m, v), m from U(-10, 10) and v from U(0, 10), from which v is to be predicted; deep
sets of three blocks of 32 features, 256 sets, 25 epochs of Adam at 1e-3 in batches of 32. The loss is the squared error
on 500 other sets, in the mean over three seeds. To predict the mean of v always has the loss 100/12 = 8.33.
"""

from __future__ import annotations

import argparse
import functools

import torch
import torch.nn.functional as F
from common import digits
from systems import Figure, mean_over_seeds, print_table
from torch import Tensor

from reparam.models.deep_sets_pp import DeepSets
from reparam.models.zero_net import ZeroMLP

ABOVE = 1e-4  # of singular values; what training changes lies between 1e-8 and 1


@functools.cache
def zero_mlp(hadamard: bool, epochs: int = 60) -> tuple[int, float]:
    """The rank of W3 - I after training, and the accuracy on the digits that were not trained on."""
    data = digits(size=8)
    x = data.images.flatten(1).double()
    model = ZeroMLP(hadamard=hadamard).double()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(0)
    for _ in range(epochs):
        for rows in data.train[torch.randperm(len(data.train))].split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), data.labels[rows]).backward()
            optimiser.step()
    with torch.no_grad():
        change = model.layers[2].get_parameter("weight") - torch.eye(256, dtype=torch.float64)
        rank = int((torch.linalg.svdvals(change) > ABOVE).sum())
        right = model(x[data.test]).argmax(1) == data.labels[data.test]
    return rank, float(right.double().mean())


def normal_sets(count: int) -> tuple[Tensor, Tensor]:
    """Sets (count, 64, 1), and the variance that each was drawn with (count, 1)."""
    mean, variance = 20 * torch.rand(count, 1, 1) - 10, 10 * torch.rand(count, 1, 1)
    return mean + variance.sqrt() * torch.randn(count, 64, 1), variance[:, 0]


def normal_var(norm: str, epochs: int = 25) -> float:
    def once() -> float:
        (x, y), (others, wanted) = normal_sets(256), normal_sets(500)
        model = DeepSets(3, 32, 1, 1, norm)
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(32):
                optimiser.zero_grad()
                F.mse_loss(model(x[rows]), y[rows]).backward()
                optimiser.step()
        with torch.no_grad():
            return float(F.mse_loss(model(others), wanted))

    return mean_over_seeds(3, once)


FIGURES = (
    Figure(8, "rank of W₃ − I, identities alone (at most 64)", 51, 0.05, lambda: zero_mlp(False)[0]),
    Figure(8, "rank of W₃ − I, ZerO (more than 64)", 67, 0.05, lambda: zero_mlp(True)[0]),
    Figure(8, "accuracy, identities alone", 0.9698, 0.02, lambda: zero_mlp(False)[1]),
    Figure(8, "accuracy, ZerO", 0.9698, 0.02, lambda: zero_mlp(True)[1]),
    Figure(19, "loss on NormalVar, set norm", 7.5, 0.25, lambda: normal_var("set")),
    Figure(19, "loss on NormalVar, layer norm", 8.9, 0.1, lambda: normal_var("layer")),
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print_table(FIGURES)


if __name__ == "__main__":
    main()
