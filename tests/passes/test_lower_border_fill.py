"""lower-border-fill: pad with a constant per channel, written as slice assignments, becomes pad(x - v) + v."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.passes.fold_constants import FoldConstants
from reparam.passes.lower_border_fill import LowerBorderFill
from support.helpers import assert_evidence_bites, doubles, graph_text, max_rel, program_of, run_rules

Fill = Callable[[Tensor, Tensor, int], None]


def all_sides(y: Tensor, v: Tensor, p: int) -> None:
    y[:, :, :p, :] = v
    y[:, :, -p:, :] = v
    y[:, :, :, :p] = v
    y[:, :, :, -p:] = v


def three_sides(y: Tensor, v: Tensor, p: int) -> None:
    y[:, :, :p, :] = v
    y[:, :, -p:, :] = v
    y[:, :, :, :p] = v


def too_deep(y: Tensor, v: Tensor, p: int) -> None:
    all_sides(y, v, p + 1)


def two_values(y: Tensor, v: Tensor, p: int) -> None:
    all_sides(y, v, p)
    y[:, :, :p, :] = 2 * v


class Filled(nn.Module):
    def __init__(self, channels: int, p: int, fill: Fill = all_sides) -> None:
        super().__init__()
        self.value = nn.Parameter(doubles(channels, seed=3))
        self.p, self.fill = p, fill

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(x, [self.p] * 4)
        self.fill(y, self.value.view(1, -1, 1, 1), self.p)
        return y


@given(channels=st.integers(1, 4), p=st.integers(1, 3), height=st.integers(1, 6), width=st.integers(4, 7))
def test_property(channels: int, p: int, height: int, width: int) -> None:
    x = doubles(2, channels, height, width)
    done = run_rules(program_of(Filled(channels, p), x), FoldConstants(), LowerBorderFill())
    assert "scatter" not in graph_text(done.program)
    assert max_rel(done.original, done.program, [x]) <= 1e-15
    other = doubles(3, channels, height, width, seed=9)
    assert max_rel(done.original, done.program, [other]) <= 1e-15


def test_after() -> None:
    done = run_rules(program_of(Filled(3, 1), doubles(2, 3, 5, 5)), FoldConstants(), LowerBorderFill())
    assert graph_text(done.program) == "add(pad(add(x, w), [1, 1, 1, 1]), w)"


@pytest.mark.parametrize("fill", [three_sides, too_deep, two_values])
def test_another_fill_is_left_alone(fill: Fill) -> None:
    x = doubles(2, 3, 6, 6)
    done = run_rules(program_of(Filled(3, 1, fill), x), FoldConstants(), LowerBorderFill())
    assert "scatter" in graph_text(done.program)
    assert max_rel(done.original, done.program, [x]) == 0.0


def test_a_fill_with_data_is_left_alone() -> None:
    class Data(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.pad(x, [1, 1, 1, 1])
            all_sides(y, x.mean((2, 3), keepdim=True), 1)
            return y

    done = run_rules(program_of(Data(), doubles(2, 3, 6, 6)), LowerBorderFill())
    assert "scatter" in graph_text(done.program)


def test_a_wrong_value_is_caught() -> None:
    program = program_of(Filled(3, 1), doubles(2, 3, 5, 5))
    assert_evidence_bites(program, LowerBorderFill(), FoldConstants())


def test_dtype_is_kept() -> None:
    net = Filled(3, 1).float()
    done = run_rules(program_of(net, torch.randn(2, 3, 5, 5)), FoldConstants(), LowerBorderFill())
    assert done.program.output.args[0][0].meta["val"].dtype == torch.float32  # type: ignore[index,union-attr]
