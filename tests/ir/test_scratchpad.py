"""Notes beside a program: one for each type, kept by the driver only when a rewrite is accepted."""

from __future__ import annotations

import dataclasses

import torch
from torch import fx, nn

from reparam.ir import Program, Scratchpad, aten
from reparam.rewrite import Driver, Match, Phase, Rewrite, op
from support.helpers import Lambda, program_of


@dataclasses.dataclass(frozen=True)
class Count:
    value: int = 0


def test_a_note_is_made_once_and_found_by_its_type() -> None:
    pad = Scratchpad()
    assert pad.find(Count) is None
    first = pad.get(Count, Count)
    assert pad.get(Count, lambda: Count(5)) is first
    pad.put(Count(3))
    assert pad.find(Count) == Count(3)


def test_a_copy_of_a_program_starts_without_notes() -> None:
    program = program_of(nn.Linear(2, 2), torch.randn(2, 2))
    program.notes.put(Count(1))
    assert program.copy().notes.find(Count) is None


@dataclasses.dataclass(frozen=True)
class Counting:
    """Writes relu(x) as itself once, times `factor`; it counts the times."""

    factor: float
    name = "counting"
    pattern = op(frozenset({aten.relu.default}))

    def check(self, program: Program, match: Match) -> fx.Node | None:
        return match.root if not match.root.meta.get("seen") else None

    def rewrite(self, program: Program, plan: fx.Node) -> Rewrite:
        new = program.clone(plan, {})
        new.meta["seen"] = True
        made = new if self.factor == 1.0 else program.call(aten.mul.Tensor, (new, self.factor), like=plan)
        count = program.notes.get(Count, Count)
        return Rewrite({plan: made}, "the same again", notes=(Count(count.value + 1),))


def test_what_a_rule_remembers_is_dropped_with_its_rewrite() -> None:
    for factor, kept in ((1.0, 1), (2.0, 0)):
        program = program_of(Lambda(lambda m, x: torch.relu(x) + 1, p=nn.Linear(1, 1)), torch.randn(2, 3))
        outcome = Driver(program, allow_cost=False).run((Phase("count", (Counting(factor),)),))  # type: ignore[arg-type]
        assert (outcome.rejected, program.notes.get(Count, Count).value) == (1 - kept, kept)
