"""`--html`: every verb that has it writes one page, together with its other outputs or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from support.cli_helpers import TINY, failing_save, files, prepare_folder, refuse, run, succeed
from support.pages import Structure

A = ("--arch-a", "cli_nets:tiny")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network and its checkpoint."""
    return prepare_folder(tmp_path, monkeypatch)


def sections(path: str) -> set[str]:
    """The ids of the sections of a page."""
    text = Path(path).read_text()
    assert text.startswith("<!doctype html>") and text.endswith("</html>\n")
    return {v for t, n, v in Structure(text).attributes if (t, n) == ("section", "id")}


def told(path: str) -> str:
    """What the head of a page says."""
    found = Structure(Path(path).read_text())
    return " ".join(" ".join(found.texts[tag]) for tag in ("h1", "strong", "p"))


def test_convert_and_explain_write_a_page() -> None:
    succeed("convert", *TINY, "--html", "report.html", "--json", "report.json")
    assert sections("report.html") == {"summary", "graphs", "stages", "errors", "remarks"}
    assert "tiny.pt" in told("report.html") and "Equivalent." in told("report.html")
    largest = json.loads(Path("report.json").read_text())["evidence"]["float64_max_rel"]
    assert f"{largest:.3g}" in told("report.html")
    succeed("explain", *TINY, "--html", "dry.html", "--json", "dry.json")
    assert "Dry run." in told("dry.html") and sections("dry.html") == sections("report.html")
    assert "graph" not in json.loads(Path("dry.json").read_text())


def test_what_was_compared_in_its_own_dtype_alone_is_told() -> None:
    words = succeed(
        "convert", *TINY, "--input-shape", "3,64,64", "--html", "report.html", "--json", "report.json"
    ).output
    own = json.loads(Path("report.json").read_text())["evidence"]["own_dtype"]
    assert own["shapes"] == [[1, 3, 64, 64], [2, 3, 33, 33]]
    far, allowed = f"{own['difference']:.2g}", f"{own['allowed']:.2g}"
    line = "of these 1x3x64x64, 2x3x33x33 were compared in float32 alone: largest relative difference"
    assert f"{line} {far}, where rounding allows {allowed}" in " ".join(words.split())
    assert "in float32 on those of 1×3×64×64, 2×3×33×33, where rounding allows" in told("report.html")


def test_the_remarks_of_a_page_are_all_even_where_the_list_is_filtered() -> None:
    succeed("convert", *TINY, "--html", "report.html", "--remarks", "missed", "--json", "report.json")
    report = json.loads(Path("report.json").read_text())
    assert not [r for r in report["remarks"] if r["kind"] == "passed"]
    assert Path("report.html").read_text().count('data-kind="passed"') == sum(report["evidence"]["kinds"].values()) > 1


def test_export_writes_a_page_of_the_file() -> None:
    pytest.importorskip("onnxruntime")
    succeed("export", *TINY, "--format", "onnx", "--html", "report.html")
    assert "Equivalent." in told("report.html") and "Signal to noise" in Path("report.html").read_text()
    succeed("diff", "tiny.pt", "tiny-fused.onnx", *A, "--html", "diff.html")
    assert sections("diff.html") == {"summary", "graphs", "stages"} and "rows differ." in told("diff.html")
    succeed("verify", "tiny.pt", "tiny-fused.onnx", *A, "--no-adversarial", "--html", "verdict.html")
    assert sections("verdict.html") == {"summary", "graphs", "stages", "outputs"}


def test_verify_writes_its_page_also_when_the_models_differ(folder: Path) -> None:
    succeed("convert", *TINY)
    state = torch.load(folder / "tiny.pt")
    state["4.weight"][0, 0, 0, 0] += 1e-2
    torch.save(state, folder / "tiny.pt")
    result = run("verify", "tiny.pt", "tiny-fused.pt2", *A, "--html", "verdict.html")
    assert result.exit_code == 1
    assert "Not the same function." in told("verdict.html") and "differs by" in told("verdict.html")


def test_prune_writes_its_curve_and_its_widths() -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(40, 3, 16, 16)).astype(np.float32))
    words = ("prune", *TINY, "--calibrate", "x.npy", "--form", "residual", "--macs", "0.5")
    succeed(*words, "--html", "report.html")
    assert {"curve", "widths", "graphs", "remarks"} <= sections("report.html")
    assert "Another function." in told("report.html") and "Equivalent" not in told("report.html")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--html", "report.txt"), "name it report.html"),
        (("--html", "-"), "name it -.html"),
        (("--html", "there.html"), "there.html"),
        (("--html", "nowhere/report.html"), "does not exist"),
        (("--html", "a.html", "--json", "a.html"), "would overwrite a.html"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_the_work(words: tuple[str, ...], reason: str) -> None:
    Path("there.html").write_text("older")
    assert reason in refuse(2, "convert", *TINY, *words)
    assert Path("there.html").read_text() == "older"


def test_an_older_page_is_overwritten_when_asked_for() -> None:
    Path("report.html").write_text("older")
    succeed("explain", *TINY, "--html", "report.html", "--force")
    assert Path("report.html").read_text().startswith("<!doctype html>")


def test_a_run_that_fails_leaves_no_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(folder)
    monkeypatch.setattr("torch.export.save", failing_save(OSError(28, "No space left on device")))
    assert run("convert", *TINY, "--html", "report.html").exit_code == 3
    assert files(folder) == before
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("reparam.page.rendering.render", lambda page: 1 / 0)
    assert run("convert", *TINY, "--html", "report.html").exit_code == 4
    assert files(folder) == before


def test_analyze_writes_a_section_for_each_analysis() -> None:
    succeed("convert", *TINY)
    words = ("analyze", "tiny.pt", "tiny-fused.pt2", "--arch", "cli_nets:tiny", "--what", "moments,gradients,depth")
    succeed(*words, "--html", "signal.html", "--json", "signal.json")
    found = json.loads(Path("signal.json").read_text())
    kinds = [k for k in ("moments", "gradients", "depth") if k in found["a"] or k in found["b"]]
    assert sections("signal.html") == {"summary", *(f"analysis-{k}" for k in kinds)} and "moments" in kinds
    text = Path("signal.html").read_text()
    assert f"{found['a']['moments']['rows'][0]['variance']:.3g}" in text
    assert text.count('<svg class="chart"') == sum(len(found["a"][k]["series"]) for k in kinds)


def test_bench_writes_accuracy_against_latency() -> None:
    succeed("convert", *TINY)
    np.save("x.npy", np.random.default_rng(0).normal(size=(24, 3, 16, 16)).astype(np.float32))
    np.save("y.npy", np.random.default_rng(1).integers(0, 4, (24, 7, 7)))
    words = (
        "bench",
        "tiny.pt",
        "tiny-fused.pt2",
        "--arch",
        "cli_nets:tiny",
        "--data",
        "x.npy",
        "--labels",
        "y.npy",
        "--no-memory",
    )
    succeed(*words, "--rounds", "3", "--html", "bench.html", "--json", "bench.json")
    text = Path("bench.html").read_text()
    for row in json.loads(Path("bench.json").read_text())["models"]:
        assert row["model"] in text
    assert "<svg" in text and "Equivalent" not in told("bench.html")
