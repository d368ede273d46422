"""Networks of bytes are checked on all bytes: what differs from 2 on alone is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from reparam import convert
from reparam.capture import capture
from reparam.check import check_float64
from reparam.engines import Port, Runnable, check_engine
from reparam.errors import InputError, NotEquivalentError
from reparam.ir import Program

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


def test_numbers_that_are_too_large_for_a_network_are_told_with_what_to_do() -> None:
    net = pixels(lambda x: torch.exp(torch.exp(x.float())))
    x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(InputError, match="drawn from all of their dtype: say which there are with input_ranges"):
        convert(net, x)
    assert convert(net, x, input_ranges=[(0, 3)]).report.equivalent
