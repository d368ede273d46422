"""TensorRT engines: built from the verified ONNX model, by TensorRT for data centres or for RTX GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reparam.engines.format import BuildOptions, Built, Format, Probe, Runnable, Tell
from reparam.utils import check_package, gpus

if TYPE_CHECKING:
    from reparam.ir import Program


UNTRIED = (
    "running an engine, and all of the module tensorrt, whose names are compared with its bindings; "
    "building with tensorrt_rtx is run"
)


class TensorRt(Format):
    """An engine holds machine code for the GPUs that it was built for. The precision is that of the ONNX graph."""

    name = "tensorrt"
    suffix = ".engine"
    native = True
    precisions = ("fp32", "fp16", "bf16", "int8")
    needs = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")
    settings: ClassVar[Mapping[str, str]] = {
        "runtime": "tensorrt or rtx; what is installed and can build here where none is named",
        "gpu": "compute capabilities to build for, such as sm89,sm120; rtx only",
        "profile": "sizes that a free axis takes, with the one to tune for in the middle, such as batch=1:8:32",
    }

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `Format.recognises`."""
        return path.suffix == self.suffix or head[1:4] == b"trt"

    def check(self, precision: str, settings: Mapping[str, str]) -> None:
        """See `Format.check`; MachineError too, when what would build is missing."""
        super().check(precision, settings)
        from reparam.engines.tensorrt import check_targets, choose_module, read_profile, read_targets

        read_profile(settings.get("profile"))
        targets = read_targets(settings.get("gpu"))
        check_targets(choose_module(settings.get("runtime")), targets)

    def build(self, program: Program, path: Path, options: BuildOptions, tell: Tell) -> Built:
        """See `Format.build`."""
        from reparam.engines.tensorrt import build_engine

        self.require()
        return build_engine(program, path, options, tell)

    def load(self, path: Path) -> Runnable:
        """See `Format.load`."""
        from reparam.engines.tensorrt import open_engine

        return open_engine(path)

    def probe(self) -> Probe:
        """What is installed of both modules, and whether there is a GPU."""
        from reparam.engines.tensorrt import MODULES

        source = replace(super().probe(), untried=UNTRIED)
        states = [check_package(m) for m in MODULES.values()]
        working = [s.name for s in states if s.works]
        if not source.can_build or not working:
            missing = [*([source.why] if source.why else []), *(f"{s.name} {s.problem}" for s in states if not s.works)]
            install = source.install or states[-1].install
            return replace(source, can_build=False, can_run=False, why=", ".join(missing), install=install)
        versions = {s.name: s.version for s in states if s.version is not None}
        from reparam.engines.tensorrt import no_gpu

        named, why = "tensorrt_rtx" in working, no_gpu()
        if not gpus():
            why += "; engines are built for GPUs that --gpu names" if named else "; tensorrt builds on a GPU only"
        return replace(source, can_build=named or bool(gpus()), can_run=not why, versions=versions, why=why)


FORMAT = TensorRt()
