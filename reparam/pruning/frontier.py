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
    """Tensors by key. What does not fit into memory lies in files, which go with the frontier."""

    def __init__(self, memory: int = MEMORY) -> None:
        self.left = memory
        self.held: dict[Hashable, Any] = {}
        self.files: dict[Hashable, tuple[Path, torch.Size, torch.dtype]] = {}
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
            self.held[key] = value if value._base is None else value.clone()
            return
        self.serial += 1
        path = Path(self._folder.name) / str(self.serial)
        with writing(path.parent), path.open("xb") as file:
            file.write(value.contiguous().numpy().reshape(-1).data)
        self.files[key] = (path, value.shape, value.dtype)

    def get(self, key: Hashable) -> Any:
        """The value of a key."""
        if key in self.held:
            return self.held[key]
        path, shape, dtype = self.files[key]
        return torch.from_file(str(path), shared=False, size=shape.numel(), dtype=dtype).reshape(shape)

    def drop(self, key: Hashable) -> None:
        """Forgets a value."""
        if key in self.files:
            self.files.pop(key)[0].unlink()
            return
        value = self.held.pop(key)
        if isinstance(value, Tensor):
            self.left += value.numel() * value.element_size()
