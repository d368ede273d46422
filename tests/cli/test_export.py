"""`export` and `run` on the command line: files, reports, gates, metadata, and every refusal as one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from reparam.engines.manifest import read_manifest, sha256_of
from reparam.utils import PackageState, check_package
from support.cli_helpers import TINY, files, prepare_folder, refuse, run, succeed, tiny
from support.pretended_packages import pretend

EXPORT = ("export", *TINY, "--format", "onnx")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network and its checkpoint."""
    return prepare_folder(tmp_path, monkeypatch)


def report(*words: str) -> Any:
    """The JSON report of a command that must succeed."""
    return json.loads(succeed(*words, "--json", "-").stdout)


# ---- export ------------------------------------------------------------------------------------------------------


def test_export_writes_a_verified_file_and_its_manifest(folder: Path) -> None:
    before = files(folder)
    result = succeed(*EXPORT, "--json", "report.json")
    assert files(folder) - before == {"tiny-fused.onnx", "tiny-fused.onnx.json", "report.json"}
    assert result.stdout.startswith("tiny.pt (cli_nets:tiny) -> tiny-fused.onnx, tiny-fused.onnx.json\nequivalent")
    assert "onnx, fp32, run by onnxruntime" in result.stdout
    found = json.loads((folder / "report.json").read_text())
    assert found["outputs"] == ["tiny-fused.onnx", "tiny-fused.onnx.json"]
    assert (found["format"], found["precision"], found["target"], found["schema"]) == ("onnx", "fp32", "fused", 1)
    assert found["after"]["norms"] == 0
    assert found["sqnr"] > 100
    assert 0.99 < found["top1_agreement"] <= 1.0
    assert found["engine"]["shapes"] == [[1, 3, 16, 16], [2, 3, 16, 16], [5, 3, 16, 16]]


def test_the_manifest_and_the_metadata_tell_the_same(folder: Path) -> None:
    succeed(*EXPORT)
    path = folder / "tiny-fused.onnx"
    row = read_manifest(path)
    assert row is not None
    assert row["sha256"] == sha256_of(path)
    assert row["source"] == {"file": "tiny.pt", "sha256": sha256_of(folder / "tiny.pt")}
    assert row["verification"]["ran"] is True
    props = {p.key: p.value for p in onnx.load(str(path)).metadata_props}
    assert props["reparam.reparam"] == row["reparam"]
    for key in ("source", "verification", "inputs", "outputs"):
        assert json.loads(props[f"reparam.{key}"]) == row[key]
    assert str(folder) not in path.read_bytes().decode("latin-1") + json.dumps(row)


def test_two_runs_write_the_same_bytes(folder: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        succeed(*EXPORT, "-o", name)
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_four_targets_and_precisions_compute_the_network(folder: Path) -> None:
    np.save("x.npy", torch.randn(3, 3, 16, 16).numpy())
    net = tiny()
    net.load_state_dict(torch.load("tiny.pt"))
    wanted = net(torch.from_numpy(np.load("x.npy"))).detach().numpy()
    for extra, name, bound in (
        (("--to", "plain"), "tiny-plain.onnx", 1e-5),
        (("--to", "as-is"), "tiny-as-is.onnx", 1e-5),
        (("--precision", "fp16"), "tiny-fused-fp16.onnx", 2e-2),
        (("--precision", "bf16"), "tiny-fused-bf16.onnx", 2e-1),
    ):
        succeed(*EXPORT, *extra, "--quiet")
        succeed("run", name, "--input", "x.npy", "-o", "y.npy", "--force")
        got = np.load("y.npy")
        assert got.dtype == np.float32
        assert float(np.abs(got - wanted).max()) < bound
        assert run("verify", "tiny.pt", name, "--arch-a", "cli_nets:tiny").exit_code == 0


def test_int8_has_its_own_word_and_is_measured_on_data_that_was_held_out(folder: Path) -> None:
    np.save("c.npy", torch.randn(12, 3, 16, 16).numpy())
    found = report(*EXPORT, "--precision", "int8", "--calibrate", "c.npy")
    assert found["outputs"][0] == "tiny-fused-int8.onnx"
    assert (found["equivalent"], found["verdict"]) == (False, "quantised")
    assert (found["engine"]["verdict"], found["engine"]["data"]) == ("quantised", "held-out")
    assert found["engine"]["samples"] == 2
    row = read_manifest(folder / "tiny-fused-int8.onnx")
    assert row is not None and row["verdict"] == row["verification"]["verdict"] == "quantised"
    shown = succeed(*EXPORT, "--precision", "int8", "--calibrate", "c.npy", "-o", "again.onnx").stdout
    assert "equivalent" not in shown and "onnx, quantised to int8, run by" in shown and "2 held-out inputs" in shown
    assert "note: figures of 2 held-out samples say little; calibrate on more" in shown
    np.save("one.npy", torch.randn(1, 3, 16, 16).numpy())
    shown = succeed(*EXPORT, "--precision", "int8", "--calibrate", "one.npy", "-o", "one.onnx").stdout
    assert "note: of one sample none can be held out, so that random inputs were measured" in shown
    assert 15 < found["sqnr"] < 60
    assert 0.5 < found["top1_agreement"] <= 1.0
    sentence = refuse(1, *EXPORT, "--precision", "int8", "--calibrate", "c.npy", "--min-sqnr", "90", "-o", "q.onnx")
    assert "signal-to-noise ratio is" in sentence and "where at least 90 dB is asked for" in sentence
    refused = run("verify", "tiny.pt", "tiny-fused-int8.onnx", "--arch-a", "cli_nets:tiny")
    assert refused.exit_code == 1
    assert "it is quantised to int8" in refused.stdout
    same = succeed("verify", "again.onnx", "again.onnx", "--json", "-")
    assert '"equivalent": false' in same.stdout and '"verdict": "quantised"' in same.stdout
    assert "equivalent" not in succeed("verify", "again.onnx", "again.onnx").stdout


def test_ports_of_the_same_precision(folder: Path) -> None:
    succeed(*EXPORT, "--precision", "fp16", "--io-precision", "same", "--min-sqnr", "30")
    row = read_manifest(folder / "tiny-fused-fp16.onnx")
    assert row is not None
    assert [p["dtype"] for p in row["inputs"] + row["outputs"]] == ["float16", "float16"]


def test_free_sizes_are_verified_at_other_sizes(folder: Path) -> None:
    found = report(*EXPORT, "--dynamic", "batch,height,width")
    shapes = set(map(tuple, found["engine"]["shapes"]))
    assert len(shapes) == 10 and (2, 3, 10, 20) in shapes  # four of them are beside what torch took for granted
    np.save("x.npy", torch.randn(2, 3, 20, 27).numpy())
    succeed("run", "tiny-fused.onnx", "--input", "x.npy", "-o", "y.npy")
    assert np.load("y.npy").shape == (2, 4, 9, 13)


def test_a_program_and_an_architecture_can_be_exported(folder: Path) -> None:
    succeed("convert", *TINY)
    succeed("export", "tiny-fused.pt2", "--format", "onnx", "--to", "as-is", "-o", "p.onnx")
    assert run("verify", "tiny-fused.pt2", "p.onnx").exit_code == 0
    succeed("export", "--arch", "cli_nets:tiny", "--format", "onnx")
    row = read_manifest(folder / "tiny-fused.onnx")
    assert row is not None and list(row["source"]) == ["state_sha256"]


def test_what_the_architecture_knows_travels_with_the_file(folder: Path) -> None:
    words = ("export", "--arch", "torchvision/resnet18", "--format", "onnx", "--input-shape", "3,32,32")
    succeed(*words, "-o", "r.onnx", "--quiet")
    row = read_manifest(folder / "r.onnx")
    assert row is not None
    assert row["preprocessing"] == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [32, 32],
        "resize": 37,
        "interpolation": "bilinear",
        "of": "ResNet18_Weights.IMAGENET1K_V1",
    }
    assert (len(row["labels"]), row["labels"][1]) == (1000, "goldfish")
    props = {p.key: p.value for p in onnx.load(str(folder / "r.onnx")).metadata_props}
    assert json.loads(props["reparam.labels"]) == row["labels"]


@pytest.mark.parametrize(
    ("code", "words", "expected"),
    [
        (2, ("export", *TINY, "--format", "onyx"), "'onyx' is not a format; choose from"),
        (2, (*EXPORT, "-o", "a.pt2"), "the output a.pt2 is a .onnx file; name it a.onnx"),
        (2, (*EXPORT, "--precision", "int8"), "int8 needs calibration data"),
        (2, (*EXPORT, "--calibrate", "c.npy"), "calibration data is for int8; fp32 needs none"),
        (2, (*EXPORT, "--precision", "int8", "--calibrate", "no.npy"), "there is no file no.npy"),
        (2, (*EXPORT, "--precision", "int8", "--calibrate", "c.npy"), "where the input"),
        (2, (*EXPORT, "--precision", "fp8"), "'fp8' is not one of"),
        (2, (*EXPORT, "-o", "nowhere/a.onnx"), "nowhere does not exist"),
        (2, ("run", "tiny.pt", "--input", "c.npy", "-o", "y.txt", "--arch", "cli_nets:tiny"), "name it y.npy"),
        (2, ("run", "no.onnx", "--input", "c.npy", "-o", "y.npy"), "there is no file no.onnx"),
        (
            2,
            ("run", "tiny.pt", "--input", "cli_nets.py", "-o", "y.npy"),
            "cli_nets.py is not an array that numpy.save wrote",
        ),
        (2, ("run", "tiny.pt", "--input", "=c.npy", "-o", "y.npy"), "names no file"),
        (2, ("convert", "fake.onnx"), "is damaged or no ONNX model"),
    ],
)
def test_refusals(code: int, words: tuple[str, ...], expected: str, folder: Path) -> None:
    np.save("c.npy", np.zeros((2, 3, 8, 16), np.float32))
    (folder / "fake.onnx").write_bytes(b"\x08\x0a\x12")
    assert expected in refuse(code, *words)


def test_nothing_is_overwritten_without_force(folder: Path) -> None:
    (folder / "tiny-fused.onnx.json").write_text("mine")
    assert "tiny-fused.onnx.json exists already" in refuse(2, *EXPORT)
    succeed(*EXPORT, "--force")
    assert "tiny-fused.onnx exists already" in refuse(2, *EXPORT)
    content = (folder / "tiny-fused.onnx").read_bytes()
    succeed(*EXPORT, "--force")
    assert (folder / "tiny-fused.onnx").read_bytes() == content


def test_a_failure_while_files_are_moved_leaves_the_old_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    succeed(*EXPORT)
    before = {p: p.read_bytes() for p in folder.glob("tiny-fused*")}
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if ".reparam-" in str(source) and Path(target) == folder / "tiny-fused.onnx":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    assert "No space left on device" in refuse(3, *EXPORT, "--force", "--precision", "fp16", "-o", "tiny-fused.onnx")
    assert {p: p.read_bytes() for p in folder.glob("tiny-fused*")} == before


def test_an_engine_that_computes_something_else_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from reparam.engines.onnx import graph

    right = graph.graph_of

    def wrong(program: Any) -> ir.Model:
        model = right(program)
        weight = model.graph.initializers["4.weight"]
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.001), name="4.weight")
        return model

    monkeypatch.setattr(graph, "graph_of", wrong)
    assert "the engine is not the network: output 0 differs by" in refuse(1, *EXPORT)


def test_a_missing_package_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = PackageState("onnxsim", None, "missing", "pip install 'reparam[onnx]'")
    pretend(monkeypatch, lambda name: missing if name == "onnxsim" else check_package(name))
    assert refuse(3, *EXPORT) == "onnx needs onnxsim, which is missing; pip install 'reparam[onnx]'"


# ---- run, verify, diff -------------------------------------------------------------------------------------------


def test_every_form_of_the_network_runs_the_same(folder: Path) -> None:
    np.save("x.npy", torch.randn(2, 3, 16, 16).double().numpy())
    succeed("convert", *TINY, "--source", "source")
    succeed(*EXPORT)
    results = []
    for words in (
        ("tiny.pt", "--arch", "cli_nets:tiny"),
        ("tiny-fused.pt2",),
        ("source", "--trust"),
        ("tiny-fused.onnx",),
    ):
        found = report("run", *words, "--input", "x.npy", "-o", "y.npy", "--force")
        assert found["values"] == [{"name": "output", "shape": [2, 4, 7, 7], "dtype": "float32"}]
        results.append(np.load("y.npy"))
    for other in results[1:]:
        assert float(np.abs(results[0] - other).max()) < 1e-5
    assert run("verify", "source", "tiny-fused.onnx", "--trust").exit_code == 0
    assert "loading source runs the code in source/model.py" in refuse(2, "verify", "source", "tiny-fused.onnx")


def test_inputs_by_name_and_outputs_in_an_archive(folder: Path) -> None:
    succeed(*EXPORT)
    np.save("x.npy", torch.randn(2, 3, 16, 16).numpy())
    result = succeed("run", "tiny-fused.onnx", "--input", "input=x.npy", "-o", "y.npz")
    assert result.stdout.splitlines()[0] == "tiny-fused.onnx -> y.npz"
    assert np.load("y.npz")["output"].shape == (2, 4, 7, 7)
    assert "the model has no input 'z'; it takes input" in refuse(
        2, "run", "tiny-fused.onnx", "--input", "z=x.npy", "-o", "z.npy"
    )
    two = ("--input", "x.npy", "--input", "x.npy", "-o", "z.npy")
    assert "2 inputs were given, where the model takes 1" in refuse(2, "run", "tiny-fused.onnx", *two)
    np.save("small.npy", np.zeros((2, 3, 8, 8), np.float32))
    assert "the input 'input' is float32 (batch, 3, 16, 16)" in refuse(
        2, "run", "tiny-fused.onnx", "--input", "small.npy", "-o", "z.npy"
    )


def test_a_tampered_weight_is_found_and_shown(folder: Path) -> None:
    succeed(*EXPORT)
    model = onnx.load("tiny-fused.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "4.weight")
    value = onnx.numpy_helper.to_array(tensor).copy()
    value.flat[0] += 1e-3
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    onnx.save_model(model, "bad.onnx")
    words = ("verify", "tiny.pt", "bad.onnx", "--arch-a", "cli_nets:tiny")
    found = run(*words)
    assert found.exit_code == 1
    assert "NOT equivalent: output 0 ('output') differs by" in found.stdout
    assert "they part at: '4' (conv2d, shape" in found.stdout
    assert "are not the same function" in found.stderr
    assert run("verify", "tiny-fused.onnx", "bad.onnx").exit_code == 1
    verdict = json.loads(run(*words, "--json", "-").stdout)
    assert (verdict["equivalent"], len(verdict["runtimes"])) == (False, 2)
    assert "1 with other weights (w)" in succeed("diff", "tiny-fused.onnx", "bad.onnx").stdout


def test_diff_aligns_a_program_and_its_onnx(folder: Path) -> None:
    succeed("convert", *TINY)
    succeed(*EXPORT)
    summary = succeed("diff", "tiny-fused.pt2", "tiny-fused.onnx", "--full").stdout.splitlines()[-1]
    assert summary == "3 unchanged, 0 with other weights (w), 0 changed (~), 0 only left (-), 0 only right (+)"


def test_weights_from_outside_of_the_folder_are_refused(folder: Path) -> None:
    succeed(*EXPORT)
    model = onnx.load("tiny-fused.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    Path("evil.onnx").write_bytes(model.SerializeToString())
    for words in (("verify", "evil.onnx", "tiny-fused.onnx"), ("diff", "evil.onnx", "tiny-fused.onnx")):
        assert "evil.onnx takes weights from '../../etc/passwd', outside of its own folder" in refuse(2, *words)
