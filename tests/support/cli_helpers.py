"""What the tests of the command line share: a folder with a small network, and how a command is run in it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.testing
from click.testing import Result
from torch import nn
from typer.testing import CliRunner

from reparam.cli.app import app

NETS = """
import torch
from torch import nn

def tiny(width=8, features=4):
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(),
              nn.Conv2d(width, features, 3, stride=2, bias=False), nn.BatchNorm2d(features)]
    net = nn.Sequential(*layers)
    for norm in (net[1], net[5]):
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    net.input_shapes = ((3, 16, 16),)
    return net

def shapeless():
    net = tiny()
    del net.input_shapes
    return net

def words():
    return nn.Sequential(nn.Embedding(11, 4), nn.LayerNorm(4), nn.Linear(4, 3))

def noisy():
    print("a noisy module")
    return tiny()

def stuck():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Sigmoid(), *tiny())
    net.input_shapes = ((3, 16, 16),)
    return net

def broken():
    raise OverflowError("of the author's own")
"""
# The tree of commands is made once: to make it takes longer than many a command.
typer.testing._get_command = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]

TINY = ("tiny.pt", "--arch", "cli_nets:tiny")


def prepare_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes `folder` the working folder, with the module `cli_nets` and the checkpoint `tiny.pt` of its network."""
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "cli_nets", raising=False)
    (folder / "cli_nets.py").write_text(NETS)
    torch.manual_seed(1)
    torch.save(tiny().state_dict(), folder / "tiny.pt")
    return folder


def folder_with(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> Path:
    """The same with another module beside it."""
    prepare_folder(folder, monkeypatch)
    monkeypatch.delitem(sys.modules, name, raising=False)
    (folder / f"{name}.py").write_text(source)
    return folder


def tiny() -> nn.Sequential:
    """The network of the checkpoint, when it is built from the same seed."""
    names: dict[str, Any] = {}
    exec(NETS, names)
    net = names["tiny"]()
    assert isinstance(net, nn.Sequential)
    return net.eval()


def files(folder: Path) -> set[str]:
    """The names in `folder`, without Python's own."""
    return {p.name for p in folder.iterdir() if p.name != "__pycache__"}


def run(*words: str) -> Result:
    """The command with those words, in this process."""
    result: Any = CliRunner().invoke(app, list(words))
    return result


def succeed(*words: str) -> Result:
    """Runs a command that must succeed."""
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    return result


def refuse(code: int, *words: str) -> str:
    """Runs a command that must fail with `code` and write nothing, and returns its one sentence."""
    before = files(Path())
    result = run(*words)
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("reparam: ")
    assert files(Path()) == before
    return sentence.removeprefix("reparam: ")


def failing_save(error: BaseException) -> Callable[..., None]:
    """A `torch.export.save` that writes a part and fails."""

    def save(program: Any, target: Any, **options: Any) -> None:
        with target if hasattr(target, "write") else open(target, "wb") as file:
            file.write(b"half")
        raise error

    return save
