"""`--key`, `--prefix` and `--pretrained` of every verb that takes a model; folders and inert values on the way."""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reparam.cli import app as cli_app
from reparam.cli.outputs import default_output
from reparam.cli.which_weights import spelled_out
from reparam.loading import pretrained
from support.cli_helpers import prepare_folder, refuse, run, succeed, tiny

ARCH = ("--arch", "cli_nets:tiny")
ONE = ("convert", "explain", "export", "prune", "recalibrate", "init", "analyze", "run", "bench")
TWO = ("verify", "diff", "view")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`both.pt`: the network under two keys; `flat.pt`: under two prefixes; `x.npy`: samples."""
    prepare_folder(tmp_path, monkeypatch)
    torch.manual_seed(1)
    first = torch.load("tiny.pt")
    second = {k: v * 0.5 if v.is_floating_point() else v for k, v in first.items()}
    args = argparse.Namespace(lr=0.1, out=Path("runs"))
    torch.save({"model": first, "teacher": second, "args": args, "best": np.float64(1)}, "both.pt")
    flat = {f"{name}.{k}": v for name, state in (("model", first), ("teacher", second)) for k, v in state.items()}
    torch.save(flat, "flat.pt")
    torch.save(second, "second.pt")
    np.save("x.npy", np.random.default_rng(0).standard_normal((16, 3, 16, 16), dtype=np.float32))
    return tmp_path


def test_all_verbs_that_take_a_model_have_the_options() -> None:
    verbs = {
        c.callback.__name__: inspect.signature(c.callback).parameters
        for c in cli_app.app.registered_commands
        if c.callback
    }
    for verb in ONE:
        assert {"key", "prefix"} <= verbs[verb].keys(), verb
        assert ("pretrained" in verbs[verb]) == (verb not in ("run", "bench")), verb
    for verb in TWO:
        assert {f"{n}_{s}" for n in ("key", "prefix", "pretrained") for s in "ab"} <= verbs[verb].keys()
    taking = {v for v, parameters in verbs.items() if "arch" in parameters or "arch_a" in parameters}
    assert taking == {*ONE, *TWO}


@pytest.mark.parametrize("words", [("both.pt", "--key", "teacher"), ("flat.pt", "--prefix", "teacher.")])
def test_convert_takes_the_weights_that_are_meant(words: tuple[str, ...]) -> None:
    succeed("convert", *words, *ARCH, "-o", "out.pt2", "--json", "report.json", "-q")
    x = torch.from_numpy(np.load("x.npy"))
    net = tiny()
    net.load_state_dict(torch.load("second.pt"))
    found = torch.export.load("out.pt2").module()(x)
    assert torch.allclose(found, net(x), atol=1e-5)
    assert json.loads(Path("report.json").read_text())["input"] == words[0]


def test_what_was_taken_is_said_with_the_option_for_the_others() -> None:
    told = succeed("explain", "both.pt", *ARCH).stderr
    assert "note: the weights under 'model' are used; the file also holds teacher; take it with --key teacher" in told
    told = succeed("explain", "flat.pt", *ARCH).stderr
    assert "note: the weights under 'model' are used" in told and "--prefix teacher. takes another copy" in told


def test_both_sides_of_a_comparison() -> None:
    sides = ("--arch-a", "cli_nets:tiny", "--arch-b", "cli_nets:tiny")
    succeed("verify", "both.pt", "flat.pt", *sides, "--key-a", "teacher", "--prefix-b", "teacher")
    assert run("verify", "both.pt", "flat.pt", *sides, "--key-a", "teacher", "--prefix-b", "model").exit_code == 1
    told = succeed("diff", "both.pt", "second.pt", *sides, "--key-a", "teacher").stdout
    assert "teacher" not in told.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        ("run", "-i", "x.npy", "-o", "y.npy"),
        ("bench", "--rounds", "3", "--no-memory"),
        ("export", "-f", "onnx", "-o", "out.onnx"),
        ("prune", "--calibrate", "x.npy", "--macs", "0.9", "--no-refit", "-o", "out.pt2"),
        ("recalibrate", "--calibrate", "x.npy", "-o", "out.pt"),
        ("init", "--method", "he", "-o", "out.pt"),
        ("analyze", "--what", "moments"),
    ],
)
def test_the_other_verbs(words: tuple[str, ...]) -> None:
    verb, *rest = words
    told = refuse(2, verb, "both.pt", *ARCH, "--key", "nothing", *rest)
    assert told.startswith("both.pt has no 'nothing'; choose from --key model, or --key teacher")
    told = refuse(2, verb, "flat.pt", *ARCH, "--prefix", "nothing", *rest)
    assert told.startswith("flat.pt has no tensor whose name begins with 'nothing.'; names begin with model., teacher.")


def test_run_takes_the_weights_that_are_meant() -> None:
    succeed("run", "both.pt", *ARCH, "--key", "teacher", "-i", "x.npy", "-o", "y.npy", "-q")
    succeed("run", "second.pt", *ARCH, "-i", "x.npy", "-o", "z.npy", "-q")
    assert np.array_equal(np.load("y.npy"), np.load("z.npy"))


def test_bench_takes_the_weights_that_are_meant_of_every_checkpoint() -> None:
    words = ("both.pt", "flat.pt", *ARCH, "--rounds", "3", "--data", "x.npy", "--no-memory", "--json", "-")
    told = run("bench", *words, "--key", "teacher")
    assert told.exit_code == 2 and "flat.pt has no 'teacher'" in told.stderr
    torch.save({"teacher": torch.load("second.pt")}, "flat.pt")
    found = json.loads(succeed("bench", *words, "--key", "teacher", "-q").stdout)
    assert "1.0" in json.dumps(found)


def test_the_second_model_of_analyze() -> None:
    told = refuse(2, "analyze", "both.pt", *ARCH, "--key-b", "teacher")
    assert told.startswith("--arch-b is for a second model")
    succeed(
        "analyze", "both.pt", "both.pt", *ARCH, "--arch-b", "cli_nets:tiny", "--key-b", "teacher", "--what", "moments"
    )


# ---- folders -----------------------------------------------------------------------------------------------------


def test_a_folder_of_shards_is_converted_beside_itself() -> None:
    state = torch.load("tiny.pt")
    Path("net").mkdir()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, keys in zip(names, (list(state)[::2], list(state)[1::2]), strict=True):
        save_file({k: state[k] for k in keys}, f"net/{name}")
    assert default_output("net/", None, "fused") == Path("net-fused.pt2")
    places = {k: names[i % 2] for i, k in enumerate(state)}
    Path("net/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    succeed("explain", "net/model.safetensors.index.json", *ARCH, "-q")
    assert default_output("net/model.safetensors.index.json", None, "fused") == Path("net/model-fused.pt2")
    succeed("export", "net", *ARCH, "-f", "onnx", "-o", "net.onnx", "--dynamic", "none", "-q")
    assert "state_sha256" in json.loads(Path("net.onnx.json").read_text())["source"]
    places["0.weight"] = "../../etc/passwd"
    Path("net/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    told = refuse(2, "explain", "net", *ARCH)
    assert "which is no name of a file beside it" in told


@pytest.mark.parametrize("payload", ["\x1b[31mred", "a\nreparam: b", "\u202e", "[bold]x[/]"])
def test_texts_of_files_are_printed_as_texts(payload: str) -> None:
    state = torch.load("tiny.pt")
    torch.save({payload: state, f"{payload}2": state}, "two.pt")
    Path("hub").mkdir()
    save_file(state, "hub/model.safetensors")
    Path("hub/config.json").write_text(json.dumps({"architecture": payload}))
    Path("index").mkdir()
    Path("index/model.safetensors.index.json").write_text(json.dumps({"weight_map": {payload: payload}}))
    for words in (("two.pt", *ARCH), ("hub",), ("index", *ARCH), ("two.pt", *ARCH, "--key", payload + "3")):
        done = run("explain", *words)
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
        assert done.stderr.removesuffix("\n").isprintable()


# ---- published weights -------------------------------------------------------------------------------------------


def test_words_without_a_name_behind_pretrained() -> None:
    assert spelled_out(["convert", "--pretrained"]) == ["convert", "--pretrained=default"]
    assert spelled_out(["--pretrained", "--arch", "x"]) == ["--pretrained=default", "--arch", "x"]
    assert spelled_out(["--pretrained", "V2", "-q"]) == ["--pretrained", "V2", "-q"]
    assert spelled_out(["--pretrained-b", "-q"]) == ["--pretrained-b=default", "-q"]
    assert spelled_out(["--pretrained=V2"]) == ["--pretrained=V2"]
    assert spelled_out([]) == []


def test_published_weights_in_place_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = pretrained.build_pretrained

    def build(spec: str, args: Any, name: str) -> Any:
        from reparam.loading import build_architecture

        asked.append((spec, name))
        if name == "none":
            return real(spec, args, name)
        return pretrained.Pretrained(build_architecture("cli_nets:tiny", args, seed=1), f"{spec} of {name}")

    monkeypatch.setattr("reparam.loading.model.build_pretrained", build)
    spec = ("--arch", "timm/test_resnet")
    done = succeed("explain", *spec, "--pretrained", "--json", "report.json")
    assert "note: the published weights timm/test_resnet of default are used" in done.stderr
    assert "random weights" not in done.stderr
    assert json.loads(Path("report.json").read_text())["input"] == "timm/test_resnet of default"
    sides = ("--arch-a", "timm/test_resnet", "--arch-b", "cli_nets:tiny")
    told = succeed("diff", "-", "-", *sides, "--pretrained-a", "a1").stdout
    assert told.startswith("timm/test_resnet of a1 and cli_nets:tiny (random weights, seed 0):")
    assert asked == [("timm/test_resnet", "default"), ("timm/test_resnet", "a1")]
    told = refuse(2, "explain", *spec, "--pretrained", "none")
    assert told.startswith("timm/test_resnet has no published weights 'none'; choose from r160_in1k")
    told = refuse(2, "explain", "tiny.pt", *spec, "--pretrained")
    assert told.startswith("--pretrained takes published weights in place of tiny.pt")
    assert "there is nothing to load" in refuse(2, "explain", "--pretrained")
