"""Layers read an activation through what moves, joins, pads and pools its values; a sum is a block of one source."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.errors import InputError
from reparam.signal import blocks
from support.helpers import program_of


class Between(nn.Module):
    """Two layers, what stands behind them, and a last layer."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.between = between
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(channels, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.one(x), self.two(x)))


def leaky(h: Tensor) -> Tensor:
    return torch.where(h > 0, h, 0.2 * h)


READ: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int, float]] = {
    "cat": (lambda a, b: torch.cat([a.relu(), b.relu()], 1), 16, 2.0),
    "stack": (lambda a, b: torch.stack([a.relu(), b.relu()], 2).flatten(1, 2), 16, 2.0),
    "zeros around": (lambda a, b: F.pad(a.relu(), (1, 1, 1, 1)), 8, 2.0),
    "reflection": (lambda a, b: F.pad(a.relu(), (1, 1, 1, 1), mode="reflect"), 8, 2.0),
    "replication": (lambda a, b: F.pad(a.relu(), (1, 1, 1, 1), mode="replicate"), 8, 2.0),
    "bilinear": (lambda a, b: F.interpolate(a.relu(), scale_factor=2, mode="bilinear"), 8, 2.0),
    "movedim": (lambda a, b: a.relu().movedim(1, -1).movedim(-1, 1), 8, 2.0),
    "swapaxes": (lambda a, b: a.relu().swapaxes(2, 3), 8, 2.0),
    "adaptive max pool": (lambda a, b: F.adaptive_max_pool2d(a.relu(), 4), 8, 2.0),
    "index": (lambda a, b: a.relu()[:, [0, 2, 1, 4, 3, 5, 7, 6]], 8, 2.0),
    "where": (lambda a, b: leaky(a), 8, 2 / 1.04),
    "two that differ": (lambda a, b: torch.cat([a.relu(), b.sigmoid()], 1), 16, 2 / (0.5 + 0.29338)),
    "three, of other widths": (lambda a, b: torch.cat([a.relu(), b[:, :4], b[:, 4:].relu()], 1), 16, 1.6),
    "one and a layer": (lambda a, b: torch.cat([a.relu(), b], 1), 16, 4 / 3),
    "a layer": (lambda a, b: a, 8, 1.0),
}


@pytest.mark.parametrize("name", READ)
def test_he_finds_the_activation_that_a_layer_reads(name: str) -> None:
    between, channels, gain = READ[name]
    made = reparam.init(Between(between, channels).eval(), torch.randn(2, 8, 12, 12), method="he")
    (what,) = (w.what for w in made.weights if w.name == "last.weight")
    fan = channels * 9
    assert what.startswith(f"variance {gain:.4g}/{fan}, fan in; ")
    assert ("no single activation" in what) == (gain == 1)


LARGEST: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int, int]] = {
    "maximum": (torch.maximum, 8, 2),
    "max of two": (torch.max, 8, 2),
    "amax": (lambda a, b: a.unflatten(1, (2, 4)).amax(2), 2, 4),
    "max over views": (lambda a, b: a.view(-1, 4, 2, 12, 12).max(2).values, 4, 2),
    "first factor": (lambda a, b: a.reshape(2, 2, 4, 12, 12).amax(1), 4, 2),
}


@pytest.mark.parametrize("name", LARGEST)
def test_he_knows_the_largest_of_several_linear_maps(name: str) -> None:
    """E max(X_1, ..., X_k)^2 is 1 for two normal variables, and 1 + sqrt(3)/pi for four."""
    between, channels, count = LARGEST[name]
    made = reparam.init(Between(between, channels).eval(), torch.randn(2, 8, 12, 12), method="he", dynamic=())
    (what,) = (w.what for w in made.weights if w.name == "last.weight")
    second = {2: 1.0, 4: 1 + 3**0.5 / math.pi}[count]
    assert what.startswith(f"variance {1 / second:.4g}/{channels * 9}, fan in; ")
    assert f"the largest of {count}" in what


@pytest.mark.parametrize("pooled", [lambda a, b: a.amax((2, 3), keepdim=True), lambda a, b: torch.maximum(a, a.relu())])
def test_the_largest_of_places_or_of_one_value_is_no_maxout(pooled: Callable[[Tensor, Tensor], Tensor]) -> None:
    made = reparam.init(Between(pooled, 8).eval(), torch.randn(2, 8, 12, 12), method="he")
    (what,) = (w.what for w in made.weights if w.name == "last.weight")
    assert "largest" not in what


def test_a_pad_in_the_network_is_as_good_as_one_in_the_layer() -> None:
    """Twenty layers keep the power of their values, as they do with padding of their own."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv1d(64, 64, 3) for _ in range(20))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(F.pad(x.relu(), (1, 1), mode="circular"))
            return x

    x = torch.randn(4, 64, 32)
    made = reparam.init(Padded().eval(), x, method="he")
    with torch.no_grad():
        assert 0.1 < float(made.module(x).square().mean()) < 10


class TwoSources(nn.Module):
    """Sums what two inputs become, of which one passes through more layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.b, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.relu(self.a(x) + self.b(y)))


def test_a_sum_of_what_two_inputs_become_is_no_residual_block() -> None:
    x: Any = (torch.randn(2, 6), torch.randn(2, 5))
    assert list(blocks(program_of(TwoSources(), *x))) == []
    made = reparam.init(TwoSources().eval(), *x, method="zero")
    assert {w.name: w.what for w in made.weights}["a.2.weight"] == "identity 8 x 8"
    for method in ("residual-scale", "depth-scale"):
        with pytest.raises(InputError, match="no residual block"):
            reparam.init(TwoSources().eval(), *x, method=method)


def test_the_activation_of_a_product_of_matrices_is_one() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.first) @ self.second

    found = reparam.analyze(Products().eval(), torch.randn(16, 6), what="dead").to_dict()
    assert "relu" in str(found)
