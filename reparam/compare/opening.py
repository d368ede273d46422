"""Opens anything that can be run: what `reparam.load` takes, and files of the formats that `export` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.conversion import Conversion
from reparam.emit import to_module
from reparam.engines import Exported, Runnable, checked_file
from reparam.engines.formats import recognise
from reparam.errors import InputError
from reparam.ir import Program, exported_shapes, shape_of_input, unlift
from reparam.loading import LoadedModel, load
from reparam.utils import Shapes, as_path, describe_type

Comparable = (
    nn.Module | torch.export.ExportedProgram | Conversion | Exported | Program | LoadedModel | Runnable | str | Path
)


def open_model(
    model: str | Path | None,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    trust: bool = False,
    seed: int = 0,
    key: str | None = None,
    prefix: str | None = None,
    pretrained: str | None = None,
) -> LoadedModel | Runnable:
    """`load`, or the engine in the file. Raises what `load` and `open_engine` raise."""
    engine = open_engine(Path(model), trust=trust) if model is not None else None
    if engine is None:
        which: dict[str, Any] = {"key": key, "prefix": prefix, "pretrained": pretrained}
        return load(model, arch=arch, arch_args=arch_args, trust=trust, seed=seed, **which)
    if key is not None or prefix is not None or pretrained is not None:
        raise InputError(f"{Path(str(model)).name} is no checkpoint; leave out --key, --prefix and --pretrained")
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


def opened_alike(model: Any, name: str) -> LoadedModel | Runnable | Program:
    """Anything that can be run: a module, a program, a result of `convert`, `export` or `prune`, a file.

    name: of it, for messages. Raises InputError for anything else, and what opening a file raises.
    """
    if isinstance(model, Exported):
        return open_model(model.path)
    if isinstance(model, torch.export.ExportedProgram):
        return LoadedModel(unlift(model), exported=model, input_shapes=exported_shapes(model))
    if isinstance(model, nn.Module):
        return LoadedModel(model, input_shapes=_traced_shapes(model))
    if isinstance(model, str | Path):
        return open_model(as_path(model, f"the file {name}"))
    if isinstance(model, LoadedModel | Runnable | Program):
        return model
    if isinstance(getattr(model, "module", None), nn.Module):  # of `convert`, and of what is made with it
        return LoadedModel(model.module, exported=None, input_shapes=_traced_shapes(model.module))
    raise InputError(f"{name} is {describe_type(model)}; give a module, a program, a conversion or a file")


def runnable(model: LoadedModel | Runnable | Program) -> LoadedModel | Runnable:
    """What can be run as it is: a program as its module."""
    if isinstance(model, Program):
        module = to_module(model)
        return LoadedModel(module, input_shapes=_traced_shapes(module))
    return model


def _traced_shapes(module: nn.Module) -> Shapes | None:
    """The shapes of the inputs of a converted network, which its graph still tells; None for any other module."""
    if not isinstance(module, fx.GraphModule):
        return None
    values = [n.meta.get("val") for n in module.graph.nodes if n.op == "placeholder"]
    tensors = [v for v in values if isinstance(v, Tensor) and v.dim()]
    return tuple(shape_of_input(v) for v in tensors) if tensors and len(tensors) == len(values) else None
