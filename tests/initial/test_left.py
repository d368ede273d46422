"""What `init` leaves has the reason of its own kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reparam import InputError, init
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


@pytest.mark.parametrize(("net", "shape", "name", "why"), CASES)
@pytest.mark.parametrize("method", ["he", "autoinit", "lsuv"])
def test_what_is_left_has_the_reason_of_its_kind(
    net: nn.Module, shape: tuple[int, ...], name: str, why: str, method: str
) -> None:
    x = torch.randn(16, *shape)
    made = init(net, x[:2], method=method, **({"data": [x]} if method == "lsuv" else {}))
    assert why in {left.name: left.why for left in made.left}[name]
    assert any(w.name.endswith("weight") for w in made.weights)  # that of the last layer
    assert torch.equal(dict(made.module.named_parameters())[name], dict(net.named_parameters())[name])


def test_a_network_of_nothing_else_says_so() -> None:
    with pytest.raises(InputError, match="no weight to set in this network: a recurrent layer packs"):
        init(Of(lambda layer, x: layer(x)[0], nn.LSTM(4, 4)), torch.randn(2, 3, 4), method="he")
