"""sum-of-stack: a sum or mean over the axis that a stack made is a sum of what was stacked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.passes.sum_of_stack import SumOfStack
from support.helpers import Lambda, apply_exactly, doubles, fuse_exactly, graph_text, healthy, program_of, run_rules


@given(count=st.integers(1, 4), axis=st.integers(-4, 3), mean=st.booleans())
def test_property(count: int, axis: int, mean: bool) -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        stacked = torch.stack([x.sin() * k for k in range(1, count + 1)], axis)
        return stacked.mean(axis) if mean else stacked.sum(axis)

    done = apply_exactly(Lambda(forward), doubles(2, 3, 4), rules=[SumOfStack()], bound=1e-14)
    assert "stack" not in done.text


def test_a_sum_is_additions_and_a_mean_divides_by_their_number() -> None:
    for join, text in (("sum", "add(x, sin(x))"), ("mean", "mul(add(x, sin(x)), 0.5)")):
        model = Lambda(lambda _, x, j=join: getattr(torch.stack([x, x.sin()], 1), j)(1))
        done = apply_exactly(model, doubles(2, 3, 4), rules=[SumOfStack()], bound=1e-14)
        assert done.text == text
        assert done.passed("sum-of-stack") == ["a reduction of 2 stacked values became additions"]


def test_stacked_branches_of_one_source_become_one_convolution() -> None:
    model = Lambda(
        lambda m, x: torch.stack([m.bn(m.a(x)), m.b(x)], 1).sum(1).relu(),
        a=nn.Conv2d(3, 4, 3, padding=1),
        bn=nn.BatchNorm2d(4),
        b=nn.Conv2d(3, 4, 1),
    )
    assert fuse_exactly(healthy(model), doubles(2, 3, 6, 6), bound=1e-13).text == "relu(conv3x3(x))"


@pytest.mark.parametrize(
    "join",
    [
        lambda s: s.sum(2),
        lambda s: s.sum(1, keepdim=True),
        lambda s: s.amax(1),
        lambda s: s.sum((1, 2)),
        lambda s: s.sum(1) + s[:, 0],
        lambda s: s.sum(),
        lambda s: s.sum(1, dtype=torch.float32),
        lambda s: s.long().sum(1),
    ],
    ids=["another axis", "axis kept", "maximum", "two axes", "read twice", "all axes", "rounded", "whole numbers"],
)
def test_what_is_no_sum_of_the_parts_stays(join: Callable[[Tensor], Tensor]) -> None:
    program = program_of(Lambda(lambda _, x: join(torch.stack([x, x.tanh()], 1))), doubles(2, 3, 4))
    done = run_rules(program, SumOfStack())
    assert done.text == graph_text(program) and not done.outcome.remarks


@pytest.mark.parametrize(
    "parts", [lambda x: [x.float(), x], lambda x: [x.long(), (2 * x).long()]], ids=["two precisions", "whole numbers"]
)
def test_parts_that_are_not_of_the_precision_of_the_sum_stay(parts: Callable[[Tensor], list[Tensor]]) -> None:
    program = program_of(Lambda(lambda _, x: torch.stack(parts(x), 1).sum(1)), doubles(2, 3, 4))
    done = run_rules(program, SumOfStack())
    assert done.text == graph_text(program) and not done.outcome.remarks
