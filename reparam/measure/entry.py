"""A model to be measured: what it is called, where it lies, and what is known of it before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reparam.engines import Runnable
from reparam.engines.formats import recognise
from reparam.loading import LoadedModel

SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}


@dataclass(frozen=True)
class Entry:
    """A model under its name.

    path, arch, arch_args, trust: how it was opened, where it lies in a file. which: the key and prefix of its weights.
    """

    name: str
    model: LoadedModel | Runnable
    path: Path | None = None
    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    trust: bool = False
    which: Mapping[str, Any] = field(default_factory=dict)


def size_of_model(entry: Entry) -> int:
    """The bytes of its files, those of a folder of source included; of a model without one, those of its weights."""
    if entry.path is not None and entry.path.is_dir():
        return sum(f.stat().st_size for f in entry.path.iterdir() if f.is_file())
    if entry.path is not None and entry.path.exists():
        format = recognise(entry.path)
        sides = [] if format is None else format.side_files(entry.path)
        return sum(f.stat().st_size for f in (entry.path, *sides))
    if isinstance(entry.model, Runnable):
        return 0
    state = entry.model.module.state_dict().values()
    return sum(v.numel() * v.element_size() for v in state if isinstance(v, torch.Tensor))


def precision_of(model: LoadedModel | Runnable) -> str:
    """fp32, fp16, bf16, int8, …: the coarsest that it holds weights in."""
    if isinstance(model, Runnable):
        return SHORT.get(model.precision, model.precision)
    kinds = {p.dtype for p in (*model.module.parameters(), *model.module.buffers()) if p.is_floating_point()}
    coarsest = min(kinds, key=lambda d: (d.itemsize, -torch.finfo(d).eps), default=torch.float32)
    return SHORT.get(str(coarsest).removeprefix("torch."), str(coarsest).removeprefix("torch."))
