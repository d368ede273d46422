"""The header of a safetensors file, checked before the file is mapped: names, shapes and places, no values."""

from __future__ import annotations

import math
from typing import IO, Any, NamedTuple

from reparam.errors import InputError

from .reading import parse_json, size_of
from .text import one_line

MAX_HEADER_BYTES = 100 << 20
MAX_DIMENSIONS = 64
METADATA = "__metadata__"
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F4": 4,
}


class TensorPlace(NamedTuple):
    """One tensor of a safetensors file. kind: as the file spells its dtype. begin: the byte of the file."""

    kind: str
    shape: tuple[int, ...]
    begin: int


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins with the length of a header and its first bracket."""
    return int.from_bytes(head[:8], "little") < MAX_HEADER_BYTES and head[8:9] == b"{"


def check_safetensors(file: IO[bytes], name: str) -> dict[str, TensorPlace]:
    """Where the tensors of a file lie, by their names.

    Raises InputError, naming the tensor, unless the tensors' values lie behind each other and fill the file.
    """
    size = size_of(file)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise _broken(name, f"its header states {length} bytes")
    try:
        header = parse_json(file.read(length))
    except ValueError as error:
        raise _broken(name, f"its header is not JSON: {one_line(str(error))[:100]}") from error
    if not isinstance(header, dict):
        raise _broken(name, "its header is no mapping")
    _check_metadata(header.pop(METADATA, None), name)
    places = sorted(_place(key, entry, name) for key, entry in header.items())
    end = 0
    for begin, last, key in places:
        if begin != end:
            raise _broken(name, f"the values of '{_shown(key)}' do not follow those before them")
        end = last
    if end != size - 8 - length:
        raise _broken(name, f"its tensors take {end} bytes, where it holds {size - 8 - length}")
    return {
        key: TensorPlace(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for key, entry in header.items()
    }


def _check_metadata(value: Any, name: str) -> None:
    plain = value is None or (isinstance(value, dict) and all(isinstance(v, str) for v in value.values()))
    if not plain:
        raise _broken(name, "its metadata is no mapping of texts")


def _place(key: str, entry: Any, name: str) -> tuple[int, int, str]:
    """Where the values of one tensor begin and end, behind the header."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if len(entry) == 3:
            pass
        case _:
            raise _broken(name, f"'{_shown(key)}' is not described as a tensor")
    if kind not in _BITS:
        raise _broken(name, f"'{_shown(key)}' is of the unknown type '{_shown(kind)}'")
    sizes = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**62 for n in shape)
    if not sizes or len(shape) > MAX_DIMENSIONS:
        raise _broken(name, f"'{_shown(key)}' has an impossible shape")
    if not 0 <= begin <= end or (end - begin) * 8 != math.prod(shape) * _BITS[kind]:
        raise _broken(name, f"'{_shown(key)}' has {end - begin} bytes for the shape {tuple(shape)} in {kind}")
    return begin, end, key


def _shown(text: str) -> str:
    return one_line(text)[:100]


def _broken(name: str, what: str) -> InputError:
    return InputError(f"{name} is not a whole safetensors file: {what}; copy or save it again")
