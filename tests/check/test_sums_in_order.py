"""Sums that are added in order are those of torch, with the rounding of an engine that adds so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.check import IN_ORDER
from reparam.engines import export
from reparam.ir import aten

X = torch.rand(2, 3, 4, 6, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.int64))
@pytest.mark.parametrize(
    ("op", "args"),
    (
        (aten.sum.default, ()),
        (aten.sum.dim_IntList, ([1, -1],)),
        (aten.sum.dim_IntList, ([2, 3, 4], True)),
        (aten.sum.dim_IntList, (None, True)),
        (aten.mean.default, ()),
        (aten.mean.dim, ([-1, -2, -3],)),
        (aten.mean.dim, ([-2], True)),
        (aten.mean.dim, ([],)),
        (aten.linalg_vector_norm.default, ()),
        (aten.linalg_vector_norm.default, (2, [2, 3], True)),
        (aten.linalg_vector_norm.default, (1, [-1])),
        (aten.linalg_vector_norm.default, (3, [0, 2])),
        (aten.linalg_vector_norm.default, (0, [0, 2])),
        (aten.linalg_vector_norm.default, (float("inf"), [0, 2], True)),
        (aten.linalg_vector_norm.default, (float("-inf"), [0], True)),
        (aten.adaptive_avg_pool3d.default, ([1, 1, 1],)),
        (aten.adaptive_avg_pool3d.default, ([1, 2, 1],)),
    ),
)
def test_they_are_the_sums_of_torch(op: Any, args: tuple[Any, ...], dtype: torch.dtype) -> None:
    if dtype is torch.int64 and "sum" not in str(op):
        return
    x = (10 * X).to(dtype)
    own, wanted = IN_ORDER[op](x, *args), op(x, *args)
    assert own.shape == wanted.shape and own.dtype is wanted.dtype
    limit = 0.0 if dtype is torch.int64 else 16 * torch.finfo(dtype).eps
    assert float(((own.double() - wanted.double()) / wanted.double()).abs().max()) <= limit


def test_long_ones_are_off_as_those_of_an_engine_are() -> None:
    """torch adds in pairs, where each number is rounded log2(n) times on its way."""
    x = torch.rand(1 << 17, generator=torch.Generator().manual_seed(0))
    own, paired = (abs(float(f(x).double() / x.double().sum()) - 1) for f in (IN_ORDER[aten.sum.default], torch.sum))
    assert 10 * paired < own < 1e-4
    half = IN_ORDER[aten.mean.default](x.half())
    assert half.dtype is torch.float16 and abs(float(half) - 0.5) < 0.01, "a sum of halves would stay at 2,048"


class Averaged(nn.Module):
    """A mean over three free axes, which onnxruntime adds in eight lanes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.relu())
        return y.mean([2, 3, 4])


def test_a_mean_of_many_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = export(
        Averaged().eval(),
        torch.randn(2, 3, 4, 6, 6),
        path=tmp_path / "mean.onnx",
        dynamic=("batch", "x:2=t", "height", "width"),
    )
    assert made.check.verdict == "equivalent"
