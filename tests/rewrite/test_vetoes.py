"""What is not rewritten although its rule can: values of whole numbers that decide what is picked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.ir import has_jumps, jump_of_whole_numbers, op_name
from reparam.report import Report
from reparam.rewrite.vetoes import rounds
from support.helpers import Lambda, program_of

LENGTHS = (1, 2, 5, 12, 13, 100, 180)
Forward = Callable[[Any, Tensor], Tensor]


def places(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], dtype=x.dtype)


def buckets(m: Any, x: Tensor) -> Tensor:
    """The buckets of relative positions, exact up to 8 and logarithmic above."""
    gaps = (places(x)[:, None] - places(x)[None]).abs()
    far = 8 + (torch.log(gaps / 8) / math.log(16) * 8).to(torch.long)
    return x.sum(-1)[:, :, None, None] + m.e(torch.where(gaps < 8, gaps.long(), far.clamp(max=15)))


PICKS: dict[str, Forward] = {
    "a cast": lambda m, x: x + m.e((places(x) * 0.9 / 0.6).long()),
    "a rounding": lambda m, x: x + m.e(torch.round(places(x) * 0.3 / 0.2).long()),
    "rounded down": lambda m, x: x * torch.floor(places(x) / 0.1 * 0.3)[:, None],
    "a comparison": lambda m, x: x * (places(x) * 0.1 / 0.3 < 1.0)[:, None],
    "further on": lambda m, x: x + m.e((places(x) * 0.9 / 0.6).abs()[None].flip(1).long()[0]),
    "a remainder": lambda m, x: x * ((places(x) * 0.7 / 0.1) % 7.0)[:, None],
    "sizes alone": lambda m, x: x + m.e((torch.ones_like(x).sum(2).cumsum(1) * 0.9 / 0.6).long()[0]),
    "buckets": buckets,
}


def picked(x: Tensor) -> Tensor:
    return (places(x) * 0.9 / 0.6).long()


def convert(forward: Forward) -> tuple[nn.Module, nn.Module, Report]:
    torch.manual_seed(0)
    model = Lambda(forward, e=nn.Embedding(1100, 4)).eval()
    result = reparam.convert(model, torch.randn(2, 12, 4), dynamic=("batch", "inputs_0:1=length"))
    return model, result.module, result.report


@pytest.mark.parametrize("name", PICKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_picked_by_positions_is_picked_as_before(name: str, dtype: torch.dtype) -> None:
    model, result, _ = convert(PICKS[name])
    for length in LENGTHS:
        x = torch.randn(1, length, 4, dtype=dtype)
        torch.testing.assert_close(result.to(dtype)(x), model.to(dtype)(x))


def test_the_reason_names_what_picks() -> None:
    report = convert(PICKS["a cast"])[2]
    told = [r for r in report.remarks if "picks by what is made of whole numbers" in r.message]
    assert {r.rule for r in told} == {"fold-channel-affine", "join-affines"}
    assert all(r.message.startswith("'to' picks by") for r in told)
    assert report.after.nodes == report.before.nodes


KEPT: dict[str, Forward] = {
    "nothing picks": lambda m, x: x * (places(x) * 0.9 / 0.6)[:, None],
    "an input decides": lambda m, x: x.mean(2) + m.e((x[:, :, 0] * 0.9 / 0.6).abs().long()).sum(2),
    "weights decide": lambda m, x: x + m.e((m.w * places(x) * 0.9 / 0.6).abs().long()),
    "what picks is another value": lambda m, x: x * (places(x) * 0.9 / 0.6)[:, None] + (places(x) < 3)[:, None],
}


@pytest.mark.parametrize("name", KEPT)
def test_all_other_scales_are_put_together(name: str) -> None:
    torch.manual_seed(0)
    model = Lambda(KEPT[name], e=nn.Embedding(100, 4), w=nn.Parameter(torch.tensor(1.234))).eval()
    report = reparam.convert(model, torch.randn(2, 12, 4), dynamic=("batch", "inputs_0:1=length")).report
    assert not [r for r in report.remarks if "picks by what is made of whole numbers" in r.message]
    assert report.after.nodes < report.before.nodes


def test_equal_calls_are_shared_where_something_picks() -> None:
    model, result, report = convert(lambda m, x: x + m.e(picked(x)) - 2 * m.e(picked(x)))
    shared = [r.kind for r in report.remarks if r.rule == "share-calls"]
    assert len(shared) > 2 and set(shared) == {"passed"}
    x = torch.randn(3, 12, 4)
    torch.testing.assert_close(result(x), model(x))


def test_a_copy_before_a_cast_is_dropped() -> None:
    report = convert(lambda m, x: x + m.e((places(x) * 1.0).clone().long()))[2]
    assert {r.rule for r in report.remarks if r.kind == "passed"} == {"drop-identity"}


def test_the_call_that_jumps_is_found_behind_values_of_whole_numbers() -> None:
    model = Lambda(PICKS["further on"], e=nn.Embedding(1100, 4))
    made = program_of(model, torch.randn(2, 12, 4), dynamic=("inputs_0:1=length",))
    found = {n.name: jump_of_whole_numbers(made, n) for n in made.calls()}
    assert has_jumps(made)
    before = {name for name, jump in found.items() if jump is not None}
    assert {"arange", "mul", "div", "flip"} < before and not {"embedding", "add", "to"} & before
    assert {op_name(jump) for jump in found.values() if jump is not None} == {"to"}
    assert not has_jumps(program_of(Lambda(KEPT["nothing picks"]), torch.randn(2, 12, 4)))


def test_what_computes_rounds_and_what_moves_does_not() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return x + m.e(((places(x) * 0.3 + m.shift) / 0.3).flip(0).long())

    model = Lambda(forward, e=nn.Embedding(1100, 4), shift=nn.Buffer(torch.ones(1)))
    made = program_of(model, torch.randn(2, 12, 4), dynamic=("inputs_0:1=length",))
    calls = {op_name(n): n for n in made.calls()}
    mul, div, flip = calls["mul"], calls["div"], calls["flip"]
    buffer = next(n for n in made.graph.nodes if n.op == "get_attr" and n.target == "shift")
    assert rounds(made, [div], [mul, div], []) is not None, "x * 0.3 / 0.3 is not x"
    assert rounds(made, [mul], [], [mul]) is not None
    assert rounds(made, [mul], [mul], []) is None, "a product by one"
    assert rounds(made, [flip], [flip], [flip]) is None
    assert rounds(made, [mul], [mul, div], [mul]) is None, "the product comes again"
    assert rounds(made, [mul], [mul, div, calls["add"]], [mul]) is not None, "two others go"
    assert rounds(made, [mul], [mul], [mul, div]) is not None, "another one comes"
    assert rounds(made, [mul], [mul], [buffer, flip, calls["sym_size"]]) is None
    assert rounds(made, [calls["add"]], [mul, div], [div]) is None, "nothing picks behind the sum with the input"
