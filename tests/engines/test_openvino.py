"""OpenVINO: models are converted, run and compared in every precision; damage and what it lacks are one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from reparam.cli.app import app
from reparam.compare import open_engine
from reparam.conversion import convert
from reparam.engines import Exported, ExportOptions, export
from reparam.engines import openvino as openvino_engine
from reparam.engines.formats import find_format, recognise
from reparam.engines.manifest import read_manifest, sha256_of
from reparam.engines.ports import ports_of
from reparam.errors import InputError, MachineError, NotEquivalentError
from reparam.utils import PackageState, check_package
from support.engine_nets import SEVERAL, SHAPE, Several, every, small, unusual
from support.pretended_packages import pretend

openvino = pytest.importorskip("openvino", reason="pip install 'reparam[openvino]'")
OPTIONS = ExportOptions("openvino")


def build(net: nn.Module, path: Path, options: ExportOptions = OPTIONS, **how: Any) -> Exported:
    return export(net, torch.rand(SHAPE), path=path, options=options, **how)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return build(every(), tmp_path_factory.mktemp("models") / "net.xml")


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    for file in exported.outputs:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "net.xml"


def test_a_model_is_run_and_is_the_network(exported: Exported) -> None:
    check = exported.check
    assert exported.report.engine is not None
    assert exported.report.engine["format"] == "openvino"
    assert check.ran
    assert check.error is not None
    assert check.own_error is not None
    assert check.error < 1e-6
    assert check.shapes == ((1, 3, 16, 16), (2, 3, 16, 16), (5, 3, 16, 16))
    engine = open_engine(exported.path)
    assert engine is not None
    assert [(p.name, p.shape) for p in engine.inputs] == [("x", ("batch", 3, 16, 16))]
    assert [(p.name, p.shape) for p in engine.outputs] == [("logits", ("batch", 5)), ("map", ("batch", 8, 16, 16))]
    x = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        truth = every()(x)
    for value, wanted in zip(engine.run([x]), (truth["logits"], truth["map"]), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)


def test_both_files_are_in_the_manifest_and_its_facts_in_the_model(exported: Exported) -> None:
    assert [p.name for p in exported.outputs] == ["net.xml", "net.bin", "net.xml.json"]
    row = read_manifest(exported.path)
    assert row is not None
    assert row["side"] == {"net.bin": sha256_of(exported.path.with_name("net.bin"))}
    assert row["verification"]["ran"] is True
    model = openvino.Core().read_model(exported.path)
    assert model.get_rt_info(["reparam", "precision"]).astype(str) == "fp32"
    assert json.loads(model.get_rt_info(["reparam", "verification"]).astype(str)) == row["verification"]
    format = recognise(exported.path)
    assert format is not None
    assert format.name == "openvino"


@pytest.mark.parametrize(
    ("precision", "weights", "least"), [("fp16", "float16", 60.0), ("bf16", "bfloat16", 40.0), ("int8", "int8", 25.0)]
)
def test_low_precision(tmp_path: Path, precision: str, weights: str, least: float) -> None:
    data = [[torch.rand(4, 3, 16, 16)]] if precision == "int8" else None
    made = build(small(), tmp_path / "net.xml", replace(OPTIONS, precision=precision, calibration=data))
    assert made.check.sqnr is not None
    assert made.check.sqnr > least
    engine = open_engine(made.path)
    assert engine is not None
    assert engine.precision == weights
    assert [p.dtype for p in (*engine.inputs, *engine.outputs)] == ["float32", "float32"]
    if precision == "int8":
        assert "CPU, computed in int8" in engine.runtime
    assert "CPU, computed in" in engine.runtime


def test_who_compiles_a_model_elsewhere_is_told_the_precision(tmp_path: Path) -> None:
    """OpenVINO has bfloat16 as its default where the CPU has it, and no model can carry another wish."""
    import openvino

    made = build(small(), tmp_path / "net.xml")
    row = read_manifest(made.path)
    assert row is not None and row["build"]["compile_with"] == {"INFERENCE_PRECISION_HINT": "f32"}
    assert "in bfloat16 on CPUs with AMX" in row["build"]["warning"]
    assert row["build"]["warning"] in [r.message for r in made.report.remarks]
    compiled = openvino.Core().compile_model(made.path, "CPU", row["build"]["compile_with"])
    values = torch.rand(SHAPE)
    engine = open_engine(made.path)
    assert engine is not None and "computed in float32" in engine.runtime
    assert torch.equal(torch.from_numpy(compiled([values.numpy()])[0]), engine.run([values])[0])


def test_bfloat16_inputs_and_outputs(tmp_path: Path) -> None:
    made = build(small(), tmp_path / "net.xml", replace(OPTIONS, precision="bf16", io_precision="same"))
    engine = open_engine(made.path)
    assert engine is not None
    assert [p.dtype for p in (*engine.inputs, *engine.outputs)] == ["bfloat16", "bfloat16"]
    (y,) = engine.run([torch.rand(SHAPE).bfloat16()])
    assert y.dtype == torch.bfloat16


def test_several_inputs_with_free_sizes(tmp_path: Path) -> None:
    axes = ("batch", "height", "width")
    inputs, outputs = ports_of(convert(Several().eval(), *SEVERAL, dynamic=axes).program)
    assert [(p.name, p.shape) for p in inputs] == [
        ("x", ("batch", 4)),
        ("ids", ("batch",)),
        ("image", ("batch_1", 3, "height", "width")),
    ]
    assert [p.shape for p in outputs] == [("batch", 3), ("batch_1", 3, "height - 2", "width - 2")]
    made = export(Several().eval(), *SEVERAL, path=tmp_path / "net.xml", options=OPTIONS, dynamic=axes)
    engine = open_engine(made.path)
    assert engine is not None
    assert [p.dtype for p in engine.inputs] == [p.dtype for p in inputs]
    row, image = engine.run([torch.rand(3, 4), torch.tensor([1, 2, 3]), torch.rand(1, 3, 7, 20)])
    assert (row.shape, image.shape) == ((3, 3), (1, 3, 5, 18))


def test_values_inside_are_shown(exported: Exported) -> None:
    engine = open_engine(exported.path)
    assert engine is not None
    x = torch.rand(SHAPE)
    found = engine.trace([x])
    with torch.no_grad():
        net = every()
        wanted = net.act(net.norm(net.stem(x)))
    assert any(v.shape == wanted.shape and torch.allclose(v, wanted, atol=1e-5) for v in found)


def test_another_weight_is_not_the_network(exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = openvino_engine.OpenVinoRunnable._run

    def off(self: Any, compiled: Any, values: Any) -> list[Tensor]:
        return [v * (1.0 + 1e-4) for v in real(self, compiled, values)]

    monkeypatch.setattr(openvino_engine.OpenVinoRunnable, "_run", off)
    with pytest.raises(NotEquivalentError, match="the engine is not the network"):
        build(small(), tmp_path / "net.xml")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_operator_and_its_layer_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"OpenVINO has no form of Det, which 'volume' uses$"):
        build(unusual(), tmp_path / "net.xml")


def test_what_onnx_has_no_form_of_is_told_as_that(tmp_path: Path) -> None:
    class Gamma(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.lgamma(x)

    with pytest.raises(InputError, match=r"no form of .*lgamma.* \(this engine is built from an ONNX model\)$"):
        build(Gamma().eval(), tmp_path / "net.xml")


def test_a_name_that_openvino_does_not_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reads its models from \.xml files; name the file net\.xml"):
        build(small(), tmp_path / "net.ir")


def test_missing_and_damaged_files_are_one_sentence(copied: Path) -> None:
    weights = copied.with_name("net.bin")
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(InputError, match=r"has its weights in net\.bin, which is not beside it; copy both files"):
        open_engine(copied)
    weights.write_bytes(content[:100])
    with pytest.raises(InputError, match="is damaged or no model of OpenVINO"):
        open_engine(copied)
    weights.write_bytes(content)
    text = copied.read_text()
    copied.write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="is damaged or no model of OpenVINO"):
        open_engine(copied)
    copied.write_bytes(text.encode().replace(b'"opset1"', b'"\xff\x9b"'))
    with pytest.raises(InputError, match=r"is damaged or no model of OpenVINO.*unsupported opset") as refused:
        open_engine(copied)
    assert str(refused.value).isprintable()


def test_inputs_that_do_not_fit(exported: Exported) -> None:
    engine = open_engine(exported.path)
    assert engine is not None
    with pytest.raises(InputError, match=r"net\.xml does not run on these inputs: .*incompatible"):
        engine.run([torch.rand(1, 3, 9, 9)])


def test_run_and_verify_on_the_command_line(exported: Exported, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((2, 3, 16, 16), np.float32))
    arguments = ["run", str(exported.path), "--input", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npz")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "y.npz") as arrays:
        assert {k: v.shape for k, v in arrays.items()} == {"logits": (2, 5), "map": (2, 8, 16, 16)}


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = PackageState("openvino", None, "missing", "pip install 'reparam[openvino]'")
    pretend(monkeypatch, lambda n: gone if n == "openvino" else check_package(n))
    with pytest.raises(MachineError, match=r"needs openvino, which is missing; pip install 'reparam\[openvino\]'"):
        find_format("openvino").require()
    assert not find_format("openvino").probe().can_run


PRESSED = """
import gc, pathlib, signal, sys, torch
from reparam.compare import open_engine
path = pathlib.Path(sys.argv[1])
first, second = open_engine(path), open_engine(path)
for engine in (first, second):
    engine.run([torch.rand(2, 3, 16, 16)])
del engine, first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_an_interruption_after_two_models_whose_lives_overlapped(exported: Exported) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRESSED, exported.path], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr


class Waves(nn.Module):
    """A product in the domain of frequencies, on maps of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 1, 1, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.fft.irfft2(torch.fft.rfft2(x) * self.weight, s=x.shape[-2:])


def test_transforms_of_free_lengths(tmp_path: Path) -> None:
    """OpenVINO's own gave outputs without values."""
    check = build(Waves().eval(), tmp_path / "waves.xml", dynamic="batch,height,width").check
    assert check.ran and len({s[2:] for s in check.shapes}) > 1
