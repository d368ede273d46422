"""share-calls: a call on the operands of an earlier one reads its result."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.ir import aten, op_name
from reparam.passes.share_calls import ShareCalls, _is_equal
from reparam.rewrite import Match
from support.by_hand import ByHand
from support.helpers import Lambda, apply_exactly, doubles, fuse_exactly, graph_text, program_of, run_rules

RULES = [ShareCalls()]


@pytest.mark.parametrize(
    ("forward", "calls"),
    [
        (lambda m, x: x.sin() * x.sin(), ["sin", "mul"]),
        (lambda m, x: x.sin().cos() + x.sin().cos(), ["sin", "cos", "add"]),
        (lambda m, x: F.pad(x, (1, 1)) - F.pad(x, [1, 1]), ["pad", "sub"]),
        (lambda m, x: m.f(x) * m.f(x), ["linear", "mul"]),
        (lambda m, x: (x.exp() + x.exp()) * x.exp(), ["exp", "add", "mul"]),
        (
            lambda m, x: x.chunk(2, 2)[0].sin() + x.chunk(2, 2)[1].cos(),
            ["chunk", "getitem", "sin", "getitem", "cos", "add"],
        ),
        (
            lambda m, x: x.chunk(2, 2)[1].sin() + x.chunk(2, 2)[1].sin(),
            ["chunk", "getitem", "sin", "add"],
        ),
    ],
    ids=["a call", "a chain", "numbers", "a layer", "three", "pieces", "the same piece"],
)
def test_the_second_reads_the_first(forward: Callable[..., Tensor], calls: list[str]) -> None:
    model = Lambda(forward, f=nn.Linear(4, 4)).double().eval()
    done = apply_exactly(model, doubles(2, 3, 4), rules=RULES, bound=0.0)
    assert sorted(op_name(n) for n in done.program.calls()) == sorted(calls)


def test_the_first_is_named() -> None:
    done = run_rules(program_of(Lambda(lambda m, x: x.exp() * x.exp()), doubles(2, 3)), *RULES)
    assert done.passed("share-calls") == ["the same as 'exp'"]


def test_a_list_that_is_read_as_a_whole_is_left_alone() -> None:
    """What reads it has no other way to get the same list."""
    graph = ByHand()
    x = graph.input(2, 4)
    halves = [graph.call(aten.chunk.default, x, 2, 1) for _ in range(2)]
    program = graph.returns(*(graph.call(aten.cat.default, half, 1) for half in halves))
    assert all(ShareCalls().check(program, Match(n, {})) is None for n in halves)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x.sin() * x.cos(),
        lambda m, x: x.sum(1) + x.sum(0),
        lambda m, x: x.sum(1) + x.sum(dim=1, keepdim=True)[:, 0],
        lambda m, x: m.f(x) * m.g(x),
        lambda m, x: (x + 1) * (x + 1.0),
        lambda m, x: torch.where(x > 0, x, 1) + torch.where(x > 0.5, x, 1),
    ],
    ids=[
        "another operator",
        "another axis",
        "another option",
        "another weight",
        "another kind of number",
        "another one",
    ],
)
def test_what_is_not_the_same_stays(forward: Callable[..., Tensor]) -> None:
    model = Lambda(forward, f=nn.Linear(4, 4), g=nn.Linear(4, 4)).double().eval()
    program = program_of(model, doubles(4, 4))
    done = run_rules(program, *RULES)
    assert done.text == graph_text(program) and not done.outcome.remarks


def test_random_numbers_and_sizes_alone_are_not_shared() -> None:
    graph = ByHand()
    x = graph.input(2, 3)
    noises = [graph.call(aten.rand_like.default, x) for _ in range(2)]
    ones = [graph.call(aten.zeros.default, [2, 3]) for _ in range(2)]
    program = graph.returns(graph.call(aten.add.Tensor, *noises), graph.call(aten.add.Tensor, *ones))
    assert all(ShareCalls().check(program, Match(n, {})) is None for n in program.calls())


def test_a_statistic_that_two_heads_take_is_taken_once_and_they_are_one_layer() -> None:
    model = Lambda(lambda m, x: m.f(x.mean((2, 3))) + m.g(x.mean((2, 3))), f=nn.Linear(3, 2), g=nn.Linear(3, 2))
    assert fuse_exactly(model.double().eval(), doubles(2, 3, 4, 5), bound=1e-14).text == "linear(mean(x, [2, 3]))"


def test_a_list_of_which_one_is_read_as_a_whole_is_left_alone() -> None:
    for turned in (False, True):
        graph = ByHand()
        x = graph.input(2, 4)
        halves = [graph.call(aten.chunk.default, x, 2, 1) for _ in range(2)]
        whole, apart = halves if turned else halves[::-1]
        reads = [graph.call(aten.cat.default, whole, 1), graph.call(operator.getitem, apart, 0)]
        program = graph.returns(*reads)
        assert all(ShareCalls().check(program, Match(n, {})) is None for n in halves)


def test_pieces_and_sizes_by_themselves_are_left_alone() -> None:
    """A piece comes with the call that it is of, and a size costs nothing."""
    graph = ByHand()
    x = graph.input(2, 4, 9, free=(2,))
    halves = graph.call(aten.chunk.default, x, 2, 1)
    pieces = [graph.call(operator.getitem, halves, 0) for _ in range(2)]
    sizes = [graph.call(aten.sym_size.int, x, 2) for _ in range(2)]
    ranges = [graph.call(aten.arange.default, size) for size in sizes]
    program = graph.returns(*pieces, *ranges)
    assert all(ShareCalls().check(program, Match(n, {})) is None for n in (*pieces, *sizes))


def test_which_arguments_are_equal() -> None:
    graph = ByHand()
    x = graph.input(2, 4, 9, free=(2,))
    one, two = (graph.call(aten.sym_size.int, x, 2) for _ in range(2))
    half = graph.call(operator.floordiv, one, 2)
    y, z = graph.call(aten.sin.default, x), graph.call(aten.cos.default, x)
    for a, b in ((one, two), (y, y), ([1, two], (1, one)), ({"a": 1}, {"a": 1}), (math.nan, math.nan), (None, None)):
        assert _is_equal(a, b)
    for a, b in (
        (one, half),
        (one, 9),
        (y, z),
        (one, y),
        (y, one),
        ([1], 1),
        (1, [1]),
        ([1], [2]),
        ([1], [1, 1]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ({}, {"a": 1}),
        (1, 1.0),
        (1, True),
        (1, None),
    ):
        assert not _is_equal(a, b) and not _is_equal(b, a)
