"""fold-past-readers: an affine folds backwards although others read the value, where these take its inverse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.algebra import Pair, TwoWays, past_readers
from reparam.passes.fold_past_readers import FoldPastReaders
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
    program_of,
    run_rules,
    vector,
)

RULE = "fold-past-readers"


def net(forward: Any, **layers: Any) -> nn.Module:
    """A convolution `c`, norms `n` and `o`, layers `d` and `e`, and others."""
    parts = {
        "c": nn.Conv2d(4, 6, 3, padding=1),
        "n": nn.BatchNorm2d(6),
        "o": nn.BatchNorm2d(6),
        "d": nn.Conv2d(6, 6, 1),
        "e": nn.Conv2d(6, 3, 3, padding=1),
    }
    return healthy(Lambda(forward, **parts | layers))


def alone(forward: Any, **layers: Any) -> Fused:
    """This rule alone."""
    return run_rules(program_of(net(forward, **layers), doubles(2, 4, 5, 5)), FoldPastReaders())


def beside(m: Any, x: Tensor) -> Tensor:
    y = m.c(x)
    return torch.cat([m.n(y).relu(), m.d(y)], 1)


def gated(m: Any, x: Tensor) -> Tensor:
    y = m.c(x)
    return m.n(y * m.d(y.mean((2, 3), keepdim=True)).sigmoid() + m.f(x)).relu()


def test_before_and_after() -> None:
    done = alone(beside)
    assert graph_text(done.original) == "a = conv3x3(x); cat([relu(batch_norm(a)), conv1x1(a)], 1)"
    assert graph_text(done.program) == "a = conv3x3(x); cat([relu(a), conv1x1(a)], 1)"
    assert done.passed(RULE) == ["folded into the output of 'c'; 'd' took the inverse"]
    assert max_rel(done.original, done.program, [doubles(3, 4, 6, 5)]) <= EXACT


def test_a_gate_and_a_sum() -> None:
    done = alone(gated, f=nn.Conv2d(4, 6, 1))
    gate = "sigmoid(conv1x1(mean(a, [2, 3], True)))"
    assert graph_text(done.program) == f"a = conv3x3(x); relu(add(mul(a, {gate}), conv1x1(x)))"
    assert max_rel(done.original, done.program, [doubles(3, 4, 6, 5)]) <= EXACT


def test_of_two_norms_one_goes_and_the_other_takes_the_inverse() -> None:
    done = alone(lambda m, x: m.n(y := m.c(x)).relu() + m.o(y).tanh())
    assert graph_text(done.program).count("batch_norm") == 1
    assert done.passed(RULE) == ["folded into the output of 'c'; 'o' took the inverse"]
    assert max_rel(done.original, done.program, [doubles(3, 4, 6, 5)]) <= EXACT


def test_a_stream_of_sums_that_norms_read() -> None:
    """As in residual networks with the norm in front: every norm in between takes the inverse."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.c(x)
        x = x + m.d(m.n(x).relu())
        return m.o(x).relu()

    done = alone(forward)
    assert graph_text(done.program) == "a = conv3x3(x); relu(add(a, conv1x1(relu(batch_norm(a)))))"
    assert max_rel(done.original, done.program, [doubles(3, 4, 6, 5)]) <= EXACT


def test_a_factor_of_which_a_concatenation_takes_a_part() -> None:
    done = alone(lambda m, x: (torch.cat([y := m.c(x), m.f(x)], 1) * m.w).sin() + m.g(y), f=nn.Conv2d(4, 2, 1),
                 g=nn.Conv2d(6, 8, 1), w=vector(8, 1, 1))  # fmt: skip
    assert "w" not in graph_text(done.program)
    assert max_rel(done.original, done.program, [doubles(3, 4, 6, 5)]) <= EXACT


@given(seed=st.integers(0, 999), size=st.integers(1, 6), padded=st.booleans(), norm=st.booleans())
def test_property(seed: int, size: int, padded: bool, norm: bool) -> None:
    torch.manual_seed(seed)

    def forward(m: Any, x: Tensor) -> Any:
        y = m.c(x)
        out = (m.n(y) if norm else y * m.w).relu()
        return out, m.g(y.mean((2, 3), keepdim=True) if padded else y)

    g = nn.Conv2d(6, 3, 3, padding=1) if padded and not norm else nn.Conv2d(6, 3, 1)
    model, x = net(forward, g=g, w=vector(6, 1, 1, seed=seed)), doubles(2, 4, size, size + 1, seed=seed)
    done = run_rules(program_of(model, x), FoldPastReaders())
    assert done.passed(RULE)
    assert module_rel(model, done.program, [x]) <= EXACT


def not_had_back(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.n(y := m.c(x)).relu(), m.d(y)], 1)


def test_scales_that_are_small_beside_their_shifts_stay() -> None:
    model = net(not_had_back)
    model.n.weight.data[2] = model.n.bias.data[2] / 150  # type: ignore[union-attr,operator]
    done = run_rules(program_of(model, doubles(2, 4, 5, 5)), FoldPastReaders())
    assert not done.passed(RULE)
    assert done.missed(RULE) == [
        "what else reads the value would lose digits: a shift is 150 times the scale of its channel"
    ]
    model.n.weight.data[2] = model.n.bias.data[2] / 99  # type: ignore[union-attr,operator]
    assert run_rules(program_of(model, doubles(2, 4, 5, 5)), FoldPastReaders()).passed(RULE)


@pytest.mark.parametrize(("factor", "passes"), [(2.0**-9, True), (2.0**-12, False), (2.0**9, True), (2.0**12, False)])
def test_values_stay_in_the_range_of_half_precision(factor: float, passes: bool) -> None:
    """The scales of a stream multiply, and are in the weights of its first layer."""
    model = net(lambda m, x: torch.cat([(y := m.c(x)) * m.factor, m.d(y)], 1))
    model.factor = factor
    kernels: Tensor = model.c.weight.data  # type: ignore[union-attr,assignment]
    kernels /= kernels.flatten(1).norm(dim=1)[:, None, None, None]
    done = run_rules(program_of(model, doubles(2, 4, 5, 5)), FoldPastReaders())
    assert bool(done.passed(RULE)) is passes
    if not passes:
        [told] = done.missed(RULE)
        assert told == f"scales multiply along these values: the kernels of 'c' would be {factor:.1e} long"


def test_norms_without_weights() -> None:
    done = alone(beside, n=nn.BatchNorm2d(6, affine=False))
    assert done.passed(RULE)
    assert max_rel(done.original, done.program, [doubles(3, 4, 6, 5)]) <= EXACT


def with_a_zero(m: Any, x: Tensor) -> Tensor:
    return torch.cat([(y := m.c(x)) * m.w, m.d(y)], 1)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.n(m.c(x)).relu(),
        lambda m, x: torch.cat([m.n(y := m.c(x)).relu(), y], 1),
        lambda m, x: torch.cat([m.n(y := m.c(x)).relu(), y.relu()], 1),
        lambda m, x: torch.cat([m.n(y := m.c(x)).relu(), m.e(y)], 1),
        lambda m, x: m.n(m.d(y := m.c(x)) + y).relu(),
        lambda m, x: torch.cat([m.n(y := x[:, :1].expand(-1, 6, -1, -1) * m.c(x).sin()), m.d(y)], 1),
        lambda m, x: torch.cat([m.n(y := m.c(x)).relu() + m.d(y), y * m.d(x.mean() + y).sin()], 1),
        with_a_zero,
    ],
    ids=[
        "nobody else reads it",
        "it is a part of an output",
        "an activation reads it",
        "a zero-padded layer reads it",
        "a layer on the way reads it",
        "no layer before it",
        "a sum with data reads it",
        "a scale of zero",
    ],
)
def test_silent_about_others(forward: Any) -> None:
    w = vector(6, 1, 1)
    w.data[1] = 0.0
    done = alone(forward, w=w)
    assert graph_text(done.program) == graph_text(done.original) and not done.outcome.remarks


def test_a_product_of_which_one_side_alone_takes_the_factor() -> None:
    """y * z takes the factor in y, and z has one of its own: its change would be one of the product as well."""

    def forward(m: Any, x: Tensor) -> Any:
        z = m.f(x)
        return torch.cat([m.c(x) * z, z], 1) * m.w, m.d(z)

    done = alone(forward, f=nn.Conv2d(4, 6, 1), w=vector(12, 1, 1))
    assert graph_text(done.program) == graph_text(done.original) and not done.outcome.remarks


def test_a_shift_alone_is_taken_back_too() -> None:
    program = program_of(net(lambda m, x: ((y := m.c(x)) + m.w, m.d(y)), w=vector(6, 1, 1)), doubles(2, 4, 5, 5))
    [total] = [n for n in program.calls() if n.target is torch.ops.aten.add.Tensor]
    shift = doubles(1, 6, 1, 1)
    ways = past_readers(program, total, total.args[0], Pair(shift=shift))  # type: ignore[arg-type]
    assert isinstance(ways, TwoWays)
    [taken] = [s.pair for s in ways.ahead.steps if s.action == "sink"]
    assert taken.scale is None and taken.shift is not None and torch.equal(taken.shift, -shift.flatten())


def test_all_that_change_are_told() -> None:
    done = alone(lambda m, x: (m.n((y := m.c(x)) + m.f(x)).relu(), m.d(y), m.g(y)), f=nn.Conv2d(4, 6, 1),
                 g=nn.Conv2d(6, 2, 1))  # fmt: skip
    assert done.passed(RULE) == ["folded into the output of 'c', 'f'; 'd', 'g' took the inverse"]


@pytest.mark.parametrize(("bias", "passes"), [(99.0, True), (101.0, False)])
def test_a_norm_without_scales_of_its_own(bias: float, passes: bool) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.c(x)
        return nn.functional.batch_norm(y, m.n.running_mean, m.n.running_var, None, m.b), m.d(y)

    model = net(forward, b=nn.Parameter(torch.full((6,), bias, dtype=torch.float64)))
    done = run_rules(program_of(model, doubles(2, 4, 5, 5)), FoldPastReaders())
    assert bool(done.passed(RULE)) is passes


@pytest.mark.parametrize(("length", "passes"), [(0.95, True), (1.05, False)])
def test_the_kernels_of_a_transposed_convolution_are_those_of_its_outputs(length: float, passes: bool) -> None:
    model = net(lambda m, x: torch.cat([(y := m.t(x)) * 2.0**10, m.d(y)], 1), t=nn.ConvTranspose2d(4, 6, 2))
    kernels: Tensor = model.t.weight.data  # type: ignore[union-attr,assignment]
    kernels /= kernels.transpose(0, 1).flatten(1).norm(dim=1)[None, :, None, None] / length
    done = run_rules(program_of(model, doubles(2, 4, 5, 5)), FoldPastReaders())
    assert bool(done.passed(RULE)) is passes


def test_its_evidence_bites() -> None:
    assert_evidence_bites(program_of(net(beside), doubles(2, 4, 5, 5)), FoldPastReaders())


def test_with_all_rules() -> None:
    model = net(gated, f=nn.Conv2d(4, 6, 1))
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert "batch_norm" not in fused.text


def test_another_rule_alone_is_exact_too() -> None:
    """Through an average pool, whose windows have no padding."""
    done = apply_exactly(
        net(lambda m, x: m.n(y := m.c(x)).relu().mean((2, 3)) + m.d(nn.functional.avg_pool2d(y, 2)).sum((2, 3))),
        doubles(2, 4, 6, 6),
        rules=[FoldPastReaders()],
        bound=EXACT,
    )
    assert "batch_norm" not in done.text
