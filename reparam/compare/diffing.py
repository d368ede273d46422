"""`diff`: the graphs of two models side by side, whatever the models are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from reparam.engines import ListedCall, Runnable
from reparam.errors import InputError
from reparam.ir import Program, check_shapes, shape_of_input
from reparam.loading import LoadedModel
from reparam.utils import checked_call

from .opening import Comparable, opened_alike
from .program_diff import ProgramDiff, diff_calls, read_calls
from .programs import program_of


@checked_call
def diff(
    a: Comparable, b: Comparable, *example_inputs: Any, input_shapes: Sequence[Sequence[int]] | None = None
) -> ProgramDiff:
    """Aligns the graphs of two models by the names of layers, then by operator and shape.

    a, b: as in `verify`: modules, exported programs, files, or results of `convert`, `export` and `prune`.
    example_inputs: positional arguments of a module; tensors are (N, ...) where the batch is free.
    input_shapes: in place of examples, the shape of each input without the batch. Not needed where a model tells it.

    `print` shows both graphs in two columns, with a mark at each call that differs. Structure and the values of weights
    are compared; whether two models are one function is what `verify` tells.

    Raises InputError for an engine that does not show its graph and when it is not known what a module takes,
    CaptureError for a module that does not become a graph, and what opening a file raises.

    >>> import torch, reparam
    >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> x = torch.randn(1, 3, 16, 16)
    >>> print(reparam.diff(block, reparam.convert(block, x)).counts["removed"])
    1
    """
    if input_shapes is not None:
        check_shapes(input_shapes)
    first, second = opened_alike(a, "a"), opened_alike(b, "b")
    told = input_shapes or [shape_of_input(x) for x in example_inputs if isinstance(x, Tensor)] or None
    own = (m.input_shapes for m in (first, second) if isinstance(m, LoadedModel))
    known = told or next((s for s in own if s is not None), None)
    return diff_calls(*(_calls(m, name, known, example_inputs) for m, name in ((first, "a"), (second, "b"))))


def _calls(
    model: LoadedModel | Runnable | Program,
    name: str,
    shapes: Sequence[Sequence[int]] | None,
    example_inputs: Sequence[Any],
) -> Sequence[ListedCall]:
    if isinstance(model, Program):
        return read_calls(model)
    if isinstance(model, LoadedModel):
        return read_calls(program_of(model, shapes, example_inputs))
    found = model.calls()
    if found is None:
        raise InputError(f"{name} does not show its graph; diff takes modules, checkpoints, .pt2, source and ONNX")
    return found
