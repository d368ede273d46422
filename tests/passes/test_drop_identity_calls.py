"""drop-identity, call by call: which value a call repeats, beside calls that are nearly the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from reparam.ir import aten, evaluate
from reparam.passes.drop_identity import DropIdentity, Plan
from reparam.rewrite import Match
from support.by_hand import ByHand, Make, behind, call, then
from support.helpers import Lambda, doubles, program_of

RULE = DropIdentity()
SHAPE = (2, 4, 5, 6)


zeros_like = call(aten.zeros_like.default)


def with_zeros(target: Any, *options: Any, zeros: Make = zeros_like, first: bool = False) -> Make:
    """A sum of the value and a fill of zeros."""

    def make(graph: ByHand, x: fx.Node) -> fx.Node:
        fill = zeros(graph, x)
        return graph.call(target, *((fill, x) if first else (x, fill)), **({"alpha": options[0]} if options else {}))

    return make


def found(
    make: Make, x_is: Any = aten.tanh.default, shape: tuple[int, ...] = SHAPE
) -> tuple[Plan | None, ByHand, fx.Node]:
    """What the rule says of a call on the tanh (or the relu, ...) of an input."""
    graph = ByHand()
    x = graph.call(x_is, graph.input(*shape))
    node = make(graph, x)
    plan = RULE.check(graph.program, Match(node, {}))
    assert plan is None or plan.node is node
    return plan, graph, x


def assert_same(make: Make, goes: bool, x_is: Any = aten.tanh.default, shape: tuple[int, ...] = SHAPE) -> None:
    """It goes exactly when it does nothing, on numbers too."""
    plan, graph, x = found(make, x_is, shape)
    assert (plan is not None) == goes
    if plan is not None:
        assert plan.same is x and plan.unread == ()
        node, same = evaluate(graph.returns(plan.node, x), [3 * doubles(*shape)])
        assert torch.equal(node, same)


ones, zeros = torch.ones(4, 1, 1).double(), torch.zeros(4, 1, 1).double()
last = torch.tensor([0.0, 0.0, 0.0, 1.0]).double().reshape(4, 1, 1)
permute, transpose = aten.permute.default, aten.transpose.int
avg, mx = aten.avg_pool2d.default, aten.max_pool2d.default

SAME: dict[str, Make] = {
    "dropout": call(aten.dropout.default, 0.5, False),
    "feature dropout": call(aten.feature_dropout.default, 0.5, False),
    "clone": call(aten.clone.default),
    "cast": call(aten.to.dtype, torch.float64),
    "reshape": call(aten.reshape.default, [-1, 4, 5, 6]),
    "flatten one axis": call(aten.flatten.using_ints, 1, 1),
    "slice": call(aten.slice.Tensor, 1, 0, 2**63 - 1),
    "expand": call(aten.expand.default, [-1, -1, 5, -1]),
    "permute": call(permute, [0, 1, -2, 3]),
    "transposed with itself": call(transpose, 2, -2),
    "permuted back": then(call(permute, [0, 2, 3, 1]), call(permute, [0, 3, 1, 2])),
    "permuted back, from behind": then(call(permute, [0, 2, -1, 1]), call(permute, [0, -1, 1, 2])),
    "transposed back": then(call(transpose, 1, 3), call(transpose, -1, -3)),
    "transposed back by a permute": then(call(transpose, 1, 3), call(permute, [0, 3, 2, 1])),
    "pad": call(aten.pad.default, [0, 0, 0, 0]),
    "constant pad": call(aten.constant_pad_nd.default, [0, 0], 3.0),
    "roll by nothing": call(aten.roll.default, [0], [1]),
    "roll by the size": call(aten.roll.default, [-5], [2]),
    "roll by a multiple of the size": call(aten.roll.default, [12], [-1]),
    "roll there and back": call(aten.roll.default, [2, 4, -2], [3, 1, -1]),
    "roll of all elements by nothing": call(aten.roll.default, [0]),
    "repeat": call(aten.repeat.default, [1, 1, 1, 1]),
    "times one": call(aten.mul.Tensor, 1.0),
    "times ones": behind(aten.mul.Tensor, ones),
    "over one": call(aten.div.Tensor, 1),
    "plus zero": call(aten.add.Tensor, 0),
    "plus a weight of zeros": call(aten.add.Tensor, zeros),
    "minus zero": call(aten.sub.Tensor, 0.0),
    "plus zeros": with_zeros(aten.add.Tensor),
    "zeros plus": with_zeros(aten.add.Tensor, first=True),
    "plus three times zeros": with_zeros(aten.add.Tensor, 3),
    "minus zeros": with_zeros(aten.sub.Tensor),
    "plus zeros times a number": with_zeros(
        aten.add.Tensor,
        zeros=then(call(aten.zeros_like.default), then(call(aten.mul.Tensor, 3), call(aten.div.Tensor, 2.0))),
    ),
    "plus new zeros": with_zeros(aten.add.Tensor, zeros=call(aten.new_zeros.default, [5, 6])),
    "average of one": call(avg, [1, 1]),
    "average of one, by one": call(avg, [1, 1], [1, 1], [0, 0], False, True, 1),
    "maximum of one": call(mx, [1, 1]),
    "maximum of one, step one": call(mx, [1], [1]),
    "concatenation of one": lambda g, x: g.call(aten.cat.default, [x], 1),
    "clamp at its ends": call(aten.clamp.default, -1.0, 1.0),
    "clamp without an upper end": call(aten.clamp.default, -1),
    "clamp without a lower end": call(aten.clamp.default, None, 1.0),
    "clamp_min": call(aten.clamp_min.default, -1),
    "clamp_max": call(aten.clamp_max.default, 1.0),
    "hardtanh": call(aten.hardtanh.default),
    "leaky relu of slope one": call(aten.leaky_relu.default, 1.0),
    "prelu of ones": call(aten.prelu.default, torch.ones(4).double()),
    "rrelu about one": call(aten.rrelu.default, 0.5, 1.5),
    "threshold without end": call(aten.threshold.default, -math.inf, 7.0),
    "threshold below": call(aten.threshold.default, -1.5, 7.0),
}
OTHERS: dict[str, Make] = {
    "another activation": call(aten.sin.default),
    "dropout that is on": call(aten.dropout.default, 0.5, True),
    "cast to another dtype": call(aten.to.dtype, torch.float32),
    "reshape to another shape": call(aten.reshape.default, [-1, 4, 6, 5]),
    "reshape to more axes": call(aten.reshape.default, [2, 4, 5, 6, 1]),
    "flip": call(aten.flip.default, [1]),
    "slice off one": call(aten.slice.Tensor, 1, 1, 4),
    "permute": call(permute, [0, 1, 3, 2]),
    "permuted on": then(call(permute, [0, 2, 3, 1]), call(permute, [0, 2, 3, 1])),
    "a transpose of something else": then(call(aten.flip.default, [1]), call(transpose, 1, 2)),
    "another transpose": then(call(transpose, 1, 2), call(transpose, 1, 3)),
    "pad": call(aten.pad.default, [0, 1]),
    "pad and crop": call(aten.pad.default, [1, -1]),
    "roll": call(aten.roll.default, [1], [2]),
    "roll, of two one": call(aten.roll.default, [5, 1], [2, 3]),
    "roll of all elements": call(aten.roll.default, [6]),
    "roll of all elements by their number": call(aten.roll.default, [240]),
    "repeat": call(aten.repeat.default, [1, 2, 1, 1]),
    "times nearly one": call(aten.mul.Tensor, 1 + 1e-15),
    "times two": call(aten.mul.Tensor, 2.0),
    "times one of which one is two": call(aten.mul.Tensor, ones + last),
    "plus nearly zero": call(aten.add.Tensor, 1e-300),
    "plus zeros of which one is one": call(aten.add.Tensor, last),
    "one minus": call(aten.rsub.Scalar, 1),
    "zeros minus": with_zeros(aten.sub.Tensor, first=True),
    "zeros plus twice": with_zeros(aten.add.Tensor, 2, first=True),
    "plus ones": with_zeros(aten.add.Tensor, zeros=call(aten.ones_like.default)),
    "plus zeros plus one": with_zeros(aten.add.Tensor, zeros=then(zeros_like, call(aten.add.Tensor, 1.0))),
    "plus zeros times a value": with_zeros(
        aten.add.Tensor, zeros=lambda g, x: g.call(aten.mul.Tensor, g.call(aten.zeros_like.default, x), x)
    ),
    "times zeros": lambda g, x: g.call(aten.mul.Tensor, x, g.call(aten.zeros_like.default, x)),
    "plus zeros of more axes": with_zeros(aten.add.Tensor, zeros=call(aten.new_zeros.default, [3, 2, 4, 5, 6])),
    "average of two": call(avg, [1, 2], [1, 1]),
    "step of two": call(avg, [1, 1], [1, 2]),
    "average of one with a border": call(avg, [2, 2], [1, 1], [1, 1]),
    "another divisor": call(avg, [1, 1], [1, 1], [0, 0], False, True, 2),
    "maximum of three": call(mx, [3, 3], [1, 1], [1, 1]),
    "concatenation with nothing": lambda g, x: g.call(aten.cat.default, [x, g.call(aten.slice.Tensor, x, 1, 4, 4)], 1),
    "concatenation with itself": lambda g, x: g.call(aten.cat.default, [x, x], 1),
    "clamp inside": call(aten.clamp.default, -0.5, 1.0),
    "clamp inside above": call(aten.clamp.default, -1.0, 0.5),
    "clamp_min inside": call(aten.clamp_min.default, -0.5),
    "clamp_max inside": call(aten.clamp_max.default, 0.5),
    "hardtanh inside below": call(aten.hardtanh.default, -0.5, 1.0),
    "hardtanh inside": call(aten.hardtanh.default, -1.0, 0.5),
    "relu": call(aten.relu.default),
    "relu6": call(aten.relu6.default),
    "abs": call(aten.abs.default),
    "leaky relu": call(aten.leaky_relu.default, 0.5),
    "prelu": call(aten.prelu.default, torch.tensor([1.0, 0.5, 1.0, 1.0]).double()),
    "elu": call(aten.elu.default),
    "celu": call(aten.celu.default),
    "rrelu": call(aten.rrelu.default, 0.5, 1.0),
    "threshold at its end": call(aten.threshold.default, -1.0, 7.0),
    "threshold that nothing exceeds": call(aten.threshold.default, math.inf, 7.0),
    "two values": call(aten.split.Tensor, 4, 1),
}
POSITIVE: dict[str, tuple[Make, bool]] = {
    "relu": (call(aten.relu.default), True),
    "relu6": (call(aten.relu6.default), False),
    "abs": (call(aten.abs.default), True),
    "leaky relu": (call(aten.leaky_relu.default, 0.5), True),
    "prelu": (call(aten.prelu.default, torch.tensor([0.5]).double()), True),
    "elu": (call(aten.elu.default), True),
    "elu of another scale": (call(aten.elu.default, 1.0, 2.0), False),
    "celu": (call(aten.celu.default), True),
    "rrelu": (call(aten.rrelu.default, 0.1, 0.3), True),
    "threshold below": (call(aten.threshold.default, -0.5, 7.0), True),
    "threshold at its end": (call(aten.threshold.default, 0.0, 7.0), False),
    "clamp": (call(aten.clamp.default, 0.0), True),
}


@pytest.mark.parametrize("name", SAME)
def test_a_call_that_does_nothing_goes(name: str) -> None:
    assert_same(SAME[name], True)


@pytest.mark.parametrize("name", OTHERS)
def test_a_call_that_does_something_stays(name: str) -> None:
    assert_same(OTHERS[name], False)


@pytest.mark.parametrize("name", POSITIVE)
def test_a_rectifier_of_what_is_never_negative(name: str) -> None:
    assert_same(*POSITIVE[name], x_is=aten.relu.default)


@pytest.mark.parametrize("x_is", [aten.sigmoid.default, aten.relu6.default])
def test_relu6_of_what_lies_inside_it(x_is: Any) -> None:
    assert_same(call(aten.relu6.default), True, x_is)


@pytest.mark.parametrize(("shape", "goes"), [((3, 4), False), ((4, 4), False), ((4,), True)])
def test_a_transpose_of_a_matrix_and_of_a_vector(shape: tuple[int, ...], goes: bool) -> None:
    assert_same(call(aten.t.default), goes, shape=shape)


def test_a_matrix_transposed_twice() -> None:
    assert_same(then(call(aten.t.default), call(aten.t.default)), True, shape=(3, 4))
    assert_same(then(call(aten.t.default), call(aten.transpose.int, 0, 1)), True, shape=(3, 4))


def test_a_map_turned_on_keeps_its_shape_and_stays() -> None:
    turn = call(permute, [0, 2, 3, 1])
    assert_same(then(turn, turn), False, shape=(2, 4, 4, 4))
    assert_same(then(turn, then(turn, turn)), False, shape=(2, 4, 4, 4))


def test_relu6_of_what_reaches_past_six_stays() -> None:
    graph = ByHand()
    x = graph.call(aten.clamp.default, graph.input(*SHAPE), 0.0, 6.5)
    assert RULE.check(graph.program, Match(graph.call(aten.relu6.default, x), {})) is None


def test_an_operand_that_is_given_by_name_is_not_looked_for() -> None:
    graph = ByHand()
    assert RULE.check(graph.program, Match(graph.call(aten.clone.default, self=graph.input(*SHAPE)), {})) is None


def test_what_is_broadcast_up_stays() -> None:
    assert_same(call(aten.mul.Tensor, torch.ones(5, 6).double()), False, shape=(2, 4, 1, 6))
    assert_same(with_zeros(aten.add.Tensor, zeros=call(aten.new_zeros.default, [5, 6])), False, shape=(2, 4, 1, 6))


def test_a_copy_is_its_source_and_does_not_read_the_other() -> None:
    graph = ByHand()
    x, y = graph.input(*SHAPE), graph.input(*SHAPE)
    node = graph.call(aten.copy.default, x, y)
    assert RULE.check(graph.program, Match(node, {})) == Plan(node, y, (x,))
    node = graph.call(aten.copy.default, x, x)
    assert RULE.check(graph.program, Match(node, {})) == Plan(node, x)
    assert RULE.check(graph.program, Match(graph.call(aten.copy.default, x, graph.input(5, 6)), {})) is None


def test_the_call_is_replaced_and_named() -> None:
    plan, graph, x = found(call(aten.clone.default))
    assert plan is not None
    made = RULE.rewrite(graph.program, replace(plan, unread=(plan.node,)))
    assert (made.replace, made.message, made.unread) == ({plan.node: x}, "clone does nothing here", (plan.node,))


# ---- free sizes --------------------------------------------------------------------------------------------------


def free(make: Make, *axes: int) -> Plan | None:
    graph = ByHand()
    return RULE.check(graph.program, Match(make(graph, graph.input(*SHAPE, free=axes)), {}))


def test_free_sizes_are_the_same_when_they_are_one_size() -> None:
    assert free(call(aten.clone.default), 0, 2) is not None
    assert free(call(aten.slice.Tensor, 2, 0, 2**63 - 1), 2) is not None
    assert free(call(aten.slice.Tensor, 2, 0, 5), 2) is None
    assert free(call(aten.slice.Tensor, 2, 0, 20), 2) is None
    assert free(call(aten.slice.Tensor, 2, -20, 2**63 - 1), 2) is None
    assert free(lambda g, x: g.call(aten.permute.default, x, [0, 1, 3, 2]), 2, 3) is None


def test_a_slice_to_a_size_that_agrees_only_as_it_was_traced_stays() -> None:
    """A fixed and a free size, either way round, and two free ones."""

    def to_the_size_of(other: tuple[int, ...], *axes: int) -> Make:
        def make(graph: ByHand, x: fx.Node) -> fx.Node:
            size = graph.call(aten.sym_size.int, graph.input(*other, free=axes), 2)
            return graph.call(aten.narrow.default, x, 2, 0, size)

        return make

    assert free(lambda g, x: g.call(aten.slice.Tensor, x, 2, 0, g.call(aten.sym_size.int, x, 2)), 2) is not None
    assert free(to_the_size_of((2, 4, 5, 6), 2)) is None
    assert free(to_the_size_of((2, 4, 5, 6), 2), 2) is None


def test_a_roll_by_a_free_size_is_known_to_be_whole_for_no_size() -> None:
    assert free(call(aten.roll.default, [5], [2]), 2) is None
    assert free(call(aten.roll.default, [0], [2]), 2) is not None
    assert free(call(aten.roll.default, [5, 6], [2, 3]), 2) is None
    assert free(lambda g, x: g.call(aten.roll.default, x, [g.call(aten.sym_size.int, x, 2), 0], [3, 2]), 2) is None


def test_a_clamp_by_a_size_stays() -> None:
    """Its end is not known when the network is converted."""
    assert free(lambda g, x: g.call(aten.clamp.default, x, g.call(aten.sym_size.int, x, 0)), 0) is None
    assert free(lambda g, x: g.call(aten.clamp.default, x, None, g.call(aten.sym_size.int, x, 0)), 0) is None


READERS: list[Make] = [
    call(aten.as_strided.default, [2, 2], [2, 1]),
    call(aten.view_as_complex.default),
    call(aten.view.dtype, torch.int64),
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("copy", [aten.contiguous.default, aten.clone.default])
def test_a_copy_that_is_read_in_memory_stays(read: Make, copy: Any) -> None:
    """Beside another reader, too."""
    graph = ByHand()
    made = graph.call(copy, graph.call(aten.tanh.default, graph.input(4, 2)))
    assert RULE.check(graph.program, Match(made, {})) is not None
    graph.returns(graph.call(aten.relu.default, made), read(graph, made))
    assert RULE.check(graph.program, Match(made, {})) is None


@pytest.mark.parametrize(
    ("copy", "goes"), [(aten.clone.default, False), (aten.resolve_conj.default, False), (aten.alias.default, True)]
)
def test_a_copy_of_values_that_may_be_marked_as_conjugated_stays(copy: Any, goes: bool) -> None:
    graph = ByHand()
    made = graph.call(copy, graph.call(aten.view_as_complex.default, graph.input(4, 2)))
    graph.returns(graph.call(aten.view_as_real.default, made))
    assert (RULE.check(graph.program, Match(made, {})) is not None) == goes


@pytest.mark.parametrize(
    ("squeeze", "goes"),
    [
        (lambda x: x.squeeze(), False),
        (lambda x: x.squeeze(0), False),
        (lambda x: x.squeeze((1, 0)), False),
        (lambda x: x.squeeze(1), True),
        (lambda x: x.squeeze((1, 2)), True),
    ],
)
def test_a_squeeze_stays_where_it_may_take_away_a_free_axis(squeeze: Callable[[Tensor], Tensor], goes: bool) -> None:
    """A batch of one loses it."""
    model, x = Lambda(lambda m, x: squeeze(x.tanh())), doubles(4, 3, 2)
    node = list(program_of(model, x).calls())[-1]
    assert (RULE.check(program_of(model, x), Match(node, {})) is not None) == goes
    fixed = program_of(model, x, dynamic=())
    assert RULE.check(fixed, Match(list(fixed.calls())[-1], {})) is not None
