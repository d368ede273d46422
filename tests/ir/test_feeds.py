"""Random inputs of a program: of every kind that it takes, in the numbers of its dtypes."""

from __future__ import annotations

import torch

from reparam.ir import feed, typed
from support.by_hand import ByHand


def test_complex_inputs_are_drawn_with_both_parts_in_the_numbers_of_their_dtype() -> None:
    graph = ByHand(torch.float32)
    graph.input(2, 8, free=(0,), dtype=torch.complex64)
    values = feed(graph.program, {}, torch.Generator().manual_seed(0))
    (value,) = values
    assert value.dtype == torch.complex128 and value.shape == (2, 8)
    assert len(torch.view_as_real(value).unique()) == 32
    (narrow,) = typed(graph.program, values)
    assert narrow.dtype == torch.complex64 and torch.equal(narrow.to(torch.complex128), value)
