"""Parts and inputs of names that torch or Python keeps for itself: converted, written, opened, converted again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from reparam.loading import load
from support.choice import mostly_in_sweeps
from support.cli_helpers import run

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))
NAMES = [
    "graph",
    "code",
    "meta",
    "recompile",
    "module",
    "validate_inputs",
    "range_constraints",
    "_code",
    "self",
    "class",
]
NAMES += ["add_submodule", "_graph", "None", "input_check", "weight", "__own", "__copy__", "torch"]
KINDS = ["module", "weight", "buffer"]


class Named(nn.Module):
    """Has a part of a given name, at its root or in a part of its own, beside a convolution and a batch norm."""

    def __init__(self, name: str, kind: str, nested: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.inner = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Module()
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.own, self.kind, self.nested = name, kind, nested
        owner = self.owner()
        if kind == "module":
            owner.add_module(name, nn.Conv2d(4, 4, 1))
        elif kind == "weight":
            owner.register_parameter(name, nn.Parameter(torch.randn(4, 1, 1)))
        else:
            owner.register_buffer(name, torch.randn(4, 1, 1))

    def owner(self) -> nn.Module:
        return self.inner if self.nested else self

    def forward(self, x: Tensor) -> Tensor:
        owner: Any = self.owner()
        y = self.norm(self.conv(x))
        if self.kind == "module":
            return torch.relu(owner._modules[self.own](y) + y)
        return torch.relu(y) * (owner._parameters if self.kind == "weight" else owner._buffers)[self.own]


def near(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5)


def check_everywhere(net: nn.Module, to: str, folder: Path) -> reparam.Conversion:
    """What is written with torch alone, with our own reader, and as source computes what the network computes."""
    result = reparam.convert(net, X, to=to)
    result.save(folder / "n.pt2", force=True)
    result.save_source(folder / "source", force=True)
    with torch.no_grad():
        truth = net(X)
        assert near(result.module(X), truth)
        assert near(torch.export.load(folder / "n.pt2").module()(X), truth)
        loaded = load(folder / "n.pt2").module
        assert near(loaded(X), truth)
        assert near(load(folder / "source", trust=True).module(X), truth)
        assert near(reparam.convert(loaded, X).module(X), truth)
    return result


@given(
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(KINDS),
    nested=st.booleans(),
    to=st.sampled_from(["fused", "plain"]),
)
def test_a_part_of_any_name(
    name: str, kind: str, nested: bool, to: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_everywhere(Named(name, kind, nested).eval(), to, tmp_path_factory.mktemp("names"))


@pytest.mark.parametrize("name", ["graph", "code", "meta", "recompile", "validate_inputs", "class"])
def test_remarks_tell_the_name_that_the_model_has(name: str, tmp_path: Path) -> None:
    net = Named("plain", "module", nested=False)
    net.add_module(name, nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    net.own = name
    result = check_everywhere(net.eval(), "fused", tmp_path)
    assert f"{name}.1" in [r.module for r in result.report.remarks if r.rule == "fold-batch-norm"]
    assert f"{name}.0.weight" in result.original.constants


def test_a_buffer_that_is_written_to_is_told_by_its_own_name() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("code", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.code += 1
            return x * self.code

    with pytest.raises(reparam.CaptureError, match="its own tensor 'code'"):
        reparam.convert(Counts(), X)


def test_weights_in_a_checkpoint_keep_such_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Named("graph", "module", nested=False)
    torch.save(net.state_dict(), tmp_path / "n.pt")
    monkeypatch.setattr("support.networks.graph_named", lambda: Named("graph", "module", nested=False), raising=False)
    words = ["--arch", "support.networks:graph_named", "--input-shape", "3,6,6", "-o", str(tmp_path / "o.pt2")]
    assert run("convert", str(tmp_path / "n.pt"), *words).exit_code == 0
    assert run("verify", str(tmp_path / "n.pt"), str(tmp_path / "o.pt2"), "--arch-a", *words[1:4]).exit_code == 0


# ---- inputs ------------------------------------------------------------------------------------------------------


def taking(name: str) -> nn.Module:
    """A network whose input has a given name, and whose graph holds infinities, a device and the like."""
    scope: dict[str, Any] = {"nn": nn, "T": torch}
    exec(  # a parameter of a drawn name
        "class Net(nn.Module):\n"
        "    def __init__(this):\n"
        "        super().__init__(); this.conv = nn.Conv2d(3, 4, 3)\n"
        f"    def forward(this, {name}):\n"
        f"        a, b = this.conv({name}).chunk(2, 1)\n"
        f"        mask = T.ones(a.shape[2:], dtype=T.bool, device={name}.device).triu(1)\n"
        "        return (a + b).masked_fill(mask, float('-inf')).softmax(-1)\n",
        scope,
    )
    net: nn.Module = scope["Net"]()
    return net


OF_INPUTS = ("inf", "nan", "torch", "device", "fx_pytree", "pytree", "operator", "F", "graph", "x")


@pytest.mark.parametrize("name", mostly_in_sweeps(OF_INPUTS, "inf", "torch", "F", "graph"))
def test_an_input_of_any_name(name: str, tmp_path: Path) -> None:
    """torch writes `inf` and `torch` into the code of a graph, where an input of that name would be read instead."""
    check_everywhere(taking(name).eval(), "fused", tmp_path)


def test_the_module_of_an_exported_program_is_converted() -> None:
    net = Named("plain", "module", nested=False).eval()
    module = torch.export.export(net, (X,)).module()
    assert near(reparam.convert(module, X).module(X), net(X))


@pytest.mark.parametrize("name", ["graph", "class", "plain"])
def test_an_exported_program_is_converted_and_verified(name: str) -> None:
    net = Named(name, "module", nested=False).eval()
    exported = torch.export.export(net, (X,))
    result = reparam.convert(exported)
    assert near(result.module(X), net(X))
    assert reparam.verify(exported, result.module, X).equivalent
