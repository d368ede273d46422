"""Example inputs of the command line: other batches where a model does not run on the usual one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from reparam.cli import examples
from support.cli_helpers import folder_with, run, succeed

NETS = """
import sys
import torch
from torch import nn

class Grouped(nn.Module):
    def __init__(self, group):
        super().__init__()
        self.group, self.conv, self.norm = group, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        n, c, h, w = x.shape
        return self.norm(self.conv(x.view(-1, self.group, c, h, w).flip(1).view(n, c, h, w)))

class Alone(Grouped):
    def forward(self, x):
        return self.norm(self.conv(x.view(1, 8, 5, 5)))

class Ends(Grouped):
    def forward(self, x):
        return sys.exit(0) if x.shape[0] == 3 else super().forward(x)

class Two(Grouped):
    def forward(self, x):
        if x.shape[0] == 1:
            raise ValueError("one is none")
        return self.norm(self.conv(x))

def grouped(group=4): return Grouped(group)
def alone(): return Alone(4)
def ends(): return Ends(4)
def two(): return Two(4)
"""

SHAPE = ("--input-shape", "8,5,5")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a module of networks that take some batches alone."""
    return folder_with(tmp_path, monkeypatch, "grouped_nets", NETS)


def told(*words: str) -> tuple[str, Any]:
    """What a conversion says on standard error, and its report."""
    done = succeed("convert", *words, *SHAPE, "--json", "report.json", "--force")
    return done.stderr, json.loads(Path("report.json").read_text())


def refused(*words: str) -> str:
    """The last sentence of a command that fails for its input and writes nothing; before it, of the random weights."""
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "") and not list(Path().glob("*.pt2"))
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize("group", [3, 4, 6, 16])
def test_frames_in_groups_are_converted_in_the_first_batch_that_runs(group: int) -> None:
    said, report = told("--arch", "grouped_nets:grouped", "--arch-args", f'{{"group": {group}}}')
    assert f"does not run on a batch of 2; of the others that were tried, {group} is the first that it runs on" in said
    assert (report["before"]["norms"], report["after"]["norms"]) == (1, 0)
    assert any(f"the batch is fixed at {group}, that of the example" in r["message"] for r in report["remarks"])
    module = torch.export.load("grouped-fused.pt2").module()
    assert module(torch.randn(group, 8, 5, 5)).shape == (group, 8, 3, 3)


def test_one_sample_alone() -> None:
    said, report = told("--arch", "grouped_nets:alone")
    assert "of the others that were tried, 1 is the first" in said
    assert report["after"]["norms"] == 0


def test_a_fixed_batch_of_one_that_does_not_run() -> None:
    said, report = told("--arch", "grouped_nets:two", "--dynamic", "none")
    assert "does not run on a batch of 1; of the others that were tried, 2 is the first" in said
    assert report["after"]["norms"] == 0


def test_a_batch_that_runs_is_taken_and_no_other_is_tried() -> None:
    with patch.object(examples, "_others", side_effect=AssertionError):
        said, _ = told("--arch", "grouped_nets:grouped", "--arch-args", '{"group": 2}')
    assert "were tried" not in said


def test_explain_and_export_try_them_too() -> None:
    arch = ("--arch", "grouped_nets:grouped", *SHAPE)
    assert "4 is the first" in succeed("explain", *arch).stderr
    assert "4 is the first" in succeed("export", *arch, "--format", "onnx", "-o", "grouped.onnx").stderr


def test_measuring_and_setting_weights_try_them_too() -> None:
    arch = ("--arch", "grouped_nets:grouped", *SHAPE)
    assert "4 is the first" in succeed("analyze", *arch, "--what", "moments").stderr
    assert "4 is the first" in succeed("init", *arch, "--method", "he", "-o", "set.pt").stderr


def test_pruning_tries_them_too() -> None:
    """It is refused for having a single layer then, and not for the shape of its input."""
    np.save("x.npy", np.random.default_rng(0).standard_normal((64, 8, 5, 5), dtype=np.float32))
    done = run("prune", "--arch", "grouped_nets:grouped", *SHAPE, "--calibrate", "x.npy", "--macs", "0.5")
    assert "4 is the first" in done.stderr and "there is nothing to prune" in done.stderr


def test_a_batch_that_has_to_stay_free_is_refused_for_that() -> None:
    message = refused("convert", "--arch", "grouped_nets:grouped", "--dynamic", "batch", *SHAPE)
    assert "leave batch out of the free axes" in message


@pytest.mark.parametrize("group", [7, 33])
def test_where_none_runs_the_first_failure_is_told(group: int) -> None:
    message = refused("convert", "--arch", "grouped_nets:grouped", "--arch-args", f'{{"group": {group}}}', *SHAPE)
    assert "does not run on the input shape 8,5,5 (batch 2): shape" in message
    assert message.endswith("pass the right one with --input-shape")


def test_what_ends_the_process_on_another_batch_ends_the_search() -> None:
    assert "(batch 2)" in refused("convert", "--arch", "grouped_nets:ends", *SHAPE)


def test_no_other_is_tried_once_it_takes_long() -> None:
    with patch.object(examples, "SECONDS", -1.0):
        assert "(batch 2)" in refused("convert", "--arch", "grouped_nets:grouped", *SHAPE)
