"""Figures of trained networks that the papers of docs/systems.md lead one to expect, measured as in systems.py.

ZerO: the perceptron 64-64-256-256-10 on scikit-learn's digits (pixels from 0 to 1, 1,437 for training, 360 others), 60
epochs of SGD at 0.1 in batches of 64, float64. Its rank is the number of singular values of W3 - I above 1e-4.
"""

from __future__ import annotations

import argparse
import functools

import torch
import torch.nn.functional as F
from common import digits
from systems import Figure, print_table

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


FIGURES = (
    Figure(8, "rank of W₃ − I, identities alone (at most 64)", 51, 0.05, lambda: zero_mlp(False)[0]),
    Figure(8, "rank of W₃ − I, ZerO (more than 64)", 67, 0.05, lambda: zero_mlp(True)[0]),
    Figure(8, "accuracy, identities alone", 0.9698, 0.02, lambda: zero_mlp(False)[1]),
    Figure(8, "accuracy, ZerO", 0.9698, 0.02, lambda: zero_mlp(True)[1]),
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print_table(FIGURES)


if __name__ == "__main__":
    main()
