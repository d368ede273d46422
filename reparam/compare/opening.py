"""Opens anything that can be run: what `load` takes, and files of the formats that `export` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reparam.engines import Runnable, checked_file
from reparam.engines.formats import recognise
from reparam.errors import InputError
from reparam.load import LoadedModel, load_model


def open_model(
    model: str | Path | None,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    trust: bool = False,
    seed: int = 0,
) -> LoadedModel | Runnable:
    """`load_model`, or the engine in the file. Raises what `load_model` and `open_engine` raise."""
    engine = open_engine(Path(model), trust=trust) if model is not None else None
    if engine is None:
        return load_model(model, arch=arch, arch_args=arch_args, trust=trust, seed=seed)
    if arch is not None:
        raise InputError(f"{Path(str(model)).name} holds its architecture already; leave out --arch {arch}")
    return engine


def open_engine(path: Path, *, trust: bool = False) -> Runnable | None:
    """The engine in a file, None when it is of no format that is exported to.

    Raises UnsafeFileError for native code without its manifest unless `trust`, InputError for a damaged file,
    MachineError when it cannot run here.
    """
    format = recognise(path)
    if format is None:
        return None
    with checked_file(path, format, trust=trust) as file:
        return format.load(file)
