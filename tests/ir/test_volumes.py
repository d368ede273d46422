"""Convolutions of volumes in float64 give what torch's own give."""

from __future__ import annotations

import itertools
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.ir import evaluate, volumes
from reparam.ir.volumes import FEWEST, conv3d, convolution
from support.helpers import doubles, program_of

CLOSE = 1e-13  # of the largest sum of products


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    read, made = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(3)]

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(3)]

    return {
        "input": doubles(draw(st.integers(1, 2)), groups * read, *each(7, 12), seed=1),
        "weight": doubles(groups * made, read, *kernel, seed=2),
        "bias": doubles(groups * made, seed=3) if draw(st.booleans()) else None,
        "stride": each(1, 2),
        "padding": each(0, 2),
        "dilation": each(1, 2),
        "groups": groups,
    }


def _by_hand(found: Tensor, case: dict[str, Any]) -> Tensor:
    """The largest difference from torch, against the sum of the magnitudes of all products."""
    wanted = F.conv3d(**case)
    sizes = F.conv3d(**{k: v.abs() if isinstance(v, Tensor) else v for k, v in case.items()})
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    return ((found - wanted).abs() / sizes.clamp(min=1e-300)).max()


@pytest.mark.parametrize("slab", [1, 1 << 11, volumes.SLAB])
@given(case=_cases())
def test_strides_paddings_dilations_and_groups(slab: int, case: dict[str, Any]) -> None:
    with torch.no_grad(), patch.object(volumes, "FEWEST", 0), patch.object(volumes, "SLAB", slab):
        assert _by_hand(conv3d(**case), case) <= CLOSE


@pytest.mark.parametrize("depthwise", [False, True])
def test_a_network_and_its_own_module(depthwise: bool) -> None:
    """Both the interpreter and what a convolution becomes inside of torch."""
    conv = nn.Conv3d(4, 8, 3, padding=1, groups=4 if depthwise else 1).double().eval()
    x = doubles(2, 4, 10, 9, 8)
    with torch.no_grad(), patch.object(volumes, "_slab", side_effect=volumes._slab) as used:
        torch.testing.assert_close(evaluate(program_of(conv, x), [x])[0], conv(x), rtol=1e-12, atol=1e-12)
        assert used.call_count == 2
        own = convolution(x, conv.weight, conv.bias, [1] * 3, [1] * 3, [1] * 3, False, [0] * 3, conv.groups)
        torch.testing.assert_close(own, conv(x), rtol=1e-12, atol=1e-12)
        assert used.call_count == 4


ODD = {
    "float32": {"input": torch.randn(1, 2, 9, 9, 9), "weight": torch.randn(2, 2, 3, 3, 3)},
    "few positions": {"input": doubles(1, 2, 4, 4, 4), "weight": doubles(2, 2, 3, 3, 3)},
    "no batch": {"input": doubles(2, 9, 9, 9), "weight": doubles(2, 2, 1, 1, 1)},
    "an empty batch": {"input": doubles(0, 2, 9, 9, 9), "weight": doubles(2, 2, 1, 1, 1)},
    "padding by a name": {"input": doubles(1, 2, 9, 9, 9), "weight": doubles(2, 2, 3, 3, 3), "padding": "same"},
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_left_to_torch(name: str) -> None:
    case = ODD[name]
    with torch.no_grad(), patch.object(volumes, "_slab", side_effect=AssertionError):
        given = {k: v for k, v in case.items() if k != "padding"}
        function = F.conv3d if "padding" in case else conv3d
        assert torch.equal(function(**given), F.conv3d(**given))


WRONG = {
    "other channels": {"input": doubles(1, 3, 9, 9, 9), "weight": doubles(2, 2, 3, 3, 3)},
    "a kernel that is too large": {"input": doubles(1, 2, 2, 99, 99), "weight": doubles(2, 2, 3, 3, 3)},
    "another bias": {"input": doubles(1, 2, 9, 9, 9), "weight": doubles(2, 2, 3, 3, 3), "bias": doubles(3)},
    "no such groups": {"input": doubles(1, 2, 9, 9, 9), "weight": doubles(3, 1, 3, 3, 3), "groups": 2},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_torch_refuses_is_refused(name: str) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError):
        conv3d(**WRONG[name])


def test_gradients_are_left_to_torch() -> None:
    x, weight = doubles(1, 2, 9, 9, 9).requires_grad_(), doubles(2, 2, 3, 3, 3)
    conv3d(x, weight).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


def test_the_bound_of_the_smallest_volume() -> None:
    side = round(FEWEST ** (1 / 3))
    assert side**3 == FEWEST
    with torch.no_grad(), patch.object(volumes, "_slab", side_effect=volumes._slab) as used:
        for n in itertools.accumulate([side - 1, 1]):
            conv3d(doubles(1, 1, n, n, n), doubles(1, 1, 1, 1, 1))
    assert used.call_count == 1
