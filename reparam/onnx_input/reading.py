"""ONNX files, read without trusting them: every name and size is looked at first, and no weights from elsewhere."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, NamedTuple

from reparam.errors import InputError, MachineError, UnsafeFileError
from reparam.utils import Stamp, name_complaint, one_line, opened, path_of, size_of, stamp_of

from .limits import bits_of, check_limits, tensors_in
from .wire import outline_of

if TYPE_CHECKING:
    import onnx

LARGE_FILE = 1 << 26  # bytes; of a larger one the weights are not read with the graph


def is_onnx(path: Path, head: bytes) -> bool:
    """Whether a file is an ONNX model: by its name, or by how its first fields are encoded."""
    return path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a"))


def read_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """The model in a file, whose external weights must lie in its folder.

    weights: whether external weights are read too. Raises InputError for a damaged file and for one that asks for
    endless time or memory, UnsafeFileError when it names weights outside of its own folder, MachineError when onnx is
    missing.
    """
    return read_file(path, weights=weights).model


class StoredModel(NamedTuple):
    """A model that was read.

    content: the bytes of its file, None of a large one. stamp: of the file as it was read. beside: whether weights lie
    in other files.
    """

    model: onnx.ModelProto
    content: bytes | None
    stamp: Stamp
    beside: bool


def read_file(path: Path, *, weights: bool = True) -> StoredModel:
    """The model, see `read_model`, and the very file that it was read from.

    Without `weights`, the values of large weights of a large file are passed over too; they are marked as external.
    """
    try:
        import onnx
    except ImportError as error:
        raise MachineError("reading ONNX needs onnx; pip install 'reparam[onnx]'") from error
    damaged = InputError(f"{path} is damaged or no ONNX model; export it again")
    with _opened(path, damaged) as file:
        stamp = stamp_of(file)
        content = None if not weights and stamp.size >= LARGE_FILE else file.read()
        try:
            if content is None:
                model = outline_of(file, stamp.size, str(path))
            else:
                model = onnx.load_model_from_string(content)
        except InputError:
            raise
        except Exception as error:  # protobuf's own decoding error
            raise damaged from error
    if not model.graph.node and not model.graph.output:
        raise damaged
    check_limits(model, str(path))
    _check_places(model, path)
    beside = bool(side_files(model))
    if weights:
        _load_external(model, path)
    return StoredModel(model, content, stamp, beside)


@contextlib.contextmanager
def _opened(path: Path, empty: InputError) -> Iterator[IO[bytes]]:
    if path.is_file() and path.stat().st_size == 0:
        raise empty
    with opened(path) as file:
        yield file


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    """Reads external weights into the model, each file opened once and looked at where it is by then."""
    import onnx

    places: dict[str, list[onnx.TensorProto]] = {}
    for tensor in tensors_in(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            details = {e.key: e.value for e in tensor.external_data}
            if "location" not in details:
                raise InputError(f"{path} is damaged: it does not say where '{one_line(tensor.name)[:60]}' lies")
            places.setdefault(details["location"], []).append(tensor)
    for place, tensors in places.items():
        with opened(path.parent / place) as file:
            if not Path(path_of(file)).resolve().is_relative_to(path.parent.resolve()):
                raise _outside(path, place)
            for tensor in tensors:
                _load_tensor(tensor, file, path)


def _load_tensor(tensor: onnx.TensorProto, file: IO[bytes], path: Path) -> None:
    import onnx

    details = {e.key: e.value for e in tensor.external_data}
    name = one_line(tensor.name)[:60]
    bits, size = bits_of(tensor.data_type), size_of(file)
    try:
        offset = int(details.get("offset", "0"))
        length = int(details["length"]) if "length" in details else size - offset
    except ValueError as error:
        raise InputError(f"{path} is damaged: where '{name}' lies is no number") from error
    wanted = -(-math.prod(tensor.dims) * (bits or 8) // 8)
    if bits is None or offset < 0 or length != wanted or offset + length > size:
        raise InputError(f"{path} is damaged: '{name}' takes {wanted} bytes, which are not there; copy both files")
    file.seek(offset)
    tensor.raw_data = file.read(length)
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT


def side_files(model: onnx.ModelProto) -> list[str]:
    """The locations of external weights that a model names, each once."""
    import onnx

    external = (t for t in tensors_in(model) if t.data_location == onnx.TensorProto.EXTERNAL)
    found = [e.value for t in external for e in t.external_data if e.key == "location"]
    return list(dict.fromkeys(found))


def external_files(path: Path) -> list[Path]:
    """The files beside it that an ONNX file takes weights from. Raises InputError for a damaged file."""
    model = read_model(path, weights=False)
    return [path.parent / place for place in side_files(model)]


def external_size(model: onnx.ModelProto, path: Path) -> int:
    """The bytes of the files beside it that a model takes weights from."""
    return sum((path.parent / place).stat().st_size for place in side_files(model))


def _check_places(model: onnx.ModelProto, path: Path) -> None:
    """Refuses locations that are absolute, climb out of the folder, or leave it by a link."""
    folder = path.parent.resolve()
    for place in side_files(model):
        complaint = name_complaint(place.replace("\\", "/")) if isinstance(place, str) else "is no text"
        if complaint:
            raise InputError(f"{path} is damaged: the name of its file of weights {complaint}")
        parts = {*PurePosixPath(place).parts, *PureWindowsPath(place).parts}
        absolute = PurePosixPath(place).is_absolute() or PureWindowsPath(place).anchor
        target = (path.parent / place).resolve()
        if not place or absolute or ".." in parts or not target.is_relative_to(folder):
            raise _outside(path, place)
        if not target.is_file():
            raise InputError(f"{path} has its weights in {place}, which is not beside it; copy both files")


def _outside(path: Path, place: str) -> UnsafeFileError:
    return UnsafeFileError(f"{path} takes weights from '{place}', outside of its own folder; such a file is not read")
