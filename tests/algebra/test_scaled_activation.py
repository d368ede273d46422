"""A scale passes PReLU and clamps, which change their slopes and bounds; what does not let it through says why."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.algebra.scaled_activation import emit_swap, scale_before, scale_behind, takes_scale
from reparam.ir import Refusal, evaluate
from support.helpers import Lambda, doubles, fuse_exactly, healthy, program_of

ACTIVATIONS = {
    "prelu": lambda: nn.PReLU(4, 0.3),
    "one slope": lambda: nn.PReLU(1, 0.2),
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 2.0),
    "clamp": lambda: Lambda(lambda _, x: x.clamp(min=-0.25)),
}
scales = st.lists(st.sampled_from([-2.0, -0.5, 0.75, 3.0]), min_size=4, max_size=4)


def _activation(name: str, x: Tensor):  # type: ignore[no-untyped-def]
    program = program_of(Lambda(lambda m, v: m.f(v), f=ACTIVATIONS[name]().double()), x)
    return program, next(n for n in program.calls())


@given(name=st.sampled_from(list(ACTIVATIONS)), scale=scales, behind=st.booleans())
def test_both_sides_are_the_same_function(name: str, scale: list[float], behind: bool) -> None:
    x = doubles(2, 4, 6) * 3
    program, node = _activation(name, x)
    assert takes_scale(program, node)
    s = torch.tensor(scale, dtype=torch.float64).reshape(1, 4, 1)
    found = (scale_behind if behind else scale_before)(program, node, s)
    assert not isinstance(found, Refusal)
    moved, swap = found
    truth = s * evaluate(program, [x])[0] if behind else evaluate(program, [s * x])[0]
    new = emit_swap(program, swap, node.args[0], node)
    node.replace_all_uses_with(new)
    program.erase([node])
    after = evaluate(program, [moved * x])[0] if behind else moved * evaluate(program, [x])[0]
    assert float((truth - after).abs().max()) <= 1e-14


@pytest.mark.parametrize(
    ("slope", "behind", "expected"),
    [(0.0, False, "slope is not positive (1)"), (-0.5, True, "slope is not positive (1)")],
)
def test_slope_that_cannot_be_turned(slope: float, behind: bool, expected: str) -> None:
    model = Lambda(lambda m, v: m.f(v), f=nn.PReLU(1, slope).double())
    program = program_of(model, doubles(2, 4, 6))
    s = torch.tensor([1.0, -1.0, 2.0, 3.0], dtype=torch.float64).reshape(1, 4, 1)
    found = (scale_behind if behind else scale_before)(program, next(program.calls()), s)
    assert isinstance(found, Refusal) and expected in found.reason


def test_zero_has_no_way_back() -> None:
    program, node = _activation("prelu", doubles(2, 4, 6))
    found = scale_before(program, node, torch.zeros(1, 4, 1, dtype=torch.float64))
    assert isinstance(found, Refusal) and "a scale of zero" in found.reason


@pytest.mark.parametrize("name", ["prelu", "relu6", "hardtanh"])
def test_batch_norm_before_it_leaves_a_sum_alone(name: str) -> None:
    """The input of the norm is read elsewhere too, and its scales have both signs."""
    model = Lambda(
        lambda m, x: (y := m.a(x)) + m.b(m.act(m.bn(y))),
        a=nn.Conv2d(3, 4, 3, padding=1),
        bn=nn.BatchNorm2d(4),
        act=ACTIVATIONS[name](),
        b=nn.Conv2d(4, 4, 3, padding=1),
    )
    done = fuse_exactly(healthy(model), doubles(2, 3, 6, 6), bound=1e-13)
    assert "batch_norm" not in done.text and "mul" not in done.text


def test_relu_keeps_a_norm_with_negative_scales_and_says_what_the_other_form_costs() -> None:
    model = Lambda(
        lambda m, x: (y := m.a(x)) + m.b(torch.relu(m.bn(y))),
        a=nn.Conv2d(3, 4, 3, padding=1),
        bn=nn.BatchNorm2d(4),
        b=nn.Conv2d(4, 4, 3, padding=1),
    )
    done = fuse_exactly(healthy(model), doubles(2, 3, 6, 6), bound=1e-13)
    assert any("takes longer than the batch norm" in m for m in done.missed("leave-shift"))
