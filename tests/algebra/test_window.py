"""Windows: each output's taps, counted one by one, against what is said of them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from reparam.algebra import (
    Window,
    compose_over,
    compose_windows,
    identity_window,
    is_padded,
    layer_window,
    pad_window,
    pool_window,
    read_layer,
    uncropped,
    unite,
    zero_padding,
)
from reparam.algebra.window import cut_window, is_aligned, spread_over
from reparam.ir import Refusal, aten
from support.helpers import EXACT, Conv, Lambda, convolutions, doubles, program_of

Taps = list[list[int]]


def outputs(window: Window, size: int, axis: int = 0) -> int:
    return (size + window.slack[axis]) // window.stride[axis] + 1


def taps(window: Window, size: int, axis: int = 0) -> Taps:
    """For each output the positions that it reads, those in the padding included."""
    start, step = window.first[axis], window.step[axis]
    reads = [start + k * step for k in range(window.size[axis])]
    return [[o * window.stride[axis] + r for r in reads] for o in range(outputs(window, size, axis))]


def window(stride: int, size: int, step: int, first: int, slack: int) -> Window:
    return Window((stride,), (size,), (step,), (first,), (slack,))


@st.composite
def windows(draw: st.DrawFn, *, stride: int | None = None, padded: bool = True) -> Window:
    """A window of one axis as a convolution has it: size, dilation, padding on either side, stride."""
    size, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    low, high = (draw(st.integers(0, 3)), draw(st.integers(0, 3))) if padded else (0, 0)
    reach = dilation * (size - 1)
    return window(stride or draw(st.integers(1, 3)), size, dilation if size > 1 else 1, -low, low + high - reach - 1)


# ---- what windows are made of ------------------------------------------------------------------------------------


@given(conv=convolutions())
def test_the_window_of_a_layer_reads_what_the_layer_reads(conv: Conv) -> None:
    """Where a kernel of ones gives a sum other than zero, for an input that is one at a single position."""
    module: Any = conv.module
    program = program_of(module.double(), doubles(*conv.shape))
    layer = read_layer(program, next(iter(program.calls())))
    assert layer is not None
    found = layer_window(layer)
    for axis, size in enumerate(conv.shape[2:]):
        kernel = torch.ones(1, 1, module.kernel_size[axis]).double()
        options = (module.stride[axis], module.padding[axis], module.dilation[axis])
        read = F.conv1d(torch.eye(size).double()[:, None], kernel, None, *options)[:, 0].T
        wanted = [[p for p in range(size) if row[p]] for row in read]
        assert [[p for p in row if 0 <= p < size] for row in taps(found, size, axis)] == wanted
    geometry = found.geometry(module.groups)
    assert geometry.stride == module.stride and geometry.groups == module.groups
    assert geometry.padding == tuple((p, p) for p in module.padding)
    assert geometry.dilation == tuple(
        d if k > 1 else 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)
    )
    assert is_padded(found) == any(module.padding)


@given(window=windows(), size=st.integers(4, 9))
def test_last_is_the_last_tap_and_a_padded_window_reads_past_an_end(window: Window, size: int) -> None:
    reads = taps(window, size)
    assume(reads)
    assert reads[0][-1] == window.last[0]
    low, high = window.geometry(1).padding[0]
    assert low == -window.first[0]
    assert is_padded(window) == (low > 0 or high > 0)
    if window.stride[0] == 1:
        assert max(0, reads[-1][-1] - (size - 1)) == high


@pytest.mark.parametrize("ndim", [0, 1, 3])
def test_the_identity_reads_each_position_once(ndim: int) -> None:
    found = identity_window(ndim)
    assert not is_padded(found) and len(found.stride) == ndim
    assert all(taps(found, 5, axis) == [[p] for p in range(5)] for axis in range(ndim))


@given(start=st.integers(0, 3), behind=st.integers(0, 3), step=st.integers(1, 4), size=st.integers(7, 12))
def test_a_cut_reads_one_position_for_each_that_it_keeps(start: int, behind: int, step: int, size: int) -> None:
    for axis in range(3):
        found = cut_window(3, axis, start, behind, step)
        for other in range(3):
            kept = slice(start, size - behind, step) if other == axis else slice(None)
            assert taps(found, size, other) == [[p] for p in range(size)[kept]]
        assert (found.size, found.step, found.stride[axis]) == ((1, 1, 1), (1, 1, 1), step)


@pytest.mark.parametrize("axis", [0, 1])
def test_an_aligned_window_neither_pads_nor_crops_at_either_end(axis: int) -> None:
    assert is_aligned(Window((1, 1), (3, 3), (1, 1), (0, 0), (-3, -3))) and is_aligned(identity_window(2))
    for low, high in ((1, 0), (0, 1), (-1, 0), (0, -1), (1, -1)):
        assert not is_aligned(pad_window([(low, high) if a == axis else (0, 0) for a in range(2)]))


@given(low=st.integers(0, 3), high=st.integers(0, 3), size=st.integers(1, 5))
def test_the_window_of_a_pad_moves_what_it_reads(low: int, high: int, size: int) -> None:
    found = pad_window(((0, 0), (low, high)))
    assert taps(found, size, 1) == [[p - low] for p in range(low + size + high)]
    assert taps(found, size, 0) == [[p] for p in range(size)]
    assert is_padded(found) == (low + high > 0)


@pytest.mark.parametrize(
    "pad, options, expected",
    [
        ([1, 2], {}, ((0, 0), (1, 2))),
        ([1, 2, 3, 4], {}, ((3, 4), (1, 2))),
        ([0, 0, 0, 4], {}, ((0, 4), (0, 0))),
        ([1, 2, 3, 4], {"value": 0.0}, ((3, 4), (1, 2))),
        ([1, 2], {"value": 0.5}, None),
        ([1, 2, 3, 4], {"mode": "replicate"}, None),
        ([1, -1], {}, None),
        ([0, 0, 0, 0, 1, 0], {}, None),
    ],
)
def test_zero_padding_is_read_axis_by_axis(pad: list[int], options: Any, expected: Any) -> None:
    program = program_of(Lambda(lambda m, x: F.pad(x, pad, **options)), doubles(2, 3, 5, 6))
    assert zero_padding(next(iter(program.calls()))) == expected


def test_a_pad_of_one_axis_and_one_by_another_name() -> None:
    program = program_of(Lambda(lambda m, x: torch.constant_pad_nd(x, [1, 2])), doubles(2, 3, 5))
    assert zero_padding(next(iter(program.calls()))) == ((1, 2),)


def test_a_pad_of_what_is_no_map_has_no_window() -> None:
    program = program_of(Lambda(lambda m, x: F.pad(x, [1, 1])), doubles(2, 3))
    assert zero_padding(next(iter(program.calls()))) is None


def pool_of(pool: nn.Module, *shape: int, dynamic: tuple[str, ...] = ("batch",)) -> Window | None:
    return pool_window(next(iter(program_of(pool, doubles(2, 3, *shape), dynamic=dynamic).calls())))


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.none() | st.integers(1, 3),
    padded=st.booleans(),
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
)
def test_an_average_pool_reads_its_window(
    kernel: tuple[int, int], stride: int | None, padded: bool, size: tuple[int, int]
) -> None:
    padding = tuple(k // 2 if padded else 0 for k in kernel)
    found = pool_of(nn.AvgPool2d(kernel, stride, padding), *size)
    assert found is not None
    for axis in (0, 1):
        step = stride or kernel[axis]
        count = (size[axis] + 2 * padding[axis] - kernel[axis]) // step + 1
        wanted = [[o * step - padding[axis] + k for k in range(kernel[axis])] for o in range(count)]
        assert taps(found, size[axis], axis) == wanted


@pytest.mark.parametrize(
    "pool, size, is_window",
    [
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), (6, 6), False),
        (nn.AvgPool2d(3, 1, 0, count_include_pad=False), (6, 6), True),
        (nn.AvgPool2d(2, 2, ceil_mode=True), (6, 6), True),
        (nn.AvgPool2d(2, 2, ceil_mode=True), (6, 7), False),
        (nn.AvgPool2d(2, 2, ceil_mode=True), (7, 6), False),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (7, 9), True),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (7, 8), False),
    ],
)
def test_a_pool_whose_divisor_changes_has_no_window(pool: nn.Module, size: tuple[int, int], is_window: bool) -> None:
    assert (pool_of(pool, *size) is not None) == is_window


def test_a_pool_of_one_axis_strides_by_its_kernel_unless_told_otherwise() -> None:
    pool = Lambda(lambda m, x: F.avg_pool1d(x, 2, padding=1))
    assert pool_of(pool, 9) == window(2, 2, 1, -1, 0)
    assert pool_of(nn.AvgPool1d(2, 1), 9) == window(1, 2, 1, 0, -2)
    by_default = Lambda(lambda m, x: F.avg_pool2d(x, (2, 3)))
    assert pool_of(by_default, 9, 9) == Window((2, 3), (2, 3), (1, 1), (0, 0), (-2, -3))


def test_whether_a_pool_of_a_free_map_is_cut_off_is_not_known() -> None:
    free = ("batch", "height", "width")
    assert pool_of(nn.AvgPool2d(2, 2), 8, 8, dynamic=free) is not None
    assert pool_of(nn.AvgPool2d(2, 2, ceil_mode=True), 8, 8, dynamic=free) is None


# ---- one window after another ------------------------------------------------------------------------------------


def test_composed_windows_read_what_the_second_reads_of_the_first() -> None:
    composed: list[bool] = []

    @given(a=windows(), b=windows(padded=False) | windows(), size=st.integers(6, 14))
    def run(a: Window, b: Window, size: int) -> None:
        pointwise = a.size == (1,) and not is_padded(a)
        joint = compose_windows(a, b)
        composed.append(not isinstance(joint, Refusal))
        if isinstance(joint, Refusal):
            assert is_padded(b) and not pointwise
            return
        assert pointwise or not is_padded(b)
        middle = outputs(a, size)
        assert middle < 1 or outputs(joint, size) == outputs(b, middle)
        read = {a.stride[0] * p + r for p in taps(b, 10**3)[0] for r in taps(a, 10**3)[0]}  # by the first output
        own = taps(joint, 10**3)[0]
        assert joint.stride[0] == a.stride[0] * b.stride[0]
        assert read <= set(own) and (own[0], own[-1]) == (min(read), max(read))
        finer = [d for d in range(joint.step[0] + 1, 40) if all((p - own[0]) % d == 0 for p in read)]
        assert not finer or len(read) == 1, "its taps could lie further apart"
        assert joint.step[0] == 1 or len(read) > 1

    run()
    assert 5 < sum(composed) < len(composed)


@given(stride=st.integers(1, 3), b=windows(), size=st.integers(6, 14))
def test_behind_a_window_of_one_tap_any_padding_is_exact(stride: int, b: Window, size: int) -> None:
    a = window(stride, 1, 1, 0, -1)
    joint = compose_windows(a, b)
    assert isinstance(joint, Window)
    wanted = [[stride * p for p in row] for row in taps(b, outputs(a, size))]
    assert [(row[0], row[-1]) for row in taps(joint, size)] == [(w[0], w[-1]) for w in wanted]


@given(a=windows(padded=False), b=windows(padded=False), groups=st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]))
def test_a_composed_kernel_is_one_convolution_after_the_other(a: Window, b: Window, groups: tuple[int, int]) -> None:
    joint = compose_windows(a, b)
    assert isinstance(joint, Window)
    first, second = doubles(4, 4 // groups[0], *a.size), doubles(2, 4 // groups[1], *b.size, seed=1)
    kernel = compose_over(joint, a, first, groups[0], b, second, groups[1])
    x = doubles(2, 4, 40, seed=2)
    truth = F.conv1d(
        F.conv1d(x, first, None, a.stride, 0, a.step, groups[0]), second, None, b.stride, 0, b.step, groups[1]
    )
    made = F.conv1d(x, kernel, None, joint.stride, 0, joint.step, min(groups))
    assert made.shape == truth.shape
    assert float((made - truth).abs().max()) <= EXACT * float(truth.abs().max())


# ---- two windows beside each other -------------------------------------------------------------------------------


def test_a_joint_window_reads_what_both_read_and_makes_as_many_outputs() -> None:
    joined: list[bool] = []

    @given(a=windows(), b=windows(), same=st.integers(0, 3), late=st.integers(0, 3), size=st.integers(6, 14))
    def run(a: Window, b: Window, same: int, late: int, size: int) -> None:
        a = window(a.stride[0], a.size[0], a.step[0], a.first[0] + late, a.slack[0])
        b = window(a.stride[0], b.size[0], b.step[0], b.first[0] + late, a.slack[0]) if same else b
        joint = unite(a, b, [size])
        joined.append(isinstance(joint, Window))
        alike = outputs(a, size) == outputs(b, size)
        if isinstance(joint, Refusal):
            assert a.stride != b.stride or not alike
            assert joint.reason.startswith("strides") == (a.stride != b.stride)
            assert a.stride != b.stride or joint.reason == "the outputs have different sizes"
            return
        assert a.stride == b.stride and alike
        assert outputs(joint, size) == outputs(a, size)
        low = min(a.first[0], b.first[0], 0)
        ends = low, max(a.last[0], b.last[0])
        for row, one, other in zip(taps(joint, size), taps(a, size), taps(b, size), strict=True):
            assert set(one) | set(other) <= set(row)
        assert (joint.first[0], joint.last[0]) == ends
        kept = {p - low for w in (a, b) for p in range(w.first[0], w.last[0] + 1, w.step[0])}
        finer = [d for d in range(joint.step[0] + 1, 20) if all(p % d == 0 for p in kept)]
        assert not finer or kept == {0}, "its taps could lie further apart"
        assert joint.size[0] > 1 or joint.step[0] == 1
        if symmetric_fits(joint, size):
            assert joint.slack[0] == -joint.first[0] - joint.last[0] - 1
        else:
            assert joint.slack[0] == max(a.slack[0], b.slack[0])

    run()
    assert 3 < sum(joined) < len(joined)


def symmetric_fits(joint: Window, size: int) -> bool:
    """Whether as much padding behind as in front gives as many outputs."""
    slack = -joint.first[0] - joint.last[0] - 1
    return (size + slack) // joint.stride[0] + 1 == outputs(joint, size)


def test_windows_of_a_free_size_need_the_same_slack() -> None:
    """At stride 2, slacks of -1 and -2 give as many outputs for even sizes alone."""
    a, b = window(2, 1, 1, 0, -1), window(2, 2, 1, 0, -2)
    refused = unite(a, b, [None])
    assert isinstance(refused, Refusal) and refused.reason == "the outputs agree in size only for some inputs"
    assert isinstance(unite(a, b, [8]), Window)
    assert isinstance(unite(a, b, [7]), Refusal)
    joint = unite(a, window(2, 3, 1, -1, -1), [None])
    assert joint == window(2, 3, 1, -1, -1)


def test_unlike_strides_are_named() -> None:
    refused = unite(window(2, 1, 1, 0, -1), window(3, 1, 1, 0, -1), [8])
    assert isinstance(refused, Refusal) and refused.reason == "strides (2,) and (3,) differ"


def test_padding_is_symmetric_where_that_makes_as_many_outputs() -> None:
    """At stride 2 and size 8 a padding of one behind is never read: with it or without it there are four outputs."""
    short = window(2, 3, 1, -1, -2)
    assert unite(short, short, [8]) == window(2, 3, 1, -1, -1)
    assert unite(short, short, [7]) == short, "here it would be read"


def test_a_joint_window_starts_no_later_than_the_map() -> None:
    late = window(1, 1, 1, 2, -3)
    joint = unite(late, late, [8])
    assert isinstance(joint, Window) and joint.first == (0,) and joint.last == (2,)


def test_two_taps_that_lie_apart_stay_two() -> None:
    apart = window(1, 2, 3, 0, -4)
    assert unite(apart, window(1, 1, 1, 0, -4), [9]) == apart
    assert unite(window(1, 1, 1, 0, -4), apart, [9]) == apart


@pytest.mark.parametrize(
    ("a", "b", "joint"),
    [
        (window(1, 2, 4, 2, -7), window(1, 2, 4, 2, -7), window(1, 4, 2, 0, -7)),
        (window(1, 2, 2, 0, -3), window(1, 1, 1, 1, -3), window(1, 3, 1, 0, -3)),
        (window(1, 1, 1, 1, -2), window(1, 1, 1, -1, -2), window(1, 2, 2, -1, -2)),
    ],
)
def test_the_taps_of_a_joint_window_are_as_far_apart_as_both_allow(a: Window, b: Window, joint: Window) -> None:
    assert unite(a, b, [None]) == unite(b, a, [None]) == joint


def test_each_axis_is_united_on_its_own() -> None:
    a = Window((1, 1), (3, 1), (2, 1), (-2, 0), (-1, -1))
    b = Window((1, 1), (1, 3), (1, 1), (0, -1), (-1, -1))
    assert unite(a, b, [9, 9]) == Window((1, 1), (3, 3), (2, 1), (-2, -1), (-1, -1))


@given(
    data=st.data(),
    step=st.integers(1, 3),
    stride=st.integers(1, 3),
    first=st.integers(-2, 6),
    taken=st.integers(1, 3),
    slack=st.integers(-8, 2),
)
def test_an_uncropped_window_reads_more_and_needs_no_negative_padding(
    data: st.DataObject, step: int, stride: int, first: int, taken: int, slack: int
) -> None:
    cropped = window(stride, taken, step, first, slack)
    found = uncropped(cropped)
    assert (found.stride, found.step, found.slack) == (cropped.stride, cropped.step, cropped.slack)
    [(low, high)] = found.geometry(1).padding
    assert low >= 0 and high >= 0
    assert all(set(a) <= set(b) for a, b in zip(taps(cropped, 12), taps(found, 12), strict=True))
    assert low < step or found.first == cropped.first
    assert high < step or found.last == cropped.last


@given(own=windows(padded=False), factor=st.integers(1, 3))
def test_a_kernel_is_spread_over_the_taps_of_a_finer_window(own: Window, factor: int) -> None:
    weight = doubles(2, 3, *own.size)
    coarse = window(own.stride[0], own.size[0], own.step[0] * factor, own.first[0], own.slack[0])
    spread = spread_over(weight, coarse, own)
    assert spread.shape[2] == (1 if own.size[0] == 1 else factor * (own.size[0] - 1) + 1)
    assert torch.equal(spread[:, :, ::factor], weight)
    others = [k for k in range(spread.shape[2]) if k % factor]
    assert not spread[:, :, others].any()


def test_geometries_of_all_axes_are_kept_apart() -> None:
    program = program_of(nn.Conv2d(2, 2, (3, 1), (1, 2), (1, 0), (2, 3)).double(), doubles(1, 2, 7, 8))
    node = next(iter(program.calls()))
    layer = read_layer(program, node)
    assert node.target is aten.conv2d.default and layer is not None
    assert layer_window(layer) == Window((1, 2), (3, 1), (2, 1), (-1, 0), (-3, -1))
    assert list(itertools.chain(*layer_window(layer).geometry(1).padding)) == [1, 1, 0, 0]
