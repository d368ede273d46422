"""Arrays from `.npy` and `.npz` files: opened once, their headers checked before their values are read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from reparam.errors import InputError
from reparam.utils import name_complaint, one_line, opened, size_of, unused_name

MAX_RATIO, FREE_BYTES = 100, 256 << 20  # an archive unpacks to at most so many times its size, beyond these bytes
SIZES = {
    "b": (1,),
    "i": (1, 2, 4, 8),
    "u": (1, 2, 4, 8),
    "f": (2, 4, 8),
    "c": (8, 16),
}  # bytes of the elements that torch has
_MAGIC, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load_array(path: Path) -> np.ndarray[Any, Any] | Mapping[str, np.ndarray[Any, Any]]:
    """The array of a .npy file, or those of a .npz by their names. Raises InputError; nothing pickled is read."""
    with opened(path) as file:
        head = file.read(len(_MAGIC))
        file.seek(0)
        try:
            if head.startswith(_ZIP):
                return _archive(file, path)
            if head != _MAGIC:
                raise ValueError("it does not begin like one")
            return _array(file, size_of(file))
        except Exception as error:  # numpy reads the header as Python, which fails in many ways
            text = one_line(str(error))[:200] or type(error).__name__
            raise InputError(f"{path} is not an array that numpy.save wrote ({text})") from error


def _archive(file: IO[bytes], path: Path) -> dict[str, np.ndarray[Any, Any]]:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        total = sum(i.file_size for i in infos)
        if total > MAX_RATIO * size_of(file) + FREE_BYTES:
            raise ValueError(f"it unpacks to {total} bytes")
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name_complaint(name) or name in arrays:
                raise ValueError(f"the name {name[:60]!r} is there twice or not plain")
            with archive.open(info) as content:
                arrays[name] = _array(content, info.file_size)
    return arrays


def _array(file: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """One array, whose header states no more values than there are."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"its version {version} is not known")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.itemsize not in SIZES.get(dtype.kind, ()):
        raise ValueError(f"it holds {dtype}, not numbers")
    count = math.prod(shape)
    wanted = count * dtype.itemsize
    if any(n < 0 for n in shape) or wanted > size:
        raise ValueError(f"it states {count} values, which are not there")
    content = bytearray(wanted)
    view, read = memoryview(content), 0
    while read < wanted and (chunk := file.readinto(view[read:])):  # type: ignore[attr-defined]
        read += chunk
    if read < wanted:
        raise ValueError(f"it states {count} values, which are not there")
    flat = np.frombuffer(content, dtype=dtype, count=count)
    array = flat.reshape(shape[::-1]).transpose() if fortran else flat.reshape(shape)
    return array.view(np.uint8) != 0 if dtype.kind == "b" else array.astype(dtype.newbyteorder("="), copy=False)


def save_arrays(file: IO[bytes], arrays: Mapping[str, Any]) -> None:
    """Writes a .npz, as numpy.savez does, whatever the arrays are called: no name leaves the folder it unpacks in."""
    taken: list[str] = []
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in arrays.items():
            taken.append(unused_name(_inside(name), taken))
            with archive.open(zipfile.ZipInfo(f"{taken[-1]}.npy"), "w", force_zip64=True) as content:
                np.lib.format.write_array(content, np.asanyarray(value), allow_pickle=False)


def _inside(name: str) -> str:
    """A name whose parts are those of a path downwards."""
    plain = "".join(c if c.isprintable() and c not in "\\:" else "_" for c in name)
    parts = ["_" if part.strip(". ") == "" else part for part in plain.split("/")]
    return "/".join(parts)[:200]
