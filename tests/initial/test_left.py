"""What `init` leaves has the reason of its own kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam import InputError, init
from reparam.ir import feed
from support.choice import crossed
from support.helpers import program_of
from support.of import Of


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.einsum("bi,oi->bo", x, self.weight))
        return y


class Experts(nn.Module):
    """A matrix for each of four experts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 8, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head((x.expand(4, -1, -1) @ self.weight).sum(0))
        return y


def recurrent(kind: type[nn.RNNBase]) -> nn.Module:
    return Of(lambda layer, head, x: head(layer(x)[0][:, -1]), kind(8, 8, batch_first=True), nn.Linear(8, 3))


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3))


CASES = [
    (recurrent(nn.LSTM), (5, 8), "parts.0.weight_ih_l0", "a recurrent layer packs all its gates"),
    (recurrent(nn.GRU), (5, 8), "parts.0.weight_hh_l0", "a recurrent layer packs all its gates"),
    (recurrent(nn.RNN), (5, 8), "parts.0.bias_ih_l0", "a recurrent layer packs all its gates"),
    (Einsum(), (8,), "weight", "einsum contracts it"),
    (Experts(), (8,), "weight", "a matrix for each part"),
    (Of(lambda b, h, x: h(b(x, x)), nn.Bilinear(8, 8, 8), nn.Linear(8, 3)), (8,), "parts.0.weight", "two values"),
    (normed(), (8,), "0.parametrizations.weight.original1", "is computed from it, as weight norms"),
]


@pytest.mark.parametrize(("method", "case"), crossed(("he", "autoinit", "lsuv"), range(len(CASES))))
def test_what_is_left_has_the_reason_of_its_kind(method: str, case: int) -> None:
    net, shape, name, why = CASES[case]
    x = torch.randn(16, *shape)
    made = init(net, x[:2], method=method, **({"data": [x]} if method == "lsuv" else {}))
    assert why in {left.name: left.why for left in made.left}[name]
    assert any(w.name.endswith("weight") for w in made.weights)  # that of the last layer
    assert torch.equal(dict(made.module.named_parameters())[name], dict(net.named_parameters())[name])


def test_a_network_of_nothing_else_says_so() -> None:
    with pytest.raises(InputError, match="no weight to set in this network: a recurrent layer packs"):
        init(Of(lambda layer, x: layer(x)[0], nn.LSTM(4, 4)), torch.randn(2, 3, 4), method="he")


def test_what_is_frozen_is_told_by_gradinit_too() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    net[0].weight.requires_grad_(False)
    x, labels = torch.randn(32, 6), torch.randint(3, (32,))
    made = init(net, x[:2], method="gradinit", data=[(x, labels)], steps=2)
    assert "frozen" in {left.name: left.why for left in made.left}["0.weight"]
    left = {left.name: left.why for left in init(net, x[:2], method="he").left}
    assert left == {"0.weight": left["0.weight"], "0.bias": "it is the bias of a layer whose weight is left"}


class WithHead(nn.Module):
    """A second head, in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.frozen = nn.Linear(8, 3).requires_grad_(False)
        self.first.tied = self.first.weight

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        return (y, self.head(y), self.frozen(y)) if self.training else y


@pytest.mark.parametrize("method", ["he", "lsuv"])
def test_weights_that_evaluation_mode_does_not_read_are_told(method: str) -> None:
    x = torch.randn(16, 8)
    made = init(WithHead(), x[:2], method=method, **({"data": [x]} if method == "lsuv" else {}))
    why = "the network does not read it in evaluation mode"
    assert [(left.name, left.why) for left in made.left] == [("head.weight", why), ("head.bias", why)]


class Spectral(nn.Module):
    """Complex numbers between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.mixing = nn.Linear(5, 5, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.fft.irfft(self.mixing(torch.fft.rfft(self.first(x))), n=8))
        return y


@pytest.mark.parametrize("method", ["he", "gradinit"])
def test_complex_weights_are_left(method: str) -> None:
    data = {"data": [(torch.randn(32, 8), torch.arange(32) % 3)], "steps": 2} if method == "gradinit" else {}
    made = init(Spectral(), torch.randn(2, 8), method=method, **data)
    assert {left.name: left.why for left in made.left}["mixing.weight"] == "its numbers are complex"
    assert {"first.weight", "last.weight"} <= {w.name for w in made.weights}


@pytest.mark.parametrize(("given", "told"), [({"hurst": 0.6}, "'fbm', and it is"), ({"length": 0.2}, "'rbf', and it")])
def test_numbers_of_another_kind_of_path_are_refused(given: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        init(Spectral(), torch.randn(2, 8), method="depth-scale", **given)


def test_random_indices_of_a_bag_reach_its_last_row() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(1000, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.bag(x))
            return y

    program = program_of(Bag(), torch.randint(1000, (4, 6)))
    (drawn,) = feed(program, {}, torch.Generator().manual_seed(0))
    assert 900 < int(drawn.max()) < 1000
