"""Which free axes are to blame where a captured graph is not the model: those that fail when they alone are free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from reparam.capture import capture, without_batch
from reparam.errors import CaptureError
from reparam.utils import batch_is_unasked, read_named_axis

from .judge import Judge
from .network_check import check_float64
from .path_error import PathError


def unasked_batch_is_to_blame(
    error: PathError,
    model: nn.Module | ExportedProgram,
    example_inputs: Sequence[Any],
    dynamic: Sequence[str],
    seed: int,
) -> PathError:
    """Returns the error where a batch alone cannot be free for which nobody asked, so that it can be fixed.

    Raises the error otherwise, with the axes that cannot be free, as the user calls them. Each is tried as the only
    free one, and none at all, where no choice of axes helps. Where only several fail together, the error names those
    beside the batch, which is the last to be given up. Of an exported program, whose sizes are given, it is the same.
    """
    if isinstance(model, ExportedProgram) or not dynamic:
        raise error
    if not without_batch(dynamic) and batch_is_unasked(dynamic):
        return PathError(error.what, ["batch"])
    if (none := _failure(model, example_inputs, (), seed)) is not None:
        raise none from error
    alone = [d for d in dynamic if _failure(model, example_inputs, (d,), seed)] if len(dynamic) > 1 else dynamic
    blamed = alone or without_batch(dynamic) or dynamic
    named = PathError(error.what, list(dict.fromkeys(_spoken(d) for d in blamed)))
    if named.axes != ("batch",) or not batch_is_unasked(dynamic):
        raise named from error
    return named


def _spoken(axis: str) -> str:
    named = read_named_axis(axis)
    return str(axis) if named is None else named.name


def _failure(model: nn.Module, example_inputs: Sequence[Any], dynamic: Sequence[str], seed: int) -> CaptureError | None:
    """Why the model is not what is captured of it with these axes free; None where it is."""
    try:
        program = capture(model, example_inputs, dynamic=dynamic).program
        check_float64(program, program, seed, Judge(model, program))
    except CaptureError as error:
        return error
    return None
