"""Damaged files of every kind are refused in a sentence, soon, and without running anything: thousands of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.fuzz_files import in_processes
from support.mutating import MIXES, mutated, seed_of

TESTS = Path(__file__).resolve().parent.parent
EACH = 30  # files of each kind in an ordinary run
SHARES = {"zip": 20, "legacy": 15, "safetensors": 15, "program": 15, "onnx": 20, "manifest": 5, "npy": 5, "npz": 5}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes find what the tests share, and the sources that are tested."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]))


def test_a_seed_gives_one_file_and_most_are_changed() -> None:
    for kind in MIXES:
        assert mutated(kind, 5) == mutated(kind, 5)
        assert sum(mutated(kind, seed) != seed_of(kind) for seed in range(20)) > 12, kind


def test_damaged_files_of_every_kind(environment: None, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "support.fuzz_files", ",".join(MIXES), "0", str(EACH), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r for r in rows if "outcomes" not in r] == []
    assert len(rows) == len(MIXES) and all(r["outcomes"]["refused"] > 3 for r in rows)


@pytest.mark.sweep
def test_many_damaged_files(environment: None, tmp_path: Path) -> None:
    """FUZZ_FILES files in all (100,000 by default) from the seed FUZZ_FIRST on: later runs go on where one ended."""
    total, first = (int(os.environ.get(n, d)) for n, d in (("FUZZ_FILES", "100000"), ("FUZZ_FIRST", "1000")))
    findings = []
    for kind, share in SHARES.items():
        outcomes, found = in_processes([kind], first, total * share // 100, tmp_path)
        print(kind, dict(outcomes), flush=True)
        findings += found
    assert findings == []
