"""What the logger `reparam` tells, and that nobody hears it who does not ask."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from support.cli_helpers import TINY, prepare_folder, run, tiny


class Heard(logging.Handler):
    """The records of the logger `reparam`, of a level and above, while the block runs."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def __enter__(self) -> Heard:
        logger = logging.getLogger("reparam")
        self.before = logger.level
        logger.setLevel(self.level)
        logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger("reparam").removeHandler(self)
        logging.getLogger("reparam").setLevel(self.before)

    def told(self, level: int) -> list[str]:
        return [r.getMessage() for r in self.records if r.levelno == level]


def starts(lines: list[str], *heads: str) -> bool:
    """Whether some line begins with each of these, in this order."""
    rest = iter(lines)
    return all(any(line.startswith(head) for line in rest) for head in heads)


def test_a_conversion_tells_its_stages_and_on_demand_every_rewrite() -> None:
    net, x = tiny(), torch.rand(2, 3, 16, 16)
    with Heard(logging.INFO) as heard:
        made = reparam.convert(net, x)
    lines = heard.told(logging.INFO)
    assert starts(lines, "captured Sequential: ", "stage fold: 2 rewrites", "judged: the same function on ")
    assert not heard.told(logging.DEBUG)
    with Heard(logging.DEBUG) as heard:
        reparam.convert(net, x)
    passed = [r for r in made.report.remarks if r.kind == "passed"]
    details = heard.told(logging.DEBUG)
    assert all(any(d.startswith(f"{r.rule} at {r.module or r.node}: {r.message} (") for d in details) for r in passed)


def test_files_comparisons_measurements_and_pruning_tell_theirs(tmp_path: Path) -> None:
    net, x = tiny(), torch.rand(32, 3, 16, 16)
    with Heard(logging.INFO) as heard:
        reparam.convert(net, x[:2]).save(tmp_path / "a.pt2")
        reparam.export(net, x[:2], path=tmp_path / "a.onnx")
        reparam.verify(net, tmp_path / "a.pt2", x[:2])
        flat = nn.Sequential(net, nn.Flatten())
        reparam.bench([flat], data=x, options=reparam.BenchOptions(rounds=3, memory=False))
        reparam.prune(net, x[:2], torch.rand(96, 3, 16, 16), macs=0.6, form="residual", joint=1)
    lines = heard.told(logging.INFO)
    heads = ("written ", "checked a.onnx: ", "written ", "compared: the same function", "judged 1 models on 32 samples")
    assert starts(lines, *heads, "timed Sequential 0 by torch", "prune step 1: ", "joint refit: step ")
    assert starts(lines, f"written {tmp_path / 'a.pt2'}", f"written {tmp_path / 'a.onnx'}: onnx in fp32, ")


def test_nobody_hears_it_who_does_not_ask() -> None:
    code = (
        "import torch, reparam\nnet = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()\n"
    )
    code += "reparam.convert(net, torch.rand(2, 3, 8, 8))\n"
    code += "import logging\nlogging.getLogger('reparam.x').warning('not heard')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("", "")


def test_the_command_line_shows_it_with_debug_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_folder(tmp_path, monkeypatch)
    words: Any = ("convert", *TINY, "--force")
    assert run(*words).stderr == ""
    heard = run(*words, "--debug").stderr
    assert "reparam.rewrite.driver: stage fold: 2 rewrites\n" in heard and "reparam.rewrite.driver: fold-" in heard
    assert run(*words).stderr == "" and not logging.getLogger("reparam").level
