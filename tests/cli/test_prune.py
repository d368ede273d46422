"""`prune` on the command line: what it writes and shows, its gates, and every refusal as one sentence."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from support.cli_helpers import TINY, files, prepare_folder, refuse, succeed

PRUNE = ("prune", *TINY, "--calibrate", "x.npy", "--form", "residual")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network, its checkpoint and samples."""
    found = prepare_folder(tmp_path, monkeypatch)
    np.save("x.npy", np.random.default_rng(0).normal(size=(40, 3, 16, 16)).astype(np.float32))
    np.save("y.npy", np.arange(40) % 4)
    return found


def test_prune_writes_a_smaller_network_and_shows_what_became_of_it(folder: Path) -> None:
    before = files(folder)
    result = succeed(*PRUNE, "--macs", "0.5", "--source", "source", "--json", "report.json")
    assert files(folder) - before >= {"tiny-pruned.pt2", "report.json"}
    assert (folder / "source" / "model.py").exists()
    assert result.stdout.startswith("tiny.pt (cli_nets:tiny) -> tiny-pruned.pt2, source\nanother function than")
    assert "8 -> 4" in result.stdout and "residual (written)" in result.stdout and "█" in result.stdout
    found = json.loads((folder / "report.json").read_text())
    assert found["outputs"] == ["tiny-pruned.pt2", "source"] and found["equivalent"] is False
    assert found["after"]["macs"] <= 0.5 * found["before"]["macs"]
    program = torch.export.load("tiny-pruned.pt2").module()
    assert program(torch.zeros(3, 3, 16, 16)).shape == (3, 4, 7, 7)


def test_the_source_has_batch_norms_where_it_is_to_be_trained(folder: Path) -> None:
    succeed(*PRUNE, "--macs", "0.6", "--source", "source", "--train-form", "bn")
    assert "nn.BatchNorm2d(" in (folder / "source" / "model.py").read_text()
    before = files(folder)
    assert "name its folder with --source" in refuse(2, *PRUNE, "--macs", "0.6", "--train-form", "bn", "--force")
    assert files(folder) == before


def test_images_go_in_as_the_options_say(folder: Path) -> None:
    from PIL import Image

    (folder / "images").mkdir()
    for i, pixels in enumerate(np.random.default_rng(1).integers(0, 255, (30, 20, 20, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    words = ("prune", *TINY, "--calibrate", "images", "--macs", "0.6", "--form", "residual", "--json", "-")
    assert "not known" in refuse(2, *words)
    how = ("--mean", "0.5", "--std", "0.25", "--size", "16,16")
    assert json.loads(succeed(*words, *how).stdout)["samples"]["held_out"] > 0


def test_standard_output_is_the_report_alone_when_it_is_asked_for() -> None:
    found = json.loads(succeed(*PRUNE, "--params", "0.6", "--json", "-").stdout)
    assert found["budget"] == {"params": 0.6} and found["forms"]["residual"]["params"] > 0


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ((), 2, "give one budget"),
        (("--macs", "0.5", "--params", "0.5"), 2, "give one budget"),
        (("--macs", "2"), 2, "share between 0 and 1"),
        (("--macs", "0.001"), 2, "less than the floors leave"),
        (("--macs", "0.5", "--keep", "["), 2, "no regular expression"),
        (("--macs", "0.5", "--labels", "classes"), 2, "a .npy or a .txt of classes, or the word folders"),
        (("--macs", "0.5", "--labels", "none.npy"), 2, "none.npy"),
        (("--macs", "0.5", "--score", "luck"), 2, "luck"),
        (("--macs", "0.5", "-o", "small.onnx"), 2, "name it small.pt2"),
        (("--macs", "0.5", "--max-drop", "0.1"), 2, "no scores of classes"),
        (("--macs", "0.5", "--json", "x.npy", "--force"), 2, "would overwrite x.npy"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_writes_nothing(
    folder: Path, words: tuple[str, ...], code: int, reason: str
) -> None:
    before = files(folder)
    assert reason in refuse(code, *PRUNE, *words)
    assert files(folder) == before


def test_the_command_line_offers_what_the_library_does() -> None:
    from reparam.cli import prune as verb
    from reparam.pruning import ENGINES, FORMS, SCORES, STREAMS, PruneOptions

    offered = {verb.Engine: ENGINES, verb.Form: FORMS, verb.Score: SCORES, verb.Streams: STREAMS}
    assert all({str(choice) for choice in enum} == set(known) for enum, known in offered.items())
    defaults = {p.name: p.default for p in inspect.signature(verb.prune).parameters.values()}
    own = PruneOptions(macs=0.5)
    names = ("engine", "form", "score", "streams", "round_to", "floor", "keep", "refit", "max_drop", "samples", "seed")
    assert {n: defaults[n] for n in names} == {n: getattr(own, n) for n in names}


def test_figures_of_few_samples_are_said_to_say_little(folder: Path) -> None:
    np.save("few.npy", np.load("x.npy")[:3])
    shown = " ".join(
        succeed("prune", *TINY, "--form", "residual", "--calibrate", "few.npy", "--macs", "0.7").stdout.split()
    )
    assert "on 1 held-out sample its outputs" in shown
    assert "note: figures of 1 held-out sample say little; give more" in shown


@pytest.mark.parametrize(("share", "told"), [(0.99, ""), (1.5, "in openvino: 1.50 times its time; widths that are")])
def test_a_result_that_is_no_faster_is_said_to_be_none(folder: Path, share: float, told: str) -> None:
    from reparam.cli.prune_work import render_pruning

    succeed(*PRUNE, "--macs", "0.7", "--json", "report.json")
    report = json.loads((folder / "report.json").read_text())
    report["forms"]["residual"]["time"] = {"ms": 2.0, "share": share}
    report["options"]["engine"] = "openvino"
    notes = [str(part) for part in render_pruning(report, "") if "no faster" in str(part)]
    assert len(notes) == bool(told) and all(told in note for note in notes)


def test_samples_that_do_not_fit_are_refused(folder: Path) -> None:
    np.save("bad.npy", np.zeros((9, 3, 8, 8), np.float32))
    before = files(folder)
    assert "bad.npy" in refuse(2, "prune", *TINY, "--calibrate", "bad.npy", "--macs", "0.5")
    assert "none.npy" in refuse(2, "prune", *TINY, "--calibrate", "none.npy", "--macs", "0.5")
    assert files(folder) == before
