"""Captures an nn.Module as a functional ATen `Program`."""

from __future__ import annotations

import dataclasses
import inspect
import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.errors import CaptureError, InputError
from reparam.utils import AXES, first_line, foreign_code

from .statefulness import refuse_state, watched
from .steps import Captured, from_exported

_OUR_CODE = tuple(os.path.dirname(f) + os.sep for f in (torch.__file__, os.path.dirname(__file__)))


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[bool]:
    """Puts the module into evaluation mode and restores every submodule's own mode. Yields whether it changed."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield any(mode for _, mode in modes)
    finally:
        for m, mode in modes:
            m.training = mode


def capture(module: nn.Module, example_inputs: Sequence[Any], *, dynamic: Sequence[str] = ("batch",)) -> Captured:
    """Captures `module` as one functional graph of ATen calls.

    example_inputs: the positional arguments; tensors are (N, ...) when "batch" is dynamic.
    dynamic: axes whose size stays free: "batch" (axis 0), "height" and "width" (the last two of tensors with four or
    more axes). An axis that the model fixes by itself is kept fixed, with a note.

    Raises CaptureError when the model cannot become one graph, InputError for an unknown axis name.
    """
    with foreign_code(f"capturing {type(module).__name__}", CaptureError):
        return _capture(module, example_inputs, dynamic)


def _capture(module: nn.Module, example_inputs: Sequence[Any], dynamic: Sequence[str]) -> Captured:
    unknown = [a for a in dynamic if a not in AXES]
    if unknown:
        raise InputError(f"unknown dynamic axis '{unknown[0]}'; choose from {', '.join(AXES)}")
    notes = list(_hook_notes(module))
    with evaluation_mode(module) as switched:
        if switched:
            notes.append("the model was in training mode; it was captured in evaluation mode")
        with watched(module) as assigned:
            exported = _export(module, _distinct(example_inputs), tuple(dynamic), notes)
        refuse_state(exported, assigned)
        captured = from_exported(exported)
    return replace(captured, notes=(*notes, *captured.notes))


def _hook_notes(module: nn.Module) -> Iterator[str]:
    for name, m in module.named_modules():
        if m._forward_hooks or m._forward_pre_hooks:
            yield f"module '{name or 'root'}' has hooks: what they compute is captured, their side effects are not"


def _distinct(args: Sequence[Any]) -> tuple[Any, ...]:
    """The same tensor given twice becomes two: torch.export would take both inputs for one."""
    seen: set[int] = set()

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        again = id(value) in seen
        seen.add(id(value))
        return value.clone() if again else value

    return tuple(pytree.tree_map(own, tuple(args)))


def _widen(value: Any) -> Any:
    """A batch of one becomes a batch of two, since a traced size of one would be taken as fixed."""
    if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


def _dynamic_shapes(args: tuple[Any, ...], dynamic: tuple[str, ...]) -> tuple[Any, ...]:
    def spec(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return None
        axes = {0: torch.export.Dim.AUTO} if "batch" in dynamic else {}
        if value.dim() >= 4:
            axes |= {value.dim() - 2: torch.export.Dim.AUTO} if "height" in dynamic else {}
            axes |= {value.dim() - 1: torch.export.Dim.AUTO} if "width" in dynamic else {}
        return axes or None

    return tuple(pytree.tree_map(spec, args))


def _by_parameter(module: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """One entry for each parameter of forward, as torch.export wants it: a `*args` takes the rest as a tuple."""
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    rest = kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else len(shapes)
    return (*shapes[:rest], shapes[rest:]) if rest < len(shapes) else shapes


def _export(
    module: nn.Module, args: tuple[Any, ...], dynamic: tuple[str, ...], notes: list[str]
) -> torch.export.ExportedProgram:
    if dynamic:
        wide = pytree.tree_map(_widen, args) if "batch" in dynamic else args
        try:
            return _export_once(module, wide, _by_parameter(module, _dynamic_shapes(wide, dynamic)))
        except CaptureError as error:
            first = str(error)
        exported = _export_once(module, args, None)
        notes.append(f"captured with fixed sizes, because free {', '.join(dynamic)} failed: {first}")
        return exported
    return _export_once(module, args, None)


def _export_once(module: nn.Module, args: tuple[Any, ...], shapes: Any) -> torch.export.ExportedProgram:
    for _ in range(8):
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                return torch.export.export(module, _unmarked(args), dynamic_shapes=shapes, strict=False)
        except Exception as error:
            if not _register_output_type(module, args, error):
                raise CaptureError(_explain(module, error)) from error
    raise CaptureError("the model's outputs nest more unregistered dataclasses than can be captured")


def _unmarked(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values in new tensors: torch.export marks free sizes on its arguments, and obeys the marks."""
    return tuple(pytree.tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, args))


def _register_output_type(module: nn.Module, args: tuple[Any, ...], error: Exception) -> bool:
    """Registers an output dataclass that torch.export does not know; True when it is worth another try."""
    text = str(error)
    if "dataclass" not in text and "pytree" not in text and "unsupported output" not in text.lower():
        return False
    with torch.no_grad():
        result = module(*args)
    found = False
    for leaf in pytree.tree_leaves(result):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(
                type(leaf), serialized_type_name=f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            )
            found = True
    return found


def _model_frame(error: Exception) -> traceback.FrameSummary | None:
    """The innermost line of the model: in the last forward that is not torch's own, or in what it calls directly."""
    found: traceback.FrameSummary | None = None
    inside = False
    for frame in traceback.extract_tb(error.__traceback__):
        theirs = not frame.filename.startswith(_OUR_CODE)
        inside = theirs and (inside or frame.name == "forward")
        found = frame if inside else found
    return found


def _explain(module: nn.Module, error: Exception) -> str:
    """One sentence: what stopped the capture and on which line of the model's code."""
    reason = first_line(error)
    frame = _model_frame(error)
    place = f" at {frame.filename}:{frame.lineno} `{frame.line}`" if frame is not None else ""
    if isinstance(error, torch._subclasses.fake_tensor.DataDependentOutputException) or "data-dependent" in str(error):
        reason = f"its control flow depends on the data ({reason})"
    return f"{type(module).__name__} cannot be captured as one graph{place}: {reason}"
