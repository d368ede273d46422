"""What a caller of the Python API gives as a model: a module, a program, or a file, opened as the command line does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture import Captured, capture, first_sizes, from_exported, read_axes
from reparam.errors import InputError
from reparam.ir import draw_examples
from reparam.onnx_input import ImportedModel
from reparam.utils import Shapes, as_path, is_batch

from .model import LoadedModel, load

FileOrModel = nn.Module | torch.export.ExportedProgram | LoadedModel | str | Path


@dataclass(frozen=True)
class Given:
    """A model with its example inputs. name, spec, inferred: of a file and its architecture. notes: what to know.

    dynamic: the axes that are to stay free, without those that an ONNX file fixes.
    """

    model: Any
    inputs: tuple[Any, ...]
    dynamic: Any = ()
    name: str = ""
    spec: str | None = None
    inferred: bool = False
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of a file; nothing for what came from none."""
        return {"input": self.name, "arch": self.spec, "arch_inferred": self.inferred} if self.name else {}

    def capture(self) -> Captured:
        """Its graph, with what the file said among the notes. Raises CaptureError or InputError."""
        found = (
            from_exported(self.model)
            if isinstance(self.model, torch.export.ExportedProgram)
            else capture(self.model, self.inputs, dynamic=self.dynamic)
        )
        return replace(found, notes=(*self.notes, *found.notes))


def take_given(
    model: Any, inputs: Sequence[Any], how: Mapping[str, Any] = MappingProxyType({}), *, dynamic: Any, seed: int = 0
) -> Given:
    """The module or the program that is meant, with inputs: random ones where a file tells their shapes.

    how: a file is opened, as in `load`; for files alone. dynamic: names of axes, as `convert` takes them.

    Raises what `load` raises, InputError for `how` beside anything else, and for a file that does not tell its
    inputs.
    """
    name = ""
    if isinstance(model, str | os.PathLike):
        name = str(as_path(model, "the model"))
        model = load(Path(name), **how)
    elif stray := [k for k, v in how.items() if v]:
        raise InputError(f"{stray[0]} is for a model that is a file; leave it out")
    if not isinstance(model, LoadedModel):
        fitted = _fitted(model, inputs, dynamic, seed)
        return Given(model, fitted[0], fitted[1], notes=fitted[2])
    notes = list(model.notes)
    if model.twins and model.arch_inferred:
        notes.append(
            f"it is taken as {model.spec}, but its keys and shapes also fit {', '.join(model.twins)}; name the right "
            "one with arch"
        )
    if isinstance(model.module, ImportedModel):
        inputs, dynamic, more = _fitted(model.module, inputs, dynamic, seed)
        notes += more
    elif model.exported is None and not inputs:
        if model.input_shapes is None:
            raise InputError(f"the inputs of {name or model.spec or 'the model'} are not known; give examples of them")
        axes = read_axes(dynamic)
        batch = 2 if any(map(is_batch, axes)) else 1  # a traced size of one would be taken as fixed
        inputs, _ = drawn_inputs(model.module, model.input_shapes, axes, batch=batch, seed=seed)
    return Given(
        model.exported or model.module,
        tuple(inputs),
        dynamic,
        name or str(model.source or model.spec or ""),
        model.spec,
        model.arch_inferred,
        tuple(notes),
    )


def drawn_inputs(
    module: nn.Module,
    shapes: Shapes | None,
    dynamic: Sequence[str],
    *,
    batch: int,
    rows: int | None = None,
    seed: int = 0,
) -> tuple[tuple[Tensor, ...], str]:
    """Random inputs of a module, or of that of an ONNX file, and what axis 0 of the first is called.

    shapes: without axis 0; None for those of a file. dynamic: names of free axes. batch: the size of axis 0 where it is
    the batch or has no name. rows: its size where it is another free axis; by default one that no other axis has.

    Raises InputError for shapes that are not known or do not fit, and for names of axes that no input has.
    """
    axes = tuple(dynamic)

    def draw(batch: int | tuple[int, ...]) -> tuple[Tensor, ...]:
        if isinstance(module, ImportedModel):
            return module.examples(shapes, batch=batch, seed=seed)
        return draw_examples(module, shapes, batch=batch, seed=seed)

    if isinstance(module, ImportedModel):
        axes, _ = module.free_axes(axes)
    usual = draw(batch)
    sizes, called = first_sizes(module, usual, axes, batch, rows)
    return (usual if set(sizes) <= {batch} else draw(sizes)), called


def _fitted(model: Any, inputs: Sequence[Any], dynamic: Any, seed: int) -> tuple[tuple[Any, ...], Any, tuple[str, ...]]:
    """The inputs and the free axes as an ONNX file has them, and what there is to say; those of others as they are."""
    if not isinstance(model, ImportedModel):
        return tuple(inputs), dynamic, ()
    model.check_inputs(inputs)
    axes, notes = model.free_axes(read_axes(dynamic))
    batch = 2 if any(map(is_batch, axes)) else 1
    found, kept, fixed = model.settled(
        tuple(inputs) or drawn_inputs(model, None, axes, batch=batch, seed=seed)[0], axes
    )
    return found, kept, (*notes, *fixed)
