"""The driver: what it accepts, what it undoes, what it counts, and how its work grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.errors import InputError, MachineError, RuleError
from reparam.ir import CONVS, Program, Refusal, arguments, aten
from reparam.passes import fused_phases
from reparam.passes.fold_batch_norm import FoldBatchNorm
from reparam.rewrite import Driver, Match, Pattern, Phase, Rewrite, op, verifying
from support.helpers import (
    EXACT,
    Lambda,
    conv_bn,
    doubles,
    fingerprint,
    fuse,
    graph_text,
    healthy,
    max_rel,
    program_of,
    run_phases,
    run_rules,
)

RELUS = frozenset({aten.relu.default})


@dataclass(frozen=True)
class Test:
    """A rule from its two halves."""

    __test__ = False
    change: Callable[[Program, fx.Node], Rewrite]
    pattern: Pattern = field(default_factory=lambda: op(RELUS))
    name: str = "test-rule"
    verdict: Callable[[fx.Node], Any] = lambda node: node

    def check(self, program: Program, match: Match) -> Any:
        return self.verdict(match.root)

    def rewrite(self, program: Program, plan: fx.Node) -> Rewrite:
        return self.change(program, plan)


def network() -> Program:
    layers = [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    return program_of(healthy(nn.Sequential(*layers)), doubles(2, 4, 6, 7))


def run(program: Program, change: Callable[[Program, fx.Node], Rewrite], **options: Any) -> Any:
    rule: Any = Test(change, **options)
    return run_rules(program, rule)


# ---- rules that fail -----------------------------------------------------------------------------------------------


def _misfit(program: Program, node: fx.Node) -> Rewrite:
    flat = program.call(aten.flatten.using_ints, (node.args[0], 0), like=node)
    return Rewrite({node: program.call(aten.mm.default, (flat, flat), like=node)}, "of no shape")


def _of_another_shape(program: Program, node: fx.Node) -> Rewrite:
    return Rewrite({node: program.call(aten.flatten.using_ints, (node.args[0], 1), like=node)}, "flat")


def _lacking(program: Program, node: fx.Node) -> Rewrite:
    raise KeyError("which is not there")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_misfit, "does not fit its operands"),
        (_of_another_shape, "has another shape"),
        (_lacking, "which is not there"),
    ],
)
def test_a_rule_that_fails_costs_a_user_that_rewrite_alone(
    change: Callable[[Program, fx.Node], Rewrite], told: str
) -> None:
    program = network()
    with verifying(False):
        fused = run(program, change)
    assert graph_text(fused.program) == graph_text(program)
    assert len(fused.missed("test-rule")) == 2
    for missed in fused.missed("test-rule"):
        assert missed.startswith("left out for a fault in this rewrite (") and told in missed
    with pytest.raises((RuleError, KeyError), match=told):
        run(program, change)


def test_a_check_that_fails_does_so_too() -> None:
    def verdict(node: fx.Node) -> fx.Node:
        raise IndexError("there is no third")

    with verifying(False):
        fused = run(network(), _drop, verdict=verdict)
    assert fused.missed("test-rule") == ["left out for a fault in this rewrite (there is no third)"] * 2


@pytest.mark.parametrize("error", [MachineError("the disk is full"), MemoryError(), InputError("not this")])
def test_what_is_no_fault_of_a_rule_ends_the_run(error: Exception) -> None:
    def change(program: Program, node: fx.Node) -> Rewrite:
        raise error

    with verifying(False), pytest.raises(type(error)):
        run(network(), change)


# ---- rejection and rollback --------------------------------------------------------------------------------------


def _drop(program: Program, node: fx.Node) -> Rewrite:
    return Rewrite({node: node.args[0]}, "dropped")  # type: ignore[dict-item]


def _leak(program: Program, node: fx.Node) -> Rewrite:
    new = program.call(aten.leaky_relu.default, (node.args[0], 1e-9), like=node)
    return Rewrite({node: new}, "nearly a relu")


def _scaled(program: Program, node: fx.Node) -> Rewrite:
    scale = program.weight(torch.full((4, 1, 1), 1 + 1e-9, dtype=torch.float64), "scale", like=node)
    inner = program.clone(node, {})
    new = program.call(aten.mul.Tensor, (inner, scale), like=node)
    return Rewrite({node: new}, "nearly the same")


def _shifted(program: Program, node: fx.Node) -> Rewrite:
    inner = program.call(aten.roll.default, (node.args[0], [1], [3]), like=node)
    return Rewrite({node: program.clone(node, {node.args[0]: inner})}, "rolled")  # type: ignore[dict-item]


@pytest.mark.parametrize("wrong", [_drop, _leak, _scaled, _shifted], ids=lambda f: f.__name__[1:])
def test_a_wrong_rewrite_is_rejected_and_leaves_no_trace(wrong: Callable[[Program, fx.Node], Rewrite]) -> None:
    program = network()
    fused = run(program, wrong)
    assert fused.outcome.rejected == 2 and not fused.passed("test-rule")
    assert fingerprint(fused.program) == fingerprint(program)
    assert fused.text == graph_text(program) == "relu(conv3x3(relu(conv3x3(x))))"
    assert [n.name for n in fused.program.graph.nodes] == [n.name for n in program.graph.nodes]
    messages = fused.missed("test-rule")
    assert len(messages) == 2
    assert all(m.startswith("rejected by its own check: float64 difference ") for m in messages)
    assert fused.outcome.kinds == {"basis": 0, "sampled": 0}


def test_a_rule_that_fails_half_way_is_undone_and_its_error_is_seen() -> None:
    def broken(program: Program, node: fx.Node) -> Rewrite:
        program.weight(torch.ones(4), "scale", like=node)
        program.clone(node, {})
        raise ZeroDivisionError("a bug in a rule")

    program = network()
    before = fingerprint(program)
    rule: Any = Test(broken)
    with pytest.raises(ZeroDivisionError):
        Driver(program, allow_cost=False).run((Phase("test", (rule,)),))
    assert fingerprint(program) == before


def test_a_rule_that_makes_nodes_for_nothing_is_told_so() -> None:
    def wasteful(program: Program, node: fx.Node) -> Rewrite:
        program.clone(node, {})
        return Rewrite({node: program.clone(node, {})}, "twice")

    with pytest.raises(RuleError, match="and did not use it"):
        run(network(), wasteful, verdict=lambda n: None if n.name.startswith("relu_default") else n)


def test_a_size_that_nobody_reads_any_more_goes_with_what_it_was_computed_from() -> None:
    """A slice that keeps everything reads twice the batch size, and that the batch size."""
    model = Lambda(lambda m, x: F.relu(m.conv(x)[: x.shape[0] * 2]), conv=nn.Conv2d(4, 4, 3))
    fused = fuse(model.double(), doubles(2, 4, 5, 6))
    assert [n.name for n in fused.program.calls()] == ["conv2d", "relu"]


def test_a_rule_that_rewrites_its_own_result_is_stopped() -> None:
    def again(program: Program, node: fx.Node) -> Rewrite:
        return Rewrite({node: program.clone(node, {})}, "once more")

    with pytest.raises(RuleError, match="'test-rule' rewrites its own result without end, last at 'relu"):
        run(network(), again)


def test_rules_that_undo_each_other_are_stopped() -> None:
    def swap(one: Any, other: Any) -> Callable[[Program, fx.Node], Rewrite]:
        def change(program: Program, node: fx.Node) -> Rewrite:
            extra = (0.0,) if other is aten.clamp_min.default else ()
            return Rewrite({node: program.call(other, (node.args[0], *extra), like=node)}, "swapped")

        return change

    relu, clamp = aten.relu.default, aten.clamp_min.default
    phases: Any = (
        Phase("there", (Test(swap(relu, clamp), op(frozenset({relu}))),)),  # type: ignore[arg-type]
        Phase("back", (Test(swap(clamp, relu), op(frozenset({clamp}))),)),  # type: ignore[arg-type]
    )
    with pytest.raises(RuleError, match="still rewrite each other's results after"):
        run_phases(network(), phases)
    with pytest.raises(RuleError, match="without end"):
        run_rules(network(), *(rule for phase in phases for rule in phase.rules))


# ---- the price ---------------------------------------------------------------------------------------------------


def _widen(program: Program, node: fx.Node) -> Rewrite:
    """The same convolution in a 5x5 kernel: right, and dearer."""
    args = arguments(node)
    weight = program.tensor(args["weight"])
    assert weight is not None
    wide = program.weight(F.pad(weight, [1, 1, 1, 1]), "wide", like=node)
    new = program.call(aten.conv2d.default, (args["input"], wide, args["bias"], [1, 1], [2, 2]), like=node)
    return Rewrite({node: new}, "widened")


def _narrow(node: fx.Node) -> Any:
    return node if arguments(node)["padding"] == [1, 1] else None


def test_a_rewrite_that_adds_work_is_refused_with_the_numbers() -> None:
    program = network()
    fused = run(program, _widen, pattern=op(CONVS), verdict=_narrow)
    assert fingerprint(fused.program) == fingerprint(program)
    extra = 6 * 7 * 4 * 4 * (25 - 9)
    expected = f"it would add {extra:,} multiply-accumulates (widened); a target that accepts the cost does it"
    assert fused.missed("test-rule") == [expected] * 2
    assert fused.outcome.rejected == 0  # it was not wrong


def test_a_target_that_accepts_the_cost_does_it_and_reports_the_price() -> None:
    program = network()
    rule: Any = Test(_widen, op(CONVS), verdict=_narrow)
    fused = run_rules(program, rule, allow_cost=True)
    assert fused.text == "relu(conv5x5(relu(conv5x5(x))))"
    assert [(r.macs, r.params) for r in fused.outcome.remarks] == [(6 * 7 * 16 * 16, 16 * 16)] * 2
    assert max_rel(program, fused.program, [doubles(2, 4, 6, 7)]) <= EXACT


# ---- remarks -----------------------------------------------------------------------------------------------------


def test_a_refusal_carries_its_reason_hint_and_place() -> None:
    def refuse(node: fx.Node) -> Refusal:
        return Refusal(f"the reason at {node.name}", node, "the hint")

    fused = run(network(), _drop, verdict=refuse)
    assert fused.missed("test-rule") == ["the reason at relu; the hint", "the reason at relu_1; the hint"]
    assert [(r.kind, r.module, r.node) for r in fused.outcome.remarks] == [
        ("missed", "1", "relu"),
        ("missed", "3", "relu_1"),
    ]


def test_a_refusal_of_a_node_that_went_later_is_not_reported() -> None:
    """The norm is first refused because of the dropout-like product, then folded when that is gone."""
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Tanh()))
    program = program_of(model, doubles(2, 4, 5, 6))
    attempts: list[str] = []

    def later(node: fx.Node) -> Any:
        attempts.append(node.name)
        return Refusal("not yet", node)

    rule: Any = Test(_drop, op(frozenset({aten.batch_norm.default})), verdict=later)
    fused = run_phases(program, (Phase("first", (rule,)), Phase("second", (FoldBatchNorm(),))))
    assert attempts and not fused.missed("test-rule")
    assert fused.text == "tanh(conv1x1(x))"


def test_a_refusal_is_reported_once_however_often_it_is_asked_for() -> None:
    model = healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Tanh(), conv_bn(), nn.ReLU(), conv_bn()))
    fused = fuse(model, doubles(2, 4, 9, 9))
    keys = [(r.rule, r.node) for r in fused.outcome.remarks if r.kind == "missed"]
    assert len(keys) == len(set(keys)) > 0


def test_every_passed_remark_has_its_measured_error() -> None:
    fused = fuse(healthy(nn.Sequential(conv_bn(), nn.ReLU(), conv_bn(padding=1))), doubles(2, 4, 9, 9))
    passed = [r for r in fused.outcome.remarks if r.kind == "passed"]
    assert len(passed) == 2 == sum(fused.outcome.kinds.values())
    for remark in passed:
        assert remark.max_abs is not None and 0.0 <= remark.max_abs < 1e-13
        assert remark.evidence in ("basis", "sampled")
        row = remark.as_dict()
        assert set(row) == {
            "kind", "rule", "module", "node", "message", "max_abs", "bound", "evidence", "macs", "params",
        }  # fmt: skip
        assert remark.bound is not None and remark.max_abs <= remark.bound
    missed = fuse(healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4))), doubles(2, 4, 3, 3)).outcome.remarks[0]
    assert set(missed.as_dict()) == {"kind", "rule", "module", "node", "message"}


# ---- the run -----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.a, self.b = conv_bn(channels, channels, padding=1), conv_bn(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x) + self.b(x) + self.norm(x))


def stack(depth: int) -> nn.Module:
    return healthy(
        nn.Sequential(*(Block() for _ in range(depth)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    )


def test_two_runs_give_the_same_graph_weights_and_remarks() -> None:
    model, x = stack(3), doubles(2, 4, 6, 7)
    first, second = fuse(model, x), fuse(model, x)
    assert fingerprint(first.program) == fingerprint(second.program)
    assert first.outcome.remarks == second.outcome.remarks
    again = run_phases(first.original, fused_phases())
    assert fingerprint(again.program) == fingerprint(first.program)


def test_a_second_run_finds_nothing_to_do() -> None:
    fused = fuse(stack(2), doubles(2, 4, 6, 7))
    assert [r for r in fused.outcome.remarks if r.kind == "passed"]
    again = run_phases(fused.program, fused_phases())
    assert not [r for r in again.outcome.remarks if r.kind == "passed"]
    assert fingerprint(again.program) == fingerprint(fused.program)


def test_a_limit_stops_after_that_many_rewrites_each_a_prefix_of_the_whole_run() -> None:
    program = program_of(stack(2), doubles(2, 4, 6, 7))
    whole = [r for r in run_phases(program, fused_phases()).outcome.remarks if r.kind == "passed"]
    assert len(whole) > 1
    for limit in range(len(whole) + 2):
        copy = program.copy()
        outcome = Driver(copy, allow_cost=False, limit=limit).run(fused_phases())
        passed = [r for r in outcome.remarks if r.kind == "passed"]
        assert passed == whole[:limit]
        assert max_rel(program, copy, [doubles(2, 4, 6, 7)]) <= EXACT


def test_progress_counts_up_to_its_total() -> None:
    program = program_of(stack(2), doubles(2, 4, 6, 7))
    calls: list[tuple[str, int, int]] = []
    Driver(program, allow_cost=False, progress=lambda *call: calls.append(call)).run(fused_phases())
    names = [phase.name for phase in fused_phases()]
    assert {name for name, _, _ in calls} == set(names)
    assert all(0 < done <= total for _, done, total in calls)


@dataclass(frozen=True)
class Counting:
    """Counts how often a rule is asked."""

    inner: Any
    asked: list[str]

    @property
    def name(self) -> str:
        return str(self.inner.name)

    @property
    def pattern(self) -> Pattern:
        pattern: Pattern = self.inner.pattern
        return pattern

    def check(self, program: Program, match: Match) -> Any:
        self.asked.append(self.name)
        return self.inner.check(program, match)

    def rewrite(self, program: Program, plan: Any) -> Rewrite:
        made: Rewrite = self.inner.rewrite(program, plan)
        return made


def _attempts(depth: int) -> int:
    asked: list[str] = []
    phases: Any = tuple(Phase(p.name, tuple(Counting(r, asked) for r in p.rules)) for p in fused_phases())  # type: ignore[arg-type, misc]
    run_phases(program_of(stack(depth), doubles(2, 4, 6, 7)), phases)
    return len(asked)


def test_the_work_grows_with_the_depth_and_not_with_its_square() -> None:
    shallow, deep = _attempts(10), _attempts(40)
    assert 3.0 < deep / shallow < 4.5
    assert shallow / 10 < 120  # attempts for each block of eight calls
