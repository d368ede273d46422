"""Outputs that are not wanted go, with the calls and weights that only they need; the rest is verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from reparam import convert, explain, verify
from reparam.cli.app import app
from reparam.errors import CaptureError, InputError
from support.helpers import Lambda


class Heads(nn.Module):
    """A trunk with a head, an auxiliary head, and features."""

    def __init__(self, kind: str = "dict") -> None:
        super().__init__()
        self.kind = kind
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)
        self.aux = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1))

    def forward(self, x: Tensor) -> Any:
        y = self.trunk(x)
        found = {"out": self.head(y), "aux": self.aux(y), "features": [y, y.mean((2, 3))]}
        return found if self.kind == "dict" else tuple(found.values())


X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("to", ["fused", "plain"])
def test_one_output_comes_by_itself(to: str) -> None:
    model = Heads().eval()
    done = convert(model, X, to=to, outputs=("out",))
    torch.testing.assert_close(done.module(X), model(X)["out"], rtol=1e-4, atol=1e-5)
    assert done.report.before.convs == 2 and not any("aux" in name for name, _ in done.module.named_parameters())
    assert any("kept the outputs out; 3 of 4 results go" in r.message for r in done.report.remarks)


def test_several_come_as_a_dict_and_parts_by_their_paths() -> None:
    model = Heads().eval()
    done = convert(model, X, outputs=("features.1", "out"))
    found = done.module(X)
    assert list(found) == ["features.1", "out"]
    torch.testing.assert_close(found["features.1"], model(X)["features"][1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["out"], model(X)["out"], rtol=1e-4, atol=1e-5)


def test_a_whole_part_and_numbers() -> None:
    model = Heads("tuple").eval()
    found = convert(model, X, outputs=["2"]).module(X)
    assert isinstance(found, list) and len(found) == 2
    torch.testing.assert_close(found[0], model(X)[2][0], rtol=1e-4, atol=1e-5)
    assert explain(model, X, outputs="0").after.convs == 2


def test_numbers_of_parts_that_have_keys() -> None:
    model = Heads().eval()
    for name, wanted in (("1", model(X)["aux"]), ("2.1", model(X)["features"][1]), ("features.0", None)):
        found = convert(model, X, outputs=[name]).module(X)
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert list(convert(model, X, outputs="0,features.1,out").module(X)) == ["out", "features.1"]
    with pytest.raises(InputError, match="no output is called '3'; the network's outputs are out, aux, features"):
        convert(model, X, outputs=["3"])


def test_a_key_goes_before_a_number() -> None:
    turned = Lambda(lambda m, x: {"1": x + 1, "0": x + 2, "2": {"5": x + 3}})
    for name, more in (("1", 1), ("0", 2), ("2.0", 3), ("2.5", 3)):
        torch.testing.assert_close(convert(turned, X, outputs=[name]).module(X), X + more)


def test_an_exported_program_too() -> None:
    exported = torch.export.export(Heads().eval(), (X,))
    done = convert(exported, outputs=("aux",))
    assert done.report.before.convs == 3 and not any("head" in name for name, _ in done.module.named_parameters())


@pytest.mark.parametrize(
    ("model", "names", "told"),
    [
        (
            Heads(),
            ("logits",),
            "no output is called 'logits'; the network's outputs are out, aux, features, features.0",
        ),
        (nn.Conv2d(3, 4, 1), ("0",), "no output is called '0'; the network's outputs are one alone"),
        (Heads(), (), "outputs is"),
    ],
)
def test_name_that_no_output_has(model: nn.Module, names: tuple[str, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        convert(model.eval(), X, outputs=names)


SEGMENTED = """
from torch import nn

class Segmented(nn.Module):
    def __init__(self, aux_loss):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.aux = nn.Conv2d(8, 2, 1) if aux_loss else None

    def forward(self, x):
        stem = self.stem(x)
        return {"out": self.head(stem)} | ({} if self.aux is None else {"aux": self.aux(stem)})
"""


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "segmented.py").write_text(SEGMENTED)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "fcn.pt2"
    arguments = ["convert", "--arch", "segmented:Segmented", "--arch-args", '{"aux_loss": true}']
    told = CliRunner().invoke(app, [*arguments, "--input-shape", "3,32,32", "--outputs", "out", "-o", str(path), "-q"])
    assert told.exit_code == 0, told.output
    result = torch.export.load(path).module()(torch.rand(1, 3, 32, 32))
    assert isinstance(result, Tensor) and not any("aux" in n for n in torch.export.load(path).state_dict)


@pytest.mark.parametrize(
    "work", [convert, explain, lambda net, x: verify(net, net, x)], ids=["convert", "explain", "verify"]
)
def test_a_result_without_values_is_refused_with_its_line(work: Callable[..., Any]) -> None:
    """There is nothing to compare; a shape that is asked of such a tensor is another matter."""
    net = Lambda(lambda net, x: (net.fc(x), x.to("meta")), fc=nn.Linear(4, 4))
    with pytest.raises(CaptureError, match=r"has no values, as it lies on the device meta, at .*\.py:\d+ `"):
        work(net, torch.randn(2, 4))
    asks = Lambda(lambda net, x: net.fc(x).view(torch.empty(2, 4, device="meta").shape), fc=nn.Linear(4, 4))
    assert convert(asks, torch.randn(2, 4), dynamic=()).report.equivalent
