"""Pieces of splits: where they start, against what torch cuts out."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from reparam.ir import Piece, aten, may_cut, piece_of
from support.by_hand import ByHand

SHAPE, END = (2, 7, 4), 2**63 - 1
X = torch.arange(2 * 7 * 4.0).view(SHAPE)


@pytest.mark.parametrize("axis", [1, -2])
@pytest.mark.parametrize(
    ("call", "told"),
    [
        (aten.split.Tensor, 3),
        (aten.split.Tensor, 9),
        (aten.chunk.default, 3),
        (aten.chunk.default, 1),
        (aten.split_with_sizes.default, [2, 0, 5]),
    ],
)
def test_every_piece_is_where_torch_cuts_it(call: Any, told: Any, axis: int) -> None:
    pieces = call(X, told, axis)
    for which in range(-len(pieces), len(pieces)):
        graph = ByHand()
        x = graph.input(*SHAPE)
        piece = piece_of(graph.call(operator.getitem, graph.call(call, x, told, axis), which))
        assert piece is not None and (piece.x, piece.axis) == (x, 1)
        assert _equal(X.narrow(1, piece.start, piece.size), pieces[which])


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _size(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(operator.sub, graph.call(aten.sym_size.int, x, 1), 3)


def test_pieces_before_a_free_one_have_a_place_and_those_behind_it_have_none() -> None:
    graph = ByHand()
    x = graph.input(2, 7, 4, free=(1,))
    split = graph.call(aten.split_with_sizes.default, x, [2, _size(graph, x), 1], 1)
    pieces = [piece_of(graph.call(operator.getitem, split, which)) for which in range(3)]
    assert pieces == [Piece(x, 1, 0, 2), None, None]


def test_halves_of_a_free_axis_have_no_place() -> None:
    graph = ByHand()
    halves = graph.call(aten.chunk.default, graph.input(2, 8, 4, free=(1,)), 2, 1)
    assert [piece_of(graph.call(operator.getitem, halves, which)) for which in range(2)] == [None, None]


def _size_of(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.sym_size.int, x, 1)


def _of_another(graph: ByHand, _: fx.Node) -> fx.Node:
    return graph.call(aten.sym_size.int, graph.input(2, 7, 4, free=(1,)), 1)


def _less(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(operator.sub, _size_of(graph, x), 1)


def _twice(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(operator.mul, graph.call(operator.add, _size_of(graph, x), 1), 2)


def _of_a_part(graph: ByHand, x: fx.Node) -> fx.Node:
    """The size of x[:20], which was traced as that of x."""
    return _size_of(graph, graph.call(aten.tanh.default, graph.call(aten.slice.Tensor, x, 1, 0, 20)))


def _of_a_least(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(torch.sym_min, 20, _size_of(graph, x))


@pytest.mark.parametrize(
    ("start", "end", "cuts"),
    [
        (0, END, False),
        (None, None, False),
        (0, 2**62, False),
        (0, 20, True),
        (1, END, True),
        (-20, END, True),
        (0, _size_of, False),
        (0, _of_another, True),
        (0, _less, True),
        (0, _twice, False),
        (0, _of_a_part, True),
        (0, _of_a_least, True),
    ],
)
def test_what_may_leave_out_a_part_of_a_free_axis(start: int | None, end: Any, cuts: bool) -> None:
    for free in ((1,), (0, 2)):
        graph = ByHand()
        x = graph.input(*SHAPE, free=free)
        last = end(graph, x) if callable(end) else end
        for dim in (1, -2):
            assert may_cut(graph.call(aten.slice.Tensor, x, dim, start, last)) == (cuts and free == (1,))


def test_steps_and_narrow_and_writes_may_cut() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE, free=(1,))
    size = _size_of(graph, x)
    assert may_cut(graph.call(aten.slice.Tensor, x, 1, 0, END, 2))
    assert may_cut(graph.call(aten.narrow.default, x, 1, 0, 7))
    assert not may_cut(graph.call(aten.narrow.default, x, 1, 0, size))
    assert may_cut(graph.call(aten.slice_scatter.default, x, x, 1, 0, 20))
    assert not may_cut(graph.call(aten.slice_scatter.default, x, x, 1))


def test_other_calls_are_no_pieces() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE)
    rows = graph.call(aten.unbind.int, x, 1)
    assert piece_of(x) is piece_of(rows) is piece_of(graph.call(operator.getitem, rows, 0)) is None
