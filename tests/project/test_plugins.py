"""A package from outside brings a pass, a format and an architecture by its entry points, and reparam uses them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from reparam import passes
from reparam.engines import formats
from reparam.errors import MachineError, RuleError
from reparam.utils import plugins

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "tiny-outside"
version = "1.0"
[project.entry-points."reparam.passes"]
drop_double_negation = "tiny_outside.drop_double_negation"
[project.entry-points."reparam.formats"]
listing = "tiny_outside.listing"
[project.entry-points."reparam.models"]
nets = "tiny_outside.nets"
[tool.setuptools]
packages = ["tiny_outside"]
"""

PASS = '''
"""-(-x) = x: two negations in a row do nothing."""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from reparam.ir import Program, aten
from reparam.rewrite import Match, Pattern, Rewrite, op

NEG = frozenset({aten.neg.default})


@dataclass(frozen=True)
class DropDoubleNegation:
    name: ClassVar[str] = "drop-double-negation"
    pattern: ClassVar[Pattern] = op(NEG, op(NEG))

    def check(self, program: Program, match: Match) -> fx.Node:
        return match.root

    def rewrite(self, program: Program, plan: fx.Node) -> Rewrite:
        return Rewrite({plan: plan.args[0].args[0]}, "two negations gone")


PASS = DropDoubleNegation
PHASE = "clean"
'''

FORMAT = '''
"""The graph as text."""

from reparam.engines import Built, Format


class Listing(Format):
    name, suffix, native, precisions, needs = "listing", ".txt", False, ("fp32",), ()

    def recognises(self, path, head):
        return head.startswith(b"x: ")

    def build(self, program, path, options, tell):
        from reparam.ir import text_of

        path.write_text(text_of(program))
        return Built()

    def load(self, path):
        raise NotImplementedError(path)  # a listing is read by people


FORMAT = Listing()
'''

NETS = """
import torch
from torch import nn

from reparam.models.registry import register


@register("negations", small={"n": 2}, published={"n": 4}, small_input=(3,), published_input=(3,))
class Negations(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n, self.fc = n, nn.Linear(3, 3)

    def forward(self, x):
        for _ in range(self.n):
            x = torch.neg(x)
        return torch.relu(self.fc(x).tanh())
"""

USE = """
import json, torch, reparam
from reparam.engines.formats import find_format
from reparam.loading import build_architecture
from reparam.passes import every_rule
net = build_architecture("reparam/negations_small").module
result = reparam.convert(net, torch.randn(2, 3), to="fused")
rules = [r.rule for r in result.report.remarks if r.kind == "passed"]
find_format("listing").build(result.program, __import__("pathlib").Path("graph.txt"), None, None)
print(json.dumps({"rules": rules, "known": "drop-double-negation" in every_rule(), "graph": open("graph.txt").read()}))
"""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the outside package, which sees the packages of this one."""
    folder = tmp_path_factory.mktemp("outside")
    package = folder / "src" / "tiny_outside"
    package.mkdir(parents=True)
    (folder / "src" / "pyproject.toml").write_text(PROJECT)
    for name, text in (("drop_double_negation", PASS), ("listing", FORMAT), ("nets", NETS), ("__init__", "")):
        (package / f"{name}.py").write_text(text)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    (Path(own) / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--no-index", "--quiet", folder / "src"], check=True)
    return python


def test_an_installed_package_brings_a_pass_a_format_and_an_architecture(scratch: Path, tmp_path: Path) -> None:
    done = subprocess.run([scratch, "-c", USE], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["known"] and told["rules"] == ["drop-double-negation"]
    assert "neg" not in told["graph"] and "tanh" in told["graph"]


@pytest.mark.sweep
def test_the_command_line_lists_what_it_brings(scratch: Path, tmp_path: Path) -> None:
    for words, expected in ((["passes"], "-(-x) = x"), (["doctor"], "listing")):
        done = subprocess.run(
            [scratch, "-m", "reparam", *words], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0 and expected in done.stdout, done.stderr


# ---- what is wrong with one ------------------------------------------------------------------------------------------


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ModuleType]]:
    """The modules that installed packages bring as passes, for a test to fill."""
    modules: list[ModuleType] = []
    monkeypatch.setattr(passes, "plugins", lambda group: tuple(modules))
    passes.all_passes.cache_clear()
    yield modules
    passes.all_passes.cache_clear()


def module(name: str, **attributes: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(attributes)
    return made


def test_two_passes_or_rules_of_one_name_are_told(brought: list[ModuleType]) -> None:
    brought.append(module("outside.fold_padding", PASS=object, PHASE="fold"))
    with pytest.raises(RuleError, match=r"called 'fold_padding': reparam.passes.fold_padding and outside.fold_padding"):
        passes.all_passes()
    rule = type("Rule", (), {"name": "fold-padding"})
    brought[:] = [module("outside.mine", PASS=rule, PHASE="clean")]
    with pytest.raises(RuleError, match=r"called 'fold-padding': reparam.passes.fold_padding and outside.mine"):
        passes.all_passes()


@pytest.mark.parametrize("kind", ["none", "twice"])
def test_a_module_that_is_no_format_and_two_formats_of_one_name_are_told(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = module("outside.odd", **({} if kind == "none" else {"FORMAT": copy.copy(formats.find_format("onnx"))}))
    monkeypatch.setattr(formats, "plugins", lambda group: (other,))
    formats.all_formats.cache_clear()
    told = {"none": "outside.odd is no format: it has to define FORMAT", "twice": "two formats are called 'onnx'"}
    try:
        with pytest.raises(MachineError, match=told[kind]):
            formats.all_formats()
    finally:
        formats.all_formats.cache_clear()


@pytest.mark.parametrize("attributes", [{"PASS": object}, {"PHASE": "fold"}, {"PASS": object, "PHASE": "never"}])
def test_a_module_that_is_no_pass_is_told(brought: list[ModuleType], attributes: dict[str, Any]) -> None:
    brought.append(module("outside.odd", **attributes))
    with pytest.raises(RuleError, match=r"outside.odd is no pass: it has to define PASS, and PHASE as one of clean"):
        passes.all_passes()


def test_passes_that_follow_each_other_in_a_circle_are_told(brought: list[ModuleType]) -> None:
    brought += [module(f"out.{a}", PASS=object, PHASE="sums", AFTER=b) for a, b in (("a", "b"), ("b", "a"))]
    with pytest.raises(RuleError, match="the passes a, b follow each other in a circle"):
        passes.all_passes()


def test_passes_run_by_name_and_behind_what_they_follow(brought: list[ModuleType]) -> None:
    brought += [module("out.early", PASS=object, PHASE="fold", AFTER="merge_branches")]
    brought += [module("out.aaa", PASS=object, PHASE="fold"), module("out.zzz", PASS=object, PHASE="fold", AFTER="aaa")]
    names = [m.__name__.rpartition(".")[2] for m in passes.all_passes()["fold"]]
    assert names[0] == "aaa" and names.index("zzz") > names.index("aaa")
    assert names.index("merge_branches") < names.index("early")


def test_a_plugin_that_does_not_import_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="x", value="no_such_module_here", module="no_such_module_here", dist=None)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    plugins.cache_clear()
    with pytest.raises(MachineError, match=r"an installed package brings no_such_module_here for reparam\.passes"):
        plugins("reparam.passes")
    plugins.cache_clear()
