"""`recalibrate` on the command line: the checkpoint, the report, how images go in, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reparam import InputError, recalibrate
from reparam.cli.options import read_preprocessing
from reparam.data import Preprocessing
from reparam.emit import checkpoint
from support.cli_helpers import TINY, failing_save, files, prepare_folder, refuse, succeed, tiny
from support.sample_files import png

WORDS = ("recalibrate", *TINY, "--calibrate", "x.npy")
CARD = {"preprocessing": {"mean": [0.1], "std": [0.2], "size": [8, 8], "resize": 10, "interpolation": "bicubic"}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network, its checkpoint, and samples."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((40, 3, 16, 16), np.float32) + 1)
    return prepare_folder(tmp_path, monkeypatch)


def test_it_writes_a_checkpoint_that_loads_and_says_how_far_the_means_moved(folder: Path) -> None:
    before = files(folder)
    result = succeed(*WORDS, "--json", "report.json", "--batch", "20")
    assert files(folder) - before == {"tiny-recalibrated.pt", "report.json"}
    assert result.stdout.startswith("tiny.pt (cli_nets:tiny) -> tiny-recalibrated.pt\n2 batch norms measured on 40 ")
    report = json.loads((folder / "report.json").read_text())
    assert (report["schema"], report["outputs"], report["batches"]) == (1, ["tiny-recalibrated.pt"], 2)
    assert [n["name"] for n in report["norms"]] == ["1", "5"] and report["moved"] > 0.1
    old, new = torch.load("tiny.pt"), torch.load("tiny-recalibrated.pt")
    assert list(old) == list(new)
    changed = {k for k in old if not torch.equal(old[k], new[k])}
    assert changed == {f"{n}.{s}" for n in (1, 5) for s in ("running_mean", "running_var", "num_batches_tracked")}
    x, net = torch.from_numpy(np.load("x.npy")), tiny()
    net.load_state_dict(old)
    truth = recalibrate(net, x[:2], data=x, batch=20).module.state_dict()
    assert all(torch.equal(truth[k], new[k]) for k in new)
    succeed("convert", "tiny-recalibrated.pt", "--arch", "cli_nets:tiny")


def test_the_suffix_decides_the_format(folder: Path) -> None:
    save_file(torch.load("tiny.pt"), folder / "tiny.safetensors")
    succeed("recalibrate", "tiny.safetensors", *WORDS[2:], "--quiet")
    state = load_file("tiny-recalibrated.safetensors")
    succeed(*WORDS, "-o", "named.pth", "--quiet")
    assert all(torch.equal(value, state[key]) for key, value in torch.load("named.pth").items())


def test_images_go_in_as_the_options_say(folder: Path) -> None:
    (folder / "images").mkdir()
    for value in range(0, 250, 25):
        (folder / "images" / f"{value}.png").write_bytes(png(value, size=(20, 16)))
    words = ("recalibrate", *TINY, "--calibrate", "images", "-o", "out.pt", "--force")
    assert "is not known" in refuse(2, *words)
    given = ("--mean", "0.5", "--std", "0.25", "--size", "16")
    succeed(*words, *given)
    mean = torch.load("out.pt")["1.running_mean"]
    config = {"input_size": [3, 16, 16], "mean": [0.5], "std": [0.5], "crop_pct": 1.0, "interpolation": "bilinear"}
    (folder / "config.json").write_text(json.dumps(config))
    succeed(*words, "--config", "config.json", "--std", "0.25")
    assert torch.equal(torch.load("out.pt")["1.running_mean"], mean)
    assert "--mean 'grey' holds something that is no number" in refuse(2, *words, "--mean", "grey")
    assert "--size '0' is not a size" in refuse(2, *words, *given[:4], "--size", "0")
    assert "give --std and --size too, or --config" in refuse(2, *words, "--mean", "0.5")
    assert "give --size too, or --config" in refuse(2, *words, *given[:4])
    assert "the interpolation 'odd' is not known" in refuse(2, *words, *given, "--interpolation", "odd")


def test_options_come_before_the_config_file_and_that_before_the_card(folder: Path) -> None:
    none = (None, None, None, None)
    assert read_preprocessing({}, None, *none) is None
    known = Preprocessing((0.1,), (0.2,), (8, 8), 10, "bicubic")
    assert read_preprocessing(CARD, None, *none) == known
    found = read_preprocessing(CARD, None, "0.3,0.4,0.5", None, "16x24", "nearest")
    assert found == Preprocessing((0.3, 0.4, 0.5), (0.2,), (16, 24), 20, "nearest")
    (folder / "c.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5], "size": {"shortest_edge": 12}}))
    assert read_preprocessing(CARD, folder / "c.json", *none) == Preprocessing((0.5,), (0.5,), (12, 12), 12)
    with pytest.raises(InputError, match="1 or 3"):
        read_preprocessing(CARD, None, "0.3,0.4", None, None, None)


def test_what_is_no_good_is_told_in_one_sentence(folder: Path) -> None:
    assert "Missing option '--calibrate'" in refuse(2, "recalibrate", *TINY)
    assert "there is no" in refuse(2, "recalibrate", *TINY, "--calibrate", "y.npy")
    assert "name it out.pt" in refuse(2, *WORDS, "-o", "out.onnx")
    assert "is the input" in refuse(2, *WORDS, "-o", "tiny.pt", "--force")
    assert "would overwrite x.npy" in refuse(2, *WORDS, "--json", "x.npy", "--force")
    save_file({"x": torch.zeros(4, 3, 16, 16)}, "x.safetensors")
    words = ("recalibrate", *TINY, "--calibrate", "x.safetensors", "-o", "x.safetensors", "--force")
    assert "x.safetensors is the input" in refuse(2, *words)
    assert "where the input" in refuse(2, *WORDS, "--input-shape", "3,8,8")
    import cli_nets

    torch.save(cli_nets.words().state_dict(), "words.pt")
    words = ("recalibrate", "words.pt", "--arch", "cli_nets:words", "--calibrate", "x.npy", "--input-shape", "7:int64")
    assert "no batch norm" in refuse(2, *words)
    succeed("convert", *TINY)
    assert "is an exported program" in refuse(2, "recalibrate", "tiny-fused.pt2", "--calibrate", "x.npy")
    (folder / "tiny-recalibrated.pt").write_text("precious")
    assert "exists" in refuse(2, *WORDS)


def test_a_failing_disk_keeps_the_older_output(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tiny-recalibrated.pt").write_text("precious")
    monkeypatch.setattr(checkpoint.torch, "save", failing_save(OSError(28, "No space left on device")))
    assert "No space left on device" in refuse(3, *WORDS, "--force", "--json", "report.json")
    assert (folder / "tiny-recalibrated.pt").read_text() == "precious"


def test_what_is_no_tensor_is_refused_in_safetensors_and_tied_tensors_are_written_twice() -> None:
    class Extra(nn.BatchNorm2d):
        def get_extra_state(self) -> object:
            return {"seen": 3}

    with pytest.raises(InputError, match="'_extra_state' of the state is no tensor"):
        checkpoint._apart(Extra(2).state_dict())
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    apart = checkpoint._apart(net.state_dict())
    assert apart["0.weight"].data_ptr() != apart["1.weight"].data_ptr()
