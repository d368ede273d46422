"""Arithmetic on free sizes in ONNX files: rounded as Python rounds it at every size, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.errors import InputError

onnxruntime = pytest.importorskip("onnxruntime")
HEIGHTS = (*range(2, 45), 64, 90, 100, 127)
Ending = Callable[[Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, ending: Ending) -> None:
        super().__init__()
        self.conv, self.ending = nn.Conv2d(3, 4, 3, padding=1), ending

    def forward(self, x: Tensor) -> Tensor:
        return self.ending(self.conv(x))


def different(ending: Ending, folder: Path, heights: Sequence[int] = HEIGHTS) -> list[int]:
    """The heights at which the file of a network with free height gives something else, or stops."""
    model, path = Net(ending).eval(), folder / "net.onnx"
    reparam.export(model, torch.rand(2, 3, 64, 6), path=path, dynamic=("batch", "height"))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = []
    for height in heights:
        x = torch.rand(1, 3, height, 6)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        wanted = model(x).detach().numpy()
        if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=1e-4, atol=1e-4):
            found.append(height)
    return found


def below(y: Tensor, rows: int) -> Tensor:
    return F.pad(y, (0, 0, 0, rows))


EXACT: dict[str, Ending] = {
    "a quotient of what may be negative": lambda y: below(y, (y.shape[2] - 33) // 2 + 33),
    "by three": lambda y: below(y, (y.shape[2] - 50) // 3 + 20),
    "up to a multiple": lambda y: below(y, -(-y.shape[2] // 4) * 4 - y.shape[2]),
    "by a negative number": lambda y: below(y, -(y.shape[2] // -4) * 4 - y.shape[2]),
    "a remainder": lambda y: below(y, -y.shape[2] % 4),
    "crop or border": lambda y: F.pad(y, (0, 0, (9 - y.shape[2]) // 2, 9 - y.shape[2] - (9 - y.shape[2]) // 2)),
    "a remainder of whole numbers": lambda y: ((9 * y).round().long() % y.shape[2]).float(),
    "a remainder of floats": lambda y: torch.remainder((9 * y).round(), y.shape[2]),
    "rolled by a half": lambda y: y.roll(y.shape[2] // 2, 2),
    "rolled back, and on": lambda y: y.roll((-(y.shape[2] // 3), 2, 3 * y.shape[2] + 1), (2, 3, 2)),
    "a true quotient": lambda y: y[:, :, : math.ceil(y.shape[2] / 3)] * (y.shape[2] / 7),
    "half as many again": lambda y: F.interpolate(y, scale_factor=1.5, mode="bilinear"),
    "ceil of a share": lambda y: y[:, :, : math.ceil(y.shape[2] * 0.3)],
    "a share of a share": lambda y: y[:, :, : math.ceil((math.floor(y.shape[2] * 0.5) + 2) * 0.3)],
    "a rounded third": lambda y: y[:, :, : round(y.shape[2] / 3) + 1],
    "a rounded half": lambda y: y[:, :, : round(y.shape[2] * 0.5) + 1],
    "a quarter more, cubic": lambda y: F.interpolate(y, scale_factor=1.25, mode="bicubic"),
}


@pytest.mark.parametrize("ending", EXACT.values(), ids=EXACT)
def test_sizes_are_what_python_computes(ending: Ending, tmp_path: Path) -> None:
    assert different(ending, tmp_path) == []


SINGLE = r"which ONNX files round in single precision, and so otherwise at a size of"
UNEVEN: dict[str, tuple[Ending, str]] = {
    "0.29": (
        lambda y: F.interpolate(y, scale_factor=0.29),
        rf"'upsample_nearest2d' resizes a free size by 0\.29, {SINGLE} 100, 200, 400 and others; write it with whole",
    ),
    "1.3": (lambda y: F.interpolate(y, scale_factor=1.3, mode="bilinear"), rf"by 1\.3, {SINGLE} 90, 170, 180 and"),
    "1.25": (
        lambda y: F.interpolate(y, scale_factor=1.25),
        r"leaves out where it adds no position, at a size of 2, 3; ",
    ),
    "floor": (
        lambda y: y[:, :, : math.floor(y.shape[2] * 0.29) + 1],
        rf"'floor' rounds a free size that it computes in floats, {SINGLE} 100, 200, 400 and others; .* fix the size",
    ),
    "twice": (lambda y: y[:, :, : math.floor((math.floor(y.shape[2] * 0.5) + 2) * 0.29) + 1], SINGLE),
    "of a half": (lambda y: y[:, :, : math.floor((y.shape[2] // 2 + 2) * 0.29) + 1], SINGLE),
    "rounded": (lambda y: y[:, :, : round(y.shape[2] * 0.29 + 0.3)], SINGLE),
}


@pytest.mark.parametrize("ending, message", UNEVEN.values(), ids=UNEVEN)
def test_sizes_that_single_precision_rounds_otherwise_are_refused(ending: Ending, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        different(ending, tmp_path)
    assert not list(tmp_path.iterdir())
    path = tmp_path / "fixed.onnx"
    reparam.export(Net(ending).eval(), torch.rand(2, 3, 64, 6), path=path)
    assert path.exists()
