"""Runs a loaded model or an engine on tensors, by the order or the names of its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from reparam.engines import Port, Runnable, output_names
from reparam.errors import InputError, ReparamError
from reparam.ir import CPU, on_device
from reparam.loading import LoadedModel
from reparam.utils import as_the_user_set, dtype_name, first_line, foreign_code, name_complaint

Named = Sequence[tuple[str | None, Tensor]]


def run_loaded(model: LoadedModel | Runnable, inputs: Named) -> dict[str, Any]:
    """Name of each output -> its array. inputs: each with its name, or None where the order decides.

    Floating inputs are cast to the dtype that the model takes, bfloat16 outputs to float32, which numpy has no name
    for. Raises InputError for inputs that the model does not take.
    """
    values = _run_engine(model, inputs) if isinstance(model, Runnable) else _run_module(model, inputs)
    for name in values:
        if complaint := "is empty" if not name else name_complaint(name):
            raise InputError(f"the model has an output whose name {complaint}: {name[:60]!r}; give it another name")
    return {name: _array(value) for name, value in values.items()}


def _array(value: Tensor) -> Any:
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _run_engine(engine: Runnable, inputs: Named) -> dict[str, Tensor]:
    names = [p.name for p in engine.inputs]
    given = _by_name(names, inputs)
    values = [_fitted(given[p.name], p) for p in engine.inputs]
    return dict(zip([p.name for p in engine.outputs], engine.run(values), strict=True))


def _by_name(names: Sequence[str], inputs: Named) -> dict[str, Tensor]:
    """Each input's tensor: the named ones, then the others in order."""
    given = {n: v for n, v in inputs if n is not None}
    if unknown := [n for n in given if n not in names]:
        raise InputError(f"the model has no input '{unknown[0]}'; it takes {', '.join(names)}")
    rest = [v for n, v in inputs if n is None]
    free = [n for n in names if n not in given]
    if len(rest) != len(free):
        raise InputError(f"{len(inputs)} inputs were given, where the model takes {len(names)}: {', '.join(names)}")
    return given | dict(zip(free, rest, strict=True))


def _fitted(value: Tensor, port: Port) -> Tensor:
    dtype = getattr(torch, port.dtype)
    fits = value.dim() == len(port.shape) and all(
        isinstance(s, str) or s == n for s, n in zip(port.shape, value.shape, strict=True)
    )
    if not fits or value.is_floating_point() != dtype.is_floating_point:
        wanted = ", ".join(map(str, port.shape))
        kind = dtype_name(value.dtype)
        raise InputError(f"the input '{port.name}' is {port.dtype} ({wanted}), not {kind} {tuple(value.shape)}")
    return value.to(dtype)


def _run_module(model: LoadedModel, inputs: Named) -> dict[str, Tensor]:
    weights = (p for p in (*model.module.parameters(), *model.module.buffers()) if p.is_floating_point())
    first = next(weights, torch.zeros(()))

    def cast(value: Tensor) -> Tensor:
        return value.to(first.device, first.dtype if value.is_floating_point() else None)

    names = list(inspect.signature(model.module.forward).parameters)
    keywords = {n: cast(v) for n, v in inputs if n is not None}
    if unknown := [n for n in keywords if n not in names]:
        raise InputError(f"the model has no input '{unknown[0]}'; it takes {', '.join(names)}")
    try:
        with torch.no_grad(), foreign_code("running the model"), as_the_user_set():
            result = model.module(*(cast(v) for n, v in inputs if n is None), **keywords)
    except ReparamError:
        raise
    except Exception as error:
        reason = first_line(error)
        shapes = " ".join("x".join(map(str, v.shape)) for _, v in inputs)
        raise InputError(f"the model does not run on inputs of shape {shapes}: {reason}") from error
    return name_outputs(pytree.tree_map(lambda v: on_device(v, CPU), result))


def name_outputs(result: Any) -> dict[str, Tensor]:
    """`output` alone, else `output_0`, `output_1`, …; a dict's keys where the result is a dict of tensors."""
    if isinstance(result, dict) and all(isinstance(v, Tensor) and isinstance(k, str) for k, v in result.items()):
        return dict(result)
    tensors = [v for v in pytree.tree_leaves(result) if isinstance(v, Tensor)]
    return dict(zip(output_names(len(tensors)), tensors, strict=True))
