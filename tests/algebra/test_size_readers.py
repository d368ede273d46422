"""What reads the size of a value alone is in nobody's way: it is made anew of the value that comes in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.passes.fold_batch_norm import FoldBatchNorm
from support.helpers import EXACT, Fused, Lambda, apply_exactly, doubles, healthy


def folded(forward: Callable[[Any, Tensor], Any]) -> Fused:
    layers = {
        "c": nn.Conv1d(4, 4, 3),
        "n": nn.BatchNorm1d(4),
        "g": nn.GRU(4, 8, batch_first=True),
        "d": nn.Conv1d(4, 4, 1),
    }
    return apply_exactly(healthy(Lambda(forward, **layers)), doubles(2, 4, 9), rules=[FoldBatchNorm()], bound=EXACT)


@pytest.mark.parametrize(
    "make", [torch.zeros_like, torch.ones_like, lambda y: torch.full_like(y, 2.0), lambda y: y.new_ones(y.shape)]
)
def test_a_value_whose_size_is_read_takes_an_affine(make: Callable[[Tensor], Tensor]) -> None:
    done = folded(lambda m, x: (m.n(y := m.c(x)).sin(), make(y) * 3))
    assert "batch_norm" not in done.text
    assert done.passed("fold-batch-norm") == ["folded into the output of 'c'"]


def test_a_state_that_is_made_like_the_input_of_a_recurrent_layer() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.n(m.c(x).sin()).transpose(1, 2)
        return m.g(y, y.new_zeros(1, y.shape[0], 8))[0]

    done = folded(forward)
    assert "batch_norm" not in done.text and "new_zeros" in done.text
    assert done.passed("fold-batch-norm") == ["folded into the input of 'g'"]


def test_what_is_like_a_norm_goes_on_when_the_norm_has_gone() -> None:
    done = folded(lambda m, x: (m.d(y := m.n(x.sin())), torch.ones_like(y) * 3))
    assert "batch_norm" not in done.text and done.passed("fold-batch-norm") == ["folded into the input of 'd'"]


def test_what_reads_more_than_a_size_is_in_the_way() -> None:
    done = folded(lambda m, x: (m.n(y := m.c(x)).sin(), torch.zeros_like(y) + y))
    assert "batch_norm" in done.text
