"""What depends on weights alone is no question of data: the graph is that of these weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import CaptureError, ReparamError
from support.choice import mostly_in_sweeps
from support.helpers import healthy

Reads = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A convolution and a norm, and then what a test makes of their values."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.weights = nn.Parameter(torch.tensor([0.1, 0.9, 0.3, 0.5]))
        self.register_buffer("times", torch.tensor(2))
        self.table = torch.tensor([3.0, 5.0])
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        return self.reads(self, self.norm(self.conv(x)))


def above(net: Net, y: Tensor) -> Tensor:
    kept = torch.softmax(net.weights, 0)
    parts = [float(kept[i]) * y for i in range(4) if kept[i] > 0.22]
    return torch.relu(sum(parts[1:], parts[0]))


def gated(net: Net, y: Tensor) -> Tensor:
    return torch.relu(y) if net.scale > 0 else -y


def among_constants(net: Net, y: Tensor) -> Tensor:
    return y / float((net.weights[:2] * net.table + torch.ones(2)).sum())


def by_numpy(net: Net, y: Tensor) -> Tensor:
    return y * float(net.weights.detach().numpy().max())


def padded(net: Net, y: Tensor) -> Tensor:
    """To a multiple of three, which is a weight, on the right."""
    three = net.times + 1
    rest = -(y.shape[-1] % three) % three
    return torch.nn.functional.pad(y, (net.times // 2, rest + net.times))


def sized(net: Net, y: Tensor) -> Tensor:
    return y[:, : net.times + 1].reshape(y.shape[0], net.times + 1, -1).narrow(1, 0, net.times)


CASES: dict[str, Reads] = {
    "a sum": lambda net, y: torch.relu(y) * float(net.weights.sum()),
    "a branch": gated,
    "any": lambda net, y: torch.relu(y) if bool((net.weights > 0.8).any()) else y,
    "a count": lambda net, y: y.repeat(1, int(net.times), 1, 1),
    "an index": lambda net, y: y[:, int(net.weights.argmax())],
    "a selection": above,
    "a padding": padded,
    "sizes": sized,
    "a view": lambda net, y: y * float(net.weights.view(2, 2).T[0, 1]),
    "NumPy": by_numpy,
    "constants": among_constants,
}


@pytest.mark.parametrize("name", mostly_in_sweeps(CASES, *[*CASES][::2]))
def test_numbers_of_weights_are_known(name: str) -> None:
    net, x = healthy(Net(CASES[name])).float(), torch.randn(2, 3, 8, 8)
    made = reparam.convert(net, x)
    assert made.report.after.norms == 0
    for count in (1, 5):
        y = torch.randn(count, 3, 8, 8)
        with torch.no_grad():
            assert torch.allclose(made.module(y), net(y), rtol=1e-4, atol=1e-5)


def test_other_weights_take_the_other_branch() -> None:
    net, x = healthy(Net(gated)).float(), torch.randn(2, 3, 8, 8)
    net.scale.data.neg_()
    with torch.no_grad():
        assert torch.allclose(reparam.convert(net, x).module(x), net(x), rtol=1e-4, atol=1e-5)
        assert bool((net(x) < 0).any())


@pytest.mark.parametrize(
    "reads",
    [
        lambda net, y: y * float(y.sum()),
        lambda net, y: torch.relu(y) if y.mean() + net.scale > 0 else y,
    ],
)
def test_numbers_of_the_input_stay_a_question(reads: Reads) -> None:
    with pytest.raises(CaptureError, match="its control flow depends on the data"):
        reparam.convert(healthy(Net(reads)).float(), torch.randn(2, 3, 8, 8))


def written(net: Net, y: Tensor) -> Tensor:
    own = net.weights.clone()
    own[1].zero_()
    return y * float(own.sum())


def written_by_index(net: Net, y: Tensor) -> Tensor:
    own = net.weights.clone()
    own[2] = 4.0
    return y * float(own.sum())


def written_by_an_operator(net: Net, y: Tensor) -> Tensor:
    own = net.weights.clone()
    own += 1
    own *= net.scale
    return y * float(own.sum())


def written_by_its_data(net: Net, y: Tensor) -> Tensor:
    own = net.weights.clone()
    own.data = net.table
    return y * float(own.sum())


@pytest.mark.parametrize("reads", [written, written_by_index, written_by_an_operator, written_by_its_data])
def test_what_was_written_to_is_not_guessed(reads: Reads) -> None:
    """Either it is right or it is refused."""
    net, x = healthy(Net(reads)).float(), torch.randn(2, 3, 8, 8)
    try:
        made = reparam.convert(net, x)
    except ReparamError as error:
        assert "depends on the data" in str(error)
    else:
        with torch.no_grad():
            assert torch.allclose(made.module(x), net(x), rtol=1e-4, atol=1e-5)


def test_torch_prints_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    reparam.convert(healthy(Net(CASES["a sum"])).float(), torch.randn(2, 3, 8, 8))
    assert capfd.readouterr().err == ""
