"""Random networks through the whole target `fused`: the outputs stay, the cost does not grow, no rule needs catching.

Every network is checked on the traced size, on other batches, and on other maps where height and width are free. Most
come through the direct builder; some through the real capture, against the module itself. The default suite tries 500;
`make sweep` 20,000. A failure prints the spec, which `check(Spec(...))` runs again. It is not shrunk, since that takes
minutes; for a smaller one, add `Phase.shrink` to `PHASES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from direct import build
from helpers import fingerprint, graph_text
from hypothesis import HealthCheck, Phase, given, seed, settings
from networks import Net
from specs import Spec
from strategies import specs
from torch import Tensor, fx

from reparam import kernels
from reparam.capture import capture
from reparam.cost import census
from reparam.evaluate import evaluate
from reparam.passes import fused_phases
from reparam.pipeline import Driver, Outcome
from reparam.program import Program, shape_of

BOUND = 1e-11  # relative to the largest magnitude along the graph
PARTS = 8
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
    for feed in _feeds(spec, program):
        _agree(program, fused, feed)
    return outcome


def check_capture(spec: Spec) -> Outcome:
    """The same of its true capture, which must also agree with the module itself."""
    net = Net(spec)
    example = _inputs(spec, 2, spec.shape)
    program = _with_ranges(capture(net, example, dynamic=spec.dynamic).program, spec)
    if _plain(spec):
        assert graph_text(build(spec, net)) == graph_text(program), "the direct builder and the capture differ"
    fused, outcome = _fuse(program)
    again, _ = _fuse(_with_ranges(capture(net, example, dynamic=spec.dynamic).program, spec))
    assert fingerprint(fused) == fingerprint(again), "a second capture gives another program"
    _check_outcome(program, fused, outcome)
    for feed in _feeds(spec, program):
        _agree(program, fused, feed)
    feed = _inputs(spec, 2, spec.shape)
    with torch.no_grad():
        truth = Net(spec).double()(*(v.double() for v in feed))
    _near(truth, evaluate(program, feed), _top(program, feed))
    _near(truth, evaluate(fused, feed), _top(program, feed))
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


def _inputs(spec: Spec, batch: int, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Inputs within the promised range, of several orders of magnitude where it is open."""
    g = torch.Generator().manual_seed(batch)
    out = []
    for _ in range(spec.inputs):
        x = torch.randn(batch, *shape, generator=g, dtype=torch.float64)
        x = x.clamp(spec.low, spec.high) * (1.0 if spec.high < 2.0 else 3.0)
        out.append(x.to(getattr(torch, spec.dtype)))
    return tuple(out)


def _feeds(spec: Spec, program: Program) -> Iterator[tuple[Tensor, ...]]:
    """The traced size, other batches, and other maps, as far as the program leaves them free."""
    yield _inputs(spec, 2, spec.shape)
    free = [not isinstance(s, int) for s in program.inputs[0].shape]
    if free[0]:
        yield _inputs(spec, 3, spec.shape)
        yield _inputs(spec, 1, spec.shape)
    for more in (1, 4) if any(free[1:]) else ():
        shape = [s + more * (k + 1) * f for k, (s, f) in enumerate(zip(spec.shape, free[1:], strict=True))]
        feed = _inputs(spec, 2, shape)
        if _runs(program, feed):
            yield feed


def _runs(program: Program, feed: Sequence[Tensor]) -> bool:
    """Whether the network itself takes this size: what agrees at the traced one, by chance, need not agree here."""
    try:
        evaluate(program, feed)
    except RuntimeError:
        return False
    return True


def _agree(program: Program, fused: Program, feed: Sequence[Tensor]) -> None:
    before = evaluate(program, feed)
    top = max(_top(program, feed), _top(fused, feed))
    _near(before, evaluate(fused, feed), top)


def _top(program: Program, feed: Sequence[Tensor]) -> float:
    """The largest magnitude along the graph; shapes are compared with those of the fake values on the way."""
    tops = [1.0]
    sizes = [zip(i.shape, v.shape, strict=True) for i, v in zip(program.inputs, feed, strict=True)]
    free = {name: size for pairs in sizes for name, size in pairs if isinstance(name, str)}
    traced = all(tuple(v.shape[1:]) == shape_of(n)[1:] for v, n in zip(feed, program.placeholders, strict=True))

    def observe(node: fx.Node, value: Any) -> None:
        if not isinstance(value, Tensor):
            return
        assert not traced or tuple(value.shape) == shape_of(node, free), (
            f"{node.name} has another shape than its fake value"
        )
        if value.numel():
            tops.append(float(value.abs().max()))

    evaluate(program, feed, observe=observe)
    return max(tops)


def _near(a: Sequence[Any], b: Sequence[Any], top: float) -> None:
    assert len(a) == len(b)
    for p, q in zip(a, b, strict=True):
        assert p.shape == q.shape
        assert bool(torch.isfinite(p).all() and torch.isfinite(q).all())
        gap = float((p - q).abs().max()) if p.numel() else 0.0
        assert gap <= BOUND * top, f"outputs differ by {gap:.3g} where the largest magnitude is {top:.3g}"


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


@pytest.mark.parametrize("part", range(PARTS))
def test_random_networks_built_directly(part: int) -> None:
    @cases(440 // PARTS, part)
    def run(spec: Spec) -> None:
        check(spec)

    run()


@pytest.mark.parametrize("part", range(4))
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

    monkeypatch.setattr("reparam.absorb.scale_outputs", forgetful)
    rejected = []

    @cases(50, 0)
    def run(spec: Spec) -> None:
        program = build(spec, Net(spec))
        rejected.append(_fuse(program)[1].rejected)

    run()
    assert sum(rejected) > 0
