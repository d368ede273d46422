"""Damaged files of every kind are refused in a sentence, soon, and without running anything: thousands of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.fuzz_files import in_processes
from support.genuine_files import seed_of
from support.mutating import MIXES, mutated

TESTS = Path(__file__).resolve().parent.parent
EACH = 15  # files of each kind in an ordinary run
SLICE = 2500  # files that one process opens in a long run
SHARES = {  # of a hundred files
    **{"zip": 16, "legacy": 14, "safetensors": 14, "program": 15, "onnx": 12, "external": 4, "manifest": 4},
    **{"openvino": 4, "script": 1, "package": 1, "engine": 1, "npy": 3, "npz": 4, "moves": 1},
    **{"png": 3, "jpeg": 1, "webp": 1, "bmp": 1},
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes find what the tests share, and the sources that are tested."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.sweep
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
    assert len(rows) == len(MIXES)
    assert all(sum(r["outcomes"].values()) == EACH and r["outcomes"].get("refused", 9) > 3 for r in rows)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", SHARES)
def test_many_damaged_files(kind: str, environment: None, tmp_path: Path) -> None:
    """FUZZ_FILES files in all (100,000 by default) from the seed FUZZ_FIRST on; FUZZ_LOG keeps what is done by then.

    A run whose log is there goes on behind it.
    """
    total, first = (int(os.environ.get(n, d)) for n, d in (("FUZZ_FILES", "100000"), ("FUZZ_FIRST", "1000")))
    log = Path(os.environ.get("FUZZ_LOG", tmp_path / "log"))
    lines = log.read_text().splitlines() if log.exists() else []
    rows = [row for row in map(json.loads, lines) if row["kind"] == kind]
    done = {row["first"] for row in rows}
    folder = log.with_name(f"{log.name}.{kind}")
    folder.mkdir(exist_ok=True)
    end = first + total * SHARES[kind] // 100
    for at in range(first, end, SLICE):
        if at not in done:
            outcomes, findings = in_processes(kind, at, min(SLICE, end - at), folder)
            rows.append({"kind": kind, "first": at, "outcomes": outcomes, "findings": findings})
            with log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(kind, dict(sum((Counter(row["outcomes"]) for row in rows), Counter())))
    assert [f for row in rows for f in row["findings"]] == []
