"""What the check of one rewrite takes for affine: zero and the unit impulses determine nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from reparam.check import Evidence, check_region, find_region
from reparam.check.rewrite_check import _is_affine
from reparam.ir import DIVS, MATMULS, MULS, Program, aten, evaluate, is_call, ranges_of
from reparam.rewrite import Match
from support.believing import Replace
from support.helpers import Lambda, doubles, fingerprint, healthy, program_of, run_rules

Build = Callable[[Program, fx.Node, Sequence[fx.Node]], fx.Node]
SHAPE = (2, 4, 5, 6)


def off_diagonal() -> nn.Conv2d:
    """A pointwise convolution that reads every channel but its own: at a unit impulse x*(Wx) is zero."""
    conv = nn.Conv2d(4, 4, 1, bias=False).double()
    with torch.no_grad():
        conv.weight.copy_((doubles(4, 4) * (1 - torch.eye(4)))[:, :, None, None])
    return conv


def whole(program: Program) -> tuple[list[fx.Node], set[fx.Node]]:
    """Everything between the inputs and the output, and the inputs."""
    nodes = [n for n in program.graph.nodes if n.op in ("get_attr", "call_function")]
    return nodes, set(program.placeholders)


def affine(model: nn.Module, *inputs: Tensor) -> bool:
    program = program_of(model, *inputs, dynamic=())
    return _is_affine(program, *whole(program))


def last_call(program: Program) -> fx.Node:
    return list(program.calls())[-1]


def evidence_of(model: nn.Module, build: Build, *inputs: Tensor) -> Evidence:
    """The evidence for replacing the last call by what `build` makes of the network's inputs."""
    program = program_of(model, *inputs, dynamic=())
    root = last_call(program)
    with program.recording() as created:
        new = build(program, root, program.placeholders)
    return check_region(program, find_region({root: new}, created), ranges_of(program), seed=1)


def again(program: Program, root: fx.Node, inputs: Sequence[fx.Node]) -> fx.Node:
    """All calls of the network once more: a right rewrite."""
    made: dict[fx.Node, fx.Node] = {}
    for node in list(program.calls()):
        made[node] = program.clone(node, made, like=root)
    return made[root]


def zero(program: Program, root: fx.Node, inputs: Sequence[fx.Node]) -> fx.Node:
    """Zero, written as a sum of the inputs times zero."""
    parts = [program.call(aten.mul.Tensor, (x, 0.0), like=root) for x in inputs]
    return parts[0] if len(parts) == 1 else program.call(aten.add.Tensor, tuple(parts), like=root)


def first(program: Program, root: fx.Node, inputs: Sequence[fx.Node]) -> fx.Node:
    """The first input, and nothing of the others."""
    rest = [program.call(aten.mul.Tensor, (x, 0.0), like=root) for x in inputs[1:]]
    value = program.call(aten.mul.Tensor, (inputs[0], 1.0), like=root)
    return value if not rest else program.call(aten.add.Tensor, (value, *rest), like=root)


# ---- what is affine ----------------------------------------------------------------------------------------------

AFFINE: dict[str, nn.Module] = {
    "sum": Lambda(lambda m, x, y: torch.sub(x, y, alpha=2) + 1.0),
    "product with a number": Lambda(lambda m, x, y: -0.5 * x + y / 3),
    "product with a weight": Lambda(lambda m, x, y: m.w * x + y * m.w, w=nn.Parameter(doubles(4, 1, 1))),
    "quotient by a weight": Lambda(lambda m, x, y: (x - y) / m.w, w=nn.Parameter(doubles(4, 1, 1))),
    "layers": Lambda(lambda m, x, y: m.c(x) + m.n(y), c=nn.Conv2d(4, 4, 1), n=nn.BatchNorm2d(4)),
    "pool and concatenation": Lambda(lambda m, x, y: F.avg_pool2d(torch.cat([x, y], 1), 2)),
    "product of two weights": Lambda(lambda m, x, y: x * (m.w * m.w) + y, w=nn.Parameter(doubles(4, 1, 1))),
}


@pytest.mark.parametrize("name", AFFINE)
def test_an_affine_region_is_proven_on_the_basis(name: str) -> None:
    inputs = doubles(*SHAPE), doubles(*SHAPE, seed=8)
    model = healthy(AFFINE[name])
    assert affine(model, *inputs)
    result = evidence_of(model, again, *inputs)
    assert result.kind == "basis" and result.ok


# ---- what is not -------------------------------------------------------------------------------------------------

NOT_AFFINE: dict[str, nn.Module] = {
    "product": Lambda(lambda m, x, y: x * y),
    "product with a layer of itself": Lambda(lambda m, x, y: x * m.c(x) + y, c=off_diagonal()),
    "product of a layer with its operand": Lambda(lambda m, x, y: m.c(x) * x + y, c=off_diagonal()),
    "product far behind": Lambda(lambda m, x, y: (x + 1) * (y - x) - y),
    "quotient": Lambda(lambda m, x, y: x / (y + 3)),
    "quotient of a number": Lambda(lambda m, x, y: 1 / (x + 3) + y),
    "quotient by itself": Lambda(lambda m, x, y: x / x + y),
    "matrix product": Lambda(lambda m, x, y: x @ y.transpose(2, 3)),
    "einsum": Lambda(lambda m, x, y: torch.einsum("bchw,bchv->bcwv", x, y)),
    "convolution whose weight varies": Lambda(lambda m, x, y: F.conv2d(x, y)),
    "transposed convolution whose weight varies": Lambda(lambda m, x, y: F.conv_transpose2d(x, y[:, :, :1, :1])),
    "layer whose weight varies": Lambda(lambda m, x, y: F.linear(x, y[0, 0])),
    "norm by the batch": Lambda(lambda m, x, y: m.n(x) + y, n=nn.BatchNorm2d(4, track_running_stats=False)),
    "rectifier": Lambda(lambda m, x, y: F.relu(x) + y),
    "maximum": Lambda(lambda m, x, y: F.max_pool2d(x, 2) + F.avg_pool2d(y, 2)),
    "square": Lambda(lambda m, x, y: x * x + y),
    "square far behind": Lambda(lambda m, x, y: m.c(x + y) * 2 - (x - y) * 3 + _square(m.c(x)), c=off_diagonal()),
}


def _square(x: Tensor) -> Tensor:
    return x * x


@pytest.mark.parametrize("name", NOT_AFFINE)
def test_what_is_not_affine_is_never_proven_on_the_basis(name: str) -> None:
    """Not even where it was copied rightly: no basis can show that."""
    shape = (4, 4, 3, 3)  # x and y may each be the weight of the other
    inputs = doubles(*shape), doubles(*shape, seed=8)
    model = healthy(NOT_AFFINE[name])
    assert not affine(model, *inputs)
    result = evidence_of(model, again, *inputs)
    assert result.kind == "sampled" and result.ok


@pytest.mark.parametrize(
    "forward, build",
    [
        (lambda m, x, y: x * y, zero),
        (lambda m, x, y: m.c(x) * x + 0.0 * y, zero),
        (lambda m, x, y: x * m.c(x) + x + 0.0 * y, first),
        (lambda m, x, y: x / (y + 1), first),
        (lambda m, x, y: x * x + 0.0 * y, first),
    ],
    ids=["product", "layer times operand", "operand times layer", "quotient", "square"],
)
def test_a_term_that_no_unit_impulse_shows_is_not_dropped(forward: Any, build: Build) -> None:
    """Each agrees with its wrong replacement on zero and on all unit impulses."""
    inputs = doubles(*SHAPE), doubles(*SHAPE, seed=8)
    model = Lambda(forward, c=off_diagonal())
    program = program_of(model, *inputs, dynamic=())
    impulses = [torch.zeros(SHAPE), *(torch.eye(4)[k][None, :, None, None].expand(SHAPE) for k in range(4))]
    for x, y in [(i, torch.zeros(SHAPE)) for i in impulses] + [(torch.zeros(SHAPE), i) for i in impulses]:
        [value] = evaluate(program, [x, y])
        assert torch.equal(value, x if build is first else torch.zeros_like(value))
    assert not evidence_of(model, build, *inputs).ok


@pytest.mark.parametrize("target", [aten.relu.default, aten.abs.default, aten.relu6.default])
def test_what_takes_the_place_of_an_affine_region_has_to_be_affine_too(target: Any) -> None:
    """Of x and |x| no unit impulse shows the difference."""

    def build(program: Program, root: fx.Node, inputs: Sequence[fx.Node]) -> fx.Node:
        return program.call(target, (inputs[0],), like=root)

    result = evidence_of(Lambda(lambda m, x: x * 1.0), build, doubles(*SHAPE))
    assert result.kind == "sampled" and not result.ok


def test_a_bilinear_term_that_is_brought_in_is_rejected() -> None:
    def build(program: Program, root: fx.Node, inputs: Sequence[fx.Node]) -> fx.Node:
        product = program.call(aten.mul.Tensor, tuple(inputs), like=root)
        return program.call(aten.add.Tensor, (program.clone(root, {}), product), like=root)

    result = evidence_of(Lambda(lambda m, x, y: x - y), build, doubles(*SHAPE), doubles(*SHAPE, seed=8))
    assert result.kind == "sampled" and not result.ok


class Dropping(Replace):
    """A rule that takes every call of two values for what `build` makes of them."""

    def check(self, program: Program, match: Match) -> Any:
        operands = match.root.args[:2]
        return match.root if all(isinstance(a, fx.Node) for a in operands) else None


@pytest.mark.parametrize(
    "forward, targets, build",
    [
        (lambda m, x, y: torch.tanh(x * y), MULS, zero),
        (lambda m, x, y: torch.tanh(m.c(x) * x) + y, MULS, zero),
        (lambda m, x, y: torch.tanh(x / (y + 1)), DIVS, first),
        (lambda m, x, y: torch.tanh(x @ y), MATMULS, zero),
        (lambda m, x, y: torch.tanh(x * x) + y, MULS, first),
    ],
    ids=["product", "layer times operand", "quotient", "matrix product", "square"],
)
def test_a_rule_that_drops_a_bilinear_term_is_rejected(forward: Any, targets: frozenset[Any], build: Build) -> None:
    shape = (2, 4, 5, 5)
    program = program_of(Lambda(forward, c=off_diagonal()), doubles(*shape), doubles(*shape, seed=8))
    rule: Any = Dropping(targets, lambda program, root: build(program, root, list(root.all_input_nodes)), "dropping")
    fused = run_rules(program, rule)
    assert fused.outcome.rejected == 1 and not fused.passed("dropping")
    assert any("rejected by its own check" in m for m in fused.missed("dropping"))
    assert fingerprint(fused.program) == fingerprint(program)


# ---- any composition ---------------------------------------------------------------------------------------------


STEPS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "mul": lambda m, a, b: a * b,
    "div": lambda m, a, b: a / b,
    "sub": lambda m, a, b: torch.sub(a, b, alpha=3),
    "cat": lambda m, a, b: m.d(torch.cat([a, b], 1)),
    "conv": lambda m, a, b: m.c(a),
    "pool": lambda m, a, b: -F.avg_pool2d(a, 3, 1, 1),
}


@dataclass(frozen=True)
class Expression:
    """Calls in execution order on [x, y, w]: name, first and second operand. Its value is the sum of all results."""

    steps: tuple[tuple[str, int, int], ...]

    @property
    def degrees(self) -> list[int]:
        """0 for what is constant, 1 for what is affine, 2 for the rest."""
        found = [1, 1, 0]
        for name, i, j in self.steps:
            a, b = found[i], found[j]
            both = {"mul": min(a + b, 2), "div": a if b == 0 else 2, "sub": max(a, b), "cat": max(a, b)}
            found.append(both.get(name, a))
        return found

    def __call__(self, m: Any, x: Tensor, y: Tensor) -> Tensor:
        values = [x, y, m.w]
        for name, i, j in self.steps:
            values.append(STEPS[name](m, values[i], values[j]))
        return sum(values[3:], x - y)


@st.composite
def expressions(draw: st.DrawFn) -> Expression:
    steps: list[tuple[str, int, int]] = []
    for k in range(draw(st.integers(1, 6))):
        name = draw(st.sampled_from(list(STEPS)))
        i = draw(st.integers(0, k + 2))
        steps.append((name, i, 2 if name == "div" and draw(st.booleans()) else draw(st.integers(0, k + 2))))
    return Expression(tuple(steps))


@given(expression=expressions())
def test_a_region_is_affine_exactly_when_no_two_varying_values_meet_in_a_product(expression: Expression) -> None:
    model = Lambda(
        expression,
        w=nn.Parameter(0.5 + doubles(1, 2, 3, 3).abs()),
        c=nn.Conv2d(2, 2, 3, padding=1),
        d=nn.Conv2d(4, 2, 1),
    ).double()
    shape = (1, 2, 3, 3)
    x, y, u, v = (doubles(*shape, seed=k) for k in range(4))
    program = program_of(model, x, y, dynamic=())
    claimed = _is_affine(program, *whole(program))
    assert claimed == (max(expression.degrees) < 2)
    if claimed:  # f(a) + f(b) = f(a + b) + f(0)
        at = [evaluate(program, list(p))[0] for p in ((x, y), (u, v), (x + u, y + v), (0 * x, 0 * y))]
        assert float((at[0] + at[1] - at[2] - at[3]).abs().max()) <= 1e-9 * max(float(a.abs().max()) for a in at)


def test_both_kinds_of_composition_are_drawn() -> None:
    affine_ones: list[bool] = []

    @given(expression=expressions())
    def collect(expression: Expression) -> None:
        affine_ones.append(max(expression.degrees) < 2)

    collect()
    assert 3 <= sum(affine_ones) <= len(affine_ones) - 3


def test_a_value_that_only_a_constant_feeds_does_not_vary() -> None:
    model = Lambda(lambda m, x: m.w * m.w * x, w=nn.Parameter(doubles(4, 1, 1)))
    program = program_of(model, doubles(*SHAPE))
    nodes, inputs = whole(program)
    assert [is_call(n, MULS) for n in nodes if n.op == "call_function"] == [True, True]
    assert _is_affine(program, nodes, inputs)
