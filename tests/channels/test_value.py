"""Channels of a value: blocks that a tensor can hold, equal rows, values made what is known of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam.channels.value import Channels, first_of, positions, structure, unknown

NAN = math.nan


def test_first_of_takes_all_columns_into_account() -> None:
    one = torch.tensor([[1.0, NAN], [1.0, 2.0], [1.0, NAN], [1.0, 2.0]])
    assert first_of(one).tolist() == [0, 1, 0, 1]
    assert first_of(one, torch.tensor([0, 1, 2, 1])).tolist() == [0, 1, 2, 1]


def test_structure_keeps_the_order_along_one_axis() -> None:
    assert structure(torch.tensor([4, 1, 4, 0]), (6,)).tolist() == [4, 1, 0]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 4), min_size=2, max_size=3))
def test_structure_is_a_block_that_holds_what_is_asked(data: st.DataObject, sizes: list[int]) -> None:
    count = math.prod(sizes)
    ids = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    block = structure(torch.tensor(sorted(ids)), sizes)
    flat = block.flatten().tolist()
    assert ids <= set(flat)
    assert flat == sorted(set(flat))
    inner = math.prod(sizes[1:])
    rows = block.reshape(block.shape[0], -1) // inner
    assert all(len(set(row)) == 1 for row in rows.tolist())
    assert set(rows[:, 0].tolist()) == {i // inner for i in ids}, "rows without any are left out"


def test_positions() -> None:
    assert positions(torch.tensor([5, 2]), torch.tensor([2, 9, 5])).tolist() == [2, 0]
    assert positions(torch.tensor([3]), torch.tensor([2, 9, 5])) is None
    assert positions(torch.tensor([3]), torch.empty(0, dtype=torch.int64)) is None


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 3), (0, 2)])
def test_impose_cut_and_put(axes: tuple[int, ...]) -> None:
    shape = (4, 6, 4, 3)
    sizes = tuple(shape[a] for a in axes)
    facts = unknown(axes, sizes)
    constant, first = facts.constant.clone(), facts.first.clone()
    constant[1], first[3] = 7.0, 0
    facts = Channels(axes, sizes, constant, first)
    value = torch.randn(shape, dtype=torch.float64)
    imposed = facts.impose(value)
    kept = structure(torch.tensor([0, 1, 3]), sizes)
    cut = facts.cut(imposed, kept)
    assert cut.shape == torch.Size(kept.shape[axes.index(a)] if a in axes else s for a, s in enumerate(shape))
    lone = facts.cut(imposed, torch.tensor([1]).reshape([1] * len(axes)))
    assert bool((lone == 7.0).all())
    assert torch.equal(facts.impose(imposed), imposed)
    assert torch.equal(facts.put(torch.zeros_like(value), kept, cut), facts.impose(facts.put(value * 0, kept, cut)))
    assert torch.equal(facts.cut(facts.put(imposed * 0, kept, cut), kept), cut)
