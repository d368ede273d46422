"""shrink: heads and their dimensions, in attention of one call, spelled out, and torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.ir import text_of
from support.helpers import doubles
from support.shrinking import Wired, shrunk, widths, zero


class Attention(nn.Module):
    """Two heads of four dimensions, one packed layer or three, in one call or spelled out."""

    def __init__(self, packed: bool, spelled: bool = False) -> None:
        super().__init__()
        self.spelled = spelled
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.qkv, self.packed = nn.Linear(8, 24), packed

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        if self.packed:
            q, k, v = self.qkv(x).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (layer(x).reshape(n, t, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.spelled:
            y = torch.softmax(q * 0.5 @ k.transpose(-2, -1), -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, 8))


@pytest.mark.parametrize("spelled", [False, True])
def test_heads_that_nobody_reads(spelled: bool) -> None:
    model = Attention(packed=True, spelled=spelled)
    zero(model.out, columns=range(4))
    done = shrunk(model, doubles(2, 5, 8))
    assert widths(done.program) == [(12, 8), (8, 4)]


@pytest.mark.parametrize("spelled", [False, True])
def test_dimensions_of_heads(spelled: bool) -> None:
    """The product does without a dimension in which queries or keys are zero, and keeps the scale of four."""
    torch.manual_seed(0)
    model = Attention(packed=False, spelled=spelled)
    zero(model.q, rows=[0, 4], bias=True)
    zero(model.k, rows=[1, 5], bias=True)
    zero(model.v, rows=[3, 7], bias=spelled)
    done = shrunk(model, doubles(2, 5, 8))
    assert widths(done.program) == [(4, 8), (4, 8), (6, 8), (8, 6)]
    assert spelled or "scale=0.5" in text_of(done.program)


@pytest.mark.parametrize("spelled", [False, True])
def test_queries_and_values_of_one_layer_may_differ_in_width(spelled: bool) -> None:
    """They are reshaped together; each is then made of the layer's result by itself."""
    torch.manual_seed(0)
    model = Attention(packed=True, spelled=spelled)
    zero(model.qkv, rows=[1, 5], bias=True)  # of the queries
    assert widths(shrunk(model, doubles(2, 5, 8)).program) == [(20, 8), (8, 8)]
    zero(model.qkv, rows=[17, 18, 22, 23], bias=True)  # of the values
    assert widths(shrunk(model, doubles(2, 5, 8)).program) == [(16, 8), (8, 4)]


def test_attention_of_torch_lays_heads_along_the_batch() -> None:
    torch.manual_seed(0)
    inner = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        inner.in_proj_weight[[1, 5]] = 0
        inner.in_proj_bias[[1, 5]] = 0
        inner.out_proj.weight[:, :2] = 0
    model = Wired(lambda x: inner(x, x, x, need_weights=False)[0], inner)
    done = shrunk(model, doubles(2, 5, 8))
    assert widths(done.program) == [(6 + 6 + 8, 8), (8, 6)]  # heads keep the same number of values
    zero(inner.out_proj, columns=[2, 3])
    assert widths(shrunk(model, doubles(2, 5, 8)).program) == [(3 + 3 + 4, 8), (8, 4)]
