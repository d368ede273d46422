"""Channel affines: how they are read, composed, moved and written."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from reparam.algebra import Affine, Pair, along, compress, read_affine, write_affine
from reparam.algebra.channel_affine import (
    lift,
    nonzero,
    plus,
    same,
    times,
    times_shift,
    trim,
)
from reparam.algebra.movements import is_movement, move_backward, move_forward
from reparam.ir import Program, Refusal, aten, evaluate
from support.by_hand import ByHand
from support.helpers import EXACT, Lambda, doubles, healthy, program_of, vector

Function = Callable[..., Tensor]
SHAPE = (2, 4, 3, 5)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


def last(program: Program) -> fx.Node:
    return list(program.calls())[-1]


def read(forward: Function, x: Tensor, **children: Any) -> tuple[Program, Affine | Refusal | None]:
    program = program_of(Lambda(forward, **children).double().eval(), x)
    return program, read_affine(program, last(program))


def value_of(pair: Pair, x: Tensor) -> Tensor:
    y = x if pair.scale is None else x * pair.scale
    return y if pair.shift is None else y + pair.shift


# ---- pairs -------------------------------------------------------------------------------------------------------

PARTS = st.none() | st.integers(0, 9).map(lambda seed: doubles(1, 3, 1, 1, seed=seed))


@given(first=st.tuples(PARTS, PARTS), second=st.tuples(PARTS, PARTS))
def test_one_affine_after_another(first: Any, second: Any) -> None:
    x = doubles(2, 3, 2, 2, seed=20)
    joint = Pair(*first).then(*second)
    assert torch.allclose(value_of(joint, x), value_of(Pair(*second), value_of(Pair(*first), x)), rtol=0, atol=1e-12)
    assert joint.trivial == (joint.scale is None and joint.shift is None)
    assert (joint.scale is None) == (first[0] is None and second[0] is None)


def test_products_and_sums_of_parts_that_may_be_missing() -> None:
    a, b = column(2.0, 3.0), column(-5.0, 7.0)
    assert times(None, None) is None and times(a, None) is a and times(None, b) is b
    assert torch.equal(times(a, b), a * b)  # type: ignore[arg-type]
    assert times_shift(None, b) is None and times_shift(a, None) is a
    assert torch.equal(times_shift(a, b), a * b)  # type: ignore[arg-type]
    assert plus(None, None) is None and plus(a, None) is a and plus(None, b) is b
    assert torch.equal(plus(a, b), a + b)  # type: ignore[arg-type]
    assert plus(a, -a) is None
    assert nonzero(column(0.0, 0.0)) is None and nonzero(a) is a
    assert nonzero(column(0.0, 1e-300)) is not None


def test_scales_are_the_same_when_shape_and_values_are() -> None:
    a = column(2.0, 3.0)
    assert same(None, None) and same(a, a.clone())
    assert not same(a, None) and not same(None, a)
    assert not same(a, column(2.0, 3.5)) and not same(column(2.0), column(2.0, 2.0))
    assert not same(a, a.reshape(1, 1, 2, 1))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
def test_a_vector_along_an_axis(axis: int) -> None:
    shape = [1, 1, 1, 1]
    shape[axis] = 3
    values = doubles(*shape)
    assert torch.equal(along(values, axis), values.reshape(-1))  # type: ignore[arg-type]
    assert along(None, axis) is None
    with pytest.raises(ValueError, match=r"varies along more axes than -?\d: \("):
        along(values, axis - 1)
    with pytest.raises(ValueError, match="varies along more axes"):
        along(doubles(2, 3), 1)


@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    kept=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_axes_along_which_a_value_is_constant_are_dropped(shape: list[int], kept: list[bool]) -> None:
    small = doubles(*(n if keep else 1 for n, keep in zip(shape, kept, strict=False)))
    assert compress(small.expand(shape)).shape == small.shape
    assert torch.equal(compress(small.expand(shape)), small)
    assert compress(small.expand(shape)).is_contiguous()
    lifted = lift(small, 6)
    assert lifted.dim() == 6 and torch.equal(lifted.reshape(small.shape), small)
    assert lifted.shape[: 6 - small.dim()] == (1,) * (6 - small.dim())


def test_a_value_that_differs_in_its_last_entry_alone_is_not_constant() -> None:
    assert compress(torch.tensor([[1.0, 1.0, 2.0]])).shape == (1, 3)
    assert compress(torch.tensor([[1.0], [1.0]])).shape == (1, 1)


def test_leading_axes_of_size_one_are_trimmed() -> None:
    assert trim(column(1.0, 2.0)).shape == (2, 1, 1)
    assert trim(torch.ones(1, 1, 1)).shape == (1,)
    assert trim(torch.ones(1)).shape == (1,)
    assert trim(torch.ones(2, 1)).shape == (2, 1)


# ---- reading -----------------------------------------------------------------------------------------------------

READ: dict[str, Function] = {
    "x + c": lambda m, x: x + m.c,
    "c + x": lambda m, x: m.c + x,
    "x + 3 c": lambda m, x: torch.add(x, m.c, alpha=3),
    "c + 3 x": lambda m, x: torch.add(m.c, x, alpha=3),
    "x - c": lambda m, x: x - m.c,
    "c - x": lambda m, x: m.c - x,
    "x - 3 c": lambda m, x: torch.sub(x, m.c, alpha=3),
    "c - 3 x": lambda m, x: torch.sub(m.c, x, alpha=3),
    "rsub x c": lambda m, x: torch.rsub(x, m.c),
    "rsub c x": lambda m, x: torch.rsub(m.c, x),
    "rsub x c 3": lambda m, x: torch.rsub(x, m.c, alpha=3),
    "rsub c x 3": lambda m, x: torch.rsub(m.c, x, alpha=3),
    "rsub x 2": lambda m, x: torch.rsub(x, 2.0),
    "rsub x 2 3": lambda m, x: torch.rsub(x, 2.0, alpha=3),
    "x c": lambda m, x: x * m.c,
    "c x": lambda m, x: m.c * x,
    "x / c": lambda m, x: x / m.c,
    "x + 2": lambda m, x: x + 2,
    "2 - x": lambda m, x: 2 - x,
    "x 2": lambda m, x: x * 2.5,
    "x / 4": lambda m, x: x / 4,
    "-x": lambda m, x: -x,
    "scalar weight": lambda m, x: x * m.one,
    "full rank": lambda m, x: x * m.full,
    "c + 2 x": lambda m, x: torch.add(m.c, x, alpha=2),
    "x / some ones": lambda m, x: x / m.ones,
    "last axis": lambda m, x: x * m.row,
}


@pytest.mark.parametrize("name", READ)
def test_an_affine_is_read_as_what_it_computes(name: str) -> None:
    x = doubles(*SHAPE)
    children = {"c": vector(4, 1, 1), "one": nn.Parameter(torch.tensor(1.5)), "row": vector(5)}
    children |= {"full": vector(1, 4, 1, 1), "ones": nn.Parameter(torch.tensor([1.0, 2.0, 0.5, 1.0])[:, None, None])}
    program, found = read(READ[name], x, **children)
    assert isinstance(found, Affine)
    assert found.node is last(program) and found.x is program.placeholders[0]
    [truth] = evaluate(program, [x])
    assert float((value_of(found.pair, x) - truth).abs().max()) <= EXACT
    for part in (found.pair.scale, found.pair.shift):
        assert part is None or (part.dtype == torch.float64 and part.dim() == 4)
    assert found.pair.scale is None or name not in ("x + c", "c + x", "x + 3 c", "x - c", "x + 2")


@pytest.mark.parametrize("shape", [(6, 4), (2, 4, 5), SHAPE, (2, 4, 2, 3, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_is_read_as_what_it_computes(shape: tuple[int, ...], affine: bool) -> None:
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](4, affine=affine)
    x = doubles(*shape)
    program = program_of(healthy(norm), x)
    found = read_affine(program, last(program))
    assert isinstance(found, Affine) and found.x is program.placeholders[0] and found.node is last(program)
    [truth] = evaluate(program, [x])
    assert float((value_of(found.pair, x) - truth).abs().max()) <= 1e-11
    assert found.pair.scale is not None and found.pair.scale.shape == (1, 4, *[1] * (len(shape) - 2))


def test_a_batch_norm_that_shifts_nothing_has_no_shift() -> None:
    norm = nn.BatchNorm2d(4)
    program = program_of(norm.double().eval(), doubles(*SHAPE))
    found = read_affine(program, last(program))
    assert isinstance(found, Affine) and found.pair.shift is None


NO_AFFINE: dict[str, Function] = {
    "of two values": lambda m, x: x * torch.tanh(x),
    "sum of two values": lambda m, x: x + torch.tanh(x),
    "quotient of a weight": lambda m, x: m.c / x,
    "over zero": lambda m, x: x / m.zero,
    "rounded": lambda m, x: torch.div(x, 2.0, rounding_mode="floor"),
    "infinite": lambda m, x: x + m.mask,
    "infinite number": lambda m, x: x * math.inf,
    "along two axes": lambda m, x: x * m.plane,
    "broadcast": lambda m, x: x[:, :1] * m.c,
    "higher rank": lambda m, x: x * m.high,
    "an activation": lambda m, x: torch.tanh(x),
    "integers": lambda m, x: x * m.whole,
}


@pytest.mark.parametrize("name", NO_AFFINE)
def test_what_is_no_channel_affine_is_not_read_as_one(name: str) -> None:
    children = {
        "c": vector(4, 1, 1),
        "zero": nn.Parameter(torch.tensor([1.0, 0.0, 2.0, 3.0]).reshape(4, 1, 1)),
        "mask": nn.Parameter(torch.tensor([0.0, -math.inf, 0.0, 0.0]).reshape(4, 1, 1)),
        "plane": vector(4, 3, 1),
        "high": vector(1, 1, 4, 1, 1),
        "whole": nn.Buffer(torch.arange(4).reshape(4, 1, 1)),
    }
    _, found = read(NO_AFFINE[name], doubles(*SHAPE), **children)
    assert found is None


def test_a_constant_that_varies_over_a_map_of_two_by_two_is_no_channel_affine() -> None:
    _, found = read(lambda m, x: x * m.c, doubles(2, 4, 2, 2), c=vector(2, 2))
    assert found is None


def test_integers_are_no_affine() -> None:
    program = program_of(Lambda(lambda m, x: x * 2.5), torch.ones(2, 3, dtype=torch.int64))
    assert read_affine(program, last(program)) is None
    program = program_of(Lambda(lambda m, x: -x), torch.ones(2, 3, dtype=torch.int64))
    assert read_affine(program, last(program)) is None
    program = program_of(Lambda(lambda m, x: x + 1), torch.ones(2, 3, dtype=torch.int64))
    assert read_affine(program, last(program)) is None


def test_batch_norms_that_are_no_affine_say_why() -> None:
    x = doubles(*SHAPE)
    batch = program_of(nn.BatchNorm2d(4, track_running_stats=False).double().eval(), x)
    refused = read_affine(batch, last(batch))
    assert isinstance(refused, Refusal)
    assert refused.reason == "it normalises by the statistics of each batch, even in evaluation mode"
    assert refused.node is last(batch) and refused.hint == "track_running_stats=True makes it foldable"

    def computed(m: Any, x: Tensor) -> Tensor:
        return F.batch_norm(x, m.mean, m.var, x.mean((0, 2, 3)))

    _, found = read(computed, x, mean=nn.Buffer(torch.zeros(4)), var=nn.Buffer(torch.ones(4)))
    assert isinstance(found, Refusal) and found.reason == "its statistics or weights are computed from the data"
    for bad in (math.nan, -1.0):
        broken: Any = nn.BatchNorm2d(4)
        broken.running_var[2] = bad
        program = program_of(broken.double().eval(), x)
        refused = read_affine(program, last(program))
        assert isinstance(refused, Refusal) and refused.node is last(program)
        assert refused.reason == f"its statistics give no finite scale (channel 2: variance {bad:.3g})"
    endless: Any = nn.BatchNorm2d(4)
    endless.running_mean[1] = math.inf
    program = program_of(endless.double().eval(), x)
    refused = read_affine(program, last(program))
    assert isinstance(refused, Refusal) and "(channel 1: variance 1)" in refused.reason


# ---- movement ----------------------------------------------------------------------------------------------------

MOVES: dict[str, Function] = {
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "flatten": lambda x: x.flatten(1),
    "reshape": lambda x: x.reshape(2, 2, 6, 5),
    "slice": lambda x: torch.ops.aten.slice.Tensor(x, 1, 1, 3),
    "select": lambda x: x.select(1, 2),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "expand": lambda x: x[:, :, :1].expand(2, 4, 3, 5),
    "shuffle": lambda x: torch.channel_shuffle(x, 2),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "upsample": lambda x: F.interpolate(x, scale_factor=2),
}


@functools.cache
def moved(name: str, shape: tuple[int, ...] = SHAPE) -> tuple[Program, fx.Node, fx.Node]:
    program = program_of(Lambda(lambda m, x: MOVES[name](torch.tanh(x))), doubles(*shape), dynamic=())
    node = last(program)
    x = node.all_input_nodes[0]
    assert is_movement(program, node)
    return program, node, x


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_a_scale_moves_as_the_elements_do(name: str, axis: int) -> None:
    program, node, x = moved(name)
    size = x.meta["val"].shape[axis]
    value = torch.arange(1, 1 + size, dtype=torch.float64).reshape([-1 if i == axis else 1 for i in range(4)])
    result = move_forward(program, node, x, value)
    truth = node.target(value.expand(x.meta["val"].shape), *node.args[1:], **node.kwargs)  # type: ignore[operator, misc]
    assert torch.equal(result.expand(truth.shape), truth)
    assert result.shape == compress(truth).shape
    back = move_backward(program, node, x, result, 1.0)
    assert back is not None
    again = move_forward(program, node, x, back)
    assert torch.equal(again.expand(truth.shape), truth)


def test_sizes_and_shapes_are_taken_as_they_were_traced() -> None:
    like = Lambda(lambda m, x, y: torch.tanh(x).expand_as(y))
    sized = Lambda(lambda m, x, y: torch.tanh(x).reshape(x.shape[0] * 3, 1, 4) + y[0, 0, 0])
    for model, shape in ((like, (2, 5, 4)), (sized, (6, 1, 4))):
        program = program_of(model, doubles(2, 1, 4) if model is like else doubles(2, 3, 4), doubles(2, 5, 4))
        node = next(n for n in program.calls() if any(i.target is aten.tanh.default for i in n.all_input_nodes))
        x = node.all_input_nodes[0]
        found = move_forward(program, node, x, torch.tensor([1.0, 2.0, 3.0, 4.0]).double().reshape(1, 1, 4))
        assert found.expand(shape)[-1, -1].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_an_operand_that_is_there_for_its_shape_alone_need_not_be_known() -> None:
    for target, own, sizes in (
        (aten.expand_as.default, (2, 1, 4), (2, 5, 4)),
        (aten.reshape_as.default, (8, 4), (2, 4, 4)),
    ):
        graph = ByHand()
        x, like = graph.input(*own), graph.input(*sizes, free=(0,))
        node = graph.call(target, x, like)
        values = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).reshape([1] * (len(own) - 1) + [4])
        assert move_forward(graph.program, node, x, values).flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
        back = move_backward(graph.program, node, x, values.reshape(1, 1, 4), 0.0)
        assert back is not None and back.flatten().tolist() == [1.0, 2.0, 3.0, 4.0]


def test_arguments_may_have_names() -> None:
    graph = ByHand()
    x = graph.input(2, 4)
    node = graph.call(aten.slice.Tensor, x, dim=1, start=1, end=3)
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    assert move_forward(graph.program, node, x, values).tolist() == [[2.0, 3.0]]


def test_the_pieces_of_a_split_move_apart_and_together() -> None:
    program = program_of(Lambda(lambda m, x: torch.tanh(x).split([1, 3], 1)), doubles(*SHAPE), dynamic=())
    [split] = [n for n in program.calls() if n.target is aten.split_with_sizes.default]
    x = split.all_input_nodes[0]
    values = column(1.0, 2.0, 3.0, 4.0)
    pieces = move_forward(program, split, x, values)
    assert [p.flatten().tolist() for p in pieces] == [[1.0], [2.0, 3.0, 4.0]]
    assert torch.equal(move_backward(program, split, x, pieces, 1.0), values)  # type: ignore[arg-type]


def test_what_does_not_reach_the_result_keeps_the_neutral_value() -> None:
    program, node, x = moved("slice")
    back = move_backward(program, node, x, column(5.0, 6.0), 7.0)
    assert back is not None and back.flatten().tolist() == [7.0, 5.0, 6.0, 7.0]


def test_two_copies_that_ask_for_different_values_ask_too_much() -> None:
    program, node, x = moved("repeat")
    refused = move_backward(program, node, x, column(*range(8)), 1.0)
    assert isinstance(refused, Refusal) and refused.reason == "repeat copies elements that need different factors"
    back = move_backward(program, node, x, column(1, 2, 3, 4, 1, 2, 3, 4), 1.0)
    assert back is not None and back.flatten().tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_selection_moves_elements_where_its_index_is_known() -> None:
    order = nn.Buffer(torch.tensor([2, 0]))
    program = program_of(Lambda(lambda m, x: x.index_select(1, m.order), order=order), doubles(*SHAPE))
    assert is_movement(program, last(program))
    value = move_forward(program, last(program), program.placeholders[0], column(1.0, 2.0, 3.0, 4.0))
    assert value.flatten().tolist() == [3.0, 1.0]
    back = move_backward(program, last(program), program.placeholders[0], column(3.0, 1.0), 9.0)
    assert back is not None and back.flatten().tolist() == [1.0, 9.0, 3.0, 9.0]
    unknown = program_of(Lambda(lambda m, x, k: x.index_select(1, k)), doubles(*SHAPE), torch.tensor([1, 0]))
    assert not is_movement(unknown, last(unknown))
    other = program_of(Lambda(lambda m, x: torch.tanh(x)), doubles(*SHAPE))
    assert not is_movement(other, last(other))


# ---- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, column(2.0, -3.0, 0.5, 1.0)])
@pytest.mark.parametrize("shift", [None, column(1.0, 0.0, -2.0, 4.0)])
def test_an_affine_is_written_with_what_it_has(scale: Tensor | None, shift: Tensor | None) -> None:
    x = doubles(*SHAPE)
    program = program_of(Lambda(lambda m, x: torch.tanh(x)), x)
    tanh = last(program)
    new = write_affine(program, program.placeholders[0], Pair(scale, shift), "origin", like=tanh)
    tanh.replace_all_uses_with(new)
    [value] = evaluate(program, [x])
    assert torch.equal(value, value_of(Pair(scale, shift), x))
    wanted = [f"origin.{part}" for part, t in (("scale", scale), ("shift", shift)) if t is not None]
    assert sorted(program.constants) == wanted
    assert all(c.value.shape == (4, 1, 1) for c in program.constants.values())
    assert new is program.placeholders[0] if not wanted else new.target is not None
