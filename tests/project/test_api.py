"""The public names: listed, documented, and with examples that run."""

from __future__ import annotations

import doctest
import inspect
import os
import subprocess
import sys

import pytest

import reparam

FUNCTIONS = [n for n in reparam.__all__ if inspect.isfunction(getattr(reparam, n))]
CLASSES = [n for n in reparam.__all__ if inspect.isclass(getattr(reparam, n))]


def test_dir_lists_the_public_names_alone() -> None:
    assert dir(reparam) == sorted(reparam.__all__)
    assert {"convert", "explain", "export", "verify"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_tells_shapes_and_errors_and_has_an_example_that_runs(name: str) -> None:
    function = getattr(reparam, name)
    doc = " ".join((inspect.getdoc(function) or "").split())
    assert "(N, ...)" in doc and "Raises" in doc
    undocumented = [p for p in inspect.signature(function).parameters if p not in doc and p not in ("model", "plain")]
    shared = inspect.signature(reparam.convert).parameters if "those of `convert`" in doc else ()
    assert not [p for p in undocumented if p not in shared and p != "progress"]
    found = doctest.DocTestFinder().find(function, name, globs={})
    outcome = [doctest.DocTestRunner(verbose=False).run(t) for t in found]
    assert sum(o.attempted for o in outcome) >= 2 and not sum(o.failed for o in outcome)


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_says_what_it_is(name: str) -> None:
    assert len(inspect.getdoc(getattr(reparam, name)) or "") > 30


def test_the_package_is_a_command_too() -> None:
    for words in (["--version"], ["-h"], ["convert", "-h"]):
        done = subprocess.run([sys.executable, "-m", "reparam", *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert "reparam" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_verbs_and_options(shell: str) -> None:
    command = [sys.executable, "-c", "from reparam.cli import main; main()"]
    env = os.environ | {"_REPARAM_COMPLETE": f"complete_{shell}", "COMP_WORDS": "reparam con", "COMP_CWORD": "1"}
    env |= {"_TYPER_COMPLETE_ARGS": "reparam con", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    sys_argv = "import sys; sys.argv[0] = 'reparam'; "
    done = subprocess.run([*command[:2], sys_argv + command[2]], env=env, capture_output=True, text=True, check=False)
    assert "convert" in done.stdout, done.stderr
