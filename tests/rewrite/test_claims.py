"""Rewrites of a whole network: what a rule claims is what is checked, and it has to speak of all that it makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from reparam.channels import plan_channels, rebuild
from reparam.errors import RuleError
from reparam.ir import Program, text_of
from reparam.rewrite import ANY, Match, Pattern, Rewrite
from support.helpers import doubles, program_of, run_rules


@dataclass(frozen=True)
class Narrowed:
    """`shrink` with claims that say less, or something else."""

    skip: int = 0
    off: float = 0.0

    name: ClassVar[str] = "narrowed"
    pattern: ClassVar[Pattern] = ANY

    def check(self, program: Program, match: Match) -> Program | None:
        return program if match.root is next(program.calls()) and plan_channels(program).narrowed else None

    def rewrite(self, program: Program, plan: Program) -> Rewrite:
        replaced, claims = rebuild(plan_channels(plan))
        last = claims[-1]
        wrong = replace(last.result, cut=lambda value: value + self.off)
        claims = (*claims[:-1], replace(last, result=wrong)) if self.off else claims
        return Rewrite(replaced, "narrowed", claims=claims[self.skip :])


def _network() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)).double().eval()
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
    return program_of(model, doubles(2, 3, 5, 5))


def test_true_claims_are_accepted() -> None:
    done = run_rules(_network(), Narrowed())
    (remark,) = done.outcome.remarks
    assert (remark.kind, remark.evidence) == ("passed", "sampled")
    assert done.outcome.kinds == {"basis": 0, "sampled": 1}


def test_a_call_of_which_nothing_is_claimed_is_an_error() -> None:
    with pytest.raises(RuleError, match="says nothing of it"):
        run_rules(_network(), Narrowed(skip=1))


def test_a_claim_that_does_not_hold_undoes_all() -> None:
    program = _network()
    done = run_rules(program, Narrowed(off=1e-9))
    assert done.outcome.rejected == 1
    (remark,) = done.outcome.remarks
    assert remark.kind == "missed" and remark.message.startswith("rejected by its own check")
    assert text_of(done.program) == text_of(program)
