"""What a model does while it is traced counts as it was written."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import reparam
from reparam.capture import capture
from support.helpers import healthy


class Trying(nn.Module):
    """Calls each part with a word that some do not know, as containers of layers do that share one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Sequential(nn.Conv1d(4, 4, 3)), nn.BatchNorm1d(4), nn.ReLU()])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            try:
                x = part(x, lengths=None)
            except TypeError:
                x = part(x)
        return x


def test_what_a_part_raises_may_be_caught() -> None:
    net, x = healthy(Trying()).float(), torch.randn(2, 4, 9)
    made = reparam.convert(net, x)
    assert made.report.after.norms == 0
    with torch.no_grad():
        assert torch.allclose(made.module(x), net(x), atol=1e-5)
    modules = [n.meta["module"] for n in capture(net, (x,)).program.calls()]
    assert "parts.1" in modules and "parts.0.0" in modules
