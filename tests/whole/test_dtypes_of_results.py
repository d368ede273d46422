"""An operand of a wider dtype makes a result wider, even where it changes no value: such operands stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam import InputError, convert
from support.helpers import Lambda

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool]
MIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plus zeros": lambda y, c: y + torch.zeros_like(c),
    "times ones": lambda y, c: y * torch.ones_like(c),
    "plus": lambda y, c: y + c,
    "times": lambda y, c: y * c,
    "over ones": lambda y, c: y / torch.ones_like(c),
    "cat nothing": lambda y, c: torch.cat([y, c.expand(y.shape[0], 0, 4, 4)], 1),
    "plus a zero": lambda y, c: y + torch.zeros((), dtype=c.dtype),
    "where true": lambda y, c: torch.where(torch.ones(4, dtype=torch.bool), y, c),
    "to and fro": lambda y, c: y.to(c.dtype).to(y.dtype),
    "power of one": lambda y, c: y ** torch.ones_like(c),
}


@given(
    mix=st.sampled_from(sorted(MIXES)),
    own=st.sampled_from(DTYPES[:4]),
    other=st.sampled_from(DTYPES),
    behind=st.booleans(),
    to=st.sampled_from(["fused", "plain"]),
)
def test_the_dtype_of_a_result_is_that_of_the_original(
    mix: str, own: torch.dtype, other: torch.dtype, behind: bool, to: str
) -> None:
    torch.manual_seed(0)
    constant = torch.full((4,), 3).to(other)

    def compute(net: nn.Module, x: Tensor) -> Tensor:
        y = MIXES[mix](net.norm(net.conv(x)).to(own), constant)
        return y * 2 if behind and y.dtype is not torch.bool else y

    net = Lambda(compute, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3)).eval()
    x = torch.randn(2, 3, 4, 4)
    expected = net(x)
    try:
        found = convert(net, x, to=to).module(x)
    except InputError:
        return
    assert found.dtype == expected.dtype and found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("to", ["fused", "plain"])
def test_a_rewrite_that_would_lose_the_dtype_says_so(to: str) -> None:
    net = Lambda(lambda net, x: net.conv(x) + torch.zeros(4, dtype=torch.float64), conv=nn.Conv2d(3, 3, 1)).eval()
    result = convert(net, torch.randn(2, 3, 4, 4), to=to)
    assert result.module(torch.randn(2, 3, 4, 4)).dtype is torch.float64
    missed = [r.message for r in result.report.remarks if r.kind == "missed"]
    assert any("the network has float64 here, and would have float32" in m for m in missed), missed
