"""scatter-as-cat: writes into a part of a value are concatenations, and slices of those are their parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam import convert
from reparam.passes.drop_identity import DropIdentity
from reparam.passes.scatter_as_cat import ScatterAsCat
from support.helpers import Lambda, apply_exactly, doubles

RULES = (DropIdentity(), ScatterAsCat())


@given(start=st.integers(-7, 7), length=st.integers(1, 6), axis=st.integers(1, 3), plus=st.booleans())
def test_write_in_place_into_a_slice(start: int, length: int, axis: int, plus: bool) -> None:
    low = min(max(start + 6 if start < 0 else start, 0), 5)
    high = min(low + length, 6)

    def forward(_: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        part = y.narrow(axis, low, high - low)
        if plus:
            part += part.cos()
        else:
            part.copy_(x.narrow(axis, low, high - low).sin())
        return y

    done = apply_exactly(Lambda(forward), doubles(2, 6, 6, 6), rules=RULES, bound=1e-15)
    assert "copy" not in done.text
    assert ("scatter" in done.text) == (axis != 1 and high - low < 6)  # what is written into the map is a border's rule


@pytest.mark.parametrize("index", [[1, 3], [3, 1], [-1, 0], [4]])
def test_write_in_place_into_listed_channels(index: list[int]) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, index] += m.conv(x)
        return y

    model = Lambda(forward, conv=nn.Conv2d(5, len(index), 1).double())
    done = apply_exactly(model, doubles(2, 5, 4, 4), rules=RULES, bound=1e-14)
    assert "index_put" not in done.text


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: torch.slice_scatter(x, x[:, ::2].sin(), 1, 0, 6, 2),
        lambda x: torch.ops.aten.index_put(x, [None, torch.tensor([1, 1])], x[:, :2].sin(), True),
        lambda x: x.clone().index_put_((x > 0,), torch.zeros((), dtype=x.dtype)),
    ],
    ids=["a step", "accumulated", "chosen by the input"],
)
def test_other_writes_stay(forward: Callable[[Tensor], Tensor]) -> None:
    done = apply_exactly(Lambda(lambda _, x: forward(x)), doubles(2, 6, 4), rules=RULES, bound=1e-15)
    assert done.passed("scatter-as-cat") == []


def test_a_slice_of_a_concatenation_is_the_part_it_takes() -> None:
    def forward(_: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        whole = torch.cat([x.sin(), x.cos(), x.tanh()], 1)
        return whole[:, 3:6], whole[:, 4:5], whole[:, :6], whole[:, 2:7]

    done = apply_exactly(Lambda(forward), doubles(2, 3, 4), rules=RULES, bound=1e-15)
    assert done.passed("scatter-as-cat") == ["slice became the part that it takes"] * 2


def test_of_a_concatenation_that_nothing_else_reads_the_parts_that_are_left_out_go() -> None:
    done = apply_exactly(
        Lambda(lambda _, x: torch.cat([x.sin(), x.cos(), x.tanh()], 1)[:, :6].exp()),
        doubles(2, 3, 4),
        rules=RULES,
        bound=1e-15,
    )
    assert done.passed("scatter-as-cat") == ["slice became a concatenation of 2 parts"] and "tanh" not in done.text


@pytest.mark.parametrize("width", [8, 5])
def test_a_residual_on_some_channels_is_carried(width: int) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            y[:, :width] += x[:, :width]
            return y

    torch.manual_seed(0)
    done = convert(nn.Sequential(nn.Conv2d(3, 8, 1), Block(), nn.ReLU(), Block()), torch.rand(2, 3, 8, 8), to="plain")
    assert done.report.plain
