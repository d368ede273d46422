"""The inputs on which one rewrite is compared: impulses, random samples and their sizes; and how it is compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.check import Evidence, Region, check_region, find_region
from reparam.check import rewrite_check as subject
from reparam.check.region import RegionShapes, small_shapes
from reparam.errors import RuleError
from reparam.ir import Program, aten, ranges_of
from support.helpers import Lambda, doubles, program_of
from support.written_again import check, region_of

IMAGE = (3, 4, 20, 22)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- impulses ----------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3).map(lambda s: (2, *s)), min_size=1, max_size=3)
)
def test_the_impulses_are_zero_and_a_basis_of_all_inputs_together(sizes: list[tuple[int, ...]]) -> None:
    """Side by side and flat they are a row of zeros and the identity."""
    made = subject._impulses(sizes)
    assert [m.shape[1:] for m in made] == [torch.Size(s[1:]) for s in sizes]
    total = sum(math.prod(s[1:]) for s in sizes)
    joint = torch.cat([m.flatten(1) for m in made], 1)
    assert joint.dtype == torch.float64
    assert torch.equal(joint, torch.cat([torch.zeros(1, total), torch.eye(total)]).double())


# ---- what is cheap enough for all impulses -----------------------------------------------------------------------


def fits(model: nn.Module, *inputs: Any) -> bool:
    _, region = region_of(model, *inputs)
    return subject._basis_fits(region, small_shapes(region))


def test_the_price_of_a_basis_is_impulses_times_the_work_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Impulses: 4 channels of 4x4 positions. Work on that map: 4*4*9 products for each position, on both sides."""
    model, x = nn.Conv2d(4, 4, 3, padding=1, bias=False), doubles(1, 4, 20, 20)
    macs = 64 * (2 * 4 * 4 * 9 * 16)
    elements = 64 * (3 * 4 * 16)  # of the input and of both results
    for name, exact, other in (("BASIS_MACS", macs, "BASIS_ELEMENTS"), ("BASIS_ELEMENTS", elements, "BASIS_MACS")):
        monkeypatch.setattr(subject, other, 10**12)
        monkeypatch.setattr(subject, name, exact + 1)
        assert fits(model, x)
        monkeypatch.setattr(subject, name, exact - 1)
        assert not fits(model, x)


def test_a_depthwise_product_counts_sixteen_times(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), doubles(1, 4, 20, 20)
    macs = 64 * (16 * 2 * 4 * 9 * 16)
    monkeypatch.setattr(subject, "BASIS_MACS", macs + 1)
    assert fits(model, x)
    monkeypatch.setattr(subject, "BASIS_MACS", macs - 1)
    assert not fits(model, x)


def test_work_is_counted_for_one_sample_of_the_size_that_is_tried() -> None:
    for traced, tried, ratio in (((1, 1), (2, 1), 1.0), ((4, 3), (2, 3), 0.25)):
        _, region = region_of(Lambda(lambda m, x: x * 2.0), doubles(*traced))
        assert subject._size_ratio(region, RegionShapes((tried,), True)) == ratio
        assert subject._size_ratio(dataclasses.replace(region, inputs=[]), RegionShapes((), True)) == 1.0


def test_a_region_of_one_size_has_no_basis() -> None:
    _, region = region_of(nn.Conv2d(4, 4, 1), doubles(*IMAGE))
    shapes = small_shapes(region)
    assert subject._basis_fits(region, shapes)
    assert not subject._basis_fits(region, dataclasses.replace(shapes, free=False))


# ---- the sizes of samples ----------------------------------------------------------------------------------------


def sampled(model: nn.Module, *inputs: Any, **options: Any) -> list[tuple[tuple[int, ...], ...]]:
    program, region = region_of(model, *inputs, **options)
    return sizes_of(program, region, small_shapes(region))


def sizes_of(program: Program, region: Region, shapes: RegionShapes) -> list[tuple[tuple[int, ...], ...]]:
    """The sizes at which the two sides are compared, each with what was computed there."""
    found = list(subject._sampled(program, region, shapes, zeros))
    for sizes, (before, after) in found:
        assert [tuple(before[n].shape) for n in region.inputs] == list(sizes)
        assert all(before[old].shape == after[new].shape for old, new in region.outputs)
    return [tuple(sizes) for sizes, _ in found]


def zeros(sizes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    return [torch.zeros(size, dtype=torch.float64) for size in sizes]


def test_samples_of_maps_are_drawn_at_a_second_size_of_the_other_parity() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, (3, 1)), nn.ReLU())
    assert sampled(model, doubles(*IMAGE)) == [((2, 4, 4, 1),), ((1, 4, 5, 1),)]
    assert sampled(nn.Sequential(nn.Conv1d(4, 4, 3), nn.ReLU()), doubles(3, 4, 9)) == [((2, 4, 4),), ((1, 4, 5),)]
    tiny = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    assert sampled(tiny, doubles(3, 4, 2, 1)) == [((2, 4, 2, 1),), ((1, 4, 3, 1),)]


def test_every_input_of_a_region_gets_the_second_size() -> None:
    model = Lambda(lambda m, x, y: F.relu(m.a(x) + m.b(y)), a=nn.Conv2d(4, 4, 3), b=nn.Conv2d(2, 4, 3))
    found = sampled(model, doubles(*IMAGE), doubles(3, 2, 20, 22))
    assert found == [((2, 4, 4, 4), (2, 2, 4, 4)), ((1, 4, 5, 5), (1, 2, 5, 5))]


@pytest.mark.parametrize(
    "model, shape, size",
    [
        (Lambda(lambda m, x: F.relu(x).flatten(1)), (3, 4, 5), (3, 4, 5)),
        (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.ReLU()), (3, 4, 20, 20), (2, 4, 4, 4)),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), (3, 4, 20, 20), (3, 4, 1, 1)),
        (nn.ReLU(), (3, 4), (3, 4)),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (3, 4), (2, 4)),
    ],
    ids=["fixed", "parity", "one position", "matrix", "rows"],
)
def test_what_has_one_size_alone_is_sampled_at_one(model: nn.Module, shape: Any, size: tuple[int, ...]) -> None:
    assert sampled(model, doubles(*shape)) == [(size,)]


def test_a_second_size_on_which_the_network_does_not_run_is_left_out() -> None:
    """Branches of stride 2 over windows of 2 and 1 agree for even sizes alone; 6 is one, and 7 is not."""
    model = Lambda(lambda m, x: F.relu(m.a(x) + m.b(x)), a=nn.Conv2d(4, 4, 2, stride=2), b=nn.Conv2d(4, 4, 1, stride=2))
    program, region = region_of(model, doubles(3, 4, 20, 20))
    even = RegionShapes(((2, 4, 6, 6),), True)
    assert sizes_of(program, region, even) == [even.sizes]
    unaware = dataclasses.replace(even, parity=False)
    assert sizes_of(program, region, unaware) == [even.sizes]


def test_what_differs_at_one_parity_alone_is_seen_in_the_samples() -> None:
    """max_pool(relu(x)) with and without ceil_mode: of a map of even size no part is cut off."""
    model = Lambda(lambda m, x: F.max_pool2d(F.relu(x), 2))
    assert check(model, doubles(3, 4, 20, 20), dynamic=("height", "width")).ok
    with pytest.raises(RuleError, match="another shape"):
        check(_with_ceil(), doubles(3, 4, 20, 20), dynamic=("height", "width"), _5=False)


def _with_ceil() -> nn.Module:
    return Lambda(lambda m, x: torch.ops.aten.max_pool2d.default(F.relu(x), [2, 2], [2, 2], [0, 0], [1, 1], True))


# ---- where both sides run ----------------------------------------------------------------------------------------


def test_a_network_that_does_not_run_on_the_small_map_is_checked_at_the_traced_size() -> None:
    model = Lambda(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(4, 4, 2, stride=2), b=nn.Conv2d(4, 4, 1, stride=2))
    program, region = region_of(model, doubles(2, 4, 20, 20))
    odd = RegionShapes(((2, 4, 5, 5),), True)
    assert sizes_of(program, region, odd) == [((2, 4, 20, 20),)]
    even = RegionShapes(((2, 4, 6, 6),), True)
    assert sizes_of(program, region, even) == [even.sizes]
    fixed = dataclasses.replace(odd, free=False)
    with pytest.raises(RuntimeError):
        sizes_of(program, region, fixed)


def wider(dynamic: tuple[str, ...]) -> tuple[Program, Region]:
    """A pool over two positions for one over three, both of stride 2: alike where one position is left over."""
    program = program_of(nn.MaxPool2d(3, 2), doubles(2, 4, 9, 9), dynamic=dynamic)
    [node] = program.calls()
    with program.recording() as created:
        new = program.call(aten.max_pool2d.default, (node.args[0], [2, 2], [2, 2]), like=node)
    return program, find_region({node: new}, created)


@pytest.mark.parametrize("size, right", [(9, True), (7, True), (8, False)])
def test_where_sizes_are_fixed_the_new_side_may_fit_at_some_alone(size: int, right: bool) -> None:
    at = zeros([(2, 4, size, size)])
    assert (subject._comparable(*wider(()), at) is not None) == right
    for free in (("height", "width"), ("height",)):
        assert subject._comparable(*wider(free), at) is not None, "that is for the comparison to say"


def test_a_new_side_that_does_not_run_is_no_size_to_compare_at() -> None:
    program = program_of(nn.AvgPool2d(1), doubles(2, 4, 9, 9), dynamic=())
    [node] = program.calls()
    with program.recording() as created:
        new = program.call(aten.avg_pool2d.default, (node.args[0], [3, 3], [1, 1], [1, 1]), like=node)
        new = program.call(aten.conv2d.default, (new, program.weight(doubles(4, 4, 5, 5), "w", like=node)), like=node)
        new = program.call(aten.pad.default, (new, [2, 2, 2, 2]), like=node)
    region = find_region({node: new}, created)
    assert subject._comparable(program, region, zeros([(2, 4, 9, 9)])) is not None
    assert subject._comparable(program, region, zeros([(2, 4, 4, 4)])) is None


# ---- samples -----------------------------------------------------------------------------------------------------


def sample_of(x: Tensor, shape: Sequence[int], seed: int = 0) -> Tensor:
    """A sample for an input that was traced with x."""
    program = program_of(Lambda(lambda m, x: x + 1), x)
    value = subject._sample(program.placeholders[0], tuple(shape), ranges_of(program), generator(seed))
    assert isinstance(value, Tensor)
    return value


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integers_are_drawn_as_zeros_and_ones_of_their_own_dtype(dtype: torch.dtype) -> None:
    value = sample_of(torch.ones(2, 3, dtype=dtype), (40, 3))
    assert value.dtype == dtype and value.shape == (40, 3)
    assert set(value.unique().tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("forward", "drawn"),
    [
        (lambda m, x: (torch.arange(3) + 7) % x, {1, 2}),
        (lambda m, x: torch.fmod(torch.arange(3), x.flip(0).reshape(-1, 3)), {1, 2}),
        (lambda m, x: torch.arange(3) // x.clone(), {1, 2}),
        (lambda m, x: torch.div(torch.arange(3), x, rounding_mode="trunc"), {1, 2}),
        (lambda m, x: x % 3, {0, 1}),
        (lambda m, x: x.flip(0) * 2, {0, 1}),
    ],
)
def test_no_divisor_of_whole_numbers_is_drawn_as_zero(forward: Any, drawn: set[int]) -> None:
    program = program_of(Lambda(forward), torch.ones(2, 3, dtype=torch.int64))
    value = subject._sample(program.placeholders[0], (40, 3), ranges_of(program), generator())
    assert set(value.unique().tolist()) == drawn


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_indices_of_a_table_are_drawn_from_all_its_rows(rows: int) -> None:
    model = Lambda(lambda m, i: m.table(i.flip(0)), table=torch.nn.Embedding(rows, 2))
    program = program_of(model, torch.zeros(2, 3, dtype=torch.int64))
    value = subject._sample(program.placeholders[0], (100, 3), ranges_of(program), generator())
    assert set(value.unique().tolist()) == set(range(rows))


def test_truth_values_are_drawn_both_ways() -> None:
    value = sample_of(torch.ones(2, 3, dtype=torch.bool), (200, 3))
    assert value.dtype == torch.bool and value.shape == (200, 3)
    assert 0.4 < float(value.double().mean()) < 0.6


def test_complex_values_are_drawn_in_both_parts() -> None:
    value = sample_of(torch.ones(2, 3, dtype=torch.complex64), (200, 3))
    assert value.dtype == torch.complex128 and value.shape == (200, 3)
    for part in (value.real, value.imag):
        assert float(part.min()) < -4 and float(part.max()) > 4 and float(part.abs().median()) < 1


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(2, 3, dtype=torch.int64),
        torch.ones(2, 3) > 0,
        doubles(2, 3),
        torch.ones(2, 3, dtype=torch.complex128),
    ],
)
def test_a_sample_depends_on_the_seed_and_on_nothing_else(x: Tensor) -> None:
    torch.manual_seed(98)
    first = sample_of(x, (50, 3), seed=5)
    torch.manual_seed(99)
    assert torch.equal(first, sample_of(x, (50, 3), seed=5))
    assert not torch.equal(first, sample_of(x, (50, 3), seed=6))


def test_a_size_is_taken_as_it_was_traced() -> None:
    model = Lambda(lambda m, x: torch.relu(x).reshape(x.shape[0] * 4, 5))
    program, region = region_of(model, doubles(3, 4, 5), dynamic=("batch",))
    sizes = [n for n in region.inputs if not isinstance(n.meta["val"], Tensor)]
    assert sizes
    for node in sizes:
        value = subject._sample(node, (), ranges_of(program), generator())
        assert value in (3, 12) and type(value) is int
    assert all(subject._fixed_value(n) is None for n in region.inputs if n not in sizes)
    evidence = check_region(program, region, ranges_of(program), 1)
    assert evidence == Evidence("sampled", 0.0, evidence.bound, True)


def test_the_draws_lie_half_about_zero_and_half_over_the_whole_interval() -> None:
    wide = subject._draw((100, 100), -1e6, 1e6, generator())
    assert 0.4 < float((wide.abs() < 30).double().mean()) < 0.6
    assert abs(float(wide[wide.abs() > 30].mean())) < 3e4, "over the whole interval, both ways alike"
    assert float(wide.max()) > 0.99e6 and float(wide.min()) < -0.99e6
    free = subject._draw((100, 100), -math.inf, math.inf, generator())
    sizes = [float((free.abs() > t).double().mean()) for t in (0.1, 1.0, 4.0)]
    assert [round(s, 1) for s in sizes] == [0.9, 0.4, 0.1]  # of normal samples of sizes 0.31, 1.05 and 4.2 alike
    above = subject._draw((100, 100), 10.0, math.inf, generator())
    assert 0.4 < float((above == 10.0).double().mean()) < 0.6
    assert bool(((above == 10 + 11 * free.abs()) | (above == free.clamp(10.0))).all())
    below = subject._draw((100, 100), -math.inf, -10.0, generator())
    assert 0.4 < float((below == -10.0).double().mean()) < 0.6
    assert bool(((below == -10 - 11 * free.abs()) | (below == free.clamp(max=-10.0))).all())


@pytest.mark.parametrize("low, high", [(-math.inf, math.inf), (0.0, 1.0), (0.0, math.inf)])
def test_the_draws_use_every_digit_of_float64(low: float, high: float) -> None:
    value = subject._draw((100,), low, high, generator())
    rounded = (value == value.float().double()) & (value > low) & (value < high)
    assert not rounded.any()


def test_the_draws_of_one_seed_are_the_same_whatever_was_drawn_before() -> None:
    for low, high in ((-math.inf, math.inf), (0.0, 1.0), (0.0, math.inf), (-math.inf, 0.0)):
        torch.manual_seed(98)
        first = subject._draw((5, 6), low, high, generator(3))
        torch.manual_seed(99)
        assert torch.equal(first, subject._draw((5, 6), low, high, generator(3)))
