"""ONNX files: one file where its size allows it, weights beside it where not, and never weights from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from reparam.errors import InputError, MachineError, UnsafeFileError

if TYPE_CHECKING:
    import onnx

ONE_FILE = 1_500_000_000  # bytes of weights; above, they are written into a file of their own
SMALL = 1024  # bytes; weights that are no larger stay in the model's file
SIDE_SUFFIX = ".data"


def is_onnx(path: Path, head: bytes) -> bool:
    """Whether a file is an ONNX model: by its name, or by how its first fields are encoded."""
    return path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a"))


def write_model(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Writes the model; returns the side files. The bytes depend on the model and on the name of `path` alone."""
    import onnx_ir as ir

    from .values import untyped

    whole = untyped(ir.from_proto(model))  # the weights are the same memory
    if sum(t.nbytes for t in whole.graph.initializers.tensors()) < ONE_FILE:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return ()
    side = path.with_name(path.name + SIDE_SUFFIX)
    ir.save(whole, path, external_data=side.name, size_threshold_bytes=SMALL)
    return (side,)


def read_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """The model in a file, whose external weights must lie in its folder.

    weights: whether external weights are read too. Raises InputError for a damaged file, UnsafeFileError when it names
    weights outside of its own folder, MachineError when onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise MachineError("reading ONNX needs onnx; pip install 'reparam[onnx]'") from error
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}; check the name") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # protobuf's own decoding error
        raise InputError(f"{path} is damaged or no ONNX model; export it again") from error
    if not model.graph.node and not model.graph.output:
        raise InputError(f"{path} is damaged or no ONNX model; export it again")
    _check_places(model, path)
    if weights:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    return model


def tensors_in(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers, those in attributes, in sub-graphs and in functions."""
    import onnx

    stack = [message]
    while stack:
        item = stack.pop()
        if isinstance(item, onnx.TensorProto):
            yield item
            continue
        for field, value in item.ListFields():
            if field.message_type is not None:
                stack.extend(value if field.is_repeated else [value])


def side_files(model: onnx.ModelProto) -> list[str]:
    """The locations of external weights that a model names, each once."""
    import onnx

    external = (t for t in tensors_in(model) if t.data_location == onnx.TensorProto.EXTERNAL)
    found = [e.value for t in external for e in t.external_data if e.key == "location"]
    return list(dict.fromkeys(found))


def _check_places(model: onnx.ModelProto, path: Path) -> None:
    """Refuses locations that are absolute, climb out of the folder, or leave it by a link."""
    folder = path.parent.resolve()
    for place in side_files(model):
        parts = {*PurePosixPath(place).parts, *PureWindowsPath(place).parts}
        absolute = PurePosixPath(place).is_absolute() or PureWindowsPath(place).anchor
        target = (path.parent / place).resolve()
        if not place or absolute or ".." in parts or not target.is_relative_to(folder):
            raise UnsafeFileError(
                f"{path} takes weights from '{place}', outside of its own folder; such a file is not read"
            )
        if not target.is_file():
            raise InputError(f"{path} has its weights in {place}, which is not beside it; copy both files")


def stamp_model(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes `facts` into the metadata of a model's file: texts as they are, all else as JSON."""
    import onnx

    model = onnx.load_model(str(path), load_external_data=False)
    texts = {f"reparam.{k}": v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in facts.items()}
    onnx.helper.set_model_props(model, dict(sorted(texts.items())))
    path.write_bytes(model.SerializeToString(deterministic=True))
