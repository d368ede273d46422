"""`init` and `analyze` on the command line: what they write, what they print, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reparam import init
from reparam.cli.analyze_work import sparkline
from reparam.cli.initial import REWRITING, WITH_DATA, Method
from reparam.initial import METHODS
from reparam.initial import REWRITING as REWRITES
from reparam.initial import WITH_DATA as LOOKING
from reparam.signal import KINDS
from support.cli_helpers import TINY, files, prepare_folder, refuse, succeed, tiny

RESNET = ("--arch", "reparam/resnet_small")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network, its checkpoint, and samples."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.standard_normal((40, 3, 16, 16), np.float32))
    return prepare_folder(tmp_path, monkeypatch)


# ---- init ------------------------------------------------------------------------------------------------------------


def test_the_methods_of_both_doors_are_the_same() -> None:
    assert tuple(m.value for m in Method) == METHODS and tuple(m.value for m in REWRITING) == REWRITES
    assert tuple(m.value for m in WITH_DATA) == LOOKING


@pytest.mark.parametrize(
    "words",
    [("--size", "16,16"), ("--mean", "0.5"), ("--std", "0.5"), ("--config", "c.json"), ("--interpolation", "bilinear")],
)
def test_options_about_samples_are_refused_where_none_are_looked_at(words: tuple[str, ...]) -> None:
    Path("c.json").write_text("{}")
    sentence = f"{words[0]} is about samples, and the method he looks at none; leave it out"
    assert sentence in refuse(2, "init", *TINY, "--method", "he", *words)


def test_options_that_are_no_object_are_told_with_an_example_of_options() -> None:
    told = refuse(2, "init", *TINY, "--method", "depth-scale", "--options", "[1]")
    assert "--options is a JSON list, not an object; write an object, such as '{\"beta\": 1.0}'" in told


def test_it_writes_a_checkpoint_that_loads_and_says_what_it_set(folder: Path) -> None:
    before = files(folder)
    result = succeed("init", *TINY, "--method", "he", "--seed", "5", "--json", "report.json")
    assert files(folder) - before == {"tiny-he.pt", "report.json"}
    assert result.stdout.startswith("tiny.pt (cli_nets:tiny) -> tiny-he.pt\nhe: 3 weights set, 4 left\n")
    assert "variance 2/72, fan in; it reads: '2'" in result.stdout
    assert "left: 1.weight, 1.bias, 5.weight and 1 more: it is no weight that the method sets" in result.stdout
    report = json.loads((folder / "report.json").read_text())
    assert (report["schema"], report["method"], report["outputs"]) == (1, "he", ["tiny-he.pt"])
    net = tiny()
    net.load_state_dict(torch.load("tiny.pt"))
    truth, new = init(net, torch.randn(2, 3, 16, 16), method="he", seed=5).module.state_dict(), torch.load("tiny-he.pt")
    assert all(torch.equal(truth[k], new[k]) for k in new)
    succeed("convert", "tiny-he.pt", "--arch", "cli_nets:tiny", "--quiet")


def test_the_suffix_decides_the_format_and_options_are_json(folder: Path) -> None:
    save_file(torch.load("tiny.pt"), folder / "tiny.safetensors")
    words = ("init", "tiny.safetensors", *TINY[1:], "--method", "bn-scale", "--options", '{"gamma": 0.2}')
    assert "optimiser: 2 parameters at 0.01 x rate, 0 x decay" in succeed(*words).stdout
    named = ("init", "--arch", "reparam/input_bn_resnet_small", "--method", "bn-scale")
    assert "frozen, not to be trained: input_bn.bias" in succeed(*named).stdout
    assert torch.allclose(load_file("tiny-bn-scale.safetensors")["1.weight"], torch.tensor(0.2))


@pytest.mark.parametrize("method", ["point-variance", "lsuv"])
def test_methods_that_look_at_samples(method: str) -> None:
    succeed("init", *TINY, "--method", method, "--calibrate", "x.npy")
    assert all(torch.isfinite(v).all() for v in torch.load(f"tiny-{method}.pt").values())


def test_gradinit_takes_labels() -> None:
    np.save("y.npy", np.arange(40) % 4)
    words = ("--input-shape", "3,16,16", "--calibrate", "x.npy", "--labels", "y.npy")
    steps = ("--options", '{"steps": 3, "batch": 8}')
    assert "times " in succeed("init", *RESNET, "--method", "gradinit", *words, *steps).stdout
    assert all(torch.isfinite(v).all() for v in torch.load("resnet_small-gradinit.pt").values())


def test_methods_that_put_parts_in_write_a_program_that_converts(folder: Path) -> None:
    result = succeed("init", *RESNET, "--method", "residual-scale", "--source", "source")
    assert "put in: the factor 0.7071 behind the sum of 'layer1.0'" in result.stdout
    assert {"resnet_small-residual-scale.pt2", "source"} <= files(folder)
    assert (folder / "source" / "model.py").exists()
    succeed("convert", "resnet_small-residual-scale.pt2", "--to", "plain", "--json", "report.json", "--quiet")
    report = json.loads((folder / "report.json").read_text())
    assert report["equivalent"] and report["after"]["merges"] == 0


def test_what_init_refuses(folder: Path) -> None:
    words = ("init", *TINY, "--method")
    assert "Missing option '--method'" in refuse(2, "init", *TINY)
    assert "'she' is not one of 'he'" in refuse(2, *words, "she")
    assert "does not read the option 'beta'" in refuse(2, *words, "he", "--options", '{"beta": 1}')
    assert "--options is not JSON" in refuse(2, *words, "he", "--options", "beta=1")
    assert "looks at samples" in refuse(2, *words, "lsuv")
    assert "no residual block" in refuse(2, *words, "residual-scale")
    assert "--source is for methods that put parts in" in refuse(2, *words, "he", "--source", "s")
    assert "name it out.pt" in refuse(2, *words, "he", "-o", "out.onnx")
    assert "is a .pt2 archive" in refuse(2, *words, "gaussian", "-o", "out.pt")
    assert "would overwrite x.npy" in refuse(2, *words, "lsuv", "--calibrate", "x.npy", "--json", "x.npy", "--force")
    (folder / "tiny-he.pt").write_text("precious")
    assert "exists" in refuse(2, *words, "he")
    succeed("convert", *TINY, "--quiet")
    assert "is an exported program" in refuse(2, "init", "tiny-fused.pt2", "--method", "he")
    succeed("export", *TINY, "--format", "onnx", "-o", "tiny.onnx", "--quiet")
    assert "give its checkpoint" in refuse(2, "init", "tiny.onnx", "--method", "zero")


# ---- analyze ---------------------------------------------------------------------------------------------------------


def test_it_prints_lines_tables_and_figures_and_writes_pictures(folder: Path) -> None:
    result = succeed("analyze", *RESNET, "--what", "all", "--svg", "pictures", "--json", "report.json", "--training")
    for kind in KINDS:
        assert f"{kind}: " in result.stdout
    assert "backward gain " in result.stdout and "▁" in result.stdout
    report = json.loads((folder / "report.json").read_text())
    assert set(KINDS) <= set(report["a"]) and report["a"]["depth"]["facts"]["blocks"] == 4
    pictures = {p.name for p in (folder / "pictures").iterdir()}
    assert {"moments-variance.svg", "gradients-backward-gain.svg", "erf-field.svg"} <= pictures
    assert sorted(report["outputs"]) == sorted(f"pictures/{name}" for name in pictures)
    words = ("analyze", *TINY, "--what", "moments", "--svg")
    succeed(*words, "again", "--quiet")
    assert "exists" in refuse(2, *words, "again")
    succeed(*words, "again", "--quiet", "--force")


def test_two_models_stand_side_by_side(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # headings are folded where there is less room
    succeed("init", *TINY, "--method", "zero", "--quiet")
    words = ("analyze", "tiny.pt", "tiny-zero.pt", *TINY[1:], "--arch-b", "cli_nets:tiny", "--calibrate", "x.npy")
    result = succeed(*words, "--what", "moments,norm", "--json", "report.json", "--svg", "p")
    assert "variance A" in result.stdout and "variance B" in result.stdout
    report = json.loads((folder / "report.json").read_text())
    assert report["b"]["input"] == "tiny-zero.pt" and report["a"]["moments"] != report["b"]["moments"]
    assert "tiny-zero.pt" in (folder / "p" / "moments-variance.svg").read_text()
    succeed("convert", *TINY, "--quiet")
    result = succeed("analyze", "tiny.pt", "tiny-fused.pt2", *TINY[1:], "--what", "erf")
    first, second = (
        line.split("sigma")[1]
        for line in result.stdout.splitlines()
        if "sigma " in line and "area " in line and ": " in line
    )
    assert first == second
    alone = [name for name in ("tiny.pt", "tiny-fused.pt2") if name in result.stdout.splitlines()]
    assert alone == ["tiny.pt", "tiny-fused.pt2"]  # each above its own table
    succeed("export", *TINY, "--format", "onnx", "-o", "tiny.onnx", "--quiet")
    assert "tiny.onnx: backward gain" in succeed("analyze", "tiny-fused.pt2", "tiny.onnx", "--what", "gradients").stdout
    assert "norm was left out" in succeed("analyze", "tiny-fused.pt2", "--what", "norm,moments").stdout
    words = ("analyze", "tiny.pt", "tiny-fused.pt2", *TINY[1:], "--what", "norm")
    assert "tiny-fused.pt2: the network has no norm" in refuse(2, *words)


def test_a_unit_that_conversion_widens_is_told_not_to_be_the_same(folder: Path) -> None:
    succeed("init", *RESNET, "--method", "he", "-o", "he.pt", "--quiet")
    succeed("convert", "he.pt", *RESNET, "--to", "plain", "-o", "plain.pt2", "--quiet")
    words = ("analyze", "he.pt", "plain.pt2", *RESNET, "--what", "erf", "--batch", "2", "--json", "report.json")
    succeed(*words, "--unit", "layer1.0.conv1")
    report = json.loads((folder / "report.json").read_text())
    notes = [report[side]["erf"]["notes"] for side in "ab"]
    assert "the unit has 8 channels in he.pt and 16 channels in plain.pt2, and so is not the same" in notes[0][-1]
    assert notes[0][-1] == notes[1][-1]
    assert "is not the same" not in succeed(*words, "--force").stdout


def test_what_analyze_refuses() -> None:
    assert "unknown analysis 'colour'" in refuse(2, "analyze", *TINY, "--what", "colour")
    assert "no residual block" in refuse(2, "analyze", *TINY, "--what", "depth")
    assert "--arch-b is for a second model" in refuse(2, "analyze", *TINY, "--arch-b", "cli_nets:tiny")
    assert "--svg names a folder" in refuse(2, "analyze", *TINY, "--svg", "tiny.pt")
    assert "where the input" in refuse(2, "analyze", *TINY, "--calibrate", "x.npy", "--input-shape", "3,8,8")
    assert "no value with places" in refuse(2, "analyze", *TINY, "--what", "erf", "--unit", "head")
    assert "name it with --arch-b" in refuse(2, "analyze", "tiny.pt", "-", *TINY[1:])


def test_a_sparkline_shows_the_shape_and_the_span() -> None:
    assert sparkline((0, 7, 3.5)) == "▁█▅  0 to 3.5, 0 .. 7"
    assert sparkline((1, 10, 100, float("nan")), log=True).startswith("▁▅█   1 to -, 1 .. 100")
    assert sparkline((2.0, 2.0)).startswith("▄▄") and sparkline(()) == "nothing that is finite"
    assert len(sparkline(tuple(range(1000))).split()[0]) == 60
