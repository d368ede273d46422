"""Converts small networks to the target `plain`, and checks what every one of them must keep to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from reparam.ir import WEIGHTED, Census, Program, arguments, census, is_call, is_chain, is_float
from reparam.passes import fused_phases, plain_phases
from reparam.passes.carry_residual import CarryResidual
from reparam.plain import Span, outermost, read_span
from reparam.plain.register_value import SpanValues
from reparam.rewrite import Phase, Rewrite
from reparam.utils import DEFAULT_AXES
from support.helpers import (
    EXACT,
    WRONG,
    Fused,
    Spoiled,
    _spoil,
    doubles,
    fingerprint,
    max_rel,
    module_rel,
    perturb,
    program_of,
    run_phases,
)

SOME = 6  # rows of a layer that are spoiled, one at a time


def plain(model: nn.Module, *inputs: Tensor, dynamic: Sequence[str] = DEFAULT_AXES, **options: str) -> Fused:
    """Captures `model` and runs every rule of the target `plain`; no rewrite may be rejected by its own check."""
    return plain_of(program_of(model, *inputs, dynamic=dynamic), **options)


def plain_of(program: Program, **options: str) -> Fused:
    """The same of a captured program, which stays as it is."""
    fused = run_phases(program, plain_phases(**options))
    assert fused.outcome.rejected == 0, fused.missed("carry-residual")
    return fused


def counts(fused: Fused) -> tuple[Census, Census]:
    return census(fused.original), census(fused.program)


def assert_chain(
    model: nn.Module,
    *shape: int,
    merges: int,
    gates: int = 0,
    sizes: Sequence[tuple[int, ...]] = (),
    dynamic: Sequence[str] = DEFAULT_AXES,
    **options: str,
) -> Fused:
    """`model` has this many merges and becomes a chain (but for gates), equal at other batches and `sizes` too.

    Then the negative controls: a carried channel that is off by a millionth is seen in the outputs, and by the check of
    the rewrite itself.
    """
    model = model.double().eval()
    x = doubles(*shape)
    fused = plain(model, x, dynamic=dynamic, **options)
    before, after = counts(fused)
    missed = fused.missed("carry-residual")
    assert (before.merges, after.merges, after.gates) == (merges, 0, gates), (fused.text, missed)
    assert is_chain(fused.program) == (gates == 0), fused.text
    for feed in (x, doubles(1, *shape[1:], seed=1), doubles(5, *shape[1:], seed=2), *(doubles(*s) for s in sizes)):
        assert module_rel(model, fused.program, [feed]) <= EXACT
    assert_carried_rows_matter(fused, x)
    assert_the_check_bites(fused.original, **options)
    return fused


def assert_carried_rows_matter(fused: Fused, x: Tensor) -> None:
    """In each layer that carries channels: when one of their rows is off by 1e-6, the outputs tell.

    One of the first rows of each layer must be noticed, since others may carry channels that are zero on this input.
    """
    layers = carrying_rows(fused.program)
    assert layers, f"nothing is carried in {fused.text}"
    for name, rows in layers.items():
        gaps = [max_rel(fused.original, perturb(fused.program, name, row=r), [x]) for r in rows[:SOME]]
        assert max(gaps) > 1e3 * EXACT, (name, gaps)


def carrying_rows(program: Program) -> dict[str, list[int]]:
    """For each weight of a layer the rows that hold one entry above zero, or, where they pool, several equal ones."""
    found = {}
    for node in program.calls():
        if not is_call(node, WEIGHTED):
            continue
        weight = arguments(node)["weight"]
        value = program.constants[str(weight.target)].value.flatten(1)
        top = value.amax(1, keepdim=True)
        alone = ((value == top) | (value == 0)).all(1) & (top.flatten() > 0) & (value == 0).any(1)
        if bool(alone.any()) and value.shape[1] > 1:
            found[str(weight.target)] = alone.nonzero().flatten().tolist()
    return found


@dataclass(frozen=True)
class SpoiledLayer(Spoiled):
    """A rule whose new layers carry one channel wrongly, by 1e-6: its evidence must reject it."""

    def rewrite(self, program: Program, plan: Any) -> Rewrite:
        before = set(program.constants)
        made: Rewrite = self.inner.rewrite(program, plan)
        rows = {name: rows for name, rows in carrying_rows(program).items() if name not in before}
        assert rows, "this rewrite carries nothing"
        name = next(iter(rows))
        _spoil(program, name, WRONG, rows[name][0])
        return made


def assert_the_check_bites(original: Program, **options: str) -> None:
    """A chain with one wrong entry is rejected by its own check, and the graph is left as it was."""
    base = run_phases(original, fused_phases()).program
    rule = CarryResidual(**options)
    assert run_phases(base, (Phase("right", (rule,), accepts_cost=True),)).passed(rule.name)
    spoiled = run_phases(base, (Phase("wrong", (SpoiledLayer(rule),), accepts_cost=True),))  # type: ignore[arg-type]
    assert not spoiled.passed(rule.name)
    assert spoiled.outcome.rejected >= 1
    assert fingerprint(spoiled.program) == fingerprint(base)


def refusal(fused: Fused) -> tuple[str, str]:
    """The module and the message of the only merge that stayed."""
    [remark] = [r for r in fused.outcome.remarks if r.rule == "carry-residual" and r.kind == "missed"]
    return remark.module, remark.message


def networks_of(program: Program) -> list[SpanValues]:
    """What the rule reads of each span with merges, after the rules of `fused`; `span_values.span` names its nodes."""
    spans: dict[Span, None] = {}
    for node in list(program.calls()):
        if any(i.meta["data"] and is_float(i) for i in node.all_input_nodes[1:]):
            spans |= {s: None for s in outermost(program) if node in s.nodes}
    found = [read_span(program, span) for span in spans]
    return [n for n in found if isinstance(n, SpanValues)]
