"""`verify` on samples: what agrees, what is named, and a difference that random inputs do not show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import InputError
from support.cli_helpers import prepare_folder, refuse, run

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


class Clamped(nn.Module):
    """The same for inputs up to 20, which are all that is drawn."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x.clamp(max=20.0))
        return out


def test_a_conversion_agrees_on_samples_of_any_source() -> None:
    net = classifier()
    converted = reparam.convert(net, X)
    data = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = reparam.verify(net, converted, X, trials=2, adversarial=False, data=[data])
    assert found.equivalent and found.data is not None
    assert (found.data.samples, found.data.share, found.data.changed) == (40, 1.0, 0)
    assert found.data.error < 1e-6
    assert "40 samples: error" in repr(found) and "100.00 % of decisions are equal" in repr(found)
    assert found.to_dict()["data"]["samples"] == 40
    assert reparam.verify(net, converted, X, trials=1, adversarial=False).to_dict()["data"] is None
    labelled = [(data, torch.full((40,), 77))]  # labels that are none of its classes are not looked at
    again = reparam.verify(net, converted, X, trials=1, adversarial=False, data=labelled)
    assert again.data is not None and again.data.samples == 40


def test_unlike_outputs_are_different_with_samples_too() -> None:
    data = torch.randn(40, 3, 8, 8)
    for other, compared in ((nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), False), (Decided(), True)):
        found = reparam.verify(classifier(), other, X, trials=1, adversarial=False, data=[data])
        assert not found.equivalent and found.reason.startswith("an output has")
        assert (found.data is not None) == compared  # decisions beside scores are compared with theirs


class Decided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).argmax(1)


def test_what_random_inputs_do_not_show_the_samples_do_and_they_are_named() -> None:
    net = classifier()
    data = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data[7] *= 60.0
    found = reparam.verify(net, Clamped(net), X, trials=2, adversarial=False, data=[data])
    assert not found.equivalent and found.data is not None and found.verdict == "different"
    assert found.data.worst is not None and found.data.worst.input == "batch 0 of the samples[7]"
    assert len(found.data.differing) == 1
    assert "on the samples they differ by" in found.reason and "batch 0 of the samples[7]" in found.reason
    page = found._repr_html_()
    assert page.startswith("<table><caption>Verdict: different") and "samples[7]" in page


def test_the_command_names_the_samples_with_the_largest_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_folder(tmp_path, monkeypatch)
    np.save("x.npy", np.random.default_rng(0).normal(size=(40, 3, 16, 16)).astype(np.float32))
    state = torch.load("tiny.pt")
    state["4.weight"][0] += 0.2
    torch.save(state, "other.pt")
    words = ("verify", "tiny.pt", "other.pt", "--arch-a", "cli_nets:tiny", "--arch-b", "cli_nets:tiny")
    words += ("--trials", "2", "--no-adversarial")
    shown = run(*words, "--data", "x.npy", "--json", "v.json")
    assert shown.exit_code == 1
    found = json.loads(Path("v.json").read_text())["data"]
    assert found["samples"] == 40 and 0.1 < found["share"] < 1.0
    assert found["worst"]["input"].startswith("x.npy[") and found["worst"]["error"] > 0.0
    assert f"\n{found['worst']['input']}: error " in shown.stdout
    assert f"{100 * found['share']:.2f} % of decisions are equal" in shown.stdout


def test_samples_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_folder(tmp_path, monkeypatch)
    np.save("x.npy", np.zeros((4, 3, 9, 9), np.float32))
    words = ("verify", "tiny.pt", "tiny.pt", "--arch-a", "cli_nets:tiny", "--arch-b", "cli_nets:tiny", "--trials", "2")
    assert "x.npy holds float32 samples of shape [4, 3, 9, 9]" in refuse(
        2, *words, "--no-adversarial", "--data", "x.npy"
    )
    with pytest.raises(InputError, match="holds no samples"):
        (tmp_path / "empty").mkdir()
        reparam.verify(classifier(), classifier(), X, trials=1, adversarial=False, data="empty")
