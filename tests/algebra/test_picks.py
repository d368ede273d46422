"""Which positions of its operand a call takes, by comparison with what the call does to numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reparam.algebra import broadcast_channels, read_picks
from support.helpers import Lambda, program_of

SHAPE = (2, 6, 4)
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda x: x[:, 1:4],
    "slice with a step": lambda x: x[:, 1:6][:, ::2],
    "slice from behind": lambda x: x[:, -3:],
    "narrow": lambda x: x.narrow(1, 2, 3),
    "last axis": lambda x: x[..., 1:3],
    "split": lambda x: x.split([1, 3, 2], 1)[1],
    "chunk": lambda x: x.chunk(3, 1)[2],
    "shuffle": lambda x: torch.channel_shuffle(x, 3),
    "repeat": lambda x: x.repeat(1, 3, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "expand": lambda x: x[:, 2:3].expand(-1, 5, -1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_positions_are_those_that_the_call_copies(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    program = program_of(Lambda(lambda _, v: call(v)), x)
    value, read = x, 0
    for node in program.calls():
        found = read_picks(program, node)
        if found is not None:
            value, read = value.index_select(found.axis, torch.tensor(found.positions)), read + 1
    assert read and torch.equal(value, call(x))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_selection_by_a_weight(index: list[int]) -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    model = Lambda(lambda m, v: v.index_select(1, m.index))
    model.register_buffer("index", torch.tensor(index))
    program = program_of(model, x)
    found = read_picks(program, next(program.calls()))
    assert found is not None and found.axis == 1 and list(found.positions) == index


@pytest.mark.parametrize(
    "call",
    [lambda x: x.repeat(1, 2, 2), lambda x: x.flip(1), torch.sin, lambda x: x[:, 3:3]],
    ids=["two axes", "flip", "arithmetic", "nothing"],
)
def test_other_calls(call: Callable[[Tensor], Tensor]) -> None:
    program = program_of(Lambda(lambda _, v: call(v)), torch.randn(SHAPE, dtype=torch.float64))
    assert read_picks(program, list(program.calls())[-1]) is None


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((2, 1, 4), (2, 6, 4), True),
        ((2, 6, 4), (2, 1, 4), True),
        ((2, 6, 4), (2, 6, 4), False),
        ((2, 1, 1), (2, 6, 4), False),
    ],
)
def test_broadcast_of_one_channel(left: tuple[int, ...], right: tuple[int, ...], expected: bool) -> None:
    assert broadcast_channels((left, right), 1) == expected
