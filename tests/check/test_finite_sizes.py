"""Outputs that are not finite at some sizes of the free axes alone: the refusal says at which, and where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam import convert
from reparam.check.finite_sizes import not_finite
from reparam.errors import InputError
from reparam.ir import Feed
from support.helpers import Lambda, program_of

EVERYWHERE = "the original's own outputs are not finite on random inputs, so nothing can be compared"


def refusal(forward: Any, shape: tuple[int, ...], dynamic: tuple[str, ...]) -> str:
    net = Lambda(lambda m, x: forward(m.conv(x)), conv=nn.Conv2d(3, 4, 1)).eval()
    with pytest.raises(InputError) as told:
        convert(net, torch.randn(shape), dynamic=dynamic)
    return str(told.value)


def at(here: str, there: str, axes: str) -> str:
    return (
        f"the original's own outputs are not finite on inputs of shape {here}, and are on those of shape {there}; "
        f"leave {axes} out of the free axes, or have the model give numbers there"
    )


def over_the_batch(y: Tensor) -> Tensor:
    return y - y.std(0, keepdim=True)


def behind_row_thirty_two(y: Tensor) -> Tensor:
    return y - y[:, :, 32:].mean((2, 3), keepdim=True)


@pytest.mark.parametrize("dynamic", [("batch",), ("batch", "height", "width")])
@pytest.mark.filterwarnings("ignore:std")
def test_a_statistic_of_one_sample(dynamic: tuple[str, ...]) -> None:
    assert refusal(over_the_batch, (4, 3, 6, 6), dynamic) == at("1x3x6x6", "4x3x6x6", "batch")


@pytest.mark.filterwarnings("ignore:std")
def test_the_way_out() -> None:
    net = Lambda(lambda m, x: over_the_batch(m.conv(x)), conv=nn.Conv2d(3, 4, 1)).eval()
    assert convert(net, torch.randn(4, 3, 6, 6), dynamic=()).report.equivalent


def test_an_axis_beside_the_batch_is_named_alone() -> None:
    told = refusal(behind_row_thirty_two, (4, 3, 40, 40), ("batch", "height", "width"))
    assert told.startswith("the original's own outputs are not finite on inputs of shape 2x3x")
    assert told.endswith(
        "on those of shape 4x3x40x40; leave height out of the free axes, or have the model give numbers there"
    )


@pytest.mark.parametrize("dynamic", [(), ("batch",), ("batch", "height", "width")])
def test_outputs_that_are_not_finite_at_any_size(dynamic: tuple[str, ...]) -> None:
    assert refusal(lambda y: y / (y - y), (4, 3, 6, 6), dynamic) == EVERYWHERE


def test_outputs_that_hang_on_the_numbers_and_not_on_the_sizes() -> None:
    """Of many random numbers one is below the bound, wherever they are drawn."""
    assert refusal(lambda y: (y + 0.5).log(), (4, 3, 6, 6), ("batch",)) == EVERYWHERE


@pytest.mark.parametrize("bad", [0, 1, 2, 3, 4, 5])
def test_one_draw_says_nothing_of_a_size(bad: int) -> None:
    """At a size where they are finite once, or not once, nothing hangs on the size."""
    program = program_of(Lambda(lambda m, x: x * 2), torch.zeros(4, 3), dynamic=("batch",))
    at_one, at_four = ([i == bad for i in range(3)], [i != bad - 3 for i in range(3)])
    found = {1: iter(at_one), 4: iter(at_four)}

    def run(values: Feed) -> list[Any]:
        ok = next(found.get(len(values[0]), iter([])), False)
        return [values[0] if ok else values[0] / 0.0]

    (symbol,) = program.traced_sizes
    assert program.traced_sizes[symbol] == 4
    assert str(not_finite(program, run, {symbol: 1}, torch.Generator())) == EVERYWHERE
    found |= {1: iter([]), 4: iter([True] * 3)}
    assert str(not_finite(program, run, {symbol: 1}, torch.Generator())) == at("1x3", "4x3", "batch")


def told_of(where: Callable[..., bool], sizes: tuple[int, ...], dynamic: tuple[str, ...] = ("batch", "height")) -> str:
    """What is said of 4x3x9x9 where an original gives numbers for shapes `where` they are, of inputs of these sizes."""
    program = program_of(nn.Identity(), torch.zeros(4, 3, 9, 9), dynamic=dynamic)

    def run(values: Feed) -> list[Any]:
        return [values[0] if where(*values[0].shape) else values[0] / 0.0]

    return str(not_finite(program, run, dict(zip(program.traced_sizes, sizes, strict=True)), torch.Generator()))


def test_one_of_two_axes_is_named_where_it_alone_does_it() -> None:
    assert told_of(lambda n, c, h, w: h > 4, (1, 3)) == at("1x3x3x9", "4x3x9x9", "height")
    assert told_of(lambda n, c, h, w: n > 1, (1, 3)) == at("1x3x3x9", "4x3x9x9", "batch")


def test_both_axes_are_named_where_only_both_together_do_it() -> None:
    assert told_of(lambda n, c, h, w: n > 1 or h > 4, (1, 3)) == at("1x3x3x9", "4x3x9x9", "batch and height")


def test_an_axis_without_a_name_is_told_by_its_number() -> None:
    found = told_of(lambda n, c, h, w: c > 1, (4, 1), ("batch", "input:1=features"))
    assert found == at("4x1x9x9", "4x3x9x9", "axis 1")


def test_small_sizes_show_where_there_are_numbers_when_the_traced_ones_do_not() -> None:
    found = told_of(lambda n, c, h, w: h < 6, (4, 41))
    assert "not finite on inputs of shape 4x3x41x9, and are on those of shape" in found
    assert found.endswith("leave height out of the free axes, or have the model give numbers there")
