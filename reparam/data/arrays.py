"""Arrays in `.npy`, `.npz` and `.safetensors` files: opened once, headers checked first, read a row at a time."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from reparam.errors import InputError, ReparamError
from reparam.utils import check_safetensors, is_safetensors, name_complaint, one_line, opened, size_of

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
_KINDS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}  # of safetensors; its floats of 8 bits and fewer are no inputs of networks

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class StoredArray:
    """An array (N, *shape) in an open file.

    begin: the byte of the file at which its values begin. kind: of its values, as the file has them. fortran: whether
    its first axis is the one that changes fastest; it is then read whole.
    """

    path: Path | str
    file: IO[bytes]
    begin: int
    shape: tuple[int, ...]
    kind: np.dtype[Any] | torch.dtype
    fortran: bool = False

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """Of the tensors that `row` and `whole` give."""
        if isinstance(self.kind, torch.dtype):
            return self.kind
        return torch.from_numpy(np.empty(0, self.kind.newbyteorder("="))).dtype

    def row(self, index: int) -> Tensor:
        """The values of one sample (1, *shape). Rows of archives are read fastest in their order. Raises InputError."""
        if self.fortran:
            return self._tensor[index : index + 1]
        shape = (1, *self.shape[1:])
        size = math.prod(shape) * self.kind.itemsize
        with _naming_the_file(self.path):
            begin = self.begin + index * size
            if self.file.tell() != begin:
                self.file.seek(begin)
            return self._decoded(self._bytes(size), shape)

    def whole(self) -> Array:
        """All values, in the byte order of this machine. Raises InputError."""
        with _naming_the_file(self.path):
            self.file.seek(self.begin)
            content = self._bytes(math.prod(self.shape) * self.kind.itemsize)
            assert isinstance(self.kind, np.dtype)
            flat = np.frombuffer(content, dtype=self.kind, count=math.prod(self.shape))
            array = flat.reshape(self.shape[::-1]).transpose() if self.fortran else flat.reshape(self.shape)
            return array.view(np.uint8) != 0 if self.kind.kind == "b" else array.astype(self._native, copy=False)

    def tensor(self) -> Tensor:
        """All values as a tensor (N, *shape). Raises InputError."""
        if isinstance(self.kind, np.dtype):
            return torch.from_numpy(np.ascontiguousarray(self.whole()))
        with _naming_the_file(self.path):
            self.file.seek(self.begin)
            return self._decoded(self._bytes(math.prod(self.shape) * self.kind.itemsize), self.shape)

    @functools.cached_property
    def _tensor(self) -> Tensor:
        return self.tensor()

    @property
    def _native(self) -> np.dtype[Any]:
        assert isinstance(self.kind, np.dtype)
        return self.kind.newbyteorder("=")

    def _bytes(self, wanted: int) -> bytearray:
        content = bytearray(wanted)
        view, read = memoryview(content), 0
        while read < wanted and (chunk := self.file.readinto(view[read:])):  # type: ignore[attr-defined]
            read += chunk
        if read < wanted:
            raise ValueError(f"it states {math.prod(self.shape)} values, which are not there")
        return content

    def _decoded(self, content: bytearray, shape: tuple[int, ...]) -> Tensor:
        if not content:
            return torch.empty(shape, dtype=self.dtype)
        if self.dtype is torch.bool:  # a byte that is neither 0 nor 1 is no bool of torch
            return torch.frombuffer(content, dtype=torch.uint8).ne(0).reshape(shape)
        if isinstance(self.kind, torch.dtype):
            return torch.frombuffer(content, dtype=self.kind).reshape(shape)
        return torch.from_numpy(np.frombuffer(content, self.kind).astype(self._native, copy=False).reshape(shape))


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[dict[str, StoredArray]]:
    """The arrays of a file by their names, to be read in the block; the one of a `.npy` is called "".

    Raises InputError for a file that is none of those kinds, for damaged ones, and for those that unpack to far more
    than they hold. Nothing pickled is read.
    """
    with opened(path) as file, contextlib.ExitStack() as stack:
        head = file.read(9)
        file.seek(0)
        if path.suffix == ".safetensors" or is_safetensors(head):
            yield _safetensors(file, path)
            return
        with _naming_the_file(path):
            if head.startswith(_ZIP):
                found = _archive(file, path, stack)
            elif head.startswith(_MAGIC):
                found = {"": _array(file, path, size_of(file))}
            else:
                raise ValueError("it does not begin like one")
        yield found


def load_array(path: Path) -> Array | Mapping[str, Array]:
    """The array of a .npy file, or those of a .npz by their names. Raises InputError; nothing pickled is read."""
    with open_arrays(path) as found:
        if any(isinstance(array.kind, torch.dtype) for array in found.values()):
            raise InputError(f"{path} is a safetensors file; save its arrays as .npy")
        return found[""].whole() if list(found) == [""] else {name: array.whole() for name, array in found.items()}


def parse_npy(content: bytes, where: str) -> Tensor:
    """The array of a `.npy` file that is in memory. Raises InputError that names `where`."""
    with _naming_the_file(where):
        return _array(io.BytesIO(content), where, len(content)).tensor()


@contextlib.contextmanager
def _naming_the_file(path: Path | str) -> Iterator[None]:
    """What numpy, zipfile and zlib say of a damaged file, which reads headers as Python and fails in many ways."""
    try:
        yield
    except (ReparamError, MemoryError):
        raise
    except Exception as error:
        text = one_line(str(error))[:200] or type(error).__name__
        raise InputError(f"{path} is not an array that numpy.save wrote ({text})") from error


def _archive(file: IO[bytes], path: Path, stack: contextlib.ExitStack) -> dict[str, StoredArray]:
    arrays: dict[str, StoredArray] = {}
    archive = stack.enter_context(zipfile.ZipFile(file))
    infos = archive.infolist()
    total = sum(i.file_size for i in infos)
    if total > MAX_RATIO * size_of(file) + FREE_BYTES:
        raise ValueError(f"it unpacks to {total} bytes")
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name_complaint(name) or name in arrays:
            raise ValueError(f"the name {name[:60]!r} is there twice or not plain")
        content = stack.enter_context(archive.open(info))
        arrays[name] = _array(content, path, info.file_size)
    return arrays


def _array(file: IO[bytes], path: Path | str, size: int) -> StoredArray:
    """One array, whose header states no more values than there are."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"its version {version} is not known")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.itemsize not in SIZES.get(dtype.kind, ()):
        raise ValueError(f"it holds {dtype}, not numbers")
    count = math.prod(shape)
    if any(n < 0 for n in shape) or count * dtype.itemsize > size:
        raise ValueError(f"it states {count} values, which are not there")
    return StoredArray(path, file, file.tell(), shape, dtype, fortran and len(shape) > 1)


def _safetensors(file: IO[bytes], path: Path) -> dict[str, StoredArray]:
    found: dict[str, StoredArray] = {}
    for name, place in check_safetensors(file, str(path)).items():
        if complaint := name_complaint(name):
            raise InputError(f"{path} has a tensor whose name {complaint}; give it a plain one")
        if place.kind not in _KINDS:
            raise InputError(f"{path} holds '{name}' in {place.kind}, which no samples are; save it as float32")
        found[name] = StoredArray(path, file, place.begin, place.shape, _KINDS[place.kind])
    return found
