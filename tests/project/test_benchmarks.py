"""The scripts of benchmarks/ that others build on: the checkpoint maker of the demo, and that every script starts."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from reparam.errors import InputError
from support.warm_process import WarmProcess

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
SCRIPTS = sorted(p.name for p in BENCHMARKS.glob("*.py") if "__main__" in p.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_starts_and_says_what_it_does(script: str, warm: WarmProcess) -> None:
    done = warm.script(BENCHMARKS / script, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_the_checkpoint_maker_writes_a_state_dict_with_healthy_statistics(tmp_path: Path, warm: WarmProcess) -> None:
    done = warm.script(BENCHMARKS / "make_checkpoint.py", "torchvision/resnet18", str(tmp_path / "resnet18.pt"))
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "resnet18.pt", weights_only=True)
    assert len(state) == 122
    assert all(bool(torch.isfinite(v).all()) for v in state.values() if v.is_floating_point())
    assert float(state["bn1.running_var"].std()) > 0


def test_figures_are_recorded_and_those_that_became_worse_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    common = importlib.import_module("common")
    common.record({"unasked": 1.0})
    (tmp_path / "figures.json").write_text('{"a": 1.0}')
    monkeypatch.setenv(common.FIGURES, str(tmp_path / "figures.json"))
    common.record({"b": 2.0})
    assert json.loads((tmp_path / "figures.json").read_text()) == {"a": 1.0, "b": 2.0}
    before, after = {"a": 1.0, "b": 2.0, "gone": 1.0}, {"a": 1.11, "b": 2.19, "new": 9.0}
    assert common.regressions(before, after) == ["a: 1.11, was 1.00"]


def test_a_library_stands_for_its_networks_and_says_when_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    zoos, page = importlib.import_module("zoos"), importlib.import_module("coverage_page")
    known = ["monai/unet", "timm/vit", "monai/vit"]
    monkeypatch.setattr(zoos, "missing", lambda library: "" if library == "monai" else f"{library} does not import")
    assert zoos.chosen(["monai"], known) == ["monai/unet", "monai/vit"]
    assert zoos.chosen(["timm/vit", "diffusers/dit"], known) == ["timm/vit", "diffusers/dit"]
    assert zoos.chosen([], known) == known
    with pytest.raises(InputError, match="diffusers does not import"):
        zoos.chosen(["timm", "diffusers"], known)
    refused = {"outcome": "refused", "why": "CaptureError: a | b"}
    rows = [{"name": "monai/unet", "family": "segmentation", "fused": refused, "on": "2026-05-01"}]
    limits = {"image": 128, "large": 5, "huge": 20, "kept": 2, "minutes": 15, "gib": 12}
    text = page.page(rows, {"monai": 2, "diffusers": 0}, limits)
    assert "1 of the 2 networks of monai, none of diffusers, which is not installed." in text
    assert "| `monai/unet` | fused | refused | CaptureError: a \\| b |" in text
    assert "They were tried on 2026-05-01, each" in text
    text = page.page([*rows, {**rows[0], "name": "monai/vit", "on": "2026-04-30"}], {"monai": 2}, limits)
    assert "They were tried from 2026-04-30 to 2026-05-01, each" in text


def test_each_listed_network_has_one_name_and_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    zoos = importlib.import_module("zoos")
    names = [n for library in zoos.LIBRARIES for n in zoos.names(library)]
    assert len(names) == len(set(names))
    assert len(zoos.names("transformers")) >= 60
    assert {zoos.family(n) for n in names if n.startswith("ultralytics/")} == set(zoos.YOLO)


def test_runs_of_equal_blocks_are_cut_to_two_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cut_runs = importlib.import_module("shortened").cut_runs

    def block(width: int, *more: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), *more)

    layers = nn.Sequential(block(4), *(block(8) for _ in range(4)), block(8, nn.Dropout()), *(block(8) for _ in "ab"))
    module, other = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU(), layers), nn.Module()
    assert cut_runs(module, (nn.Sequential,)) == 2
    assert [len(m) for m in layers] == [2, 2, 2, 3, 2, 2]
    assert len(module) == 4  # single layers are no blocks
    assert module(torch.rand(3, 4)).shape == (3, 8)
    for name in "abc":
        other.add_module(name, block(8))
    assert (cut_runs(other, (nn.Sequential,)), cut_runs(other, (nn.Module,))) == (0, 1)


@pytest.mark.sweep
@pytest.mark.parametrize("network", ["CapsNet", "MoCapsNet, reversible"])
def test_capsule_networks_learn_digits_and_keep_every_prediction(network: str) -> None:
    """At least 97 % of the digits that were not trained on; converted and in onnxruntime, the same for all 1,797."""
    work = json.dumps({"network": network, "epochs": 25})
    command = [sys.executable, str(BENCHMARKS / "train_mocapsnet.py"), "--worker", work]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["accuracy"] >= 0.97
    assert result["same"] == {"fused": 1797, "plain": 1797, "onnx": 1797}


def test_memory_of_activations_counts_what_is_alive_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    counting = importlib.import_module("plain_forms").Alive
    x, size = torch.rand(1, 3, 8, 8), 3 * 8 * 8 * 4

    def peak(run: Callable[[], object]) -> int:
        with torch.inference_mode(), counting() as counted:
            run()
        assert counted.now == 0
        return int(counted.peak)

    def residual() -> None:
        first = torch.relu(x)
        first + torch.relu(torch.relu(first))

    assert peak(lambda: torch.relu(torch.relu(torch.relu(x)))) == 2 * size
    assert peak(residual) == 3 * size
    assert peak(lambda: x.view(3, 64)) == 0, "a view of the input takes nothing"


def test_the_coverage_of_networks_has_processor_time_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that somebody ends is not one that took too long."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    coverage = importlib.import_module("coverage")
    monkeypatch.setattr(coverage, "PROCESSES", multiprocessing.get_context("fork"))
    too_long = "takes longer than 15 minutes of processor time"
    ended = {signal.SIGXCPU: too_long, signal.SIGKILL: "ends with exit status -9"}
    for number, told in ended.items():
        monkeypatch.setattr(coverage, "_worker", lambda *_, number=number: os.kill(os.getpid(), number))
        assert coverage._alone("timm/vit") == {"name": "timm/vit", "failed": told}
    monkeypatch.setattr(coverage, "_worker", lambda name, answer: answer.send({"name": name, "fused": {}}))
    assert coverage._alone("timm/vit") == {"name": "timm/vit", "fused": {}, "on": datetime.date.today().isoformat()}
    monkeypatch.setattr(coverage, "_worker", lambda _, answer: answer.send({"error": "KeyError"}))
    assert coverage._alone("timm/vit") == {"name": "timm/vit", "failed": "KeyError"}


def test_pruning_goes_on_where_a_record_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    pruning = importlib.import_module("pruning")
    setting = pruning.Setting(budgets=(0.4, 0.2), epochs=1, only=("coupled",))
    file = tmp_path / "pruning.jsonl"

    def measured(name: str, seed: int, setting: object, known: Collection[object]) -> Iterator[object]:
        figures = (("base", 1.0, 90.0), ("reparam, coupled", 0.4, 80.5), ("reparam, coupled", 0.2, None))
        yield from (f for f in figures if f[:2] not in known)

    with monkeypatch.context() as patched:
        patched.setattr(pruning, "measure", measured)
        pruning.go_on("resnet20", 3, setting, file)
        lines = file.read_text().splitlines()
        file.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])  # as it is when a run is cut off
        known = pruning.record_of("resnet20", 3, setting, file)
        assert known == {("base", 1.0): 90.0, ("reparam, coupled", 0.4): 80.5}
        complete = {**known, ("reparam, coupled", 0.2): None}
        pruning.go_on("resnet20", 3, setting, file)
        assert pruning.record_of("resnet20", 3, setting, file) == complete
    monkeypatch.setattr(pruning, "digits", lambda: pytest.fail("a network is trained for figures that are known"))
    assert not list(pruning.measure("resnet20", 3, setting, complete))
    assert pruning.record_of("resnet20", 4, setting, file) == {}
    assert pruning.record_of("resnet20", 3, dataclasses.replace(setting, latency=True), file) == {}
    text = pruning.shown("resnet20", [complete, {("base", 1.0): 92.0}], setting)
    assert "### resnet20, 91.00 ± 12.71 before" in text and "| reparam, coupled | 80.50 | — |" in text
