"""What a rewrite leaves behind once the driver has accepted it, and at which place a refusal is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import fx, nn

from reparam.ir import Program, Refusal, aten, ranges_of
from reparam.report import Remark
from reparam.rewrite import Match, Pattern, Rewrite, op
from support.helpers import Fused, doubles, fingerprint, healthy, program_of, run_rules


@dataclass(frozen=True)
class Again:
    """relu(x) -> relu(x), for the two ReLUs of the network: right, and as dear as before."""

    name: ClassVar[str] = "again"
    pattern: ClassVar[Pattern] = op(frozenset({aten.relu.default}))

    def check(self, program: Program, match: Match) -> fx.Node | Refusal | None:
        return match.root if match.root.name in ("relu", "relu_1") else None

    def rewrite(self, program: Program, plan: fx.Node) -> Rewrite:
        new = program.clone(plan, {})
        facts, notes = ("one fact", "another"), (Note(plan.name),)
        return Rewrite({plan: new}, f"again for {plan.name}", {"layers": 1}, facts=facts, notes=notes)


@dataclass(frozen=True)
class Note:
    text: str


def network() -> Program:
    layers = [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    return program_of(healthy(nn.Sequential(*layers)), doubles(2, 4, 6, 7))


def run(rule: Any, program: Program | None = None) -> Fused:
    return run_rules(program or network(), rule)


def test_it_is_reported_with_all_that_is_known_about_it() -> None:
    told = []
    for module, node in (("1", "relu"), ("3", "relu_1")):
        told += [Remark("analysis", "again", module, node, fact) for fact in ("one fact", "another")]
        told.append(Remark("passed", "again", module, node, f"again for {node}", 0.0, "sampled", 0, 0, {"layers": 1}))
    fused = run(Again())
    bounds = [r.bound for r in fused.outcome.remarks if r.kind == "passed"]
    assert all(b is not None and 0 < b < 1e-10 for b in bounds)
    links = [r.links for r in fused.outcome.remarks if r.kind == "passed"]
    assert [old for ((old, _),) in links] == [("relu",), ("relu_1",)] and all(new for ((_, new),) in links)
    assert [replace(r, bound=None, links=()) for r in fused.outcome.remarks] == told
    assert fused.outcome.kinds == {"basis": 0, "sampled": 2}


def test_its_last_note_is_kept() -> None:
    assert run(Again()).program.notes.find(Note) == Note("relu_1")


def test_the_seconds_of_the_checks_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(7)
    monkeypatch.setattr("reparam.rewrite.driver.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert run(Again()).outcome.seconds_checking == 2


def test_what_was_known_of_the_old_value_is_known_of_the_new_one() -> None:
    """relu(x) = (x + |x|)/2, of which intervals alone cannot tell that it is never negative."""

    class Spelled(Again):
        def rewrite(self, program: Program, plan: fx.Node) -> Rewrite:
            x = plan.args[0]
            half = program.call(aten.mul.Tensor, (x, 0.5), like=plan)
            size = program.call(aten.abs.default, (half,), like=plan)
            return Rewrite({plan: program.call(aten.add.Tensor, (half, size), like=plan)}, "spelled out")

    fused = run(Spelled())
    assert fused.text == "a = mul(conv3x3(x), 0.5); b = mul(conv3x3(add(a, abs(a))), 0.5); add(b, abs(b))"
    sums = [n for n in fused.program.calls() if n.target is aten.add.Tensor]
    assert [ranges_of(fused.program).of(n)[0] for n in sums] == [0.0, 0.0]
    assert ranges_of(fused.program.copy()).of(sums[0])[0] < 0.0


def test_a_size_that_two_dead_values_read_goes_once() -> None:
    """One slice reads the batch size, the other twice as much; the old values read both, the new ones neither."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.tanh(x)[: x.shape[0]][: x.shape[0] * 2])

    class Unsliced(Again):
        def rewrite(self, program: Program, plan: fx.Node) -> Rewrite:
            tanh = next(n for n in program.calls() if n.target is aten.tanh.default)
            return Rewrite({plan: program.clone(plan, {plan.args[0]: tanh})}, "without slices")  # type: ignore[dict-item]

    fused = run(Unsliced(), program_of(Net(), doubles(3, 4)))
    assert [n.target for n in fused.program.calls()] == [aten.tanh.default, aten.relu.default]


def test_one_multiplication_more_is_too_many() -> None:
    class Dearer(Again):
        def rewrite(self, program: Program, plan: fx.Node) -> Rewrite:
            one = program.weight(torch.ones(1, 1, dtype=torch.float64), "one", like=plan)
            layer = program.call(aten.linear.default, (program.clone(plan, {}), one, None), like=plan)
            return Rewrite({plan: layer}, "once more")

    program = program_of(nn.Sequential(nn.Linear(1, 1), nn.ReLU()).double(), doubles(1, 1))
    fused = run(Dearer(), program)
    [message] = fused.missed("again")
    assert message.startswith("it would add 1 multiply-accumulates (once more); ")
    assert fingerprint(fused.program) == fingerprint(program)


@pytest.mark.parametrize(("at", "module"), [("conv2d", "0"), ("conv2d_1", "2"), (None, "1"), ("x", "1")])
def test_a_refusal_is_told_at_the_layer_that_stands_in_the_way(at: str | None, module: str) -> None:
    """At the rule's own layer where it names none, or one that belongs to no layer."""
    program = network()
    nodes = {n.name: n for n in program.graph.nodes} | {"x": program.placeholders[0]}

    class Refusing(Again):
        def check(self, program: Program, match: Match) -> fx.Node | Refusal | None:
            here = {n.name: n for n in program.graph.nodes}
            return Refusal("no", here[nodes[at].name] if at else None) if match.root.name == "relu" else None

    [remark] = run(Refusing(), program).outcome.remarks
    assert remark == Remark("missed", "again", module, "relu", "no")


def test_a_rejection_says_what_to_do() -> None:
    class Wrong(Again):
        def rewrite(self, program: Program, plan: fx.Node) -> Rewrite:
            return Rewrite({plan: program.call(aten.tanh.default, (plan.args[0],), like=plan)}, "wrong")

    messages = run(Wrong()).missed("again")
    assert len(messages) == 2
    assert all(m.endswith("; the values leave no room for exact folding") for m in messages)
