"""What the manifests of engines tell `bench` of the other models: the architecture of a checkpoint, and of images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import reparam
from reparam import BenchOptions
from reparam.errors import InputError
from reparam.loading import build_architecture
from support.cli_helpers import refuse, run, succeed
from support.digits import IMAGES, prepare_digits

SPEC = "reparam/resnet_small"
ARGS = '{"width": 4, "layers": [1, 1]}'
SIZE = ("--mean", "0", "--std", "1", "--size", "32")
LINE = "bench base.pt fused.onnx int8.onnx pruned.onnx --data digits/ --max-drop 1 --fastest"
FAST = ("--rounds", "3", "--no-memory")
HOW = "as fused.onnx.json says: mean 0, std 1, size 32x32, bilinear"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkpoint of a network of the zoo, with its fused, quantised and pruned forms as ONNX."""
    folder = tmp_path_factory.mktemp("cards")
    with pytest.MonkeyPatch.context() as patch:
        prepare_digits(folder, patch, count=60)
        torch.save(build_architecture(SPEC, json.loads(ARGS), seed=1).module.state_dict(), "base.pt")
        arch = ("--arch", SPEC, "--arch-args", ARGS)
        succeed("export", "base.pt", *arch, *SIZE, "--format", "onnx", "-o", "fused.onnx")
        words = ("--precision", "int8", "--calibrate", "digits", "-o", "int8.onnx")
        succeed("export", "base.pt", *arch, *SIZE, "--format", "onnx", *words)
        words = ("--macs", "0.6", "--form", "residual", "--samples", "24", "--joint", "0", "-o", "pruned.pt2")
        succeed("prune", "base.pt", *arch, *SIZE, "--calibrate", "digits", *words)
        succeed("export", "pruned.pt2", "--to", "as-is", "--format", "onnx", "-o", "pruned.onnx")
        yield folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_need_be_said_again_that_a_manifest_tells(here: Path) -> None:
    result = succeed(*LINE.split(), *FAST, "--json", "b.json")
    assert f"base.pt is taken as {SPEC}, as fused.onnx.json says" in result.stderr
    assert f"images {HOW}" in result.stdout and "\nship " in result.stdout
    found = json.loads(Path("b.json").read_text())
    assert [m["model"] for m in found["models"]] == LINE.split()[1:5] and found["data"]["images"] == HOW
    assert found["models"][0]["score"] == found["models"][1]["score"]


def test_what_is_given_comes_first(here: Path) -> None:
    words = ("bench", "base.pt", "fused.onnx", "--data", "digits/", *FAST)
    other = succeed(*words, "--mean", "0.5", "--json", "-").stdout
    assert json.loads(other)["data"]["images"] == "as told: mean 0.5, std 1, size 32x32, bilinear"
    assert "base.pt does not fit reparam/resnet_small: missing layer2.1.conv1.weight" in refuse(
        2, *words, "--arch", "reparam/resnet_small"
    )


def test_the_manifest_is_of_that_very_file(here: Path) -> None:
    state = torch.load("base.pt")
    state["fc.bias"] += 1
    torch.save(state, "base.pt")
    result = run("bench", "base.pt", "fused.onnx", *FAST)
    assert result.exit_code == 2 and "give it with --arch" in result.stderr


@pytest.mark.sweep
def test_python_of_ones_own_is_not_run_because_a_manifest_names_it(tmp_path: Path, monkeypatch: Any) -> None:
    prepare_digits(tmp_path, monkeypatch, count=60)
    succeed("export", "base.pt", "--arch", "digit_nets:net", *IMAGES, "--format", "onnx", "-o", "fused.onnx")
    words = ("bench", "base.pt", "fused.onnx", "--data", "digits", *FAST)
    assert refuse(2, *words) == (
        "the architecture of base.pt is digit_nets:net, as fused.onnx.json says, which is Python of your own and is "
        "not run because a file names it; give --arch digit_nets:net"
    )
    for more in (("--arch", "digit_nets:net"), ("--trust",)):
        assert "images as fused.onnx.json says: mean 0, std 1, size 8x8" in succeed(*words, *more).stdout


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"spec": 3}, "fused.onnx.json names an architecture in a form that no export writes; give --arch"),
        ({"spec": SPEC, "arch_args": []}, "fused.onnx.json names an architecture in a form that no export writes"),
        ({"spec": SPEC, "arch_args": {"width": 1 << 40}}, "fused.onnx.json asks for width of 1099511627776, which no"),
        ({"spec": SPEC, "arch_args": {"pretrained": True}}, "fused.onnx.json has 'pretrained' among the arguments"),
    ],
)
def test_what_a_manifest_names_is_looked_at_first(here: Path, told: Any, message: str) -> None:
    row = json.loads(Path("fused.onnx.json").read_text())
    Path("fused.onnx.json").write_text(json.dumps(row | {"architecture": told}))
    assert refuse(2, "bench", "base.pt", "fused.onnx", *FAST).startswith(message)


def test_the_manifest_tells_python_too(here: Path) -> None:
    quick = BenchOptions(rounds=3, memory=False)
    table = reparam.bench(["base.pt", "fused.onnx"], data="digits", options=quick)
    assert table.data is not None and table.data.images == HOW
    assert table.models[0].score == table.models[1].score
    Path("fused.onnx.json").unlink()
    with pytest.raises(InputError, match=r"arch of reparam\.load, a network of your own as arch=\"module:name\""):
        reparam.bench(["base.pt", "fused.onnx"], data="digits", options=quick)


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_a_size_that_a_program_does_not_take_is_refused_and_one_that_it_takes_is_used(here: Path) -> None:
    words = ("--arch", SPEC, "--arch-args", ARGS)
    succeed("convert", "base.pt", *words, "-o", "fixed.pt2")
    succeed("convert", "base.pt", *words, "--dynamic", "batch,height,width", "-o", "free.pt2")
    image = ("--data", "digits", "--mean", "0", "--std", "1", "--size")
    message = "fixed.pt2 takes images of 32x32, not of 40x40, as --size says"
    assert refuse(2, "bench", "fixed.pt2", *FAST, *image, "40") == message
    assert refuse(2, "verify", "free.pt2", "fixed.pt2", *image, "40") == message
    for model in (("free.pt2",), ("base.pt", *words)):
        found = json.loads(succeed("bench", *model, *FAST, *image, "40", "--json", "-").stdout)
        assert found["shapes"] == [[3, 40, 40]] and "size 40x40" in found["data"]["images"]
    sides = [word for s in "ab" for word in (f"--arch-{s}", SPEC, f"--arch-args-{s}", ARGS)]
    words = ("verify", "base.pt", "base.pt", *sides, *image, "40", "--no-adversarial", "--json", "-")
    assert any(s[-2:] == [40, 40] for s in json.loads(succeed(*words).stdout)["shapes"])
