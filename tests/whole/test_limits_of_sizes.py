"""x[:20] of a free axis is all of x where few rows are traced, which torch takes for granted, but not of more rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import convert
from support.helpers import Lambda, healthy


def written(m: nn.Module, x: Tensor) -> Tensor:
    y = x.clone()
    y[:20] = 0.5
    return m.conv(y)


LIMITS = {
    "the first": lambda m, x: m.conv(x[:20]),
    "the last": lambda m, x: m.conv(x[-20:]),
    "narrow": lambda m, x: m.conv(x.narrow(0, 0, min(20, x.shape[0]))),
    "the least of two sizes": lambda m, x: m.conv(x[: torch.sym_min(20, x.shape[0])]),
    "a piece": lambda m, x: m.conv(x.split(20)[0]),
    "a write": written,
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Lambda(LIMITS[name], conv=nn.Conv2d(2, 3, 3)).float().eval()


@pytest.mark.parametrize("name", LIMITS)
def test_larger_batches_than_the_limit_are_right(name: str) -> None:
    net = network(name)
    found = convert(net, torch.randn(3, 2, 6, 6), to="plain")
    for count in (1, 19, 20, 21, 50):
        x = torch.randn(count, 2, 6, 6)
        torch.testing.assert_close(found.module(x), net(x))


@pytest.mark.parametrize("start", [None, -9])
def test_larger_images_than_the_limit_are_right(start: int | None) -> None:
    net = Lambda(lambda m, x: m.conv(x[:, :, start : None if start else 9]), conv=nn.Conv2d(2, 3, 3)).float()
    found = convert(net, torch.randn(3, 2, 6, 6), dynamic=("batch", "height", "width"))
    for height in (5, 8, 9, 10, 30):
        x = torch.randn(2, 2, height, 7)
        torch.testing.assert_close(found.module(x), net(x))


@pytest.mark.parametrize("name", ["the first", "the least of two sizes", "a write"])
def test_so_is_the_onnx_file(name: str, tmp_path: Path) -> None:
    net = network(name)
    reparam.export(net, torch.randn(3, 2, 6, 6), path=tmp_path / "net.onnx")
    session = ort.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    x = torch.randn(33, 2, 6, 6)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)


FREE = ("batch", "height", "width")
JOINED = {
    "the first of two": (FREE, lambda x: torch.cat([x, 2 * x], 2)[:, :, :3]),
    "the last of two": (FREE, lambda x: torch.cat([2 * x, x], 2)[:, :, -3:]),
    "the second": (("batch",), lambda x: torch.cat([x, 2 * x], 2)[:, :, x.shape[2] :]),
    "samples": (("batch",), lambda x: torch.cat([x, 2 * x], 0)[:3]),
    "as many as there are": (("height", "width"), lambda x: x + torch.ones(x.shape[0], 1, 1, 1) * x),
}


@pytest.mark.parametrize("name", JOINED)
def test_scales_lie_at_no_place_of_a_free_axis(name: str) -> None:
    """Neither when sizes are free, nor when what was captured runs at the traced size alone."""
    torch.manual_seed(0)
    free, join = JOINED[name]
    net = Lambda(
        lambda m, x: m.after(join(m.norm(m.conv(x)))),
        conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3), after=nn.Conv2d(3, 3, 1),
    )  # fmt: skip
    net = healthy(net).float()
    found = convert(net, torch.randn(3, 3, 6, 6), dynamic=free)
    for count in (1, 3, 5) if "batch" in free else (3,):
        for height in (1, 2, 3, 7) if "height" in free else (6,):
            x = torch.randn(count, 3, height, 6)
            torch.testing.assert_close(found.module(x), net(x), rtol=1e-4, atol=1e-4)


def test_a_file_that_is_another_network_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """The exporter writes as many pieces of a split as were traced."""
    with pytest.raises(reparam.NotEquivalentError, match="21x3x4x4 for 20x3x4x4"):
        reparam.export(network("a piece"), torch.randn(3, 2, 6, 6), path=tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_part_that_was_all_of_it_has_no_name_for_its_size_in_a_file(tmp_path: Path) -> None:
    """onnxruntime would put the part where the whole lies."""
    model = Lambda(lambda m, x: x * 2 + x[:, :40].mean(1, keepdim=True)).eval()
    reparam.export(model, torch.randn(2, 9, 4), path=tmp_path / "net.onnx", dynamic=("batch", "inputs_0:1=length"))
    told = onnx.load(tmp_path / "net.onnx").graph.value_info
    assert told and {d.dim_param for v in told for d in v.type.tensor_type.shape.dim} == {"", "batch"}
    session = ort.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for length in (1, 9, 40, 41, 100):
        x = torch.randn(3, length, 4)
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(x))
