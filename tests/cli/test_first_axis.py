"""Axis 0 of an input, free under another name than the batch: what the command line and files draw there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam.loading import drawn_inputs
from support.cli_helpers import folder_with, run, succeed

NETS = """
import torch
from torch import nn

class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(8, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.layer(x).transpose(1, 2)).mean(2)

class Two(First):
    def forward(self, x, mask):
        return super().forward(x) + mask.sum(1, keepdim=True)

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv1d(8, 6, 7), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.layer(x.permute(1, 2, 0))).mean(2)
"""
WORDS = ("--input-shape", "2,8", "--dynamic", "x:0=seq,x:1=batch", "--force")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a module of networks whose axis 0 is no batch."""
    return folder_with(tmp_path, monkeypatch, "first_nets", NETS)


@pytest.fixture
def file(folder: Path) -> str:
    """An ONNX file whose first two axes are free."""
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU()).eval()
    torch.onnx.export(  # type: ignore[no-untyped-call]
        net, (torch.randn(5, 2, 8),), "first.onnx", dynamo=False, input_names=["x"],
        dynamic_axes={"x": {0: "t", 1: "n"}},
    )  # fmt: skip
    return "first.onnx"


def runs(path: str, *sizes: tuple[int, ...]) -> list[Any]:
    """The shape that a program gives for one input of each size."""
    module = torch.export.load(path).module()
    return [tuple(module(torch.randn(s)).shape) for s in sizes]


def test_of_a_checkpoint() -> None:
    done = succeed("convert", "--arch", "first_nets:First", *WORDS, "-o", "a.pt2")
    assert "does not run" not in done.stderr
    assert runs("a.pt2", (7, 3, 8), (2, 9, 8)) == [(7, 6), (2, 6)]


@pytest.mark.parametrize(
    "words",
    [
        ("explain",),
        ("export", "--format", "onnx", "-o", "a.onnx"),
        ("analyze", "--what", "norm"),
        ("init", "--method", "he", "-o", "a.pt"),
    ],
    ids=lambda words: words[0],
)
def test_of_other_verbs(words: tuple[str, ...]) -> None:
    forced = WORDS if words[0] != "explain" else WORDS[:-1]
    succeed(words[0], "--arch", "first_nets:First", *words[1:], *forced)


def test_of_a_file(file: str) -> None:
    succeed("convert", file, *WORDS, "-o", "a.pt2")
    module = torch.export.load("a.pt2").module()
    assert [tuple(v.shape) for v in module(torch.randn(3, 4, 8)).values()] == [(3, 4, 6)]


@pytest.mark.parametrize(("last", "columns"), [("other", 6), ("seq", 4)], ids=["another name", "the same name"])
def test_axes_of_one_name_are_of_one_size(last: str, columns: int) -> None:
    """Those of the first axes of both inputs; a name that another axis has too brings its size along."""
    words = ("--input-shape", "2,8", "--input-shape", "9", "--dynamic", f"x:0=seq,x:1=feed,mask:0=seq,mask:1={last}")
    succeed("convert", "--arch", "first_nets:Two", *words, "-o", "a.pt2")
    module = torch.export.load("a.pt2").module()
    assert module(torch.randn(4, 3, 8), torch.randn(4, columns)).shape == (4, 6)


def test_the_size_is_that_of_no_other_axis() -> None:
    net = nn.Linear(8, 6)
    for shape in ((5, 8), (5, 6, 8), (2, 8)):
        (x,), called = drawn_inputs(net, (shape,), ("input:0=seq",), batch=1)
        assert called == "seq" and x.shape[1:] == shape and x.shape[0] not in (1, *shape)


def test_others_are_tried_where_the_usual_one_does_not_run() -> None:
    """None of one, which would be taken as fixed. It is refused all the same, as it does not run on all of them."""
    said = run("convert", "--arch", "first_nets:Wide", *WORDS, "-o", "a.pt2").stderr
    assert "the model does not run on axis 'seq' of 5; of the others that were tried, 8 is the first" in said
    assert "leave seq out of the free axes" in said


def test_of_a_file_in_python(folder: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU()).eval()
    torch.onnx.export(  # type: ignore[no-untyped-call]
        net, (torch.randn(5, 8),), "rows.onnx", dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "t"}}
    )
    found = reparam.convert("rows.onnx", dynamic="x:0=seq")
    assert [tuple(v.shape) for v in found.module(torch.randn(9, 8)).values()] == [(9, 6)]
