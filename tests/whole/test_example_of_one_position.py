"""An example so small that a map has one position, with free sizes: what meets it there may have more elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from support.choice import mostly_in_sweeps
from support.helpers import healthy

onnxruntime = pytest.importorskip("onnxruntime")
FREE = ("batch", "height", "width")
Head = Callable[["Net", Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions of stride 2 and their norms: 4 x 4 pixels become one position; and a head for it."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.stem = nn.Sequential(*self.block(3), *self.block(6))
        self.conv, self.norm, self.mixed = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(9, 4, 1)
        self.last, self.head = nn.Linear(6, 5), head

    @staticmethod
    def block(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, self.stem(x), x)


def gated(net: Net, y: Tensor, x: Tensor) -> Tensor:
    return net.norm(net.conv(y * torch.sigmoid(net.conv(y.mean((2, 3), keepdim=True)))))


def gated_and_summed(net: Net, y: Tensor, x: Tensor) -> Tensor:
    y = y * torch.sigmoid(net.conv(F.adaptive_avg_pool2d(y, 1)))
    return net.last(torch.relu(net.norm(net.conv(y)) + y).mean((2, 3)))


def by_its_largest(net: Net, y: Tensor, x: Tensor) -> Tensor:
    return torch.where(y > 0.5 * y.amax((2, 3), keepdim=True).expand_as(y), y, net.norm(net.conv(y)))


def resized_beside_the_input(net: Net, y: Tensor, x: Tensor) -> Tensor:
    y = net.norm(net.conv(y))
    return net.mixed(torch.cat([F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False), x], 1))


def pooled_beside_the_map(net: Net, y: Tensor, x: Tensor) -> Tensor:
    pool = F.interpolate(net.norm(net.conv(F.adaptive_avg_pool2d(y, 1))), size=y.shape[-2:])
    return net.mixed(torch.cat([y, pool[:, :3]], 1))


def of_tokens(net: Net, y: Tensor, x: Tensor) -> Tensor:
    n, c, h, w = y.shape
    q = net.norm(net.conv(y)).reshape(n, c, h * w)
    tokens = q @ torch.softmax(q.transpose(1, 2) @ q, -1)
    return tokens.reshape(n, c, h, w) + y


def along_each_axis(net: Net, y: Tensor, x: Tensor) -> Tensor:
    rows, columns = y.mean(3, keepdim=True), y.mean(2, keepdim=True).transpose(2, 3)
    both = net.norm(net.conv(torch.cat([rows, columns], 2)))
    a, b = torch.split(both, [y.shape[2], y.shape[3]], 2)
    return y * torch.sigmoid(a) * torch.sigmoid(b.transpose(2, 3))


def of_four_windows(net: Net, y: Tensor, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(net.norm(net.conv(y)), 2)


HEADS: dict[str, Head] = {
    "a gate": gated,
    "a gate and a sum": gated_and_summed,
    "the largest": by_its_largest,
    "resized": resized_beside_the_input,
    "a pool": pooled_beside_the_map,
    "attention": of_tokens,
    "each axis": along_each_axis,
    "four windows": of_four_windows,
}


@pytest.mark.parametrize(
    ("head", "size"),
    mostly_in_sweeps(
        [(head, size) for head in HEADS for size in ((4, 4), (4, 16), (2, 4))], *[(head, (4, 4)) for head in HEADS]
    ),
)
def test_what_has_one_position_in_the_example_may_have_more(head: str, size: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, example = healthy(Net(HEADS[head])).float(), torch.randn(2, 3, *size)
    made = reparam.convert(net, example, dynamic=FREE)
    assert made.report.after.norms == 0
    path = tmp_path / "net.onnx"
    reparam.export(net, example, path=path, dynamic=FREE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 4, 4), (2, 3, 9, 12), (1, 3, 4, 16), (3, 3, 13, 4)):
        x = torch.randn(shape)
        with torch.no_grad():
            wanted: Any = net(x).numpy()
            np.testing.assert_allclose(made.module(x).numpy(), wanted, rtol=1e-4, atol=1e-5)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
