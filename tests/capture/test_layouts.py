"""Calls that read memory give what they gave, whatever the rewrites in front of them make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam import convert
from reparam.capture import capture
from reparam.errors import CaptureError
from support.choice import mostly_in_sweeps
from support.helpers import Lambda, conv_bn, healthy


def _rows(m: Any, x: Tensor) -> Tensor:
    y = m.block(x).permute(0, 2, 3, 1).contiguous()
    return torch.as_strided(y, (y.shape[0], 4, 4, 4), (64, 4, 1, 16))


def _channels_last(m: Any, x: Tensor) -> Tensor:
    y = m.block(x).to(memory_format=torch.channels_last)
    return torch.as_strided(y, (y.shape[0], 4, 4, 4), (64, 4, 1, 16), 0)


def _complex(m: Any, x: Tensor) -> Tensor:
    y = m.block(x).unflatten(1, (2, 2)).movedim(2, -1).contiguous()
    return torch.view_as_real(torch.view_as_complex(y) * (1 + 2j))


def _signs(m: Any, x: Tensor) -> Tensor:
    y = m.block(x).permute(0, 2, 3, 1).contiguous()
    return y * (y.view(torch.int32) >> 31).float()


def _conjugated(m: Any, x: Tensor) -> Tensor:
    z = torch.complex(m.block(x), x[..., 1:-1, 1:-1]).conj()
    return torch.view_as_real(z.resolve_conj()) + torch.view_as_real(z.clone())


READERS = (_rows, _channels_last, _complex, _signs, _conjugated)


@pytest.mark.parametrize("forward", mostly_in_sweeps(READERS, _rows))
def test_what_is_read_of_memory_stays(forward: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = healthy(Lambda(forward, block=conv_bn()).eval()).float()
    done = convert(model, torch.randn(2, 4, 6, 6))
    assert done.report.after.norms == 0
    x = torch.randn(5, 4, 6, 6)
    torch.testing.assert_close(done.module(x), model(x))


def test_memory_beside_a_part_of_a_tensor_is_refused_with_the_line() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.as_strided(m.layer(x)[:, 1:], (2, 4), (4, 1), 0)

    with pytest.raises(CaptureError, match=r"as_strided reads memory around a part of a tensor, at .*test_layouts\.py"):
        capture(Lambda(forward, layer=nn.Linear(4, 4)).eval(), (torch.randn(2, 4),), dynamic=())
