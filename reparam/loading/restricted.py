"""Reads an inspected file with torch's restricted reader; pickles that were written anew take the place of its own."""

from __future__ import annotations

import io
from typing import IO, Any

import torch
from torch import _weights_only_unpickler

from reparam.utils import path_of, size_of

from .records import PICKLE, Inspected


def read_restricted(file: IO[bytes], inspected: Inspected) -> Any:
    """The object that torch.save wrote. The file is at its beginning.

    Raises whatever torch raises.
    """
    if inspected.pickles is None:
        if inspected.stored:
            return torch.load(path_of(file), map_location="cpu", weights_only=True, mmap=True)
        return torch.load(file, map_location="cpu", weights_only=True)
    if inspected.rest:
        file.seek(inspected.rest)
        return torch.load(io.BytesIO(inspected.pickles + file.read()), map_location="cpu", weights_only=True)
    reader = _Reader(torch._C.PyTorchFileReader(file), inspected.pickles)
    mapped = torch.UntypedStorage.from_file(path_of(file), False, size_of(file)) if inspected.stored else None
    return torch.serialization._load(  # as torch.load calls it
        reader, "cpu", _weights_only_unpickler, overall_storage=mapped, encoding="utf-8"
    )


class _Reader:
    """torch's reader of archives, with another pickle."""

    def __init__(self, reader: Any, pickle: bytes) -> None:
        self._reader = reader
        self._pickle = pickle

    def get_record(self, name: str) -> bytes:
        record: bytes = self._pickle if name == PICKLE else self._reader.get_record(name)
        return record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)
