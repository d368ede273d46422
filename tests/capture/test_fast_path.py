"""torch's fast path of attention, which computes something else where positions are padded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reparam import convert
from reparam.capture.fast_path import NOTE


class Encoder(nn.Module):
    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, heads, 32, batch_first=True), 1)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        found: Tensor = self.encoder(x, src_key_padding_mask=padded)
        return found


X = torch.randn(2, 5, 16)
PADDED = torch.tensor([[False] * 5, [False, False, False, True, True]])


def notes(model: nn.Module, *inputs: Tensor) -> list[str]:
    return [r.message for r in convert(model, *inputs).report.remarks if r.rule == "capture"]


def test_padded_positions_that_become_zero_are_told_of() -> None:
    model = Encoder().eval()
    with torch.no_grad():
        fast = model(X, PADDED)
    assert torch.equal(fast[1, 3:], torch.zeros(2, 16))
    assert NOTE in notes(model, X, PADDED)
    assert torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            layers = model(X, PADDED)
        assert NOTE not in notes(model, X, PADDED)
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert torch.allclose(convert(model, X, PADDED).module(X, PADDED), layers, atol=1e-5)


def test_where_nothing_is_padded_both_are_the_same() -> None:
    assert NOTE not in notes(Encoder().eval(), X, torch.zeros(2, 5, dtype=torch.bool))
    assert NOTE not in notes(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), X)
