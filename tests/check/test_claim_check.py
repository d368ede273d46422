"""Evidence call by call: a claim that is true holds; a wrong weight, a wrong fact and a wrong shape do not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from reparam.channels import plan_channels, rebuild
from reparam.check import Claim, check_claims
from reparam.errors import RuleError
from reparam.ir import Program, ranges_of
from support.helpers import doubles, program_of


def _claims(padding: int = 1) -> tuple[Program, tuple[Claim, ...]]:
    """A network with two constant channels, and the claims of its smaller form, which stands beside it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Softplus(), nn.Conv2d(6, 4, 3, padding=padding)).double().eval()
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
    program = program_of(model, doubles(2, 3, 8, 8))
    _, claims = rebuild(plan_channels(program))
    return program, claims


def test_true_claims_hold() -> None:
    program, claims = _claims()
    evidence = check_claims(program, claims, ranges_of(program), 0)
    assert evidence.ok
    assert evidence.kind == "sampled"
    assert evidence.max_abs <= evidence.bound <= 1e-12


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("entry", ["weight", "bias"])
def test_a_digit_that_is_lost_is_found(padding: int, entry: str) -> None:
    program, claims = _claims(padding)
    made = [n for c in claims for n in c.new if n.op == "get_attr" and entry in str(n.target)]
    name = str(made[-1].target)
    value = program.constants[name].value.clone()
    value.view(-1)[0] += 1e-9
    program.constants[name] = replace(program.constants[name], value=value)
    assert not check_claims(program, claims, ranges_of(program), 0).ok


def test_a_fact_that_does_not_hold_is_found() -> None:
    """The new calls may be right by themselves; what is said of the channels is checked as well."""
    program, claims = _claims()
    first = claims[0]
    wrong = replace(first.result, impose=torch.zeros_like)
    assert not check_claims(program, (replace(first, result=wrong),), ranges_of(program), 0).ok


def test_a_fact_is_what_the_next_call_is_checked_on() -> None:
    """Without what is known of its input, the last layer could not do without the constant channels."""
    program, claims = _claims(padding=0)
    last = claims[-1]
    blind = replace(last, operands=tuple(replace(s, impose=lambda value: value) for s in last.operands))
    evidence = check_claims(program, (blind,), ranges_of(program), 0)
    assert not evidence.ok
    assert math.isfinite(evidence.max_abs)


def test_other_shapes_are_an_error() -> None:
    program, claims = _claims()
    last = claims[-1]
    short = replace(last.result, cut=lambda value: value[:, :2])
    with pytest.raises(RuleError, match="has shape"):
        check_claims(program, (replace(last, result=short),), ranges_of(program), 0)
