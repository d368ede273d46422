"""Every command of the guide, and the Python of the README and of the guide, run as they stand there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from support.warm_process import WarmProcess

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def commands(page: Path) -> list[tuple[str, int]]:
    """The `$ ` lines of the page's console blocks, each with the exit code that its comment names (default 0)."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.S):
        for line in block.splitlines():
            match = re.fullmatch(r"\$ (.*?)(?:\s+# exit (\d+))?", line)
            if match:
                found.append((match.group(1), int(match.group(2) or 0)))
    return found


def test_the_guide_has_commands() -> None:
    assert len(commands(ROOT / "docs" / "guide.md")) >= 8


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.stem)
def test_commands_of_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: WarmProcess) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((8, 3, 64, 64), np.float32))
    np.save(tmp_path / "images.npy", np.random.default_rng(0).standard_normal((100, 3, 32, 32), np.float32))
    for command, expected in commands(page):
        words = shlex.split(command)
        assert words[0] == "reparam", f"the page runs {words[0]}"
        run = warm.module("reparam", *words[1:])
        assert run.returncode == expected, f"{command}\n{run.stdout}\n{run.stderr}"
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize("side", [64, pytest.param(224, marks=pytest.mark.sweep)])
def test_python_of_the_readme(side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: WarmProcess) -> None:
    """By default on smaller images than those of the page, which take a minute."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code.count("3, 224, 224)") == 2
    run = warm.run(code.replace("3, 224, 224)", f"3, {side}, {side})"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("20 0\n")
    assert (tmp_path / "resnet18-fused.pt2").exists()
    assert (tmp_path / "resnet18_fused" / "model.py").exists()


def test_python_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: WarmProcess) -> None:
    monkeypatch.chdir(tmp_path)
    masked, pruned, training = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.S)
    run = warm.run(masked)
    assert run.returncode == 0, run.stderr
    before, after = map(int, run.stdout.split())
    assert after < 0.6 * before
    run = warm.run(pruned)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split()[0]) <= 0.5
    assert (tmp_path / "small.pt2").exists() and (tmp_path / "pruned.pt2").exists()
    run = warm.run(training)
    assert run.returncode == 0, run.stderr
    norms, largest = run.stdout.split()
    assert int(norms) >= 15 and float(largest) < 1e-12
    assert (tmp_path / "resnet18_training" / "model.py").exists()


def test_relative_links_exist() -> None:
    for page in [ROOT / "README.md", *PAGES]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_table_of_rewrites_says_what_the_passes_say() -> None:
    """A row that is there is what the docstring gives; `make docs` brings in those of new passes."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import rewrites
    finally:
        sys.path.pop(0)
    text = (ROOT / "README.md").read_text()
    shown = text.partition(rewrites.START)[2].partition(rewrites.END)[0].strip().splitlines()[2:]
    made = rewrites.rows()
    assert len(made) >= 17 and len(shown) >= 17
    assert not [row for row in shown if row not in made.values()]
