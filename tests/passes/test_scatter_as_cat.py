"""scatter-as-cat: writes into a part of a value are concatenations, and slices of those are their parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam import convert
from reparam.passes.drop_identity import DropIdentity
from reparam.passes.fold_constants import FoldConstants
from reparam.passes.scatter_as_cat import ScatterAsCat
from support.helpers import Fused, Lambda, apply_exactly, doubles, graph_text, max_rel, program_of, run_rules

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


def one(forward: Callable[..., Any], *, dynamic: Sequence[str] = ()) -> Fused:
    """Only this rule, on a function of weights v (2, 2, 4) and of an input (2, 6, 4)."""
    index = {"i": [1, -1], "twice": [1, 1], "square": [[0], [1]], "mask": [True] * 2 + [False] * 4}
    buffers = {name: nn.Buffer(torch.tensor(value)) for name, value in index.items()}
    buffers |= {"none": nn.Buffer(torch.zeros(0).long()), "v": nn.Buffer(doubles(2, 2, 4))}
    program = program_of(Lambda(forward, **buffers), doubles(2, 6, 4), dynamic=dynamic)
    program = run_rules(program, FoldConstants()).program
    done = run_rules(program, ScatterAsCat())
    assert max_rel(program, done.program, [doubles(2, 6, 4)]) == 0.0
    return done


SLICES: dict[str, tuple[Callable[..., Tensor], str, int]] = {
    "at the start": (lambda m, x: torch.slice_scatter(x, m.v, 1, 0, 2), "cat([w, slice(x, 1, 2, 6)], 1)", 2),
    "from nowhere": (lambda m, x: torch.slice_scatter(x, m.v, 1, None, 2), "cat([w, slice(x, 1, 2, 6)], 1)", 2),
    "inside": (
        lambda m, x: torch.slice_scatter(x, m.v, 1, 2, 4),
        "cat([slice(x, 1, 0, 2), w, slice(x, 1, 4, 6)], 1)",
        3,
    ),
    "at the end": (lambda m, x: torch.slice_scatter(x, m.v, -2, -2, 99), "cat([slice(x, 1, 0, 4), w], 1)", 2),
}


@pytest.mark.parametrize(("forward", "text", "count"), SLICES.values(), ids=SLICES)
def test_a_write_into_a_slice_is_a_concatenation(forward: Callable[..., Tensor], text: str, count: int) -> None:
    done = one(forward)
    assert done.text == text
    assert done.passed("scatter-as-cat") == [f"slice_scatter became a concatenation of {count} parts"]


@pytest.mark.parametrize("start", [None, 0, -6])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_write_over_everything_is_what_is_written(start: int | None, axis: int) -> None:
    done = one(lambda m, x: torch.slice_scatter(x, x.sin(), axis, start, 9))
    assert done.text == "sin(x)"
    assert done.passed("scatter-as-cat") == ["slice_scatter became the part that it takes"]


def test_a_write_into_listed_channels_is_a_concatenation_in_another_order() -> None:
    done = one(lambda m, x: torch.ops.aten.index_put(x, [None, m.i], m.v))
    assert done.text == "index_select(cat([x, w], 1), 1, w)"
    assert done.passed("scatter-as-cat") == ["index_put became a concatenation of 2 parts"]
    assert done.program.constants["index_put.order"].value.tolist() == [0, 6, 2, 3, 4, 7]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: torch.slice_scatter(x, x[:, ::2].sin(), 1, 0, 6, 2),
        lambda m, x: torch.slice_scatter(x, m.v.float(), 1, 0, 2),
        lambda m, x: torch.slice_scatter(x, x.float(), 1, 0, 6),
        lambda m, x: torch.slice_scatter(x, m.v[:, :0], 1, 3, 3),
        lambda m, x: torch.slice_scatter(x, x[..., :2].sin(), 2, 0, 2),
        lambda m, x: torch.ops.aten.index_put(x, [None, m.i], m.v, True),
        lambda m, x: torch.ops.aten.index_put(x, [None, m.i, m.i], m.v[:, :, 0]),
        lambda m, x: torch.ops.aten.index_put(x, [None, m.i], m.v[:, :1]),
        lambda m, x: torch.ops.aten.index_put(x, [None, m.none], m.v[:, :0]),
        lambda m, x: torch.ops.aten.index_put(x, [None, m.square], m.v.unsqueeze(2)),
        lambda m, x: torch.ops.aten.index_put(x, [None, m.mask], m.v),
        lambda m, x: torch.ops.aten.index_put(x, [None, (m.i * x.sum()).long() * 0 + m.i], m.v),
        lambda m, x: x.clone().index_put_((x > 0,), torch.zeros((), dtype=x.dtype)),
    ],
    ids=[
        "a step",
        "rounded",
        "all of it rounded",
        "nothing",
        "in the map",
        "accumulated",
        "two axes",
        "one value for all",
        "no channels",
        "a table",
        "truth values",
        "positions of data",
        "chosen by the input",
    ],
)
def test_other_writes_stay(forward: Callable[..., Tensor]) -> None:
    done = one(forward)
    assert done.text == graph_text(done.original) and not done.outcome.remarks


def test_a_channel_that_is_written_twice_has_the_last_value_or_the_first() -> None:
    """Which one is up to torch, and so the write stays."""
    done = one(lambda m, x: torch.ops.aten.index_put(x, [None, m.twice], m.v[:, :1].expand(2, 2, 4)))
    assert done.text == graph_text(done.original) and not done.outcome.remarks


def test_writes_along_an_axis_of_free_size_stay() -> None:
    for forward in (
        lambda m, x: torch.slice_scatter(x.transpose(0, 1), x.transpose(0, 1)[:, :1].sin(), 1, 0, 1),
        lambda m, x: torch.ops.aten.index_put(x, [m.i], x[:2].sin()),
    ):
        done = one(forward, dynamic=("batch",))
        assert done.text == graph_text(done.original) and not done.outcome.remarks


# ---- slices of concatenations --------------------------------------------------------------------------------------


CUTS: dict[str, tuple[Callable[..., Any], str]] = {
    "a part": (lambda x, y: torch.cat([x, y], 1)[:, 6:].sin(), "sin(cos(x))"),
    "within a part": (lambda x, y: torch.cat([x, y], 1)[:, 7:9].sin(), "sin(slice(cos(x), 1, 1, 3))"),
    "parts": (lambda x, y: torch.cat([x, y, x.tan()], 1)[:, :12].sin(), "sin(cat([x, cos(x)], 1))"),
    "narrowed": (lambda x, y: torch.cat([x, y], 1).narrow(1, -6, 6).sin(), "sin(cos(x))"),
    "narrowed at the start": (lambda x, y: torch.cat([x, y], 1).narrow(1, 0, 6).sin(), "sin(x)"),
    "narrowed inside": (lambda x, y: torch.cat([x, y], 1).narrow(1, 7, 2).sin(), "sin(slice(cos(x), 1, 1, 3))"),
    "along the last axis": (lambda x, y: torch.cat([x, y], -1)[:, :, 4:].sin(), "sin(cos(x))"),
}


@pytest.mark.parametrize(("cut", "text"), CUTS.values(), ids=CUTS)
def test_a_slice_of_a_concatenation_reads_what_it_takes(cut: Callable[..., Any], text: str) -> None:
    done = one(lambda m, x: cut(x, x.cos()))
    assert done.text == text and len(done.passed("scatter-as-cat")) == 1


@pytest.mark.parametrize(
    "cut",
    [
        lambda x, y: torch.cat([x, y], 1)[:, :, 1:3].sin(),
        lambda x, y: torch.cat([x, y], 1)[:, ::2].sin(),
        lambda x, y: torch.cat([x, y], 1)[:, 4:8].sin(),
        lambda x, y: torch.cat([x, y], 1)[:, 3:3].sin(),
        lambda x, y: torch.cat([x, y.float()], 1)[:, 6:].sin(),
        lambda x, y: (z := torch.cat([x, y, y.tan()], 1))[:, :12].sum() + z.tanh(),
        lambda x, y: x[:, 1:3].sin(),
    ],
    ids=["another axis", "a step", "parts of two", "nothing", "two precisions", "read elsewhere", "no concatenation"],
)
def test_other_slices_stay(cut: Callable[..., Any]) -> None:
    done = one(lambda m, x: cut(x, x.cos()))
    assert done.text == graph_text(done.original) and not done.outcome.remarks


def test_slices_along_an_axis_of_free_size_stay() -> None:
    done = one(lambda m, x: torch.cat([x, x.cos()], 0)[:2].sin(), dynamic=("batch",))
    assert done.text == graph_text(done.original) and not done.outcome.remarks


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
