"""rescale-gate: a constant factor behind a gate folds into the layer before it, and the gate reads less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.passes.rescale_gate import RescaleGate
from support.helpers import (
    EXACT,
    Fused,
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    doubles,
    fuse_exactly,
    graph_text,
    healthy,
    max_rel,
    module_rel,
    perturb,
    program_of,
    run_rules,
    vector,
)


def gated(factor: Any, *, extra: Any = None, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution, a squeeze-excite gate on it, and a constant factor behind; `extra` reads the convolution too."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        gate = m.up(m.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        out = y * gate * m.factor
        return out if extra is None else (out, extra(m, y))

    conv = nn.Conv2d(4, 6, kernel, stride, kernel // 2, groups=groups)
    model = Lambda(forward, conv=conv, down=nn.Conv2d(6, 2, 1), up=nn.Conv2d(2, 6, 1), other=nn.Conv2d(6, 3, 1))
    model.factor = nn.Parameter(torch.as_tensor(factor, dtype=torch.float64)) if torch.is_tensor(factor) else factor
    return healthy(model)


GATE = "mul(a, sigmoid(conv1x1(relu(conv1x1(mean(a, [2, 3], True))))))"


def test_before_and_after() -> None:
    done = run_rules(program_of(gated(0.2), doubles(2, 4, 5, 5)), RescaleGate())
    assert graph_text(done.original) == f"a = conv3x3(x); mul({GATE}, 0.2)"
    assert graph_text(done.program) == f"a = conv3x3(x); {GATE}"
    assert done.passed("rescale-gate") == ["folded into 'conv' before the gate"]


@given(
    channelwise=st.booleans(),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    groups=st.integers(1, 2),
    size=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_property(channelwise: bool, kernel: int, stride: int, groups: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    factor = torch.randn(6, 1, 1) if channelwise else torch.randn(())
    model = gated(factor, kernel=kernel, stride=stride, groups=groups)
    x = doubles(2, 4, size, size + 1, seed=seed)
    done = run_rules(program_of(model, x), RescaleGate())
    assert done.passed("rescale-gate")
    assert module_rel(model, done.program, [x]) <= EXACT
    assert max_rel(done.original, done.program, [x]) <= EXACT


def test_several_factors_and_gates_all_go() -> None:
    """The block of NFNet with squeeze and excite, gain and residual scale; a second gate from elsewhere."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        gate = m.up(m.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x + (y * gate * 2.0) * m.side(x.mean((2, 3), keepdim=True)).tanh() * m.gain * 0.2

    model = Lambda(
        forward,
        conv=nn.Conv2d(4, 4, 3, padding=1),
        down=nn.Conv2d(4, 2, 1),
        up=nn.Conv2d(2, 4, 1),
        side=nn.Conv2d(4, 4, 1),
    )
    model.gain = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    x = doubles(2, 4, 5, 6)
    fused = fuse_exactly(healthy(model), x, bound=EXACT)
    assert "0.2" not in fused.text and "2.0" not in fused.text and ", w" not in fused.text
    name = next(n for n, c in fused.program.constants.items() if c.origin == "conv.weight")
    assert max_rel(fused.original, perturb(fused.program, name), [x]) > 1e3 * EXACT


def test_others_that_take_the_inverse_are_rescaled_too() -> None:
    model = gated(-0.5, extra=lambda m, y: m.other(y))
    x = doubles(2, 4, 5, 5)
    done = run_rules(program_of(model, x), RescaleGate())
    assert done.passed("rescale-gate")
    assert module_rel(model, done.program, [x]) <= EXACT


@pytest.mark.parametrize(
    "factor, extra, reason",
    [
        (0.2, lambda m, y: y, "its value is an output of the network (at 'output')"),
        (0.2, lambda m, y: m.other(y.sigmoid()), "sigmoid does not commute with a channel affine (at 'root')"),
        (-0.2, lambda m, y: m.other(y.relu()), "relu does not let a negative scale through (1 channels) (at 'root')"),
        (0.0, None, "a factor of zero cannot be taken back from the gate"),
    ],
)
def test_refused_with_the_reason(factor: float, extra: Any, reason: str) -> None:
    done = run_rules(program_of(gated(factor, extra=extra), doubles(2, 4, 5, 5)), RescaleGate())
    assert not done.passed("rescale-gate")
    (message,) = done.missed("rescale-gate")
    assert reason.removesuffix(" (at 'root')").removesuffix(" (at 'output')") in message


def test_silent_without_a_gate_or_a_factor_along_the_channels() -> None:
    plain = Lambda(lambda m, x: m.conv(x).sigmoid() * 0.2, conv=nn.Conv2d(4, 4, 1)).double()
    spatial = gated(torch.randn(5))
    for model in (plain, spatial):
        done = run_rules(program_of(model, doubles(2, 4, 5, 5)), RescaleGate())
        assert not done.outcome.remarks


def test_its_evidence_bites() -> None:
    assert_evidence_bites(program_of(gated(0.2), doubles(2, 4, 5, 5)), RescaleGate())


def apart(forward: Any, **layers: Any) -> Fused:
    """Only this rule, on a function of a convolution `c` and others."""
    layers = {"c": nn.Conv2d(4, 4, 1), "d": nn.Conv2d(4, 4, 1), "w": vector(4, 1, 1)} | layers
    return apply_exactly(Lambda(forward, **layers).double(), doubles(2, 4, 5, 5), rules=[RescaleGate()], bound=EXACT)


def test_a_layer_without_a_module_is_told_by_its_name() -> None:
    done = apart(lambda m, x: (y := F.conv2d(x, m.k)) * m.d(y).sin() * 0.5, k=nn.Parameter(torch.rand(4, 4, 1, 1)))
    assert done.text == "a = conv1x1(x); mul(a, sin(conv1x1(a)))"
    assert done.passed("rescale-gate") == ["folded into 'conv2d' before the gate"]


def test_the_gate_may_stand_on_the_left() -> None:
    done = apart(lambda m, x: m.d((y := m.c(x)).mean((2, 3), keepdim=True)).sigmoid() * y * 0.5)
    assert done.text == "a = conv1x1(x); mul(sigmoid(conv1x1(mean(a, [2, 3], True))), a)"


def test_a_grouped_transposed_convolution_takes_a_factor_for_each_channel() -> None:
    layers = {"c": nn.ConvTranspose2d(4, 6, 2, groups=2), "d": nn.Conv2d(6, 6, 1)}
    done = apart(lambda m, x: (y := m.c(x)) * m.d(y).sin() * m.w, **layers, w=vector(6, 1, 1))
    assert done.text == "a = deconv2x2g2(x); mul(a, sin(conv1x1(a)))"


def test_it_climbs_through_several_products_on_either_side() -> None:
    done = apart(lambda m, x: x.cos() * (m.d(y := m.c(x)).sin() * y) / 4.0)
    assert done.text == "a = conv1x1(x); mul(cos(x), mul(sin(conv1x1(a)), a))"


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.c(x) * x.sin() * 0.5,
        lambda m, x: ((y := m.c(x)) + m.d(y).sin()) * 0.5,
        lambda m, x: (z := (y := m.c(x)) * m.d(y).sin()) * 0.5 + z.tanh(),
        lambda m, x: m.d(y := m.c(x)).sin() * (y * m.w * 0.5),
        lambda m, x: m.d(y := m.c(x)).sin() * (y * 3.0 * 0.5),
        lambda m, x: m.d(m.c(x)).sin() * x * 0.5,
        lambda m, x: (y := m.c(x[:, :, :1])) * m.d(y).sin() * x.cos() * 0.5,
        lambda m, x: torch.div((y := m.c(x)) * m.d(y).sin(), 0.5, rounding_mode="floor"),
        lambda m, x: (y := m.c(x)) * m.d(y).sin() * x.cos(),
    ],
    ids=[
        "no gate on the layer",
        "a sum",
        "the product is read elsewhere",
        "a weight in between",
        "a number in between",
        "no layer in the product",
        "a layer that broadcasts",
        "rounded",
        "no factor",
    ],
)
def test_silent_about_other_products(forward: Any) -> None:
    done = apart(forward)
    assert done.text == graph_text(done.original) and not done.outcome.remarks
