"""A command that is killed between its outputs: the next run finds none of them, or all."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from support.choice import mostly_in_sweeps
from support.cli_helpers import TINY, files, prepare_folder, succeed
from support.warm_process import WarmProcess

KILLED = """
import os, signal, sys

last, calls = int(sys.argv.pop(1)), 0

def counted(*words, real=os.replace, **options):
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words, **options)

from reparam.cli import main
import torch, onnxruntime, onnxscript, onnxsim  # which may move files of their own
os.replace = counted
main()
"""
COMMANDS = {
    "convert": (["convert", *TINY, "-o", "out.pt2", "--source", "source", "--json", "report.json"],
                {"out.pt2", "source/model.py", "source/model.safetensors", "report.json"}),
    "export": (["export", *TINY, "--format", "onnx", "-o", "out.onnx", "--json", "report.json"],
               {"out.onnx", "out.onnx.json", "report.json"}),
    "run": (["run", "tiny.pt", "--arch", "cli_nets:tiny", "-i", "x.npy", "-o", "y.npy", "--json", "report.json"],
            {"y.npy", "report.json"}),
}  # fmt: skip
RUNS = list(itertools.product((False, True), COMMANDS))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network, its checkpoint and an input."""
    made = prepare_folder(tmp_path, monkeypatch)
    np.save("x.npy", np.ones((2, 3, 16, 16), np.float32))
    return made


def all_files(folder: Path) -> set[str]:
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {f for f in found if "__pycache__" not in f}


@pytest.mark.parametrize(("older", "verb"), mostly_in_sweeps(RUNS, (False, "convert"), (True, "run")))
def test_a_command_that_is_killed_between_its_outputs(verb: str, older: bool, folder: Path, warm: WarmProcess) -> None:
    words, outputs = COMMANDS[verb]
    (folder / "source").mkdir()
    for name in outputs if older else ():
        (folder / name).write_text("older")
    before = all_files(folder)
    for last in range(1, len(outputs) + 1):
        done = warm.run(KILLED, str(last), *words, "--force", "--quiet")
        assert done.returncode == -signal.SIGKILL, done.stderr
        temporary = {n for n in files(folder) if n.startswith(".reparam-")}
        assert len(temporary) == 1
        succeed("explain", *TINY, "--json", "next.json", "--quiet")  # the next run that writes here
        os.unlink("next.json")
        assert all_files(folder) == before
        assert all((folder / name).read_text() == "older" for name in outputs if older)
    succeed(*words, "--force", "--quiet")
    assert all_files(folder) == before | outputs and files(folder).isdisjoint(temporary)
