"""Networks of bytes are checked on all bytes: what differs from 2 on alone is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reparam import convert, export
from reparam.capture import capture
from reparam.check import check_float64, with_few_integers
from reparam.engines import Port, Runnable, check_engine
from reparam.errors import NotEquivalentError
from reparam.ir import Program, feed

IMAGE = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class Pixels(nn.Module):
    """A convolution of what a function makes of bytes."""

    def __init__(self, numbers: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.numbers = nn.Conv2d(3, 4, 3), numbers

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.numbers(x))


def pixels(numbers: Callable[[Tensor], Tensor]) -> Pixels:
    torch.manual_seed(0)
    return Pixels(numbers).eval()


def program(numbers: Callable[[Tensor], Tensor]) -> Program:
    return capture(pixels(numbers), (IMAGE,)).program


class Other(Runnable):
    """An engine of bytes that is a torch module."""

    runtime, precision = "another", "float32"
    inputs, outputs = (Port("x", ("batch", 3, 8, 8), "uint8"),), (Port("y", ("batch", 4, 6, 6), "float32"),)

    def __init__(self, numbers: Callable[[Tensor], Tensor]) -> None:
        self.net = pixels(numbers)

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [self.net(values[0])]


def test_a_conversion_that_is_wrong_from_3_on_is_refused() -> None:
    original = program(lambda x: x.float() / 255)
    check_float64(original, program(lambda x: x.float() / 255))
    with pytest.raises(NotEquivalentError):
        check_float64(original, program(lambda x: x.float().clamp(max=2) / 255))


def test_an_engine_that_is_wrong_from_32_on_is_refused() -> None:
    original = program(lambda x: (x // 32).float() / 8)
    check_engine(original, original, Other(lambda x: (x // 32).float() / 8))
    with pytest.raises(NotEquivalentError, match="the engine is not the network"):
        check_engine(original, original, Other(lambda x: (x // 32).float().clamp(max=1) / 8))


class Quotient(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.div(x, y, rounding_mode="floor")


def test_quotients_of_integers_are_converted() -> None:
    x, y = torch.arange(12).reshape(2, 6), torch.arange(1, 13).reshape(2, 6)
    assert torch.equal(convert(Quotient(), x, y).module(x, y), x // y)


class Masked(nn.Module):
    """A linear layer, and what a function makes of it and of some integers."""

    def __init__(self, mix: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.mix = nn.Linear(6, 6), mix

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        return self.mix(self.linear(x), m)


LEAST = torch.finfo(torch.float32).min
FEW: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a mask": lambda x, m: (x + (1.0 - m.float()) * LEAST).softmax(-1),
    "a mask of its own dtype": lambda x, m: x * (1 - m),
    "a mask that is reshaped": lambda x, m: x * (1 - m.float().unsqueeze(0)).squeeze(0),
    "a logarithm": lambda x, m: (x + (m.float() + 1e-9).log()).softmax(-1),
    "a root": lambda x, m: x / torch.sqrt(m.float().sum(-1, keepdim=True) + 1),
    "a width": lambda x, m: x + torch.log(255 - (m.float().amax() - m.float().amin())),
    "a power": lambda x, m: x * torch.exp(torch.exp(m.float())),
}


@pytest.mark.parametrize("mix", FEW.values(), ids=FEW)
def test_a_network_that_does_not_take_all_integers_is_checked_on_0_and_1(
    mix: Callable[[Tensor, Tensor], Tensor],
) -> None:
    net, inputs = Masked(mix).eval(), (torch.randn(4, 6), torch.ones(4, 6, dtype=torch.int8))
    taken = with_few_integers(capture(net, inputs).program)
    values = feed(taken, taken.traced_sizes, torch.Generator().manual_seed(0))
    assert set(values[1].unique().tolist()) == {0, 1}
    assert not taken.inputs[0].few
    assert convert(net, *inputs).report.equivalent


def test_a_network_that_takes_all_integers_is_checked_on_all() -> None:
    taken = program(lambda x: x.float() / 255)
    assert with_few_integers(taken) is taken
    lengths = Masked(lambda x, m: x * m.float()).eval()
    inputs = (torch.randn(4, 6), torch.ones(4, 6, dtype=torch.int16))
    assert not any(s.few for s in with_few_integers(capture(lengths, inputs).program).inputs)
    wrapped = Masked(lambda x, m: x * torch.log((m + m).float() + 200)).eval()
    inputs = (torch.randn(4, 6), torch.ones(4, 6, dtype=torch.int8))
    assert not any(s.few for s in with_few_integers(capture(wrapped, inputs).program).inputs)


def test_a_network_that_does_not_run_in_its_own_dtype_is_checked_on_0_and_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks_a_kernel(*_: object) -> None:
        raise NotImplementedError("this kernel is not implemented for 'Half'")  # in torch's words

    monkeypatch.setattr("reparam.check.few_integers.evaluate", lacks_a_kernel)
    assert all(s.few for s in with_few_integers(program(lambda x: x.float() / 255)).inputs)


def test_what_is_no_number_in_double_precision_alone_is_checked_on_0_and_1() -> None:
    taken = with_few_integers(program(lambda x: torch.sqrt(1 - (x.float() * 0 + 1 + 1e-12))))
    assert all(spec.few for spec in taken.inputs)


def test_whether_it_takes_all_depends_on_the_seed_alone() -> None:
    sums = program(lambda x: x.float() + torch.log((x.long().sum() % 2).float()))
    for seed in range(4):
        told = set()
        for other in range(24):
            torch.manual_seed(other)
            told.add(with_few_integers(sums, seed).inputs[0].few)
        assert len(told) == 1


class Attending(nn.Module):
    """Attention to as many positions as a length says; to none it would be NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 6)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        beyond = torch.arange(x.shape[1]) >= n[:, None]
        scores = self.query(x) @ x.transpose(1, 2)
        return scores.masked_fill(beyond[:, None], -torch.inf).softmax(-1) @ x


def test_attention_with_lengths_is_converted_and_exported(tmp_path: Path) -> None:
    net, inputs = Attending().eval(), (torch.randn(3, 5, 6), torch.tensor([5, 1, 3]))
    axes = ("batch", "x:1=length")
    assert convert(net, *inputs, dynamic=axes).report.equivalent
    export(net, *inputs, path=tmp_path / "net.onnx", dynamic=axes)
