"""ONNX files read and written without their weights in memory, by the encoding of protobuf.

A message is a row of fields, each a tag (its number and how it is encoded), a length where it has one, and its content.
A model has its graph in field 7, a graph its weights in field 5, a weight its values in field 9. What is written here
is, byte for byte, what protobuf itself writes in its deterministic form: fields in the order of their numbers.

Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from reparam.errors import InputError
from reparam.utils import one_line

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

LARGE = 1 << 20  # bytes of one weight that is passed over, or written from where it lies
GRAPH, METADATA = 7, 14  # fields of a model
NODE, NAME, WEIGHT = 1, 2, 5  # fields of a graph
RAW = 9  # the field of a tensor with its values
_FIXED = {1: 8, 5: 4}  # bytes of numbers of a fixed length, by their encoding
_VARINT, _BYTES = 0, 2
_IS_ELSEWHERE = b"\x70\x01"  # field 14 of a tensor, data_location: EXTERNAL
_LONGEST = 10  # bytes of a number


@dataclass(frozen=True)
class _Field:
    """Where a field lies: its first byte, its content, the byte behind it."""

    number: int
    encoding: int
    start: int
    content: int
    end: int


def _number(file: IO[bytes]) -> int:
    """A number of seven bits a byte, the lowest first."""
    value = 0
    for i in range(_LONGEST):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends within a number")
        value |= (byte[0] & 0x7F) << (7 * i)
        if byte[0] < 0x80:
            return value
    raise ValueError("a number is too long")


def _coded(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _head(number: int, length: int) -> bytes:
    """What stands before content of a length."""
    return _coded(number << 3 | _BYTES) + _coded(length)


def _fields(file: IO[bytes], end: int) -> Iterator[_Field]:
    """The fields from here to `end`. The file may be read elsewhere in between. Raises ValueError for another form."""
    at = file.tell()
    while at < end:
        file.seek(at)
        tag = _number(file)
        number, encoding = tag >> 3, tag & 7
        if encoding == _VARINT:
            content = file.tell()
            _number(file)
            behind = file.tell()
        elif encoding == _BYTES:
            length = _number(file)
            content = file.tell()
            behind = content + length
        elif encoding in _FIXED:
            content = file.tell()
            behind = content + _FIXED[encoding]
        else:
            raise ValueError("a field is of an unknown form")
        if behind > end or not number:
            raise ValueError("a field is longer than what it lies in")
        yield _Field(number, encoding, at, content, behind)
        at = behind


# ---- reading -----------------------------------------------------------------------------------------------------


def outline_of(file: IO[bytes], size: int, name: str) -> onnx.ModelProto:
    """The model in a file without the values of its large weights, which then lie elsewhere, as ONNX calls it.

    size: bytes of the file. name: what messages call it. Raises InputError for a weight that has not as many values as
    its shape says, ValueError (or what protobuf raises) for a file that is no model.
    """
    import onnx

    file.seek(0)
    model: onnx.ModelProto = onnx.load_model_from_string(bytes(_without(file, size, (GRAPH, WEIGHT), name)))
    return model


def _without(file: IO[bytes], end: int, way: tuple[int, ...], name: str) -> bytearray:
    """A message without large values. way: the fields that lead to weights."""
    if not way:
        return _declared(file, end, name)
    found = bytearray()
    for field in list(_fields(file, end)):
        if field.number == way[0] and field.encoding == _BYTES and field.end - field.content >= LARGE:
            file.seek(field.content)
            inner = _without(file, field.end, way[1:], name)
            found += _head(field.number, len(inner)) + inner
        else:
            found += _copy(file, field)
    return found


def _copy(file: IO[bytes], field: _Field) -> bytes:
    file.seek(field.start)
    content = file.read(field.end - field.start)
    if len(content) < field.end - field.start:
        raise ValueError("it is cut short")
    return content


def _declared(file: IO[bytes], end: int, name: str) -> bytearray:
    """A weight with its name, type and shape alone, where its values are many."""
    import onnx

    from .limits import bits_of

    fields = list(_fields(file, end))
    raw = [f for f in fields if f.number == RAW and f.encoding == _BYTES]
    if not raw or raw[-1].end - raw[-1].content < LARGE:  # the last one counts
        return bytearray(b"".join(_copy(file, f) for f in fields))
    found = bytearray(b"".join(_copy(file, f) for f in fields if f not in raw))
    tensor = onnx.TensorProto.FromString(bytes(found))
    held, bits = raw[-1].end - raw[-1].content, bits_of(tensor.data_type)
    possible = bits is not None and all(d >= 0 for d in tensor.dims) and len(tensor.dims) <= 64
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        wanted = -(-math.prod(tensor.dims) * (bits or 8) // 8)
        if not possible or held != wanted:
            shown = one_line(tensor.name)[:60]
            raise InputError(f"{name} is refused: it is damaged: '{shown}' holds {held} of {wanted} values")
    return found + _IS_ELSEWHERE


# ---- writing -----------------------------------------------------------------------------------------------------


def write_from_where_it_lies(model: ir.Model, file: IO[bytes]) -> None:
    """Writes a model in one file. Each large weight is written from the memory that it lies in, one after the other."""
    import onnx

    shell, large = _shell_of(model)
    graph = shell.graph
    weights = list(graph.initializer)
    del graph.initializer[:]
    front = onnx.GraphProto(node=graph.node, name=graph.name) if graph.name else onnx.GraphProto(node=graph.node)
    for field in ("node", "name"):
        graph.ClearField(field)
    parts = [_weight_head(w, large.get(w.name)) for w in weights]
    sizes = [
        len(h) + (0 if (t := large.get(w.name)) is None else t.nbytes) for h, w in zip(parts, weights, strict=True)
    ]
    before, behind = _bytes_of(front), _bytes_of(graph)
    shell.ClearField("graph")
    first = onnx.ModelProto()
    for field, value in shell.ListFields():
        if field.number < GRAPH:
            setattr(first, field.name, value)
            shell.ClearField(field.name)
    file.write(_bytes_of(first))
    file.write(_head(GRAPH, len(before) + sum(len(_head(WEIGHT, s)) + s for s in sizes) + len(behind)))
    file.write(before)
    for head, size, weight in zip(parts, sizes, weights, strict=True):
        file.write(_head(WEIGHT, size) + head)
        if weight.name in large:
            _write_values(large[weight.name], file)
    file.write(behind)
    file.write(_bytes_of(shell))


def _shell_of(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model as a message in which large weights are empty, and those weights by their names."""
    import numpy as np
    import onnx_ir as ir

    large: dict[str, Any] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= LARGE and not _is_noted(tensor):
            large[name] = tensor
            value.const_value = ir.tensor(np.zeros(0, np.uint8), name=name)
    try:
        return ir.to_proto(model), large
    finally:
        for name, tensor in large.items():
            model.graph.initializers[name].const_value = tensor


def _is_noted(tensor: Any) -> bool:
    """Whether more is said of a tensor than its name, type, shape and values."""
    return bool(tensor.doc_string or tensor.metadata_props or tensor.dtype.name == "STRING")


def _weight_head(weight: onnx.TensorProto, tensor: Any) -> bytes:
    """All of a small weight; of a large one what stands before its values."""
    import onnx

    if tensor is None:
        return _bytes_of(weight)
    told = onnx.TensorProto(name=weight.name, data_type=tensor.dtype.value, dims=[int(d) for d in tensor.shape])
    return _bytes_of(told) + _head(RAW, tensor.nbytes)


def _write_values(tensor: Any, file: IO[bytes]) -> None:
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def _bytes_of(message: Any) -> bytes:
    content: bytes = message.SerializeToString(deterministic=True)
    return content


def add_metadata(file: IO[bytes], size: int, texts: Mapping[str, str]) -> bool:
    """Puts metadata behind a model that ends before any; whether it did."""
    import onnx

    file.seek(0)
    if any(field.number >= METADATA for field in _fields(file, size)):
        return False
    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, dict(texts))
    file.seek(size)
    file.write(_bytes_of(model))
    return True
