"""Files of networks whose outputs are numbers, integers, sizes, weights or constants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import ExportOptions, InputError
from reparam.cli.render import engine_lines
from reparam.engines import EngineOutputs
from reparam.engines.formats import find_format
from support.helpers import Lambda

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))
Forward = Callable[[Any, Tensor], Any]
OUTPUTS: dict[str, Forward] = {
    "a number": lambda m, x: m.conv(x).sum(),
    "numbers of kinds": lambda m, x: ((m.conv(x) > 0).any(), m.conv(x).mean(), m.conv(x)),
    "decisions": lambda m, x: m.conv(x).argmax(1),
    "decisions and more": lambda m, x: (m.conv(x).argmax(1), m.conv(x)),
    "signs": lambda m, x: m.conv(x) > 0,
    "a size": lambda m, x: (m.conv(x), x.shape[0] * 2),
    "a size first": lambda m, x: (x.shape[0] * 2, m.conv(x)),
    "a weight": lambda m, x: (m.conv(x), m.own, m.own * 2),
    "nothing": lambda m, x: (m.conv(x), None),
}


def network(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    return Lambda(forward, conv=nn.Conv2d(3, 5, 3), own=nn.Parameter(torch.randn(4))).eval()


@pytest.mark.parametrize("name", OUTPUTS)
def test_onnx_files_give_them(name: str, tmp_path: Path) -> None:
    net = network(OUTPUTS[name])
    reparam.export(net, X, path=tmp_path / "net.onnx")
    truth = torch.utils._pytree.tree_leaves(net(X))
    wanted = [torch.as_tensor(v) for v in truth if v is not None]
    found = find_format("onnx").load(tmp_path / "net.onnx").run([X])
    assert [v.shape for v in found] == [v.shape for v in wanted]
    assert all(torch.allclose(a.double(), b.double(), atol=1e-5) for a, b in zip(found, wanted, strict=True))
    verdict = reparam.verify(net, tmp_path / "net.onnx", X)
    assert verdict.equivalent, verdict.reason


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_decisions_have_no_error_but_a_share(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{find_format(format).suffix}"
    exported = reparam.export(network(OUTPUTS["decisions"]), X, path=path, options=ExportOptions(format=format))
    report = exported.report.as_dict()
    check = report["engine"]
    assert (check["error"], check["sqnr"], check["top1"], check["verdict"]) == (None, None, 1.0, "equivalent")
    first, second = engine_lines(report)
    assert first == f"{format}, fp32, run by {check['runtime']}"
    assert second.startswith(f"top-1 agreement 100 %, {check['samples']} random inputs, shapes ")
    with pytest.raises(InputError, match="min_sqnr needs an output of real numbers"):
        reparam.export(
            network(OUTPUTS["decisions"]), X, path=tmp_path / "other.onnx", options=ExportOptions(min_sqnr=10.0)
        )


def test_decisions_of_a_quantised_network_are_measured(tmp_path: Path) -> None:
    samples = [(torch.randn(1, 3, 6, 6),) for _ in range(8)]
    options = ExportOptions(precision="int8", calibration=samples)
    exported = reparam.export(network(OUTPUTS["decisions"]), X, path=tmp_path / "net.onnx", options=options)
    check = exported.report.as_dict()["engine"]
    assert check["verdict"] == "quantised" and 0.5 < check["top1"] <= 1.0


@pytest.mark.parametrize(("value", "told"), [(3.5, "3.5"), ("a text", "'a text'")])
def test_constants_are_refused_by_name(value: Any, told: str, tmp_path: Path) -> None:
    net = network(lambda m, x: {"map": m.conv(x), "other": value})
    with pytest.raises(InputError, match=f"^other is {told} whatever the inputs.*leave it out with outputs$"):
        reparam.export(net, X, path=tmp_path / "net.onnx")
    reparam.export(net, X, path=tmp_path / "net.onnx", outputs=["map"])


def test_complex_numbers_are_refused_by_name(tmp_path: Path) -> None:
    net = network(lambda m, x: {"map": m.conv(x), "waves": torch.fft.rfft(m.conv(x))})
    with pytest.raises(InputError, match=r"^waves is complex64, and ONNX files .*view_as_real"):
        reparam.export(net, X, path=tmp_path / "net.onnx")
    reparam.export(net, X, path=tmp_path / "net.onnx", outputs=["map"])


def test_integers_that_differ_are_counted() -> None:
    truth, own = [torch.tensor([1, 2, 3]), torch.zeros(2)], [torch.tensor([1, 2, 4]), torch.zeros(2)]
    for values, different in (([1, 2, 3], 0), ([1, 2, 4], 0), ([1, 0, 4], 1), ([0, 0, 5], 3)):
        outputs = EngineOutputs([torch.tensor(values, dtype=torch.int32), torch.zeros(2)])
        assert outputs.fits(truth) and outputs.other_integers(truth, own) == (different, 3)
    assert not EngineOutputs([torch.zeros(3), torch.zeros(2)]).fits(truth)
    assert not EngineOutputs([torch.tensor([1, 2]), torch.zeros(2)]).fits(truth)


def test_a_file_with_other_decisions_is_not_the_network(tmp_path: Path) -> None:
    reparam.export(network(OUTPUTS["decisions"]), X, path=tmp_path / "net.onnx")
    verdict = reparam.verify(network(lambda m, x: m.conv(x).argmin(1)), tmp_path / "net.onnx", X)
    assert not verdict.equivalent and "integers of the outputs differ" in verdict.reason
