"""What a file calls its architecture is tried first, wherever training scripts put it; keys and shapes decide."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reparam.loading import build_architecture, load
from reparam.loading.checkpoint import load_checkpoint
from reparam.loading.pickle_machine import PAIRS, Global, Made
from reparam.loading.told_names import told_names

NAME = "test_resnet"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(build_architecture(f"timm/{NAME}", {}).module.state_dict())


@pytest.mark.parametrize(
    "beside",
    [
        {"arch": NAME},
        {"args": argparse.Namespace(lr=0.1, model=NAME)},
        {"hyper_parameters": {"model_name": f"timm/{NAME}.r160_in1k"}},
    ],
)
@pytest.mark.parametrize("how", [{}, {"zipped": False}, {"protocol": 4}, {"trust": True}])
def test_the_name_in_the_file_is_the_first_candidate(
    how: dict[str, Any], beside: dict[str, Any], state: dict[str, Tensor], tmp_path: Path
) -> None:
    layout = {"_use_new_zipfile_serialization": how.get("zipped", True), "pickle_protocol": how.get("protocol", 2)}
    torch.save({"state_dict": state, **beside}, tmp_path / "best.pt", **layout)
    loaded = load(tmp_path / "best.pt", trust=how.get("trust", False))
    assert loaded.spec == f"timm/{NAME}" and loaded.arch_inferred
    assert loaded.notes == (f"the architecture is timm/{NAME}, which the file names",)


def test_a_name_that_does_not_fit_is_left_alone(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": state, "arch": "resnet18"}, tmp_path / f"{NAME}.pt")
    loaded = load(tmp_path / f"{NAME}.pt")
    assert loaded.spec == f"timm/{NAME}" and loaded.notes == ()


def test_averages_need_no_name_either(state: dict[str, Tensor], tmp_path: Path) -> None:
    averaged = {"steps": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}}
    torch.save({"state_dict": averaged}, tmp_path / f"{NAME}.pt")
    assert load(tmp_path / f"{NAME}.pt").spec == f"timm/{NAME}"


@pytest.mark.parametrize(
    "value, names",
    [
        ({"arch": "a1", "model": 3, "args": argparse.Namespace(arch="b1", model="a1")}, ("a1", "b1")),
        ({"cfg": types.SimpleNamespace(model="c1"), "opt": {"model_name": "hf_hub/d1.e"}}, ("hf_hub/d1.e", "c1")),
        ({"arch": "a b", "model": "../x", "architecture": "x" * 200, "model_name": 3}, ()),
        ({"arch": None, "args": [1]}, ()),
        ([1], ()),
    ],
)
def test_names_are_found_where_scripts_put_them(value: Any, names: tuple[str, ...], tmp_path: Path) -> None:
    assert told_names(value) == names
    if isinstance(value, dict):
        torch.save({"w": torch.ones(1), **value}, tmp_path / "x.pt")
        assert load_checkpoint(tmp_path / "x.pt").names == names


def test_states_in_states_without_end_are_not_followed() -> None:
    made = Made(Global("argparse", "Namespace"))
    for _ in range(50_000):
        made = Made(made.function, state=made)
    assert told_names(Made(PAIRS, pairs=[("args", made), ("arch", "a1")])) == ("a1",)
