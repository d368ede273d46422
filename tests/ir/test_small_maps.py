"""Convolutions of small maps in float64 give what torch's own give."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.ir import SMALL_MAPS, aten, evaluate, evaluate_region, small_maps
from support.helpers import doubles, program_of

CLOSE = 1e-13  # of the largest sum of products
TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONVS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    ndim = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 2, 3]))
    read, made = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(ndim)]

    return {
        "input": doubles(draw(st.integers(1, 3)), groups * read, *each(7, 9), seed=1),
        "weight": doubles(groups * made, read, *each(1, 3), seed=2),
        "bias": doubles(groups * made, seed=3) if draw(st.booleans()) else None,
        "stride": each(1, 3),
        "padding": each(0, 2),
        "dilation": each(1, 3),
        "groups": groups,
    }


def _everywhere() -> Any:
    return patch.multiple(small_maps, ROWS=1 << 40, PASSES=0, MAP=1 << 40, NUMBERS=1 << 40)


@given(case=_cases())
def test_strides_paddings_dilations_and_groups(case: dict[str, Any]) -> None:
    ndim = case["input"].ndim - 2
    with torch.no_grad(), _everywhere():
        found = small_maps._convolution(*case.values())
    wanted = TORCH[ndim](**case)
    sizes = TORCH[ndim](**{k: v.abs() if isinstance(v, Tensor) else v for k, v in case.items()})
    assert found is not None and found.is_contiguous() and found.shape == wanted.shape
    assert ((found - wanted).abs() / sizes.clamp(min=1e-300)).max() <= CLOSE


def _of(channels: int, side: int, kernel: int, groups: int, batch: int = 2) -> Any:
    """What is left to torch is told by `None`."""
    x, weight = doubles(batch, channels, side, side), doubles(channels, channels // groups, kernel, kernel)
    with torch.no_grad():
        return small_maps._convolution(x, weight, None, [1, 1], [kernel // 2] * 2, [1, 1], groups)


@pytest.mark.parametrize(
    "own, torchs",
    [
        ((128, 4, 3, 1), (64, 4, 3, 1)),  # numbers in the kernel
        ((128, 4, 3, 1), (512, 4, 1, 1)),  # a kernel of one tap
        ((128, 4, 3, 1, 4), (128, 4, 3, 1, 5)),  # windows
        ((32, 4, 3, 16), (32, 4, 3, 8)),  # samples times groups
        ((16, 4, 3, 16), (16, 4, 3, 16, 1)),  # the same, of one channel each
        ((16, 16, 3, 16), (16, 17, 3, 16)),  # positions
        ((16, 16, 3, 16, 64), (16, 16, 3, 16, 65)),  # numbers in the result
    ],
)
def test_what_is_left_to_torch(own: tuple[int, ...], torchs: tuple[int, ...]) -> None:
    assert _of(*own) is not None and _of(*torchs) is None


def test_what_is_not_of_float64_or_has_gradients_is_left_to_torch() -> None:
    x, weight = doubles(2, 16, 4, 4), doubles(16, 1, 3, 3)
    given = ([1, 1], [1, 1], [1, 1], 16)
    with torch.no_grad():
        assert small_maps._convolution(x, weight, None, *given) is not None
        assert small_maps._convolution(x.float(), weight.float(), None, *given) is None
        assert small_maps._convolution(x[0], weight, None, *given) is None
    assert small_maps._convolution(x, weight.requires_grad_(), None, *given) is None


@pytest.mark.parametrize("ndim", TORCH)
@pytest.mark.parametrize("groups", [1, 16])
def test_large_and_small_ones_by_the_names_of_torch(ndim: int, groups: int) -> None:
    convolve = SMALL_MAPS[CONVS[ndim]]
    for side in (3, 6):
        x, weight = doubles(2, 16, *[side] * ndim), doubles(16, 16 // groups, *[3] * ndim)
        with torch.no_grad():
            torch.testing.assert_close(convolve(x, weight, groups=groups), TORCH[ndim](x, weight, groups=groups))


def test_parts_of_a_network_are_computed_so_and_networks_are_not() -> None:
    x = doubles(2, 16, 5, 5)
    program = program_of(nn.Conv2d(16, 16, 3, groups=16).double(), x)
    [node] = program.calls()
    [given] = program.placeholders
    with torch.no_grad(), patch.object(small_maps, "_by_taps", side_effect=small_maps._by_taps) as used:
        [whole] = evaluate(program, [x])
        assert used.call_count == 0
        part = evaluate_region(program, [node], {given: x})[node]
        assert used.call_count == 1
    torch.testing.assert_close(part, whole, rtol=1e-13, atol=1e-13)


def test_what_torch_refuses_is_refused() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError):
        SMALL_MAPS[aten.conv2d.default](doubles(1, 16, 2, 2), doubles(16, 1, 3, 3), groups=16)
