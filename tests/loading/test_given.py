"""`convert`, `explain` and `export` of files: what the command line takes, Python takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam.errors import InputError, UnsafeFileError
from reparam.loading import LoadedModel, load
from support.checkpoint_nets import SPEC, Small, small_state

STATE, OTHER = small_state(1), small_state(2)
X = torch.randn(3, 3, 8, 8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("given") / "net.pt"
    torch.save({"model": {f"net.{k}": v for k, v in STATE.items()}, "ema": OTHER}, found)
    return found


def expected(state: dict[str, torch.Tensor]) -> torch.Tensor:
    net = Small().eval()
    net.load_state_dict(state)
    with torch.no_grad():
        result: torch.Tensor = net(X)
    return result


def close(module: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    with torch.no_grad():
        return torch.allclose(module(X), expected(state), rtol=0, atol=1e-6)


@pytest.mark.parametrize("inputs", [(), (torch.randn(2, 3, 8, 8),)])
def test_a_file_is_converted_as_the_command_does(inputs: tuple[Any, ...], path: Path) -> None:
    result = reparam.convert(str(path), *inputs, arch=SPEC)
    assert close(result.module, STATE)
    assert (result.report.input, result.report.arch, result.report.arch_inferred) == (str(path), SPEC, False)
    (note, *_) = (r.message for r in result.report.remarks if r.rule == "capture")
    assert note == "the weights under 'model' are used; the file also holds ema; take it with --key ema"


def test_the_keywords_of_a_file(path: Path) -> None:
    assert close(reparam.convert(path, arch=SPEC, key="ema").module, OTHER)
    assert close(reparam.convert(path, arch=SPEC, key="model", prefix="net").module, STATE)
    assert reparam.explain(path, X, arch=SPEC, key="ema").after.norms == 0


def test_a_loaded_model_and_a_program(path: Path, tmp_path: Path) -> None:
    loaded = load(path, arch=SPEC, key="ema")
    result = reparam.convert(loaded)
    assert close(result.module, OTHER) and result.report.arch == SPEC
    result.save(tmp_path / "net.pt2")
    again = reparam.convert(tmp_path / "net.pt2")
    assert close(again.module, OTHER) and again.report.arch is None


def test_export_takes_them_too(path: Path, tmp_path: Path) -> None:
    exported = reparam.export(path, X, path=tmp_path / "net.onnx", arch=SPEC, key="ema", dynamic=())
    assert exported.path.exists() and exported.report.input == str(path)


def test_other_functions_take_files_too(path: Path, tmp_path: Path) -> None:
    loaded = load(path, arch=SPEC)
    whole, data = tmp_path / "net.pt2", torch.randn(40, 3, 8, 8)
    reparam.convert(loaded, X).save(whole)
    net = loaded.module
    assert reparam.analyze(whole, what="moments")["moments"].rows
    found, same = reparam.analyze(loaded, X), reparam.analyze(net, X)
    assert found["moments"] == same["moments"] and found.notes[0].startswith("the weights under 'model' are used")
    made = [reparam.init(m, X, method="he").module.state_dict()["conv.weight"] for m in (loaded, net)]
    assert torch.equal(*made) and not torch.equal(made[0], STATE["conv.weight"])
    measured = reparam.recalibrate(loaded, data=data).module
    assert close(measured, reparam.recalibrate(net, X, data=data).module.state_dict())
    pruned = reparam.prune(whole, (), data, macs=0.8, form="residual")
    assert pruned.report.after.macs <= 0.8 * pruned.report.before.macs
    refitted = reparam.refit(pruned, loaded, data)
    assert refitted.report.after.macs == pruned.report.after.macs


@pytest.mark.parametrize(
    "model, how, told",
    [
        ("absent.pt", {}, r"there is no file absent\.pt"),
        ("", {}, "the model has no name"),
        ("a\0b", {}, "has a NUL in its name"),
        (nn.Linear(2, 2), {"key": "a"}, "key is for a model that is a file; leave it out"),
        (nn.Linear(2, 2), {"trust": True}, "trust is for a model that is a file"),
        ({"a": 1}, {}, "is wanted, not a dict"),
        (3, {"arch": SPEC}, "arch is for a model that is a file"),
    ],
)
def test_what_is_no_file(model: Any, how: dict[str, Any], told: str) -> None:
    for function in (reparam.convert, reparam.explain):
        with pytest.raises(InputError, match=told):
            function(model, X, **how)


def test_a_file_that_tells_no_inputs(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "net.pt")
    how: dict[str, Any] = {"arch": "torch.nn:Linear", "arch_args": {"in_features": 2, "out_features": 3}}
    with pytest.raises(InputError, match=r"the inputs of .*net\.pt are not known; give examples of them"):
        reparam.convert(tmp_path / "net.pt", **how)
    assert reparam.convert(tmp_path / "net.pt", torch.randn(2, 2), **how).report.equivalent


def test_a_file_that_runs_code_needs_trust(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 3)), tmp_path / "net.pt")
    with pytest.raises(UnsafeFileError, match="pass trust=True"):
        reparam.convert(tmp_path / "net.pt", torch.randn(2, 2))
    assert reparam.convert(tmp_path / "net.pt", torch.randn(2, 2), trust=True).report.equivalent


def test_twins_are_told() -> None:
    net = Small().eval()
    loaded = LoadedModel(net, spec="a/b", arch_inferred=True, twins=("c/d",), input_shapes=((3, 8, 8),))
    report = reparam.convert(loaded).report
    notes = [r.message for r in report.remarks if r.rule == "capture"]
    assert notes == ["it is taken as a/b, but its keys and shapes also fit c/d; name the right one with arch"]


def test_what_it_shows_counts_weights_as_reports_do() -> None:
    loaded = load(None, arch="reparam/resnet_small")
    found, report = loaded.as_dict(), reparam.convert(loaded).report
    assert found["weights"] == report.before.params
    assert found["parameters"] == sum(p.numel() for p in loaded.module.parameters()) < found["weights"]
    assert f"{found['parameters']:,} ({found['weights']:,} with buffers, as reports count)" in repr(loaded)
