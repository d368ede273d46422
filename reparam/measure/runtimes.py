"""What can run a model in `bench`: torch itself, torch.compile, and the runtimes of the exported formats."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from reparam.engines import DTYPES, ExportOptions, Runnable, export
from reparam.engines.formats import find_format
from reparam.errors import InputError, MachineError
from reparam.ir import draw_examples
from reparam.loading import LoadedModel
from reparam.utils import Shapes

TORCH, COMPILE = "torch", "compile"
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino", "aoti": "aoti", "tensorrt": "tensorrt"}
RUNTIMES = (TORCH, COMPILE, *FORMATS)
EXAMPLES = 2  # the batch that a network is exported with, its size left free


@dataclasses.dataclass(frozen=True)
class CompiledModel(LoadedModel):
    """A network whose module torch.compile has wrapped."""


def name_of(model: LoadedModel | Runnable) -> str:
    """Out of RUNTIMES: what runs the model as it is."""
    return model.by if isinstance(model, Runnable) else COMPILE if isinstance(model, CompiledModel) else TORCH


def text_of(model: LoadedModel | Runnable) -> str:
    """The runtime with its version."""
    if isinstance(model, Runnable):
        return model.runtime
    return f"torch {torch.__version__}" + (" (compiled)" if isinstance(model, CompiledModel) else "")


def check_runtimes(names: list[str]) -> None:
    """Raises InputError for a name that is unknown or there twice, MachineError for what cannot run here."""
    for name in names:
        if name not in RUNTIMES:
            raise InputError(f"unknown runtime '{name}'; choose from {', '.join(RUNTIMES)}")
        if name in FORMATS:
            format = find_format(FORMATS[name])
            format.require()
            found = format.probe()
            if not found.can_run:
                why = found.why.partition(";")[0]  # behind it: what can be built here
                raise MachineError(f"{name} cannot run on this machine: {why}")
    if len(set(names)) != len(names):
        raise InputError("a runtime is named twice; each is timed once")


def in_runtime(
    runtime: str, name: str, model: LoadedModel | Runnable, shapes: Shapes | None, path: Path, *, device: str, seed: int
) -> LoadedModel | Runnable:
    """The model as `runtime` runs it: a network is exported as it is, and the file compared with it.

    name: for messages. path: of that file, without its suffix. device: of AOTInductor packages. Raises InputError for
    an engine that this runtime does not run, and what `export` raises.
    """
    if name_of(model) == runtime:
        return model
    if isinstance(model, Runnable):
        return _read_by(runtime, name, model, path)
    if runtime == COMPILE:
        fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(LoadedModel)}
        return CompiledModel(**fields | {"module": torch.compile(model.module)})
    format = find_format(FORMATS[runtime])
    file = path.with_name(path.name + format.suffix)
    settings = {"device": device} if "device" in format.settings else {}
    examples = draw_examples(model.module, shapes or model.input_shapes, batch=EXAMPLES, seed=seed)
    source = model.exported or model.module
    options = ExportOptions(format.name, _precision_of(model.module), "same", settings=settings)
    export(source, *examples, path=file, options=options, to="as-is", seed=seed)
    return format.load(file)


def _precision_of(module: nn.Module) -> str:
    """The name of the precision that its weights are in; fp32 where it has none, or others."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return next((p for p in ("fp16", "bf16") if DTYPES[p] == dtype), "fp32")


def _read_by(runtime: str, name: str, engine: Runnable, path: Path) -> Runnable:
    """OpenVINO reads ONNX files itself; other engines have one runtime."""
    from reparam.engines.onnx import OnnxRunnable

    if not isinstance(engine, OnnxRunnable) or runtime != "openvino":
        also = " or openvino" if isinstance(engine, OnnxRunnable) else ""
        raise InputError(f"{name} is run by {engine.by}{also}, not by {runtime}")
    from reparam.engines import OpenVinoRunnable, convert_onnx

    target = path.with_name(path.name + ".xml")
    convert_onnx(engine.path, target)
    return OpenVinoRunnable(target)
