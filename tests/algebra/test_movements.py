"""Movements at other sizes than the traced ones: which are looked at, and what is told apart there."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, fx

from reparam.algebra.movements import _fitted, _same_at_all_sizes, _same_start, move_backward, move_forward, other_sizes
from reparam.ir import Refusal, aten
from support.by_hand import ByHand


def row(*values: float) -> Tensor:
    """(1, C, 1)"""
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)


def free(length: int = 20) -> tuple[ByHand, fx.Node]:
    """(2, 3, T), where the length is free."""
    graph = ByHand()
    return graph, graph.input(2, 3, length, free=(2,))


def regrouped(graph: ByHand, x: fx.Node, count: int) -> tuple[fx.Node, fx.Node, fx.Node]:
    """The first numbers of all channels in a row, (2, count/8, 8): the row, what is cut out of it, and that."""
    flat = graph.call(aten.flatten.using_ints, x, 1)
    cut = graph.call(aten.slice.Tensor, flat, 1, 0, count)
    return flat, cut, graph.call(aten.reshape.default, cut, [2, -1, 8])


def test_each_call_of_a_program_is_asked_by_itself() -> None:
    """In either order, and for values of other shapes or with other equal entries."""
    for turned in (False, True):
        graph, x = free()
        crop, other = graph.call(aten.slice.Tensor, x, 2, 1, -1), graph.call(aten.slice.Tensor, x, 2, 2, -1)
        flat = graph.call(aten.flatten.using_ints, x, 1)
        whole = graph.call(aten.flatten.using_ints, x, 0)
        for node in (flat, crop, whole, other) if turned else (crop, flat, other, whole):
            found = move_forward(graph.program, node, x, row(1.0, 2.0, 3.0))
            if node in (crop, other):
                assert torch.equal(found, row(1.0, 2.0, 3.0))
            else:
                assert isinstance(found, Refusal) and found.node is node
                assert found.reason == "which channels flatten moves where depends on the free sizes"
        same = move_forward(graph.program, flat, x, row(2.0))
        assert torch.equal(same, torch.full((1, 1), 2.0).double())


def test_the_same_operator_with_other_numbers_is_asked_by_itself() -> None:
    for turned in (False, True):
        graph, x = free()
        samples, row_of_all = (graph.call(aten.flatten.using_ints, x, a, a + 1) for a in (0, 1))
        for node in (row_of_all, samples) if turned else (samples, row_of_all):
            found = move_forward(graph.program, node, x, row(1.0, 2.0, 3.0))
            assert isinstance(found, Refusal) == (node is row_of_all)


def test_equal_entries_are_asked_by_themselves() -> None:
    """The second and third channel are one half of what is turned around, whatever the length."""
    graph, x = free()
    two = graph.call(aten.index_select.default, x, 1, graph.weight(torch.tensor([1, 2]), "i"))
    flat = graph.call(aten.flatten.using_ints, two, 1)
    assert isinstance(move_forward(graph.program, flat, two, row(1.0, 2.0)), Refusal)
    assert move_forward(graph.program, flat, two, row(5.0)).numel() == 1
    assert isinstance(move_forward(graph.program, flat, two, row(2.0, 1.0)), Refusal)


def test_what_a_length_decides_is_not_moved_back() -> None:
    graph, x = free()
    flat, cut, last = regrouped(graph, x, 16)
    refused = move_backward(graph.program, flat, x, torch.arange(60.0).double().reshape(1, 60), 1.0)
    assert isinstance(refused, Refusal) and refused.reason.startswith("which channels flatten moves where")
    back = move_backward(graph.program, last, cut, row(1.0, 2.0), 1.0)
    assert isinstance(back, Tensor) and back.tolist() == [[1.0] * 8 + [2.0] * 8]


def test_pieces_are_asked_together() -> None:
    graph, x = free()
    split = graph.call(aten.split_with_sizes.default, x, [1, 2], 1)
    [graph.call(operator.getitem, split, i) for i in (0, 1)]
    pieces = move_forward(graph.program, split, x, row(1.0, 2.0, 3.0))
    assert [p.flatten().tolist() for p in pieces] == [[1.0], [2.0, 3.0]]
    back = move_backward(graph.program, split, x, pieces, 1.0)
    assert isinstance(back, Tensor) and torch.equal(back, row(1.0, 2.0, 3.0))


def test_a_size_that_is_given_follows_the_others() -> None:
    """x.reshape(n, 3, T) of what was flattened, by sizes that are asked for."""
    graph, x = free()
    length = graph.call(aten.sym_size.int, x, 2)
    flat = graph.call(aten.flatten.using_ints, x, 1)
    again = graph.call(aten.reshape.default, flat, [2, 3, length])
    back = move_backward(graph.program, again, flat, row(1.0, 2.0, 3.0), 1.0)
    assert isinstance(back, Refusal)  # where each channel ends in the row depends on the length
    turned = graph.call(aten.permute.default, x, [0, 2, 1])
    heads = graph.call(aten.reshape.default, turned, [2, length, 3, 1])
    moved = move_forward(graph.program, heads, turned, row(1.0, 2.0, 3.0).reshape(1, 1, 3))
    assert moved.shape == (1, 1, 3, 1) and moved.flatten().tolist() == [1.0, 2.0, 3.0]


def test_sizes_that_are_looked_at() -> None:
    graph, x = free()
    [name] = {str(s) for s in x.meta["val"].shape if not isinstance(s, int)}
    crop = graph.call(aten.slice.Tensor, x, 2, 3, -1)
    assert [env[name] for env in other_sizes(crop, x)] == [7, 12, 16, 41, 97, 40]  # five is the least that leaves some
    whole = graph.call(aten.clone.default, x)
    assert [env[name] for env in other_sizes(whole, x)] == [1, 2, 3, 4, 7, 12, 16, 41, 97, 40]


def test_samples_alone_need_no_look() -> None:
    graph = ByHand()
    x = graph.input(2, 3, 20, free=(0,))
    assert not list(other_sizes(graph.call(aten.flatten.using_ints, x, 1), x))
    assert list(other_sizes(graph.call(aten.flatten.using_ints, x, 0, 1), x))
    fixed = ByHand()
    x = fixed.input(2, 3, 20)
    assert not list(other_sizes(fixed.call(aten.flatten.using_ints, x, 1), x))


def test_large_values_are_not_looked_at_in_larger_sizes() -> None:
    graph = ByHand()
    x = graph.input(2, 1024, 90, free=(2,))
    [name] = {str(s) for s in x.meta["val"].shape if not isinstance(s, int)}
    assert [env[name] for env in other_sizes(graph.call(aten.clone.default, x), x)] == [1, 2, 3, 4, 7, 12, 16, 41]


def test_a_value_at_a_smaller_size_is_its_start() -> None:
    value = torch.arange(6.0).reshape(1, 6, 1)
    assert torch.equal(_fitted(value, (4, 3, 7)), torch.arange(3.0).reshape(1, 3, 1))
    assert torch.equal(_fitted(value, (1, 6, 1)), value)
    with pytest.raises(ValueError, match="more entries"):
        _fitted(value, (1, 7, 1))
    with pytest.raises(ValueError, match="more entries"):
        _fitted(value[:, :2], (1, 3, 1))


def test_results_are_compared_as_far_as_both_go() -> None:
    long, short = torch.tensor([[1.0, 2.0, 1.0, 2.0]]), torch.tensor([[1.0, 2.0]])
    assert _same_start(long, short) and _same_start(short, long) and _same_start(long, long)
    assert not _same_start(long, torch.tensor([[1.0, 1.0]]))
    assert not _same_start(long, torch.tensor([[1.0]])) and not _same_start(torch.tensor([[1.0]]), long)
    assert not _same_start(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    assert _same_start(torch.ones(1, 2), torch.ones(1, 3))


class Counted:
    """In place of what a movement makes of values, which is the same at all sizes: how often it was asked."""

    def __init__(self, name: str = "moved") -> None:
        self.count, self.__qualname__ = 0, name

    def __call__(self, values: Sequence[Tensor], env: Mapping[str, int]) -> Sequence[Tensor]:
        self.count += 1
        return [row(1.0, 2.0)]


def asked(graph: ByHand, node: fx.Node, x: fx.Node, *values: Tensor, name: str = "moved") -> bool:
    """Whether the call was looked at, as none like it was before."""
    counted = Counted(name)
    assert _same_at_all_sizes(graph.program, node, x, values or [row(1.0, 2.0, 3.0)], counted)
    return counted.count > 0


def test_calls_that_do_the_same_are_asked_once() -> None:
    graph, x = free()
    other = graph.call(aten.clone.default, x)
    for source, first in [(x, True), (other, True), (x, False), (other, False)]:
        assert asked(graph, graph.call(aten.slice.Tensor, source, 2, 1, -1), source) == first
    assert asked(free()[0], graph.call(aten.slice.Tensor, x, 2, 1, -1), x)  # another program knows nothing


def test_whatever_a_call_does_otherwise_is_asked_again() -> None:
    graph, x = free()
    length = graph.call(aten.sym_size.int, x, 2)
    half, third = (graph.call(operator.floordiv, length, n) for n in (2, 3))
    a, b = (graph.weight(torch.tensor([2, 1]), name) for name in "ab")
    longer = graph.call(aten.pad.default, x, [1, 0])
    calls = [
        graph.call(aten.slice.Tensor, x, 2, 1, -1),
        graph.call(aten.slice.Tensor, x, 2, 1, -2),
        graph.call(aten.narrow.default, x, 2, 1, half),
        graph.call(aten.narrow.default, x, 2, 1, third),
        graph.call(aten.flip.default, x, [2]),
        graph.call(aten.clone.default, x),
        graph.call(aten.contiguous.default, x),
        graph.call(aten.index_select.default, x, 1, a),
        graph.call(aten.index_select.default, x, 1, b),
        graph.call(aten.slice.Tensor, longer, 2, 1, -1),
    ]
    for _ in range(2):
        found = [asked(graph, node, node.args[0]) for node in calls]
        assert found == [True] * len(calls) if _ == 0 else found == [False] * len(calls)
    crop = calls[0]
    assert asked(graph, crop, x, row(1.0, 1.0, 2.0)) and not asked(graph, crop, x, row(3.0, 3.0, 1.0))
    assert asked(graph, crop, x, row(1.0, 2.0, 3.0).reshape(1, 1, 3))
    assert asked(graph, crop, x, name="moved back")


def test_a_single_number_or_a_fixed_size_is_not_asked() -> None:
    graph, x = free()
    assert not asked(graph, graph.call(aten.slice.Tensor, x, 2, 1, -1), x, row(2.0))
    fixed = ByHand()
    x = fixed.input(2, 3, 20)
    assert not asked(fixed, fixed.call(aten.slice.Tensor, x, 2, 1, -1), x)


def test_a_size_at_which_nothing_is_left_is_passed_over() -> None:
    """x[:, :, -5:-4] has one position where there are five; the graph says so of four as well."""
    graph, x = free()
    node = graph.call(aten.slice.Tensor, x, 2, -5, -4)
    assert move_forward(graph.program, node, x, row(1.0, 2.0, 3.0)).flatten().tolist() == [1.0, 2.0, 3.0]
    back = move_backward(graph.program, node, x, row(1.0, 2.0, 3.0), 1.0)
    assert isinstance(back, Tensor) and back.flatten().tolist() == [1.0, 2.0, 3.0]


def test_a_size_that_fails_is_passed_over_and_the_next_one_looked_at() -> None:
    def moved(values: Sequence[Tensor], env: Mapping[str, int]) -> Sequence[Tensor]:
        [size] = [*env.values()] or [20]
        if size < 12:
            raise RuntimeError("it takes twelve")
        return [row(1.0, 2.0) if size != 16 else row(2.0, 1.0)]

    graph, x = free()
    assert not _same_at_all_sizes(graph.program, graph.call(aten.clone.default, x), x, [row(1.0, 2.0, 3.0)], moved)


def test_two_free_sizes_differ_where_they_are_looked_at() -> None:
    graph = ByHand()
    x = graph.input(2, 3, 20, 30, free=(2, 3))
    a, b = (str(s) for s in x.meta["val"].shape[2:])
    found = list(other_sizes(graph.call(aten.clone.default, x), x))
    least, most = sorted((a, b))
    assert [(env[least], env[most]) for env in found[:3]] == [(1, 2), (2, 3), (3, 4)]
    assert found[-1] == {a: 40, b: 60}


def test_the_traced_size_is_known_where_only_others_made_of_it_occur() -> None:
    graph, x = free()
    [name] = {str(s) for s in x.meta["val"].shape if not isinstance(s, int)}
    longer = graph.call(aten.pad.default, x, [1, 0])
    assert [env[name] for env in other_sizes(graph.call(aten.clone.default, longer), longer)][-1] == 40


def test_what_other_operands_are_does_not_matter() -> None:
    """They may be empty, and their first axis may be another one. A result without axes has none."""
    graph, x = free()
    [name] = {str(s) for s in x.meta["val"].shape if not isinstance(s, int)}
    short = graph.call(aten.slice.Tensor, x, 2, 4, -4)
    assert [env[name] for env in other_sizes(graph.call(aten.cat.default, [short, x], 2), x)][:2] == [7, 12]
    assert [env[name] for env in other_sizes(graph.call(aten.sum.default, x), x)][:2] == [1, 2]
    graph = ByHand()
    x = graph.input(2, 3, 20, free=(0,))
    weight = graph.weight(torch.zeros(1, 3, 20))
    assert not list(other_sizes(graph.call(aten.add.Tensor, weight, x), x))


def test_as_many_elements_as_are_looked_at() -> None:
    graph = ByHand()
    x = graph.input(2, 2**15, 6, free=(0, 2))
    found = [sorted(env.values()) for env in other_sizes(graph.call(aten.clone.default, x), x)]
    assert found == [[1, 2], [2, 3], [3, 4]]


def test_numbers_that_are_sizes_are_those_of_each_size() -> None:
    """Channels that are turned round by the length, which is a multiple of their number where it was traced."""
    graph, x = free(21)
    length = graph.call(aten.sym_size.int, x, 2)
    turned = graph.call(aten.roll.default, x, [length], [1])
    assert isinstance(move_forward(graph.program, turned, x, row(1.0, 2.0, 3.0)), Refusal)
    assert isinstance(move_backward(graph.program, turned, x, row(1.0, 2.0, 3.0), 1.0), Refusal)
    by_three = graph.call(aten.roll.default, x, [3], [1])
    assert torch.equal(move_forward(graph.program, by_three, x, row(1.0, 2.0, 3.0)), row(1.0, 2.0, 3.0))


def test_operands_that_give_a_shape_have_that_of_each_size() -> None:
    graph, x = free()
    turned = graph.call(aten.permute.default, x, [0, 2, 1])
    shaped = graph.call(aten.reshape_as.default, x, turned)
    assert isinstance(move_forward(graph.program, shaped, x, row(1.0, 2.0, 3.0)), Refusal)


def test_what_varies_along_a_free_axis_is_cut_to_each_size() -> None:
    graph, x = free()
    along = torch.arange(20.0).double().reshape(1, 1, 20)
    assert isinstance(move_forward(graph.program, graph.call(aten.flip.default, x, [2]), x, along), Refusal)
