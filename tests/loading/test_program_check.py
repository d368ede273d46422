"""The graph of an archive is run without values: genuine ones fit together, and keep their free sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import convert
from reparam.loading import load
from support.choice import mostly_in_sweeps
from support.helpers import Lambda


def _scaled(m: Any, x: Tensor) -> Tensor:
    return torch.addcmul(m.layer(x), x, m.layer.bias, value=-0.7)


def _patches(m: Any, x: Tensor) -> Tensor:
    patches = F.unfold(x[:, None], 2)  # of 3x3: four, of four numbers
    return m.layer(patches)


def _pairs(m: Any, x: Tensor) -> Any:
    return F.bilinear(x[:, 0], m.layer(x)[:, 1], m.layer.weight[None])


def _spectrum(m: Any, x: Tensor) -> Any:
    return torch.fft.rfft(m.layer(x)).abs()


def _recurrent(m: Any, x: Tensor) -> Any:
    return m.lstm(m.layer(x))[0]


NETWORKS = (_scaled, _patches, _pairs, _spectrum, _recurrent)


@pytest.mark.parametrize("forward", mostly_in_sweeps(NETWORKS, _patches))
def test_a_saved_network_is_read_again_with_its_free_batch(
    forward: Callable[[Any, Tensor], Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Lambda(forward, layer=nn.Linear(4, 4), lstm=nn.LSTM(4, 3, batch_first=True, bidirectional=True)).eval()
    size = 3 if forward is _patches else 4
    x = torch.randn(2, size, size)
    convert(model, x, to="as-is").save(tmp_path / "net.pt2")
    again = convert(load(tmp_path / "net.pt2"))
    y = torch.randn(5, *x.shape[1:])
    torch.testing.assert_close(again.module(y), model(y))
