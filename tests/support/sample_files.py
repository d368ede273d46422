"""Small programs and files of samples for them."""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reparam.capture import capture
from reparam.ir import Program

HOW = {"mean": [0.5], "std": [0.5], "size": [4, 4], "resize": 4, "interpolation": "nearest"}


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Picked(nn.Module):
    def forward(self, index: Tensor) -> Tensor:
        return index * 2


@functools.cache
def vectors(fixed: int | None = None) -> Program:
    """One input (N, 3) of floats. fixed: the batch, where it is fixed."""
    return capture(nn.Linear(3, 2).eval(), (torch.zeros(fixed or 2, 3),), dynamic=() if fixed else ("batch",)).program


@functools.cache
def pictures(channels: int = 3, side: int = 4, *, free: bool = False) -> Program:
    """One input (N, channels, side, side) of floats. free: whether height and width are free too."""
    dynamic = ("batch", "height", "width") if free else ("batch",)
    net = nn.Conv2d(channels, 2, 1).eval()
    return capture(net, (torch.zeros(2, channels, side, side),), dynamic=dynamic).program


@functools.cache
def pairs() -> Program:
    """Two inputs (N, 3) of floats, `a` and `b`."""
    return capture(Two().eval(), (torch.zeros(2, 3), torch.zeros(2, 3))).program


@functools.cache
def indices() -> Program:
    """One input (N, 3) of int32."""
    return capture(Picked().eval(), (torch.zeros(2, 3, dtype=torch.int32),)).program


def numbered(count: int, width: int = 3) -> np.ndarray:
    """(count, width) whose rows differ: row i is filled with i."""
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], width, axis=1)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def png(value: int, mode: str = "RGB", size: tuple[int, int] = (4, 4)) -> bytes:
    """An image of one grey value."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, size, (value,) * len(mode) if len(mode) > 1 else value).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar of these members in order."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def rows_of(samples: Any) -> list[float]:
    """The first value of each sample, in order."""
    return [float(sample.inputs[0].flatten()[0]) for sample in samples]


def labels_of(samples: Any) -> list[Any]:
    return [sample.label for sample in samples]
