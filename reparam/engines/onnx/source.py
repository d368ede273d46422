"""The ONNX model that an engine of another format is built from, run by onnxruntime and compared first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reparam.engines.engine_check import check_engine
from reparam.engines.format import BuildOptions, Tell
from reparam.engines.manifest import sha256_of
from reparam.errors import InputError
from reparam.ir import Program

from .graph import build_model
from .runtime import OnnxRunnable
from .storage import write_model


def write_source(program: Program, options: BuildOptions, path: Path, tell: Tell) -> dict[str, Any]:
    """Writes the model to `path`; returns its sha256 as facts of the build. Raises like `build_model`, and tells why
    that is an ONNX model."""
    try:
        model = build_model(program, options, tell)
    except InputError as error:
        raise InputError(f"{error} (this engine is built from an ONNX model)") from error
    write_model(model, path)
    return {"onnx_sha256": sha256_of(path)}


def check_source(program: Program, options: BuildOptions, path: Path) -> dict[str, Any]:
    """What onnxruntime measures on the model against the program that it was written from, as facts of the build.

    That is all the evidence there is for an engine that cannot run on this machine, at sizes that such an
    engine takes by default. Raises NotEquivalentError.
    """
    quantised = options.precision == "int8"
    engine = OnnxRunnable(path)
    check = check_engine(program, program, engine, quantised=quantised, data=options.held_out, beyond=False)
    return {"onnx_check": check.as_dict()}
