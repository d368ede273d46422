"""Classes, channels and heads that a checkpoint's shapes tell, and the words to type where they do not tell all."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reparam.errors import InputError
from reparam.loading import build_architecture, infer, load

SMALL = "timm/test_resnet"
VISION = "torchvision/squeezenet1_1"
MOBILE = "torchvision/mobilenet_v3_small"


def saved(net: nn.Module, folder: Path) -> Path:
    torch.save({"state_dict": {f"model.{k}": v for k, v in net.state_dict().items()}}, folder / "net.pt")
    return folder / "net.pt"


@pytest.mark.parametrize(
    "spec, args, told",
    [
        (SMALL, {"num_classes": 7}, "num_classes 7"),
        (SMALL, {"in_chans": 1}, "in_chans 1"),
        (SMALL, {"in_chans": 4, "num_classes": 2}, "in_chans 4 and num_classes 2"),
        (SMALL, {"num_classes": 0}, "num_classes 0"),
        (SMALL, {"num_classes": 0, "in_chans": 2}, "in_chans 2 and num_classes 0"),
        (MOBILE, {"num_classes": 7}, "num_classes 7"),
        (MOBILE, {"in_chans": 1, "num_classes": 3}, "in_chans 1 and num_classes 3"),
        (MOBILE, {"num_classes": 0}, "num_classes 0"),
    ],
)
def test_arguments_that_the_shapes_tell(spec: str, args: dict[str, Any], told: str, tmp_path: Path) -> None:
    net = build_architecture(spec, args, seed=1).module
    loaded = load(saved(net, tmp_path), arch=spec)
    assert loaded.arch_args == args and loaded.notes == (f"{spec} is built with {told}, as the weights have it",)
    assert loaded.input_shapes is not None and loaded.input_shapes[0][0] == args.get("in_chans", 3)
    x = torch.randn(1, args.get("in_chans", 3), 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), net(x))


def test_a_network_of_torchvision_with_other_ends_keeps_the_rest() -> None:
    plain = build_architecture(MOBILE, seed=1).module
    other = build_architecture(MOBILE, {"in_chans": 1, "num_classes": 0}, seed=1).module
    first, last = plain.get_submodule("features.0.0"), other.get_submodule("classifier.3")
    conv = other.get_submodule("features.0.0")
    assert isinstance(conv, nn.Conv2d) and isinstance(first, nn.Conv2d) and isinstance(last, nn.Identity)
    assert (conv.stride, conv.padding, conv.bias) == (first.stride, first.padding, first.bias)
    assert other(torch.randn(2, 1, 64, 64)).shape == (2, 1024)
    with pytest.raises(InputError, match="num_classes 0 needs a network whose last layer is linear"):
        build_architecture(VISION, {"num_classes": 0})


@pytest.mark.parametrize("args", [{"num_classes": 1000}, {"num_classes": 9}, {"in_chans": 3}])
def test_arguments_that_are_given_are_not_changed_but_told(args: dict[str, Any], tmp_path: Path) -> None:
    net = build_architecture(SMALL, {"num_classes": 7, "in_chans": 1}).module
    path = saved(net, tmp_path)
    with pytest.raises(InputError, match="wrong shape") as error:
        load(path, arch=SMALL, arch_args=args)
    given = ast.literal_eval(str(error.value).partition("it fits with arch_args=")[2])
    assert load(path, arch=SMALL, arch_args=given).notes == ()


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Dropout(), nn.Linear(96, 5)),
        nn.Sequential(nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 5)),
        nn.Sequential(nn.BatchNorm1d(96), nn.Linear(96, 5)),
    ],
)
def test_a_head_that_was_replaced_is_named(head: nn.Module, tmp_path: Path) -> None:
    net = build_architecture(SMALL).module
    net.fc = head
    with pytest.raises(InputError, match=r'its .fc. was replaced by other layers.*arch="package\.module:function"'):
        load(saved(net, tmp_path), arch=SMALL)


def test_another_network_is_not_made_to_fit(tmp_path: Path) -> None:
    state = build_architecture("timm/test_resnet").module.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith(("layer4", "fc"))}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(InputError, match="name the right architecture with arch, or its arguments with arch_args"):
        load(tmp_path / "net.pt", arch=SMALL)


# ---- zoos that are not there -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing, told",
    [
        (["torchvision", "timm"], "torchvision and timm are missing, whose .*; install reparam[zoo] (pip install"),
        (["timm"], "those of timm were not, since it is missing: install reparam[zoo]"),
        ([], "is not among the 1 candidates that were compared; give it with arch, a network"),
    ],
)
def test_what_is_missing_is_named(
    missing: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer, "missing_zoos", lambda: missing)
    monkeypatch.setattr(infer, "_names", lambda found: [SMALL])
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "net.pt")
    with pytest.raises(InputError) as error:
        load(tmp_path / "net.pt")
    begin, _, end = told.partition(".*")
    assert begin in str(error.value) and end in str(error.value)
