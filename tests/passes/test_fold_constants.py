"""Constant expressions of the weights are computed once; whatever depends on the input or on chance is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from reparam.passes.fold_constants import FoldConstants
from support.helpers import (
    EXACT,
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    assert_verification_bites,
    doubles,
    fuse_exactly,
    graph_text,
    healthy,
    program_of,
    run_rules,
    vector,
)

RULES = [FoldConstants()]


class Standardized(nn.Conv2d):
    """Qiao et al. 2019: the kernel is normalised for each output channel, with a learned gain."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, correction=0)
        weight = self.gain * (self.weight - mean) * torch.rsqrt(variance + 1e-6)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.transpose(0, 1)


def _weight_norm() -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(4, 5, 3))


def _old_weight_norm() -> nn.Module:
    return nn.utils.weight_norm(nn.Conv2d(4, 5, 3))


def _spectral_norm() -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv2d(4, 5, 3))


def _old_spectral_norm() -> nn.Module:
    return nn.utils.spectral_norm(nn.Conv2d(4, 5, 3))


def _symmetric() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    parametrize.register_parametrization(conv, "weight", Symmetric())
    return conv


@pytest.mark.parametrize(
    "make",
    [
        _weight_norm,
        _old_weight_norm,
        _spectral_norm,
        _old_spectral_norm,
        _symmetric,
        lambda: parametrizations.orthogonal(nn.Linear(6, 6)),
        lambda: Standardized(4, 5, 3),
    ],
    ids=[
        "weight norm",
        "old weight norm",
        "spectral norm",
        "old spectral norm",
        "symmetric",
        "orthogonal",
        "standardized",
    ],
)
def test_every_parametrisation_is_baked(make: Any) -> None:
    model = make().double().eval()
    x = doubles(2, 4, 5, 6)
    fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
    assert fused.text in ("conv3x3(x)", "linear(x)")
    assert_verification_bites(fused, [x], bound=EXACT)


_STEPS = {
    "double": lambda v, w: 2 * v,
    "sum": lambda v, w: v + w,
    "product": lambda v, w: v * w,
    "tanh": lambda v, w: torch.tanh(v),
    "softmax": lambda v, w: v.softmax(-1),
    "transposed": lambda v, w: v.t(),
    "matmul": lambda v, w: v @ w,
    "norm": lambda v, w: v / v.norm(dim=1, keepdim=True).clamp_min(1e-3),
    "rows": lambda v, w: v[torch.arange(3).flip(0)],
    "where": lambda v, w: torch.where(v > 0, v, w),
}


@given(steps=st.lists(st.sampled_from(sorted(_STEPS)), min_size=1, max_size=5))
def test_any_expression_of_weights_is_one_weight(steps: list[str]) -> None:
    def forward(m: Any, x: Any) -> Any:
        value = m.v
        for step in steps:
            value = _STEPS[step](value, m.w)
        return F.linear(x, value)

    model = Lambda(forward, v=vector(3, 3, seed=1), w=vector(3, 3, seed=2))
    fused = apply_exactly(model, doubles(2, 3), rules=RULES, bound=EXACT)
    assert fused.text == "linear(x)"


def test_the_graph_before_and_after() -> None:
    model = Lambda(lambda m, x: F.linear(x, m.g * torch.tanh(m.v)), g=vector(1), v=vector(5, 4))
    fused = apply_exactly(model, doubles(2, 4), rules=RULES, bound=EXACT)
    assert graph_text(fused.original) == "linear(x)"  # a layer's weight is not shown, so look at the calls
    assert [n.name for n in fused.original.calls()] == ["tanh", "mul", "linear"]
    assert [n.name for n in fused.program.calls()] == ["linear"]
    assert fused.passed("fold-constants") == ["2 constant operation(s) computed once"]
    [constant] = fused.program.constants.values()
    assert constant.origin == "v" and constant.trainable and constant.value.dtype == torch.float64


def test_a_constant_of_several_users_is_computed_once() -> None:
    model = Lambda(lambda m, x: F.linear(x, v := torch.tanh(m.v)) + F.linear(x * 2, v), v=vector(4, 4))
    fused = apply_exactly(model, doubles(2, 4), rules=RULES, bound=EXACT)
    assert len(fused.program.constants) == 1 and "tanh" not in fused.text


def test_a_constant_of_one_axis_goes_through_layers() -> None:
    """Of a region that has no inputs, whose sizes there is nothing to compare with."""
    layers = {"fc": nn.Linear(4, 6), "out": nn.Linear(6, 5)}
    model = Lambda(lambda m, x: x + m.out(m.fc(m.v).relu()), **layers, v=vector(4))
    fused = apply_exactly(model.double(), doubles(2, 5), rules=RULES, bound=EXACT)
    assert fused.text == "add(x, w)"


def _biased(forward: Any) -> Lambda:
    """Attention scores with a bias read from a table of 7 by an index of 3 x 3."""
    model = Lambda(lambda m, x: (x + forward(m.table)[m.index.view(-1)].view(3, 3)).softmax(-1), table=vector(7))
    model.register_buffer("index", torch.randint(0, 7, (3, 3)))
    return model


def test_a_gathered_position_bias_that_is_computed_is_baked() -> None:
    fused = apply_exactly(_biased(torch.sigmoid), doubles(2, 3, 3), rules=RULES, bound=EXACT)
    assert fused.text == "softmax(add(x, w), -1)"


def test_refused_for_a_mere_gather_that_would_be_stored_larger_than_its_table() -> None:
    fused = apply_exactly(_biased(lambda table: table), doubles(2, 3, 3), rules=RULES, bound=EXACT)
    assert "index(w" in fused.text
    assert fused.missed("fold-constants") == ["this only gathers: computed once it would store 9 values instead of 7"]


def test_sizes_and_grids_of_integers_stay_integers() -> None:
    model = Lambda(lambda m, x: x[:, torch.arange(3).flip(0) + 1] * m.v, v=vector(3))
    fused = apply_exactly(model, doubles(2, 5), rules=RULES, bound=0.0)
    assert "arange" not in fused.text
    assert any(c.value.dtype == torch.int64 for c in fused.program.constants.values())


def test_what_depends_on_the_input_is_left_alone() -> None:
    model = Lambda(lambda m, x: F.linear(x, m.v * x.mean()), v=vector(4, 4))
    fused = apply_exactly(model, doubles(2, 4), rules=RULES, bound=EXACT)
    assert [n.name for n in fused.program.calls()] == ["mean", "mul", "linear"]
    assert not fused.outcome.remarks


@pytest.mark.parametrize(
    "noise", [lambda: torch.randn(4), lambda: torch.rand(4), lambda: F.dropout(torch.ones(4), 0.5, True)]
)
def test_refused_for_random_numbers(noise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture refuses such a network before; a program may come from elsewhere."""
    monkeypatch.setattr("reparam.capture.steps.refuse_random_calls", lambda *_: None)
    model = Lambda(lambda m, x: x * (m.v * noise()), v=vector(4))
    fused = run_rules(program_of(model, doubles(2, 4)), *RULES)
    assert any("draws random numbers" in m for m in fused.missed("fold-constants"))
    assert any(word in fused.text for word in ("rand", "dropout"))


def test_a_weight_that_is_off_by_a_millionth_is_noticed() -> None:
    x = doubles(2, 4)
    model = Lambda(lambda m, x: F.linear(x, torch.tanh(m.v)), v=vector(5, 4))
    fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
    assert_verification_bites(fused, [x], bound=EXACT)
    assert_evidence_bites(fused.original, FoldConstants())


def test_a_kernel_that_is_repeated_for_each_channel_is_the_weight_of_its_layer() -> None:
    """The norm behind it folds then. Read by something else as well, it stays the smaller one."""

    def forward(m: Any, x: Tensor) -> Tensor:
        kernel = m.k.expand(4, 1, 3, 3)
        y: Tensor = m.bn(F.conv2d(x, kernel, groups=4))
        return y + (x[:, :, :3, :3] * kernel.squeeze(1)).sum() if m.both else y

    for both in (False, True):
        model = healthy(Lambda(forward, k=vector(1, 1, 3, 3), bn=nn.BatchNorm2d(4), both=both))
        fused = fuse_exactly(model, doubles(2, 4, 6, 5), bound=1e-13)
        assert ("only gathers" in str(fused.missed("fold-constants"))) == both
        assert both or fused.text == "conv3x3g4(x)"
