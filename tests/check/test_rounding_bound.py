"""The rounding bound of a region is as large as its arithmetic can make it, and no rewrite is refused for less."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.check.rounding_bound import magnitudes
from reparam.ir import ACTIVATIONS, Program, aten, evaluate_region
from support.believing import Replace, evidence_of
from support.helpers import Lambda, doubles, fuse, healthy, program_of, run_rules, vector

MAPS = (3, 4, 5, 6)
H = 1e-7


@pytest.mark.parametrize(
    "norm, shape",
    [
        (nn.BatchNorm2d(4), MAPS),
        (nn.BatchNorm2d(4, track_running_stats=False), MAPS),
        (nn.BatchNorm1d(4, affine=False, track_running_stats=False), (5, 4)),
        (nn.InstanceNorm2d(4, affine=True), MAPS),
        (nn.InstanceNorm1d(4), (3, 4, 5)),
        (nn.GroupNorm(2, 4), MAPS),
        (nn.LayerNorm(6), MAPS),
        (nn.LayerNorm((5, 6), elementwise_affine=False), MAPS),
        (Lambda(lambda m, x: nn.functional.rms_norm(x, [6], m.w, 1e-5), w=vector(6)), MAPS),
        (Lambda(lambda m, x: nn.functional.rms_norm(x, [5, 6])), MAPS),
    ],
)
def test_a_norm_amplifies_a_small_change_by_no_more_than_its_bound(norm: nn.Module, shape: tuple[int, ...]) -> None:
    """Every value moves by a part h of its size. Some rows are nearly constant, which a norm amplifies the most."""
    x = doubles(*shape)
    x[0] = 3.0 + 1e-3 * x[0]
    program = program_of(healthy(norm), x)
    [source] = program.placeholders
    region = [n for n in program.graph.nodes if n.op in ("get_attr", "call_function")]
    moved = x * (1 + H * doubles(*shape, seed=1).sign())
    before, after = (evaluate_region(program, region, {source: v}) for v in (x, moved))
    bound = magnitudes(program, region, before)[region[-1]]
    change = (after[region[-1]] - before[region[-1]]).abs()
    assert bound.shape == change.shape and bool((change <= 1.01 * H * bound).all())
    assert bool((change >= 0.05 * H * bound).any()), "the bound says nothing"


def bound_of(program: Program, x: Tensor) -> tuple[Tensor, Tensor]:
    """The value of the last call of a network with one input, and the bound M that belongs to it."""
    [source] = program.placeholders
    region = [n for n in program.graph.nodes if n.op in ("get_attr", "call_function")]
    values = evaluate_region(program, region, {source: x})
    return values[region[-1]], magnitudes(program, region, values)[region[-1]]


ACTIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: x.clamp(-2, 1),
    "clamp_min": lambda x: torch.clamp_min(x, -1),
    "clamp_max": lambda x: torch.clamp_max(x, 1),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "softplus": F.softplus,
    "neg": torch.neg,
    "abs": torch.abs,
}


@pytest.mark.parametrize("name", ACTIVE)
def test_an_activation_never_exceeds_its_bound_and_amplifies_no_change_beyond_it(name: str) -> None:
    """Also about zero, where sigmoid and softplus are not small."""
    x = torch.cat([torch.linspace(-8, 8, 401), torch.tensor([0.0, 1e-9, -1e-9])]).double()[:, None]
    program = program_of(Lambda(lambda m, x: ACTIVE[name](x)), x)
    value, bound = bound_of(program, x)
    moved, _ = bound_of(program, x * (1 + H))
    assert bool((value.abs() <= bound * (1 + 1e-12)).all())
    assert bool(((moved - value).abs() <= 1.01 * H * bound).all())
    assert bool((bound <= 2 * x.abs() + 1).all()), "the bound says nothing"


def test_every_activation_is_among_those_that_are_bounded() -> None:
    program = program_of(Lambda(lambda m, x: tuple(f(x) for f in ACTIVE.values())), doubles(3, 4))
    assert {n.target for n in program.calls()} == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ["sigmoid", "hardsigmoid", "softplus"])
def test_what_follows_a_gate_of_zero_is_bounded_by_its_value_there(name: str) -> None:
    """At x = 0 everything that a layer adds up comes from the gate, so none of it may be left out of the bound."""
    gate = {"sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid, "softplus": F.softplus}[name]
    model = Lambda(lambda m, x: m.layer(gate(x)), layer=nn.Linear(6, 5, bias=False)).double()
    value, bound = bound_of(program_of(model, doubles(3, 6)), torch.zeros(3, 6).double())
    assert float(value.abs().min()) > 0
    terms = float(gate(torch.zeros(()))) * model.layer.weight.abs().sum(1)  # type: ignore[union-attr, operator]
    assert bool((bound >= terms).all())


GATES = ["sigmoid", "hardsigmoid", "tanh", "erf"]


@pytest.mark.parametrize("name", GATES)
def test_a_product_of_a_value_and_its_gate_is_bounded_by_both(name: str) -> None:
    """Where errors are large too: what moves by h of M on its way moves the product by no more than h of its bound."""
    x = torch.linspace(-8, 8, 801).double()[:, None]
    gated = program_of(Lambda(lambda m, x: (y := m.w * x - m.w * x + x) * ACTIVE[name](y), w=torch.tensor([3.0])), x)
    value, bound = bound_of(gated, x)
    moved, _ = bound_of(program_of(Lambda(lambda m, x: x * ACTIVE[name](x)), x), x + 1e-6 * 7 * x.abs())
    assert bool(((moved - value).abs() <= 1.01e-6 * bound).all())
    assert bool((bound <= 16 * x.abs() + 1).all()), "the bound says nothing"


@pytest.mark.parametrize("name", GATES)
def test_the_slope_of_a_gate_is_the_steepest_within_the_error(name: str) -> None:
    """With an error as large as the value, the gate may be anywhere up to its steepest point."""
    x = torch.full((1, 1), 5.0).double()
    huge = torch.full((1,), 1e18, dtype=torch.float64)
    program = program_of(Lambda(lambda m, x: ACTIVE[name](m.w * x - m.w * x + x), w=huge), x)
    _, bound = bound_of(program, x)
    at_zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ACTIVE[name](at_zero), at_zero)
    assert float(bound) >= float(slope) * 1e19 * (1 - 1e-7)


def test_gates_behind_gates_keep_a_bound() -> None:
    """Each multiplies a value by a function of itself: squared bounds would exceed all numbers after ten of them."""
    x = doubles(4, 6)
    layers = nn.Sequential(
        *(nn.Sequential(nn.Linear(6, 6), Lambda(lambda m, x: x * torch.sigmoid(x))) for _ in range(40))
    )
    value, bound = bound_of(program_of(layers.double(), x), x)
    assert bool(torch.isfinite(bound).all()) and bool((bound >= value.abs()).all())


def test_a_norm_of_a_single_value_is_folded_into() -> None:
    """Its output is its shift: all that is left of the value is rounding, hundreds of times amplified."""
    model = healthy(nn.Sequential(nn.GroupNorm(2, 2), nn.BatchNorm2d(2)), seed=1)
    fused = fuse(model, doubles(64, 2, 1, 1))
    assert fused.outcome.rejected == 0 and fused.text == "group_norm(x, 2, w, w)"


def test_integers_keep_their_values_and_what_becomes_of_them_is_positive() -> None:
    table = torch.arange(12.0).reshape(6, 2) - 4

    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.cumsum((x > 0).long(), 1)
        distance = steps[:, :, None] - steps[:, None, :]
        rows = F.embedding(distance.abs().clamp(max=5), table) + F.embedding(torch.relu(distance).clamp(max=5), table)
        return rows * distance[..., None].to(x.dtype) + x[:, :, None, None], distance + x[:, :, None]

    program = program_of(Lambda(forward), torch.randn(2, 5))
    x = torch.randn(2, 5, dtype=torch.float64)
    region = [n for n in program.graph.nodes if n.op in ("call_function", "get_attr")]
    source = next(n for n in program.graph.nodes if n.op == "placeholder")
    actual = evaluate_region(program, region, {source: x})
    bound = magnitudes(program, region, actual)
    for node in program.calls():
        value, most = actual[node], bound[node]
        if isinstance(value, Tensor) and value.is_floating_point():
            assert bool((most >= value.abs()).all()), node.name
        elif isinstance(value, Tensor):
            assert torch.equal(most, value), node.name


def test_a_table_of_relative_positions_is_no_obstacle() -> None:
    """WavLM folds the distances of positions into buckets: |i - j| of integers, then a logarithm."""

    def forward(m: Any, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        distance = at[None, :] - at[:, None]
        far = (torch.log(distance.abs().float() / 2 + 1) * 2).long().clamp(max=3)
        bias = m.table(torch.where(distance.abs() < 2, distance.abs(), far) + 4 * (distance > 0).long())
        return torch.relu(x + bias.sum(1))

    fused = fuse(Lambda(forward, table=nn.Embedding(8, 4)), torch.randn(2, 6, 4))
    assert not fused.outcome.rejected
    assert [n.name for n in fused.program.calls()] == ["add_2", "relu"]


def test_a_rewrite_whose_rounding_cannot_be_bounded_is_refused_in_words() -> None:
    """The new side is x + 0 * (a - a) * (a - a), with an a so large that the square of its error is no number."""

    def build(program: Program, node: fx.Node) -> fx.Node:
        def call(target: Any, *args: Any) -> fx.Node:
            return program.call(target, args, like=node)

        large = call(aten.mul.Tensor, node.args[0], 1e200)
        nothing = call(aten.sub.Tensor, large, large)
        return call(aten.add.Tensor, node.args[0], call(aten.mul.Tensor, call(aten.mul.Tensor, nothing, nothing), 0.0))

    net = Lambda(lambda m, x: x * 1.0)
    found = evidence_of(net, frozenset({aten.mul.Tensor}), build, doubles(2, 3))
    assert (found.max_abs, math.isnan(found.bound), found.ok) == (0.0, True, False)
    fused = run_rules(program_of(net, doubles(2, 3)), Replace(frozenset({aten.mul.Tensor}), build))
    (missed,) = fused.missed("replace")
    assert missed.startswith("rejected by its own check: float64 difference 0 exceeds what can be bounded")
