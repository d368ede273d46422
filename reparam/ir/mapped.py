"""Large tensors in mapped files: their pages given back once they were read, and float64 put into a file of its own.

A mapped page that was read counts as memory of the process until it is given back; it then stays in the system's cache
as long as there is room, and is read again from there, or from the disk, when it is used. Only pages that hold what the
file holds are given back: one that was written to in a private mapping is not, and neither is any other memory.

Linux alone tells these apart. On other systems nothing is given back, and nothing is put into files.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

LEAST = 1 << 20  # bytes; the pages of smaller tensors are left alone
IN_MEMORY = 1 << 27  # bytes of tensors that are made of weights and live long; what goes beyond lies in files
PART = 1 << 24  # bytes that are copied at a time
_ENTRY = 8  # bytes that /proc/self/pagemap has for each page
_PRESENT, _SWAPPED, _OF_FILE = 63, 62, 61  # bits of these
_PLAIN = (Tensor, torch.nn.Parameter)


@functools.cache
def _discard() -> Callable[[int, int], int] | None:
    """madvise(MADV_DONTNEED), where the system has it and tells pages of files from others."""
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or not os.path.exists("/proc/self/pagemap"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda start, size: int(advise(start, size, advice))


def give_back(value: Tensor) -> bool:
    """Gives back the pages of a large tensor that lies in a mapped file; whether there were any. Its values stay."""
    discard = _discard()
    if discard is None or value.device.type != "cpu" or type(value) not in _PLAIN:
        return False
    with torch._C.DisableTorchFunction():
        if value.layout is not torch.strided:
            return False
        storage = value.untyped_storage()
        start, size = storage.data_ptr(), storage.nbytes()
    if size < LEAST:
        return False
    first, last = -(-start // mmap.PAGESIZE), (start + size) // mmap.PAGESIZE
    if last <= first or not _all_of_files(first, last - first):
        return False
    return discard(first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE) == 0


def make_room(values: Iterable[Tensor]) -> None:
    """Leaves memory to others: the pages of these tensors, and what was freed and kept for the next allocation."""
    for value in values:
        give_back(value)
    with contextlib.suppress(OSError, AttributeError):  # of other systems than Linux with glibc
        ctypes.CDLL(None).malloc_trim(0)


def _all_of_files(first: int, count: int) -> bool:
    """Whether every page that is there is one of a file, unchanged, or of shared memory."""
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as table:
            for length in (1, count):  # of any other memory the first page tells
                table.seek(first * _ENTRY)
                content = table.read(length * _ENTRY)
                if len(content) < length * _ENTRY or not _are_of_files(np.frombuffer(content, dtype=np.uint64)):
                    return False
    except OSError:
        return False
    return True


def _are_of_files(entries: np.ndarray[Any, np.dtype[np.uint64]]) -> bool:
    present = (entries >> np.uint64(_PRESENT)) & np.uint64(1)
    of_file = (entries >> np.uint64(_OF_FILE)) & np.uint64(1)
    swapped = (entries >> np.uint64(_SWAPPED)) & np.uint64(1)
    return not bool(((present & ~of_file) | swapped).any())


def in_file(value: Tensor) -> Tensor:
    """The same values in a temporary file that has no name; `value` itself where it is small or there is no room."""
    size = value.numel() * value.element_size()
    if _discard() is None or size < LEAST or value.device.type != "cpu":
        return value
    with _disable_current_modes(), torch.no_grad():
        source = value.detach().contiguous().reshape(-1)
        try:
            with tempfile.NamedTemporaryFile(prefix="reparam-", buffering=0) as file:
                content: Any = memoryview(source.view(torch.uint8).numpy())  # type: ignore[arg-type]
                while content:
                    content = content[file.write(content[:PART]) :]
                storage = torch.UntypedStorage.from_file(file.name, True, size)
        except (OSError, RuntimeError):
            return value
        made: Tensor = torch.empty(0, dtype=value.dtype).set_(storage, 0, value.shape)  # type: ignore[call-overload]
        return made


class Room:
    """Memory for tensors that live as long as a check; large ones that do not fit in lie in files."""

    def __init__(self) -> None:
        self.left = IN_MEMORY

    def take(self, value: Tensor) -> Tensor:
        """The values, where there is room for them."""
        size = value.numel() * value.element_size()
        if size > self.left:
            return in_file(value)
        self.left -= size
        return value
