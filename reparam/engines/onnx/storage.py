"""ONNX files as they are written: one file where its size allows it, weights beside it where not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam.onnx_input import LARGE_FILE, add_metadata, write_from_where_it_lies

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

ONE_FILE = 1_500_000_000  # bytes of weights; above, they are written into a file of their own
SMALL = 1024  # bytes; weights that are no larger stay in the model's file
SIDE_SUFFIX = ".data"


def write_model(model: onnx.ModelProto | ir.Model, path: Path) -> tuple[Path, ...]:
    """Writes the model; returns the side files. The bytes depend on the model and on the name of `path` alone.

    The weights of an `onnx_ir` model are written from where they lie.
    """
    import onnx_ir as ir

    from .values import untyped

    whole = untyped(model if isinstance(model, ir.Model) else ir.from_proto(model))  # the weights are the same memory
    if sum(t.nbytes for t in whole.graph.initializers.tensors()) < ONE_FILE:
        if isinstance(model, ir.Model):
            with path.open("wb") as file:
                write_from_where_it_lies(model, file)
        else:
            path.write_bytes(model.SerializeToString(deterministic=True))
        return ()
    side = path.with_name(path.name + SIDE_SUFFIX)
    ir.save(whole, path, external_data=side.name, size_threshold_bytes=SMALL)
    return (side,)


def stamp_model(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes `facts` into the metadata of a model's file: texts as they are, all else as JSON."""
    import onnx

    texts = {f"reparam.{k}": v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in facts.items()}
    texts = dict(sorted(texts.items()))
    size = path.stat().st_size
    if size >= LARGE_FILE:
        with path.open("r+b") as file:
            if add_metadata(file, size, texts):
                return
    model = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(model, texts)
    path.write_bytes(model.SerializeToString(deterministic=True))
