"""What counts as a merge, a gate, a chain: the numbers that the report gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reparam.capture import capture
from reparam.conversion import convert
from reparam.ir import batch_one, census, is_chain, node_macs
from support.helpers import Lambda, program_of


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.function(self.conv(x)))  # type: ignore[no-any-return]


def spelled_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x * 0.7071067811865476))


ONE_SOURCE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gated silu": lambda x: x * torch.sigmoid(x * torch.tensor(2.0) + 1.0),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "hardswish": lambda x: x * F.relu6(x + 3.0) / 6.0,
    "gelu": spelled_gelu,
    "square": lambda x: x * x,
    "rational": lambda x: x * (1.0 / (1.0 + x.square())) + x.square(),
}


@pytest.mark.parametrize("name", ONE_SOURCE)
def test_an_activation_of_one_source_is_one_node_however_it_is_spelled(name: str) -> None:
    program = program_of(Function(ONE_SOURCE[name]), torch.randn(2, 4, 5, 5))
    counts = census(program)
    assert (counts.merges, counts.gates) == (0, 0)
    assert is_chain(program)


SEVERAL: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "a skip over a pool": (lambda x: x + F.avg_pool2d(x, 3, 1, 1), 1, 0),
    "a concatenation": (lambda x: torch.cat([x, x.sigmoid()], 1)[:, 2:6], 1, 0),
    "a product with its mirror image": (lambda x: x * x.flip(3), 1, 0),
    "a gate": (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), 0, 1),
    "a value inside that is read again": (lambda x: x.sigmoid().flip(3) + x * x.sigmoid(), 1, 0),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_what_meets_elsewhere_is_a_merge_or_a_gate(name: str) -> None:
    function, merges, gates = SEVERAL[name]
    program = program_of(Function(function), torch.randn(2, 4, 5, 5))
    counts = census(program)
    assert (counts.merges, counts.gates) == (merges, gates)
    assert not is_chain(program)


OF_SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros of its shape": lambda x: x + torch.zeros(x.shape[0], 4, 5, 5),
    "zeros like it": lambda x: x * 2 + torch.ones_like(x).cumsum(1),
    "a constant as large as it": lambda x: x + torch.arange(4.0).reshape(1, 4, 1, 1).expand_as(x),
}


def test_a_value_that_fills_another_is_no_size() -> None:
    """Of `full_like` the first operand is a shape alone; what it is filled with comes from the network."""

    class Filled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 + torch.full_like(x, x[0, 0, 0, 0].item())

    assert census(program_of(Filled(), torch.randn(2, 4, 5, 5))).merges == 1


@pytest.mark.parametrize("name", OF_SIZES)
def test_what_is_made_of_sizes_alone_is_no_merge(name: str) -> None:
    counts = census(program_of(Function(OF_SIZES[name]), torch.randn(2, 4, 5, 5)))
    assert (counts.merges, counts.gates) == (0, 0)


def test_a_recurrent_layer_that_starts_from_zeros_is_no_merge() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.LSTM(6, 4, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(x)[0])  # type: ignore[no-any-return]

    assert is_chain(program_of(Tagger(), torch.randn(2, 5, 6)))


def test_reading_a_size_is_no_second_user() -> None:
    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    assert is_chain(program_of(Function(shuffle), torch.randn(2, 4, 5, 5)))


def test_multiply_accumulates_are_those_of_one_sample() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 2, 2), nn.Flatten(), nn.Linear(256, 7))
    counts = census(program_of(model, torch.randn(3, 4, 6, 6)))
    assert counts.macs == 6 * 2 * 9 * 16 + 6 * 4 * 4 * 16 + 256 * 7
    assert counts.params == 6 * 2 * 9 + 6 + 6 * 4 * 4 + 4 + 256 * 7 + 7


WEIGHT = torch.randn(8, 4)
PRODUCTS = {
    "einsum": lambda net, x: torch.einsum("bti,ij->btj", x, WEIGHT),
    "einsum of three": lambda net, x: torch.einsum("bti,ij,kj->btk", x, WEIGHT, WEIGHT),
    "einsum of any": lambda net, x: torch.einsum("...i,ij->...j", x, WEIGHT),
    "tensordot": lambda net, x: torch.tensordot(x, WEIGHT, 1),
    "inner": lambda net, x: torch.inner(x, WEIGHT.T),
    "several": lambda net, x: torch.linalg.multi_dot([x[0], WEIGHT, WEIGHT.T]),
    "a power": lambda net, x: torch.linalg.matrix_power(x[0] @ x[0].T, 3),
    "gru": lambda net, x: net.gru(x)[0],
    "linear": lambda net, x: net.linear(x),
    "attention": lambda net, x: nn.functional.scaled_dot_product_attention(x, x, x),
}


@pytest.mark.parametrize("way", PRODUCTS)
def test_products_of_every_spelling_are_counted_as_torch_counts_them(way: str) -> None:
    net = Lambda(PRODUCTS[way], gru=nn.GRU(8, 4, batch_first=True), linear=nn.Linear(8, 4)).eval()
    x = torch.randn(1, 6, 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    found = census(capture(net, (x,), dynamic=()).program).macs
    assert 2 * found == counter.get_total_flops() > 0


def test_a_product_is_counted_for_one_sample() -> None:
    net = Lambda(PRODUCTS["einsum"])
    assert census(capture(net, (torch.randn(5, 6, 8),)).program).macs == 6 * 8 * 4


def test_a_batch_that_is_split_in_four_counts_as_it_was_traced() -> None:
    """A fourth of one sample is none, of which a product would be nothing, and by which sizes cannot be divided."""

    def forward(m: Lambda, x: Tensor) -> Tensor:
        parts = x.view(x.shape[0] // 4, 4, 4, 3, 3).flip(1)
        return m.conv(parts.view(x.shape[0], 4, 3, 3))  # type: ignore[no-any-return]

    program = program_of(Lambda(forward, conv=nn.Conv2d(4, 5, 1)), torch.zeros(8, 4, 3, 3), dynamic=("batch",))
    conv = next(n for n in program.calls() if "conv" in n.name)
    assert node_macs(conv, batch_one(program)) == 8 * 5 * 4 * 9
    assert convert(Lambda(forward, conv=nn.Conv2d(4, 5, 1)), torch.randn(8, 4, 3, 3)).report.equivalent
