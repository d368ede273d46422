"""How both sides of a rewrite are compared: numbers within their bounds, integers and dtypes exactly."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from reparam.check import Evidence, Region, check_region, find_region
from reparam.check import rewrite_check as subject
from reparam.errors import RuleError
from reparam.ir import Program, aten, ranges_of
from support.helpers import Lambda, doubles, program_of
from support.written_again import check, region_of


def compare(program: Program, region: Region, x: Tensor, top: Tensor | None = None) -> tuple[float, float, bool]:
    sides = subject._sides(program, region, [x])
    return subject._compare(program, region, sides, None if top is None else subject._sides(program, region, [top]))


def scaled(by: float) -> tuple[Program, Region]:
    """x + 0.0 for x*by, or the other way round: equal where x is zero."""
    program = program_of(Lambda(lambda m, x: x + 0.0), doubles(2, 3))
    [node] = program.calls()
    with program.recording() as created:
        new = program.call(aten.mul.Tensor, (node.args[0], by), like=node)
    return program, find_region({node: new}, created)


def test_the_largest_difference_and_the_largest_bound_are_told() -> None:
    x = torch.tensor([[1.0, -8.0], [2.0, 0.0]], dtype=torch.float64)
    worst, bound, ok = compare(*scaled(1.5), x)
    assert worst == 4.0 and not ok
    eps = torch.finfo(torch.float64).eps
    assert bound == pytest.approx(eps * (16 + 16) * (8.0 + 12.0))


def test_the_bound_is_that_of_the_envelope() -> None:
    x = torch.tensor([[1.0, -8.0]], dtype=torch.float64)
    small, large = compare(*scaled(1.0), x), compare(*scaled(1.0), x, 1e6 * torch.ones(1, 2).double())
    assert (small[0], small[2]) == (large[0], large[2]) == (0.0, True)
    assert large[1] == pytest.approx(small[1] * 1e6 / 8)
    far = compare(*scaled(1 + 1e-12), x, 1e6 * torch.ones(1, 2).double())
    assert far[2] and not compare(*scaled(1 + 1e-12), x)[2]


def test_each_element_is_held_to_its_own_bound() -> None:
    """A difference that is small beside the largest value is none where all else is small."""
    program = program_of(Lambda(lambda m, x: x + m.w, w=nn.Parameter(torch.zeros(2).double())), doubles(2, 2))
    [node] = program.calls()
    with program.recording() as created:
        weight = program.weight(torch.tensor([0.0, 1e-9]).double(), "w", like=node)
        new = program.call(aten.add.Tensor, (node.args[0], weight), like=node)
    region = find_region({node: new}, created)
    assert compare(program, region, torch.tensor([[0.0, 1e9]]).double())[2]
    assert not compare(program, region, torch.tensor([[1e9, 0.0]]).double())[2]


def test_equal_infinities_agree_and_others_do_not() -> None:
    def mask(value: float) -> tuple[Program, Region]:
        program = program_of(Lambda(lambda m, x: x.masked_fill(x > 0, -math.inf)), doubles(2, 3))
        node = list(program.calls())[-1]
        with program.recording() as created:
            new = program.call(node.target, (*node.args[:2], value), like=node)
        return program, find_region({node: new}, created)

    for value, right in ((-math.inf, True), (math.inf, False), (0.0, False), (math.nan, False)):
        program, region = mask(value)
        assert check_region(program, region, ranges_of(program), 1).ok == right


def test_a_value_without_elements_agrees_with_itself() -> None:
    assert check(Lambda(lambda m, x: x[:, 3:] * 2), doubles(2, 3)) == Evidence("sampled", 0.0, 0.0, True)


def test_every_output_is_compared() -> None:
    program = program_of(Lambda(lambda m, x: (x * 2, x * 3)), doubles(2, 3))
    first, second = program.calls()
    for factors, right in (((2.0, 3.0), True), ((2.1, 3.0), False), ((2.0, 3.1), False)):
        with program.recording() as created:
            new = [program.call(aten.mul.Tensor, (first.args[0], f), like=first) for f in factors]
        region = find_region({first: new[0], second: new[1]}, created)
        result = check_region(program, region, ranges_of(program), 1)
        assert (result.ok, result.kind) == (right, "basis")
        assert (result.max_abs == 0.0) == right and result.bound > 0


INDICES = torch.tensor([[1.0, -8.0], [2.0, 0.0]], dtype=torch.float64)


def indexed(build: Any, *, empty: bool = False) -> tuple[Program, Region]:
    """Where the largest entries are, and all of them doubled: the first by what `build` makes, the second by 2.5."""
    program = program_of(Lambda(lambda m, x: ((x[:, 2:] if empty else x.argmax(1)), x * 2)), doubles(2, 2))
    *_, first, second = program.calls()
    with program.recording() as created:
        x = second.args[0]
        new = build(program, first, x), program.call(aten.mul.Tensor, (x, 2.5), like=second)
    return program, find_region(dict(zip((first, second), new, strict=True)), created)


def again(program: Program, node: fx.Node, x: Any) -> fx.Node:
    return program.call(node.target, (x, *node.args[1:]), like=node)


def narrower(program: Program, node: fx.Node, x: Any) -> fx.Node:
    return program.call(aten._to_copy.default, (again(program, node, x),), {"dtype": torch.int32}, like=node)


def elsewhere(program: Program, node: fx.Node, x: Any) -> fx.Node:
    return program.call(aten.argmin.default, (x, 1), like=node)


def test_integers_agree_when_they_and_their_dtypes_are_equal() -> None:
    program, region = indexed(again)
    first = dataclasses.replace(region, outputs=region.outputs[:1])
    assert compare(program, first, INDICES) == (0.0, 0.0, True)
    for other in (narrower, elsewhere):
        program, region = indexed(other)
        first = dataclasses.replace(region, outputs=region.outputs[:1])
        assert compare(program, first, INDICES) == (math.inf, 0.0, False)


@pytest.mark.parametrize("empty", [False, True])
def test_what_comes_behind_integers_and_empty_values_is_compared(empty: bool) -> None:
    worst, bound, ok = compare(*indexed(again, empty=empty), INDICES)
    assert (worst, ok) == (4.0, False) and bound > 0


def test_a_bound_that_is_no_number_stays_the_largest() -> None:
    assert math.isnan(subject._larger(math.nan, 1.0)) and math.isnan(subject._larger(1.0, math.nan))
    assert subject._larger(1.0, 2.0) == subject._larger(2.0, 1.0) == 2.0


@pytest.mark.parametrize(("width", "alike"), [(2, True), (1, False)])
def test_pieces_are_compared_one_by_one_where_there_are_as_many(width: int, alike: bool) -> None:
    program, region = region_of(Lambda(lambda m, x: x.relu()), doubles(2, 4))
    [relu] = region.old
    with program.recording() as created:
        pieces = [program.call(aten.split.Tensor, (relu.args[0], n, 1), like=relu) for n in (2, width)]
    region = find_region({pieces[0]: pieces[1]}, created[1:])
    assert subject._comparable(program, region, [doubles(2, 4)]) is not None, "that is for the comparison to say"
    if alike:
        assert check_region(program, region, ranges_of(program), 1).max_abs == 0.0
        return
    with pytest.raises(RuleError, match="another shape"):
        check_region(program, region, ranges_of(program), 1)
