"""Values that are still needed, batch by batch: in memory up to a limit, in a temporary folder beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from reparam.utils import writing

MEMORY = 256 << 20  # bytes that are kept in memory


class Frontier:
    """Tensors by key. What does not fit into memory lies in files, which go with the frontier.

    Values that lie in files are mapped, not read. A file whose value was dropped is written over by another of its
    size, which is faster than a new file, but only after `recycle`: until then its values may still be looked at.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self.left = memory
        self.held: dict[Hashable, Any] = {}
        self.files: dict[Hashable, tuple[Path, torch.Size, torch.dtype]] = {}
        self.spare: dict[int, list[Path]] = {}  # files that may be written over, by their size
        self.dropped: list[tuple[int, Path]] = []  # those that may be, after the next `recycle`
        self.serial = 0
        self._folder = tempfile.TemporaryDirectory(prefix="reparam-")

    def __enter__(self) -> Frontier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held.clear()
        self._folder.cleanup()

    def put(self, key: Hashable, value: Any) -> None:
        """Keeps a value; what is no tensor stays in memory. Raises MachineError where the disk is full."""
        if not isinstance(value, Tensor):
            self.held[key] = value
            return
        size = value.numel() * value.element_size()
        if size <= self.left:
            self.left -= size
            self.held[key] = value.clone() if value._base is not None or _is_mapped(value) else value
            return
        path = self._file(size)
        with writing(path.parent), path.open("r+b" if path.exists() else "xb", buffering=0) as file:
            left = value.contiguous().numpy().reshape(-1).data.cast("B")
            while left:
                left = left[file.write(left) :]
        self.files[key] = (path, value.shape, value.dtype)

    def _file(self, size: int) -> Path:
        """Where so many bytes go."""
        spare = self.spare.get(size)
        if spare:
            return spare.pop()
        self.serial += 1
        return Path(self._folder.name) / str(self.serial)

    def get(self, key: Hashable) -> Any:
        """The value of a key."""
        if key in self.held:
            return self.held[key]
        path, shape, dtype = self.files[key]
        return torch.from_file(str(path), shared=False, size=shape.numel(), dtype=dtype).reshape(shape)

    def drop(self, key: Hashable) -> None:
        """Forgets a value."""
        if key in self.files:
            path, shape, dtype = self.files.pop(key)
            self.dropped.append((shape.numel() * dtype.itemsize, path))
            return
        value = self.held.pop(key)
        if isinstance(value, Tensor):
            self.left += value.numel() * value.element_size()

    def recycle(self) -> None:
        """Nothing that was dropped is looked at any more: its files may be written over."""
        for size, path in self.dropped:
            self.spare.setdefault(size, []).append(path)
        self.dropped.clear()


def _is_mapped(value: Tensor) -> bool:
    """Whether a tensor, or what it is a view of, is the content of a file."""
    return value.untyped_storage().filename is not None
