"""Attention in ONNX files: the fast form of torch lies in memory in another order than the one that is spelled out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from reparam.engines.onnx.attention import with_settled_attention
from support.choice import mostly_in_sweeps
from support.helpers import program_of

onnxruntime = pytest.importorskip("onnxruntime")
HEADS, DEPTH, LENGTH = 2, 4, 6


class Attention(nn.Module):
    """bias: none, a weight, or rows of a table, which the fast form takes."""

    def __init__(self, bias: str) -> None:
        super().__init__()
        self.inner, self.kind = nn.Linear(HEADS * DEPTH, 3 * HEADS * DEPTH), bias
        self.bias = nn.Parameter(torch.randn(HEADS, LENGTH, LENGTH))
        self.table = nn.Parameter(torch.randn(9, HEADS))
        self.register_buffer("places", torch.randint(0, 9, (LENGTH * LENGTH,)))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.inner(x).reshape(n, length, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
        mask: Tensor | None = self.bias if self.kind == "weight" else None
        if self.kind == "table":
            mask = self.table[self.places].view(length, length, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(n, length, width)


@pytest.mark.parametrize("bias", ["none", "weight", "table"])
def test_a_reshape_behind_attention_is_written(bias: str, tmp_path: Path) -> None:
    reparam.export(Attention(bias).eval(), torch.randn(2, LENGTH, HEADS * DEPTH), path=tmp_path / "net.onnx")
    nodes = onnx.load(str(tmp_path / "net.onnx")).graph.node
    assert "Softmax" in {n.op_type for n in nodes} and not {"Identity", "Cast"} & {n.op_type for n in nodes}


class Fronts(nn.Module):
    """Attention of windows: axes in front of length and depth as `front` says, beside the batch."""

    def __init__(self, front: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
        super().__init__()
        self.front, self.inner = front, nn.Linear(DEPTH, 3 * DEPTH)
        self.mask = nn.Parameter(torch.randn(*mask)) if mask is not None else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x.reshape(-1, *self.front, LENGTH, DEPTH)).chunk(3, -1)
        mask = self.mask if self.mask is None or self.mask.dim() < 5 else self.mask.expand(len(x), -1, -1, -1, -1)
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None).flatten(1)


SQUARE = (LENGTH, LENGTH)
AXES = [(front, mask) for front in ((), (2,), (2, 3), (2, 3, 2)) for mask in (None, SQUARE)]
LONG = ((2, 3), (1, 2, 3, *SQUARE))


@pytest.mark.parametrize(
    ("front", "mask"), mostly_in_sweeps([*AXES, LONG], ((), SQUARE), ((2,), None), ((2, 3, 2), SQUARE), LONG)
)
def test_attention_of_any_axes_is_written(front: tuple[int, ...], mask: tuple[int, ...] | None, tmp_path: Path) -> None:
    size = LENGTH * DEPTH * torch.Size(front).numel()
    net, x = Fronts(front, mask).eval(), torch.randn(3, size)
    reparam.export(net, x, path=tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    other = torch.randn(5 if mask is None or len(mask) < 5 else 3, size)  # the expanded mask fixes the batch
    (got,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    np.testing.assert_allclose(got, net(other).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_other_networks_stay_as_they_are() -> None:
    program = program_of(nn.Linear(4, 4), torch.randn(2, 4))
    assert with_settled_attention(program) is program
