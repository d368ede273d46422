"""TensorRT: real engines by tensorrt_rtx, without a GPU; what it does not take is named; engines are guarded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from reparam.cli.app import app
from reparam.compare import open_engine
from reparam.engines import Exported, ExportOptions, export, manifest_path
from reparam.engines.formats import find_format, recognise
from reparam.engines.manifest import read_manifest, sha256_of
from reparam.engines.tensorrt import bindings, no_gpu, read_profile
from reparam.engines.tensorrt import runtime as tensorrt_run
from reparam.engines.tensorrt.bindings import reason
from reparam.engines.tensorrt.build import Phases, Range
from reparam.errors import InputError, MachineError, UnsafeFileError
from reparam.loading import build_architecture
from reparam.utils import PACKAGES, PackageState, check_package, cuda_driver
from reparam.utils.packages import install_command
from support.engine_nets import SHAPE, every, small, unusual
from support.pretended_packages import pretend

pytest.importorskip("tensorrt_rtx", reason="pip install 'reparam[rtx]'")
OPTIONS = ExportOptions("tensorrt", settings={"gpu": "sm89", "runtime": "rtx"})
without_gpu = pytest.mark.skipif(no_gpu() == "", reason="this machine has a GPU")


def build(net: nn.Module, shape: tuple[int, ...], path: Path, options: ExportOptions = OPTIONS, **how: Any) -> Exported:
    return export(net, torch.rand(shape), path=path, options=options, **how)


# ---- engines -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, list[tuple[str, int, int]]]:
    """An engine for two GPUs of a network with all that fused and plain networks are made of, and its progress."""
    told: list[tuple[str, int, int]] = []
    options = replace(OPTIONS, settings={"gpu": "sm89,sm120", "runtime": "rtx"})
    path = tmp_path_factory.mktemp("engines") / "net.engine"
    return build(every(), SHAPE, path, options, progress=lambda *row: told.append(row)), told


def test_the_manifest_says_what_the_engine_is_and_what_was_checked(engine: tuple[Exported, Any]) -> None:
    path = engine[0].path
    row = read_manifest(path)
    assert row is not None
    assert row["sha256"] == sha256_of(path)
    assert (row["format"], row["precision"], row["target"]) == ("tensorrt", "fp32", "fused")
    made = row["build"]
    assert (made["runtime"], made["gpus"]) == ("tensorrt_rtx", ["sm89", "sm120"])
    assert made["profile"] == {"batch": [1, 8, 32]}
    assert len(made["onnx_sha256"]) == 64
    check = made["onnx_check"]
    assert check["ran"]
    assert 0 < check["error"] < 1e-5
    assert row["inputs"] == [{"name": "x", "shape": ["batch", 3, 16, 16], "dtype": "float32"}]
    assert [(o["name"], o["shape"]) for o in row["outputs"]] == [
        ("logits", ["batch", 5]),
        ("map", ["batch", 8, 16, 16]),
    ]
    format = recognise(path)
    assert format is not None
    assert format.name == "tensorrt"


@without_gpu
def test_an_engine_that_cannot_run_here_is_built_and_says_so(engine: tuple[Exported, Any]) -> None:
    check = engine[0].check
    assert (check.ran, check.error) == (False, None)
    assert "the driver shows no NVIDIA GPU" in check.why
    row = read_manifest(engine[0].path)
    assert row is not None
    assert row["verification"]["ran"] is False


def test_progress_rises_to_its_end(engine: tuple[Exported, list[tuple[str, int, int]]]) -> None:
    shares = [done for stage, done, _ in engine[1] if stage == "engine"]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1000)
    assert len(set(shares)) > 10


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_low_precision_engines_are_built(tmp_path: Path, precision: str) -> None:
    data = [[torch.rand(4, 3, 16, 16)]] if precision == "int8" else None
    options = replace(OPTIONS, precision=precision, calibration=data)
    made = build(small(), SHAPE, tmp_path / "net.engine", options)
    row = read_manifest(made.path)
    assert row is not None
    assert row["precision"] == precision
    assert row["build"]["onnx_check"]["sqnr"] > 25.0
    assert row["inputs"][0]["dtype"] == "float32"


def thin_mobilenet() -> nn.Module:
    """MobileNetV2 with few channels and blocks."""
    setting = [[1, 8, 1, 1], [4, 8, 2, 2], [4, 16, 2, 2]]
    arguments = {"width_mult": 0.5, "inverted_residual_setting": setting, "num_classes": 10}
    return build_architecture("torchvision/mobilenet_v2", arguments).module.eval()


def test_a_plain_mobilenet_is_built_with_slopes_and_bounds_for_each_channel(tmp_path: Path) -> None:
    made = build(thin_mobilenet(), (2, 3, 32, 32), tmp_path / "net.engine", to="plain")
    assert made.report.after.merges == 0
    assert made.path.stat().st_size > 100_000


@pytest.mark.sweep
def test_a_plain_network_of_bottlenecks_is_built(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, [1, 2, 1, 1], width_per_group=16)
    made = build(net.eval(), (2, 3, 64, 64), tmp_path / "net.engine", to="plain")
    assert made.report.after.merges == 0


@pytest.mark.sweep
def test_a_fused_repvgg_is_built(tmp_path: Path) -> None:
    net = build_architecture("timm/repvgg_a0").module.eval()
    made = build(net, (1, 3, 64, 64), tmp_path / "net.engine")
    assert made.report.after.merges == 0
    assert made.path.stat().st_size > 20_000_000


@pytest.mark.sweep
@pytest.mark.parametrize("to", ["fused", "plain"])
def test_the_whole_resnet50_is_built(tmp_path: Path, to: str) -> None:
    net = build_architecture("torchvision/resnet50").module.eval()
    made = build(net, (1, 3, 224, 224), tmp_path / "net.engine", to=to)
    assert made.path.stat().st_size > 90_000_000


# ---- what it does not take ---------------------------------------------------------------------------------------


def test_an_unknown_operator_and_its_layer_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"TensorRT for RTX has no form of Det, which 'volume' uses$"):
        build(unusual(), SHAPE, tmp_path / "net.engine")
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_is_taken_in_other_precisions_only_gives_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no form of HardSwish, which 'swish' uses: Only FLOAT, HALF or INT8"):
        build(every(), SHAPE, tmp_path / "net.engine", replace(OPTIONS, precision="bf16"))


def test_what_a_gpu_cannot_do_is_named_with_the_layer(tmp_path: Path) -> None:
    options = replace(OPTIONS, settings={"gpu": "sm75", "runtime": "rtx"})
    with pytest.raises(InputError, match=r"does not build this network for sm75: .*FP32 GEMM is not supported$"):
        build(small(), SHAPE, tmp_path / "net.engine", options)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_stops_the_build(tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "engine" and done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(small(), SHAPE, tmp_path / "net.engine", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_profile_of_its_own_and_one_of_an_axis_that_is_not_free(tmp_path: Path) -> None:
    profile = {"gpu": "sm89", "profile": "batch=1:2:4,height=16:16:64"}
    with pytest.raises(InputError, match="names 'height', which is not free; free are: batch"):
        build(small(), SHAPE, tmp_path / "net.engine", replace(OPTIONS, settings=profile))
    options = replace(OPTIONS, settings=profile | {"profile": "batch=1:2:4"})
    row = read_manifest(build(small(), SHAPE, tmp_path / "net.engine", options).path)
    assert row is not None
    assert row["build"]["profile"] == {"batch": [1, 2, 4]}


def test_free_sizes_of_images_get_ranges_that_hold_what_is_checked(tmp_path: Path) -> None:
    made = build(small(), SHAPE, tmp_path / "net.engine", dynamic=("batch", "height", "width"))
    row = read_manifest(made.path)
    assert row is not None
    profile = row["build"]["profile"]
    assert [profile[axis][1] for axis in ("batch", "height", "width")] == [8, 16, 16]
    checked = row["build"]["onnx_check"]["shapes"]
    assert {tuple(shape[2:]) for shape in checked} > {(16, 16)}
    for batch, _, *sizes in checked:
        for axis, size in zip(("batch", "height", "width"), (batch, *sizes), strict=True):
            assert profile[axis][0] <= size <= profile[axis][2]


# ---- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no NVIDIA GPU to build for; name those of the engine with --gpu: sm75, sm80"),
        ({"gpu": "sm90"}, "TensorRT for RTX does not build for sm90; choose from sm75, sm80"),
        ({"gpu": "8.9"}, "'8.9' is not a compute capability; write it as sm89"),
        ({"gpu": "sm89", "runtime": "lean"}, "'lean' is not a runtime of TensorRT; choose from tensorrt, rtx"),
        ({"gpu": "sm89", "profile": "batch=8"}, "'batch=8' is not a range of sizes"),
        ({"gpu": "sm89", "profile": "batch=4:2:8"}, "'batch=4:2:8' is not a range of sizes"),
        ({"gpu": "sm89", "profile": "batch=0:2:8"}, "'batch=0:2:8' is not a range of sizes"),
        ({"gpu": "sm89", "device": "cuda"}, "--device is not an option of tensorrt"),
    ],
)
def test_settings_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str) -> None:
    monkeypatch.setattr(bindings, "gpus", lambda: ())
    with pytest.raises(InputError, match=message):
        find_format("tensorrt").check("fp32", settings)


def test_profiles_and_targets_are_read() -> None:
    assert read_profile("batch=1:8:32, height=64:224:448") == {"batch": Range(1, 8, 32), "height": Range(64, 224, 448)}
    assert read_profile(None) == {}
    assert bindings.read_targets("SM89, sm120,sm89") == ("sm89", "sm120")


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def state_of(name: str) -> PackageState:
        install = install_command(PACKAGES.get(name, name))
        return PackageState(name, None, "missing", install) if name in names else check_package(name)

    pretend(monkeypatch, state_of)


def test_missing_modules_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    format = find_format("tensorrt")
    hide(monkeypatch, "tensorrt", "tensorrt_rtx")
    for runtime, module in (("tensorrt", "tensorrt"), ("rtx", "tensorrt_rtx")):
        with pytest.raises(MachineError, match=f"TensorRT is not here: {module} is missing; pip install"):
            format.check("fp32", {"gpu": "sm89", "runtime": runtime})
    with pytest.raises(MachineError, match="tensorrt is missing, tensorrt_rtx is missing; pip install"):
        format.check("fp32", {"gpu": "sm89"})
    probe = format.probe()
    assert (probe.can_build, probe.can_run) == (False, False)
    assert probe.install is not None


def test_what_is_there_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    working = PackageState("tensorrt", "11.4")
    pretend(monkeypatch, lambda n: working if n == "tensorrt" else check_package(n))
    monkeypatch.setattr(bindings, "gpus", lambda: ())
    assert bindings.choose_module(None) == "tensorrt_rtx"  # the other builds on a GPU only
    assert bindings.choose_module("tensorrt") == "tensorrt"
    monkeypatch.setattr(bindings, "gpus", lambda: (cuda_driver.Gpu("L4", (8, 9)),))
    assert bindings.choose_module(None) == "tensorrt"


def test_the_module_that_names_no_gpus_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "import_module", lambda name: object())
    monkeypatch.setattr(bindings, "gpus", lambda: ())
    with pytest.raises(MachineError, match=r"TensorRT builds on the GPU .* --runtime rtx builds without one"):
        bindings.check_targets("tensorrt", ())
    monkeypatch.setattr(bindings, "gpus", lambda: (cuda_driver.Gpu("L4", (8, 9)),))
    bindings.check_targets("tensorrt", ())
    with pytest.raises(InputError, match="TensorRT builds for the GPU of this machine; leave out --gpu sm89"):
        bindings.check_targets("tensorrt", ("sm89",))


# ---- guards ------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(engine: tuple[Exported, Any], tmp_path: Path) -> Path:
    """The engine and its manifest, to be damaged."""
    path = tmp_path / "net.engine"
    path.write_bytes(engine[0].path.read_bytes())
    manifest_path(path).write_bytes(manifest_path(engine[0].path).read_bytes())
    return path


def tamper(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def mismatch(path: Path) -> None:
    row = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps(row | {"sha256": "0" * 64}))


@pytest.mark.parametrize("damage", [tamper, mismatch, lambda path: manifest_path(path).unlink()])
def test_an_engine_that_its_manifest_does_not_describe_is_not_loaded(
    copied: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_run, "open_engine", lambda path: pytest.fail("it was loaded"))
    damage(copied)
    with pytest.raises(UnsafeFileError, match="holds native code"):
        open_engine(copied)


@without_gpu
def test_running_an_engine_without_a_gpu_is_one_sentence(copied: Path, tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    arguments = ["run", str(copied), "--input", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 3, done.output
    assert " ".join(done.stderr.split()) == (
        "reparam: net.engine cannot run on this machine: the driver shows no NVIDIA GPU"
    )
    tamper(copied)
    assert CliRunner().invoke(app, arguments).exit_code == 2
    assert CliRunner().invoke(app, [*arguments, "--trust"]).exit_code == 3


@without_gpu
def test_export_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    arguments = ["export", "--arch", "support.engine_nets:small", "--input-shape", "3,16,16", "-o", str(path)]
    done = CliRunner().invoke(app, [*arguments, "--format", "tensorrt", "--gpu", "sm89", "--profile", "batch=1:4:8"])
    assert done.exit_code == 0, done.output
    assert "net.engine was built, not run:" in " ".join(done.stderr.split())
    row = read_manifest(path)
    assert row is not None
    assert row["build"]["profile"] == {"batch": [1, 4, 8]}
    refused = CliRunner().invoke(app, [*arguments, "--force", "--format", "tensorrt", "--gpu", "sm90"])
    assert refused.exit_code == 2
    assert "does not build for sm90" in refused.stderr


# ---- small things ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot compile operation "
            "'head/Gemm' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at /_src/optimizer/x.cpp:2012)",
            "Cannot compile operation 'head/Gemm' for Turing (SM75): FP32 GEMM is not supported",
        ),
        (
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion plan.header.size == "
            "blobSize failed. In parsePlan at /_src/runtime/dispatch/runtime.cpp:780)",
            "Serialization assertion plan.header.size == blobSize failed",
        ),
        ("plain words", "plain words"),
        ("", "it gives no reason"),
    ],
)
def test_reasons_without_places_in_sources(message: str, told: str) -> None:
    assert reason([message]) == told
    assert reason([]) == "it gives no reason"


def test_the_share_of_phases_within_phases() -> None:
    phases = Phases()
    phases.start("all", None, 2)
    phases.start("part", "all", 4)
    assert phases.step("part", 1) == pytest.approx(0.25)
    assert phases.step("part", 0) == pytest.approx(0.25)  # it never falls
    phases.finish("part")
    assert phases.step("all", 0) == pytest.approx(0.5)
    assert phases.step("all", 7) == 1.0
    phases.finish("all")
    assert phases.step("unknown", 0) == 1.0
