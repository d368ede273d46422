"""What callers give to public functions: their own errors pass as they are, and wrong keywords are named."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam import InputError
from support.choice import mostly_in_sweeps

X = torch.randn(2, 3, 8, 8)


class Own(BaseException):
    """Of the caller."""


class OwnError(Exception):
    """Of the caller."""


ERRORS = [
    OwnError("own"),
    Own("own"),
    InputError("own"),
    KeyboardInterrupt(),
    SystemExit(0),
    StopIteration(),
    MemoryError(),
    RuntimeError("out of memory"),
    OSError(errno.ENOSPC, "no space"),
]


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


@pytest.mark.parametrize("error", mostly_in_sweeps(ERRORS, ERRORS[1], ERRORS[2], ERRORS[3], ERRORS[8]))
def test_what_progress_raises_passes_unchanged_and_nothing_is_written(error: BaseException, tmp_path: Path) -> None:
    stages: list[tuple[str, int]] = []
    reparam.export(net(), X, path=tmp_path / "n.onnx", progress=lambda stage, done, total: stages.append((stage, done)))
    for path in list(tmp_path.iterdir()):
        path.unlink()
    chosen = {("capture", 0), ("fold", 1), ("clean", 3), ("verify", 0), ("build", 0), ("check", 1)}
    assert chosen <= set(stages)
    for at in sorted(chosen):

        def progress(stage: str, done: int, total: int, at: tuple[str, int] = at) -> None:
            if (stage, done) == at:
                raise error

        with pytest.raises(type(error)) as raised:
            reparam.export(net(), X, path=tmp_path / "n.onnx", progress=progress)
        assert raised.value is error, at
        assert list(tmp_path.iterdir()) == []


def test_a_progress_that_cannot_be_called_is_told() -> None:
    bad: Any = 3
    with pytest.raises(InputError, match="progress is an int, not a function"):
        reparam.convert(net(), X, progress=bad)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("force", r"give options=reparam.ExportOptions\(force=...\)"),
        ("min_sqnr", r"give options=reparam.ExportOptions\(min_sqnr=...\)"),
        ("dtype", r"give options=reparam.ExportOptions\(precision=...\)"),
        ("dynamics", "inputs are given by position; the keywords that it takes are arch, .* dynamic, .* to, trust"),
    ],
)
def test_a_keyword_that_export_does_not_have(name: str, how: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^export\(\) got an unexpected keyword argument '{name}'; {how}"):
        reparam.export(net(), X, path=tmp_path / "n.onnx", **{name: 1})
