"""Which positions of its operand a call takes, by comparison with what the call does to numbers."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx

from reparam.algebra import broadcast_channels, read_picks
from reparam.algebra.picks import Picks, cut_of_map, read_cut
from reparam.algebra.window import Window
from reparam.ir import aten, evaluate
from support.by_hand import ByHand
from support.helpers import doubles

SHAPE = (2, 6, 4)
CALLS: dict[str, tuple[Any, tuple[Any, ...], int]] = {
    "slice": (aten.slice.Tensor, (1, 1, 4), 1),
    "slice with a step": (aten.slice.Tensor, (1, 1, 6, 2), 1),
    "slice to the end": (aten.slice.Tensor, (-2, 2), 1),
    "slice from the start": (aten.slice.Tensor, (1, None, 4), 1),
    "slice from behind": (aten.slice.Tensor, (1, -3), 1),
    "slice up to the last": (aten.slice.Tensor, (1, 0, -1), 1),
    "slice beyond the end": (aten.slice.Tensor, (1, 3, 2**63 - 1), 1),
    "slice of the last axis": (aten.slice.Tensor, (-1, 1, 3), 2),
    "slice of the samples": (aten.slice.Tensor, (0, 1, 2), 0),
    "narrow": (aten.narrow.default, (1, 2, 3), 1),
    "narrow from behind": (aten.narrow.default, (-1, -3, 2), 2),
    "shuffle": (aten.channel_shuffle.default, (3,), 1),
    "repeat": (aten.repeat.default, ([1, 3, 1],), 1),
    "repeat of the last axis": (aten.repeat.default, ([1, 1, 2],), 2),
    "repeat_interleave": (aten.repeat_interleave.self_int, (2, 1), 1),
    "repeat_interleave, from behind": (aten.repeat_interleave.self_int, (3, -1), 2),
}


def assert_takes(graph: ByHand, node: fx.Node, axis: int, x: Tensor) -> Picks:
    """What is read agrees with what the call makes of numbers that are all different."""
    found = read_picks(graph.program, node)
    assert found is not None and (found.x, found.axis) == (graph.program.placeholders[0], axis)
    [made] = evaluate(graph.returns(node), [x])
    assert torch.equal(x.index_select(axis, torch.tensor(found.positions)), made)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_positions_are_those_that_the_call_copies(name: str) -> None:
    call, options, axis = CALLS[name]
    graph = ByHand()
    assert_takes(graph, graph.call(call, graph.input(*SHAPE), *options), axis, doubles(*SHAPE))


def test_an_axis_of_one_is_copied_along() -> None:
    graph = ByHand()
    node = graph.call(aten.expand.default, graph.input(2, 1, 4), [-1, 5, -1])
    assert assert_takes(graph, node, 1, doubles(2, 1, 4)).positions == (0,) * 5


@pytest.mark.parametrize("axis", [1, -2])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    ("call", "options"),
    [(aten.split_with_sizes.default, [1, 3, 2]), (aten.chunk.default, 3), (aten.split.Tensor, 2)],
)
def test_the_pieces_of_a_split(call: Any, options: Any, which: int, axis: int) -> None:
    graph = ByHand()
    node = graph.call(operator.getitem, graph.call(call, graph.input(*SHAPE), options, axis), which)
    assert_takes(graph, node, 1, doubles(*SHAPE))


@pytest.mark.parametrize("which", [0, 1, -1])
@pytest.mark.parametrize(("call", "size"), [(aten.chunk.default, 2), (aten.split.Tensor, 4)])
def test_two_pieces_of_different_sizes(call: Any, size: int, which: int) -> None:
    graph = ByHand()
    node = graph.call(operator.getitem, graph.call(call, graph.input(2, 5, 4), size, 1), which)
    assert_takes(graph, node, 1, doubles(2, 5, 4))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_a_selection_by_a_weight(index: list[int]) -> None:
    graph = ByHand()
    x = graph.input(*SHAPE)
    node = graph.call(aten.index_select.default, x, -2, graph.weight(torch.tensor(index)))
    assert read_picks(graph.program, node) == Picks(x, 1, tuple(index))


def test_a_selection_of_one_position() -> None:
    """By an index without axes."""
    graph = ByHand()
    node = graph.call(aten.index_select.default, graph.input(*SHAPE), 1, graph.weight(torch.tensor(4)))
    assert assert_takes(graph, node, 1, doubles(*SHAPE)).positions == (4,)


def _whole(graph: ByHand) -> fx.Node:
    return graph.input(2, dtype=torch.int64)


OTHERS: dict[str, Any] = {
    "two axes": lambda g, x: g.call(aten.repeat.default, x, [1, 2, 2]),
    "no axis": lambda g, x: g.call(aten.repeat.default, x, [1, 1, 1]),
    "a new axis": lambda g, x: g.call(aten.expand.default, x, [3, 2, 6, 4]),
    "flip": lambda g, x: g.call(aten.flip.default, x, [1]),
    "arithmetic": lambda g, x: g.call(aten.sin.default, x),
    "nothing": lambda g, x: g.call(aten.slice.Tensor, x, 1, 3, 3),
    "an empty piece": lambda g, x: g.call(operator.getitem, g.call(aten.split_with_sizes.default, x, [0, 4, 2], 1), 0),
    "a piece of something else": lambda g, x: g.call(operator.getitem, g.call(aten.max.dim, x, 1), 0),
    "flattened and repeated": lambda g, x: g.call(aten.repeat_interleave.self_int, x, 2),
    "by an index from data": lambda g, x: g.call(aten.index_select.default, x, 1, _whole(g)),
    "a copy of nothing": lambda g, x: g.call(aten.repeat.default, g.input(2, 0, 4), [1, 2, 1]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_calls(name: str) -> None:
    graph = ByHand()
    assert read_picks(graph.program, OTHERS[name](graph, graph.input(*SHAPE))) is None


def _halves(graph: ByHand, x: fx.Node) -> fx.Node:
    size = graph.call(aten.sym_size.int, x, 1)
    return graph.call(aten.split_with_sizes.default, x, [graph.call(operator.sub, size, 2), 2], 1)


FREE: dict[str, tuple[int, Any]] = {
    "slice": (1, lambda g, x: g.call(aten.slice.Tensor, x, 1, 1)),
    "narrow as far as another axis": (
        2,
        lambda g, x: g.call(aten.narrow.default, x, 1, 0, g.call(aten.sym_size.int, x, 2)),
    ),
    "slice as far as another axis": (
        2,
        lambda g, x: g.call(aten.slice.Tensor, x, 1, 0, g.call(aten.sym_size.int, x, 2)),
    ),
    "shuffle": (1, lambda g, x: g.call(aten.channel_shuffle.default, x, 1)),
    "repeat": (1, lambda g, x: g.call(aten.repeat.default, x, [1, 2, 1])),
    "repeat as often as another axis": (
        2,
        lambda g, x: g.call(aten.repeat.default, x, [1, g.call(aten.sym_size.int, x, 2), 1]),
    ),
    "repeat_interleave": (1, lambda g, x: g.call(aten.repeat_interleave.self_int, x, 2, 1)),
    "repeat_interleave as often as another axis": (
        2,
        lambda g, x: g.call(aten.repeat_interleave.self_int, x, g.call(aten.sym_size.int, x, 2), 1),
    ),
    "a piece behind one of free size": (1, lambda g, x: g.call(operator.getitem, _halves(g, x), 1)),
    "a piece of free size": (1, lambda g, x: g.call(operator.getitem, _halves(g, x), 0)),
    "expand to the size of another axis": (
        2,
        lambda g, x: g.call(aten.expand.default, g.input(2, 1, 4), [2, g.call(aten.sym_size.int, x, 2), 4]),
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_positions_along_a_free_axis_are_not_known(name: str) -> None:
    axis, make = FREE[name]
    graph = ByHand()
    assert read_picks(graph.program, make(graph, graph.input(*SHAPE, free=(axis,)))) is None


def test_other_axes_may_be_free() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE, free=(0, 2))
    copies = graph.call(aten.repeat.default, x, [1, 2, 1])
    assert read_picks(graph.program, copies) == Picks(x, 1, (*range(6), *range(6)))
    split = graph.call(aten.split_with_sizes.default, x, [2, 4], 1)
    assert read_picks(graph.program, graph.call(operator.getitem, split, 1)) == Picks(x, 1, (2, 3, 4, 5))


# ---- cuts of a map -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize(
    ("dim", "options", "expected"),
    [
        (2, (1,), ((1, 1), (1, 0), (-2, -1))),
        (-1, (2, -1), ((1, 1), (0, 2), (-1, -4))),
        (3, (None, -2), ((1, 1), (0, 0), (-1, -3))),
        (-2, (1, 2**63 - 1, 2), ((2, 1), (1, 0), (-2, -1))),
        (2, (0, -1, 3), ((3, 1), (0, 0), (-2, -1))),
    ],
)
def test_a_slice_of_a_map_is_a_window_of_one_tap(dim: int, options: Any, expected: Any, free: bool) -> None:
    """Of a fixed or of a free size: stride, first position, and what is left out behind."""
    graph = ByHand()
    node = graph.call(aten.slice.Tensor, graph.input(2, 3, 7, 8, free=(2, 3) if free else ()), dim, *options)
    stride, first, slack = expected
    assert read_cut(node) == Window(stride, (1, 1), (1, 1), first, slack)
    assert read_picks(graph.program, node) is None


def test_a_cut_of_a_map_of_three_axes() -> None:
    graph = ByHand()
    node = graph.call(aten.narrow.default, graph.input(2, 3, 5, 6, 7), 3, 1, 3)
    assert read_cut(node) == Window((1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 1, 0), (-1, -4, -1))


@pytest.mark.parametrize(
    "options",
    [(-3,), (0, 4), (0, 200), (0, 0)],
    ids=["from behind", "up to a position", "up to a far position", "nothing"],
)
def test_a_cut_that_depends_on_a_free_size(options: tuple[int, ...]) -> None:
    """What is left out in front or behind is another number for every size; of nothing there is no window."""
    graph = ByHand()
    assert read_cut(graph.call(aten.slice.Tensor, graph.input(2, 3, 7, 8, free=(2,)), 2, *options)) is None


@pytest.mark.parametrize(
    ("shape", "dim"), [((2, 3, 7, 8), 1), ((2, 3, 7, 8), -3), ((2, 3, 7, 8), 0), ((2, 3, 7), 2), ((2, 7), 1)]
)
def test_a_slice_of_channels_or_of_what_is_no_map_is_no_cut(shape: tuple[int, ...], dim: int) -> None:
    graph = ByHand()
    node = graph.call(aten.slice.Tensor, graph.input(*shape), dim, 1)
    assert read_cut(node) is None
    assert_takes(graph, node, dim % len(shape), doubles(*shape))


def test_what_is_no_slice_is_no_cut() -> None:
    graph = ByHand()
    x = graph.input(2, 3, 7, 8)
    assert read_cut(graph.call(aten.flip.default, x, [2])) is None and read_cut(x) is None
    assert read_cut(graph.call(aten.slice.Tensor, x, 2, 7)) is None


# ---- broadcasting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((2, 1, 4), (2, 6, 4), True),
        ((2, 6, 4), (2, 1, 4), True),
        ((2, 6, 4), (2, 6, 4), False),
        ((2, 1, 1), (2, 6, 4), False),
        ((1, 1, 4), (2, 6, 4), False),
        ((2, 3, 4), (2, 6, 4), False),
        ((2, 1), (2, 6, 4), False),
    ],
)
def test_broadcast_of_one_channel(left: tuple[int, ...], right: tuple[int, ...], expected: bool) -> None:
    assert broadcast_channels((left, right), 1) == expected


@pytest.mark.parametrize(
    ("bounds", "first", "slack"),
    [
        (lambda less, size: (less,), 2, -3),  # x[:, :, -(T - 2):]
        (lambda less, size: (None, size), 0, -3),
        (lambda less, size: (1, size), 1, -4),
        (lambda less, size: (size,), None, None),
    ],
    ids=["from behind", "up to a size", "between", "from a size on"],
)
def test_a_cut_by_sizes(bounds: Any, first: int | None, slack: int | None) -> None:
    """x[:, :, a:b] of a free length T, where a and b are made of T: a number is left out at either end, or not."""
    graph = ByHand()
    x = graph.input(2, 3, 9, free=(2,))
    size = graph.call(operator.sub, graph.call(aten.sym_size.int, x, 2), 2)
    node = graph.call(aten.slice.Tensor, x, 2, *bounds(graph.call(operator.neg, size), size))
    expected = None if first is None else Window((1,), (1,), (1,), (first,), (slack,))
    assert cut_of_map(node) == expected
    assert read_cut(node) is None  # three axes may be tokens and channels


def test_a_cut_by_sizes_with_a_step_is_none() -> None:
    graph = ByHand()
    x = graph.input(2, 3, 9, free=(2,))
    size = graph.call(operator.sub, graph.call(aten.sym_size.int, x, 2), 2)
    assert cut_of_map(graph.call(aten.slice.Tensor, x, 2, 0, size, 2)) is None


def test_a_narrow_by_sizes_is_a_cut() -> None:
    graph = ByHand()
    x = graph.input(2, 3, 9, 8, free=(3,))
    size = graph.call(operator.sub, graph.call(aten.sym_size.int, x, 3), 3)
    expected = Window((1, 1), (1, 1), (1, 1), (0, 1), (-1, -4))
    assert read_cut(graph.call(aten.narrow.default, x, 3, 1, size)) == expected
