"""The twenty systems through `init` and `analyze`: figures, and the commands of docs/systems.md."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # scripts, and no package
FIGURES = importlib.import_module("init_figures").FIGURES
CONVERTED = importlib.import_module("systems_converted").FIGURES
PAGE = (ROOT / "docs" / "systems.md").read_text()
COMMANDS = re.findall(r"^\| (\d+) \| (?:init|analyse) \| `reparam (.*)` \|$", PAGE, re.M)


@pytest.mark.sweep
@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f"{f.system}: {f.what}")
def test_a_figure_is_what_it_is_expected_to_be(figure: Any) -> None:
    assert figure.holds()


def test_every_figure_stands_on_the_page() -> None:
    assert not [f.what for f in FIGURES + CONVERTED if f"| {f.system} | {f.what} |" not in PAGE]


def test_every_system_has_an_initialiser_or_an_analysis() -> None:
    assert {int(system) for system, _ in COMMANDS} == set(range(1, 21))


@pytest.mark.sweep
@pytest.mark.parametrize("command", [command for _, command in COMMANDS])
def test_a_command_runs(command: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.standard_normal((64, 3, 16, 16), np.float32))
    np.save(tmp_path / "y.npy", np.arange(64) % 10)
    clouds = {name: rng.standard_normal((32, 16, 3), np.float32) for name in ("points", "features")}
    np.savez(tmp_path / "clouds.npz", **clouds)  # type: ignore[arg-type]
    whole = [sys.executable, "-m", "reparam", *shlex.split(command)]
    done = subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
