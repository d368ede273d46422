"""Random networks through the whole target `plain`: the outputs and gradients stay, and what can be a chain is one.

Every network is built directly and checked on the traced size, on other batches, and on other maps where height and
width are free. The default suite tries 80; `make sweep` 20,000. A failure prints what was drawn, which
`check(Drawn(...))` runs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from reparam.ir import Program, aten, census, evaluate, is_call, is_chain
from reparam.passes import plain_phases
from reparam.rewrite import Driver, Outcome
from support.agreement import agree, feeds
from support.choice import mostly_in_sweeps
from support.direct import build
from support.networks import Net
from support.plain_specs import Drawn, specs
from support.specs import Spec

BOUND = 1e-9  # of the gradient, relative to its largest element: a sum of differences of what `agree` bounds
SINGLE = 1e-6  # where hardsigmoid is: torch has 1/6 in single precision in its backward, for float64 too
PARTS = 10
SWEEPS = 40


# ---- the properties --------------------------------------------------------------------------------------------------


def check(drawn: Drawn, **options: str) -> Outcome:
    """All properties of one network."""
    spec = drawn.spec
    program = build(spec, Net(spec))
    plain, outcome = _convert(program, options)
    rejected = [f"{r.rule} at {r.node}: {r.message}" for r in outcome.remarks if "rejected by its own" in r.message]
    assert outcome.rejected == 0, f"a rule was caught by its own check: {rejected}"
    _well_formed(plain)
    for feed in feeds(spec, program):
        agree(program, plain, feed)
    _gradients_agree(spec, program, plain)
    if drawn.carriable:
        counts = census(plain)
        missed = [r.message for r in outcome.remarks if r.kind == "missed"]
        assert counts.merges == 0, f"{counts.merges} merges stay: {missed}"
        assert counts.gates <= drawn.gates
        assert is_chain(plain) == (counts.gates == 0)
    return outcome


def _convert(program: Program, options: dict[str, str]) -> tuple[Program, Outcome]:
    plain = program.copy()
    return plain, Driver(plain, allow_cost=False).run(plain_phases(**options))


def _well_formed(plain: Program) -> None:
    plain.graph.lint()
    nodes = list(plain.graph.nodes)
    read = [str(n.target) for n in nodes if n.op == "get_attr"]
    assert sorted(read) == sorted(plain.constants), "weights and get_attr nodes are not one to one"
    dead = [n.name for n in nodes if n.op in ("get_attr", "call_function") and not n.users]
    assert not dead, f"dead nodes: {dead}"
    for n in nodes:
        assert n.op == "output" or {"val", "module", "data"} <= set(n.meta), f"{n.name} lacks metadata"


def _gradients_agree(spec: Spec, program: Program, plain: Program) -> None:
    """With respect to the input, inside the promised range: at its very end an activation may have a kink."""
    x = torch.randn(2, *spec.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    low, high = max(spec.low, -4.0), min(spec.high, 4.0)
    x = low + (high - low) * torch.sigmoid(x)
    before, after = (_gradient(p, x) for p in (program, plain))
    scale = max(float(before.abs().max()), 1e-3)
    gap = float((before - after).abs().max())
    hard = any(is_call(n, frozenset({aten.hardsigmoid.default})) for n in (*program.calls(), *plain.calls()))
    assert gap <= (SINGLE if hard else BOUND) * scale, f"gradients differ by {gap:.3g} where the largest is {scale:.3g}"


def _gradient(program: Program, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    outputs: Sequence[Any] = evaluate(program, [x], gradients=True)
    g = torch.Generator().manual_seed(6)
    total = sum((y * torch.randn(y.shape, generator=g, dtype=y.dtype)).sum() for y in outputs)
    if not total.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(total, x, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


# ---- the cases -------------------------------------------------------------------------------------------------------

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def cases(count: int, part: int) -> Any:
    """`count` random networks, the same for a part every time."""

    def decorate(test: Any) -> Any:
        quiet = settings(
            max_examples=count, deadline=None, database=None, suppress_health_check=QUIET, phases=[Phase.generate]
        )
        return seed(part)(quiet(given(drawn=specs())(test)))

    return decorate


@pytest.mark.parametrize("part", mostly_in_sweeps(range(PARTS), 0))
def test_random_networks(part: int) -> None:
    @cases(500 // PARTS, part)
    def run(drawn: Drawn) -> None:
        check(drawn)

    run()


@pytest.mark.parametrize("carry", mostly_in_sweeps(["split=2", "split=3"]))
def test_random_networks_in_slices(carry: str) -> None:
    @cases(30, 500)
    def run(drawn: Drawn) -> None:
        check(drawn, carry=carry)

    run()


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(4))
def test_sweep_in_slices(part: int) -> None:
    @cases(500, 2000 + part)
    def run(drawn: Drawn) -> None:
        check(drawn, carry=f"split={2 + part}")

    run()


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(SWEEPS))
def test_sweep(part: int) -> None:
    @cases(500, 1000 + part)
    def run(drawn: Drawn) -> None:
        check(drawn)

    run()
