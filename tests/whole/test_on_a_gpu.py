"""Networks on a GPU: everything is computed on the CPU, and results lie where the original lies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import on_a_gpu

TESTS = Path(on_a_gpu.__file__).parents[1]
GPU = [on_a_gpu.GPU]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, on_a_gpu.__file__],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_pretended_gpu_minds_devices(found: dict[str, Any]) -> None:
    assert "Expected all tensors to be on the same device" in found["mixed"]["error"]


@pytest.mark.parametrize(("name", "most"), [("fused", 1e-5), ("plain", 1e-5), ("half", 0.1)])
def test_conversions_lie_where_the_original_lies(found: dict[str, Any], name: str, most: float) -> None:
    assert found[name].get("device") == GPU, found[name]
    assert found[name]["difference"] < most


def test_example_inputs_follow_the_weights(found: dict[str, Any]) -> None:
    assert found["examples elsewhere"] == {"device": GPU}
    assert found["on the CPU"] == {"device": ["cpu"]}


def test_files_are_of_the_cpu(found: dict[str, Any]) -> None:
    assert found["saved"].get("device") == ["cpu"], found["saved"]
    assert found["saved"]["difference"] < 1e-5


def test_an_exported_program_stays_where_it_is(found: dict[str, Any]) -> None:
    assert found["exported program"] == {"device": GPU, "own": GPU}


@pytest.mark.parametrize("name", ["init he", "init lsuv", "init normalised-act", "recalibrate", "prune"])
def test_other_results_lie_there_too(found: dict[str, Any], name: str) -> None:
    assert found[name] == {"device": GPU}


def test_a_gpu_that_is_the_default(found: dict[str, Any]) -> None:
    assert found["by default"].pop("difference", 1.0) < 1e-5, found["by default"]
    assert found["by default"] == {"device": GPU + GPU, "tables": 2, "default": on_a_gpu.GPU}


def test_what_is_looked_at_only(found: dict[str, Any]) -> None:
    assert found["explain"] == {"merges": 0}
    assert found["analyze"].get("tables", 0) >= 4, found["analyze"]
