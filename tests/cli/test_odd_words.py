"""Words of no use on the command line: exit code 2 and one sentence, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.cli_helpers import TINY, files, prepare_folder, refuse, run

LONG = "a" * 300 + ".pt2"
BAD = ("a\0b.pt2", "\ud800.pt2", LONG, "/".join(["a"] * 3000) + ".pt2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a checkpoint and an input."""
    made = prepare_folder(tmp_path, monkeypatch)
    np.save("x.npy", np.zeros((1, 3, 16, 16), np.float32))
    return made


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_no_file_can_have_is_told_wherever_it_stands(name: str) -> None:
    for words in (
        ("convert", name),
        ("convert", *TINY, "-o", name),
        ("convert", *TINY, "-o", "z.pt2", "--source", name),
        ("convert", *TINY, "-o", "z.pt2", "--json", name),
        ("explain", "tiny.pt", "--arch", name),
        ("explain", *TINY, "--arch-args", name),
        ("verify", "tiny.pt", name, "--arch-a", "cli_nets:tiny"),
        ("run", name, "-i", "x.npy", "-o", "y.npy"),
        ("run", *TINY, "-i", name, "-o", "y.npy"),
        ("run", *TINY, "-i", "x.npy", "-o", name.replace("pt2", "npy")),
    ):
        refuse(2, *words)


@pytest.mark.parametrize("name", ["", ".", "..", "/"])
def test_an_output_without_a_name_is_told(name: str) -> None:
    refuse(2, "convert", *TINY, "-o", name)


@given(word=st.text(max_size=12), place=st.sampled_from(["--input-shape", "--dynamic", "--seed", "--arch"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_as_a_value_is_taken_or_is_bad_input(word: str, place: str) -> None:
    before = files(Path())
    result = run("explain", *TINY, f"{place}={word}")
    assert result.exit_code in (0, 2), result.stderr
    assert files(Path()) == before and (result.exit_code == 0 or len(result.stderr.splitlines()) == 1)


@pytest.mark.parametrize("shape", ["3,1000000,1000000", "999999999,999999999,999999999", "3,99999999999,1", "3,0,8"])
def test_shapes_that_no_memory_holds_are_bad_input(shape: str) -> None:
    for verb in ("convert", "explain", "bench"):
        assert "shape" in refuse(2, verb, *TINY, "--input-shape", shape)


@pytest.mark.parametrize("ratio", ["nan", "inf", "-inf", "1e999", "loud"])
def test_a_ratio_that_is_no_number_is_bad_input(ratio: str) -> None:
    pytest.importorskip("onnxscript")
    words = ("export", *TINY, "--format", "onnx", "--precision", "fp16", "-o", "net.onnx", f"--min-sqnr={ratio}")
    assert "number" in refuse(2, *words)


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": 5}', '{"sha256": "\\ud800"}', "\x00", "[" * 100000])
def test_a_file_whose_manifest_is_damaged_is_not_run(text: str) -> None:
    pytest.importorskip("onnxscript")
    assert run("export", *TINY, "--format", "onnx", "-o", "net.onnx").exit_code == 0
    Path("net.onnx.json").write_text(text)
    assert "net.onnx.json is not a manifest" in refuse(2, "run", "net.onnx", "-i", "x.npy", "-o", "y.npy")


def test_outputs_of_any_name_are_written_or_refused(folder: Path) -> None:
    (folder / "named.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    input_shapes = ((4,),)\n\n"
        "    def __init__(self, names):\n        super().__init__()\n"
        "        self.names, self.fc = names, nn.Linear(4, 4)\n\n"
        "    def forward(self, x):\n        return {n: self.fc(x) for n in self.names}\n"
    )
    np.save("row.npy", np.ones((2, 4), np.float32))
    torch.manual_seed(0)
    arch = ("--arch", "named:Net", "--arch-args")
    assert run("convert", *arch, '{"names": ["file", "a b"]}', "-o", "net.pt2").exit_code == 0
    assert run("run", "net.pt2", "-i", "row.npy", "-o", "y.npz").exit_code in (0, 2)
    for names in ('[""]', '["a\\u0000b", "c"]', '["\\ud800"]', '["a\\nb"]'):
        result = run("convert", *arch, f'{{"names": {names}}}', "-o", "other.pt2")
        assert result.exit_code == 2 and "give it another name" in result.stderr.splitlines()[-1]
    assert not (folder / "other.pt2").exists()
