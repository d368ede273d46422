"""Random networks through the whole target `fused`: the outputs stay, the cost does not grow, no rule needs catching.

Every network is checked on the traced size, on other batches, and on other maps where height and width are free. Most
come through the direct builder; some through the real capture, against the module itself. The default suite tries 140;
`make sweep` 20,000. A failure prints the spec, which `check(Spec(...))` runs again. It is not shrunk, since that takes
minutes; for a smaller one, add `Phase.shrink` to `PHASES`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor

from reparam.algebra import kernels
from reparam.capture import capture
from reparam.ir import Program, census, evaluate
from reparam.passes import fused_phases
from reparam.rewrite import Driver, Outcome
from support.agreement import PARTS, agree, feeds, inputs_of, magnitude, near
from support.choice import mostly_in_sweeps
from support.direct import build
from support.helpers import fingerprint, graph_text
from support.networks import Net
from support.specs import Spec
from support.strategies import specs

SWEEPS = 40


# ---- the properties --------------------------------------------------------------------------------------------------


def check(spec: Spec) -> Outcome:
    """All properties of one network that was built directly."""
    net = Net(spec)
    program = build(spec, net)
    fused, outcome = _fuse(program)
    again, _ = _fuse(program)
    assert fingerprint(fused) == fingerprint(again), "a second run gives another program"
    _check_outcome(program, fused, outcome)
    for feed in feeds(spec, program):
        agree(program, fused, feed)
    return outcome


def check_capture(spec: Spec) -> Outcome:
    """The same of its true capture, which must also agree with the module itself."""
    net = Net(spec)
    example = inputs_of(spec, 2, spec.shape)
    program = _with_ranges(capture(net, example, dynamic=spec.dynamic).program, spec)
    if _plain(spec):
        assert graph_text(build(spec, net)) == graph_text(program), "the direct builder and the capture differ"
    fused, outcome = _fuse(program)
    again, _ = _fuse(_with_ranges(capture(net, example, dynamic=spec.dynamic).program, spec))
    assert fingerprint(fused) == fingerprint(again), "a second capture gives another program"
    _check_outcome(program, fused, outcome)
    for feed in feeds(spec, program):
        agree(program, fused, feed)
    feed = inputs_of(spec, 2, spec.shape)
    with torch.no_grad():
        truth = Net(spec).double()(*(v.double() for v in feed))
    near(truth, evaluate(program, feed), magnitude(program, feed))
    near(truth, evaluate(fused, feed), magnitude(program, feed))
    return outcome


def _with_ranges(program: Program, spec: Spec) -> Program:
    return replace(program, inputs=tuple(replace(i, low=spec.low, high=spec.high) for i in program.inputs))


def _plain(spec: Spec) -> bool:
    """Whether the direct builder spells the network as a capture does: no value is another one under a second name."""
    names = {op.kind for op in spec.ops} | {op.how[0] for op in spec.ops if op.kind == "noop"}
    return not any(op.kind.endswith("_") for op in spec.ops) and not names & {"fill", "cast", "contiguous", "dropout"}


def _fuse(program: Program) -> tuple[Program, Outcome]:
    fused = program.copy()
    return fused, Driver(fused, allow_cost=False).run(fused_phases())


def _check_outcome(program: Program, fused: Program, outcome: Outcome) -> None:
    rejected = [f"{r.rule} at {r.node}: {r.message}" for r in outcome.remarks if "rejected by its own" in r.message]
    assert outcome.rejected == 0, f"a rule was caught by its own check: {rejected}"
    assert census(fused).macs <= census(program).macs, "it costs more than before"
    fused.graph.lint()
    nodes = list(fused.graph.nodes)
    read = [str(n.target) for n in nodes if n.op == "get_attr"]
    assert sorted(read) == sorted(fused.constants), "weights and get_attr nodes are not one to one"
    dead = [n.name for n in nodes if n.op in ("get_attr", "call_function") and not n.users]
    assert not dead, f"dead nodes: {dead}"
    for n in nodes:
        assert n.op == "output" or {"val", "module", "data"} <= set(n.meta), f"{n.name} lacks metadata"
        assert n.op in ("output", "placeholder") or n.meta["data"] == any(i.meta["data"] for i in n.all_input_nodes)


# ---- the cases -------------------------------------------------------------------------------------------------------

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
PHASES = [Phase.generate]


def cases(count: int, part: int, *, views: bool = False) -> Any:
    """`count` random specs, the same for a part every time."""

    def decorate(test: Any) -> Any:
        drawn = given(spec=specs(views=views))(test)
        options = settings(max_examples=count, deadline=None, database=None, suppress_health_check=QUIET, phases=PHASES)
        return seed(part)(options(drawn))

    return decorate


@pytest.mark.parametrize("part", mostly_in_sweeps(range(PARTS), 0))
def test_random_networks_built_directly(part: int) -> None:
    @cases(440 // PARTS, part)
    def run(spec: Spec) -> None:
        check(spec)

    run()


@pytest.mark.parametrize("part", mostly_in_sweeps(range(4), 0))
def test_random_networks_through_the_capture(part: int) -> None:
    @cases(15, part, views=True)
    def run(spec: Spec) -> None:
        check_capture(spec)

    run()


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(SWEEPS))
def test_sweep(part: int) -> None:
    @cases(500, 1000 + part)
    def run(spec: Spec) -> None:
        check(spec)

    run()


def test_a_rule_that_forgets_a_bias_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.scale_outputs

    def forgetful(*args: Any) -> tuple[Tensor, Tensor | None]:
        return right(*args)[0], None

    monkeypatch.setattr("reparam.algebra.route.scale_outputs", forgetful)
    rejected = []

    @cases(50, 0)
    def run(spec: Spec) -> None:
        program = build(spec, Net(spec))
        rejected.append(_fuse(program)[1].rejected)

    run()
    assert sum(rejected) > 0
