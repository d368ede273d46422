"""Regions of a model in which something is switched: their calls are part of the graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import CaptureError
from support.choice import crossed
from support.helpers import healthy

Body = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A convolution and a norm, and then a region."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(self, self.norm(self.conv(x))))


def off(net: Net, y: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return net.head(y.float().permute(0, 2, 3, 1))


def off_on_a_gpu(net: Net, y: Tensor) -> Tensor:
    with torch.autocast("cuda", enabled=False):
        y = net.head(y.permute(0, 2, 3, 1))
        z = y + 1
    return y * z


def nested(net: Net, y: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = net.head(y.permute(0, 2, 3, 1))
        with torch.enable_grad():
            return y * net.head(y)


def written(net: Net, y: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = y.clone()
        y[:, 1] = 0.5
        return net.head(y.permute(0, 2, 3, 1))


def mapped(net: Net, y: Tensor) -> Tensor:
    return torch.vmap(lambda one: torch.relu(one) * 2 + one.mean())(y)


@pytest.mark.parametrize("body, to", crossed([off, off_on_a_gpu, nested, written, mapped], ["fused", "plain"]))
def test_a_region_is_part_of_the_graph(body: Body, to: str) -> None:
    net, x = healthy(Net(body)).float(), torch.randn(2, 3, 8, 8)
    made = reparam.convert(net, x, to=to)
    assert made.report.after.norms == 0
    for count in (1, 5):
        y = torch.randn(count, 3, 8, 8)
        with torch.no_grad():
            assert torch.allclose(made.module(y), net(y), rtol=1e-4, atol=1e-5)


def test_autocast_that_is_on_keeps_its_casts() -> None:
    def on(net: Net, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.head(y.permute(0, 2, 3, 1)).float()

    net, x = healthy(Net(on)).float(), torch.randn(2, 3, 8, 8)
    made = reparam.convert(net, x)
    assert made.report.after.norms == 0
    with torch.no_grad():
        exact = net.head(net.norm(net.conv(x)).permute(0, 2, 3, 1)).relu()
        assert torch.allclose(made.module(x), net(x), rtol=1e-2, atol=1e-2)
        assert float((made.module(x) - exact).abs().max()) > 1e-4  # rounded to bfloat16, as in the original


def test_a_program_with_regions(tmp_path: Path) -> None:
    net, x = healthy(Net(off)).float(), torch.randn(2, 3, 8, 8)
    program = torch.export.export(net, (x,), strict=False)
    made = reparam.convert(program)
    assert made.report.after.norms == 0
    made.save(tmp_path / "net.pt2")
    assert torch.allclose(torch.export.load(tmp_path / "net.pt2").module()(x), net(x), rtol=1e-4, atol=1e-5)


def test_branches_within_a_graph_are_refused_by_name() -> None:
    def branches(net: Net, y: Tensor) -> Tensor:
        return torch.cond(y.sum() > 0, lambda v: v + 1, lambda v: v - 1, (y,))

    with pytest.raises(CaptureError, match=r"the model calls cond.* \(.*test_regions\.py:.*holds graphs of its own"):
        reparam.convert(healthy(Net(branches)).float(), torch.randn(2, 3, 8, 8))
