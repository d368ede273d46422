"""Skips that are cropped beside convolutions without padding are channels that the kernels carry off their middle."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from support.helpers import Lambda, doubles
from support.plain_helpers import assert_chain, plain

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def cut(x: Tensor, ends: tuple[int, int]) -> Tensor:
    """`ends` positions fewer along each axis of the map."""
    for axis in range(2, x.dim()):
        x = x.narrow(axis, ends[0], x.shape[axis] - sum(ends))
    return x


class Valid(nn.Module):
    """relu(convs(x) + x, cropped) of convolutions without padding, (kernel, dilation) of each."""

    def __init__(self, ndim: int, layers: list[tuple[int, int]], low: int | None = None, how: str = "slice") -> None:
        super().__init__()
        self.convs = nn.ModuleList([CONVS[ndim](3, 3, k, dilation=d) for k, d in layers])
        lost = sum(d * (k - 1) for k, d in layers)
        self.low = lost // 2 if low is None else low
        self.ends, self.how = (self.low, lost - self.low), how

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, conv in enumerate(self.convs):
            y = conv(F.relu(y) if i else y)
        skip = cut(x, self.ends) if self.how == "slice" else F.pad(x, [-self.ends[0], -self.ends[1]] * (x.dim() - 2))
        return F.relu(y + skip)


@pytest.mark.parametrize("how", ["slice", "pad"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_cropped_skip_rides_along(ndim: int, how: str) -> None:
    block = Valid(ndim, [(3, 1), (3, 1)], how=how)
    model = nn.Sequential(CONVS[ndim](2, 3, 1), nn.ReLU(), block, CONVS[ndim](3, 3, 3), nn.ReLU())
    axes = ("batch", *(f"input:{i + 2}=size{i}" for i in range(ndim)))
    fused = assert_chain(model, 2, 2, *[9] * ndim, merges=1, dynamic=axes)
    layers = [r.message for r in fused.outcome.remarks if r.rule == "carry-residual" and r.kind == "passed"]
    assert layers == [layers[0]] and layers[0].startswith("a chain of 2 layers, 2.00 x")


@given(
    layers=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 2)), min_size=2, max_size=4),
    low=st.integers(0, 18),
    free=st.booleans(),
)
def test_whatever_is_cut_at_either_end(layers: list[tuple[int, int]], low: int, free: bool) -> None:
    lost = sum(d * (k - 1) for k, d in layers)
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), Valid(1, layers, min(low, lost)))
    sizes = [(1, 2, lost + 1), (3, 2, lost + 4)] if free else []
    assert_chain(model, 2, 2, 20, merges=1, sizes=sizes, dynamic=("batch", "input:2=length") if free else ("batch",))


def test_channels_with_a_step_ride_along() -> None:
    layers = {"a": nn.Conv2d(4, 3, 1), "b": nn.Conv2d(3, 2, 3, padding=1)}
    block = Lambda(lambda m, x: F.relu(m.b(F.relu(m.a(x))) + x[:, ::2]), **layers)
    assert_chain(nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), block), 2, 2, 5, 6, merges=1)


def test_where_a_cut_lies_can_depend_on_the_size() -> None:
    """Half of the length: no kernel has its tap there at all lengths."""
    layers = {"a": nn.Conv1d(3, 3, 2, stride=2), "b": nn.Conv1d(3, 3, 1)}
    block = Lambda(lambda m, x: F.relu(m.b(F.relu(m.a(x))) + x[:, :, x.shape[2] // 2 :]), **layers)
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), block).double().eval()
    reason = "where it cuts the map depends on a free size (slice at '2')"
    fused = plain(model, doubles(2, 2, 12), dynamic=("batch", "input:2=length"))
    assert fused.missed("carry-residual") == [reason]
