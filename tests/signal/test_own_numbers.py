"""What an analysis draws is not what the weights were drawn from, though both have the seed 0 unless told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reparam import analyze, init


@pytest.mark.parametrize("method", ["he", "gaussian"])
def test_inputs_are_not_the_weights(method: str) -> None:
    """With rows of the first layer among the inputs its outputs would have twice the power."""
    net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    made = init(net, torch.randn(2, 256), method=method).module
    found = analyze(made, torch.randn(2, 256), what="moments")["moments"]
    assert found.column("variance")[0] == pytest.approx(found.column("predicted variance")[0], rel=0.2)
