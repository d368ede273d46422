"""What can be captured at all: checked before the capture, so that a refusal is about the model and its inputs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.errors import CaptureError, EndedError, InputError, MachineError
from reparam.ir import is_uninitialised, odd_kind, refuse_odd_tensors
from reparam.utils import describe_type, dtype_name, first_line, memory_told, name_complaint

from .names import name_of
from .places import line_of_error

EXAMPLE = "torch.randn(1, 3, 224, 224)"


def check_model(module: Any, inputs: Sequence[Any]) -> None:
    """Raises InputError for what is no module, for a module without a graph of its own, and for inputs of no kind."""
    if not isinstance(module, nn.Module):
        raise InputError(f"a torch.nn.Module or an exported program is wanted, not {_what(module)}")
    if not isinstance(module, torch.jit.ScriptModule) and "_modules" not in module.__dict__:
        raise InputError(f"{type(module).__name__} is not set up; call super().__init__() in its __init__")
    name = name_of(module)
    for path, part in module.named_modules():
        _check_part(part, f"'{path}' in {name}" if path else name)
    _check_names(name, module)
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    refuse_odd_tensors(tensors, name)
    _check_inputs(name, module, inputs)


def _what(value: Any) -> str:
    if isinstance(value, str):
        return "a text; a file is loaded with reparam.load first"
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"the class {value.__name__}; make an instance of it"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}; call it in the forward of a module"
    return f"{describe_type(value)}"


def _check_part(part: nn.Module, where: str) -> None:
    if isinstance(part, torch.jit.ScriptModule):
        raise InputError(f"{where} is a scripted module (torch.jit); give the module that it was made of")
    if ".quantized" in type(part).__module__ and type(part).__module__.startswith(("torch.ao.", "torch.nn.")):
        raise InputError(
            f"{where} is a quantised layer; give the network as it was before, and quantise it with export"
        )
    lazy = [n for n, v in (*part._parameters.items(), *part._buffers.items()) if is_uninitialised(v)]
    if lazy:
        kind = type(part).__name__
        raise InputError(f"{where} ({kind}) has no '{lazy[0]}' before it has run; run the model once on an input first")


def _check_names(name: str, module: nn.Module) -> None:
    """Names of modules and tensors have to be ones that files and Python can hold."""
    for path, part in module.named_modules():
        for own in (*part._modules, *part._parameters, *part._buffers):
            if complaint := _complaint(own):
                owner = f"'{path}' in {name}" if path else name
                raise InputError(f"{owner} has a part whose name {complaint}: {own[:60]!r}; give it another name")


def _complaint(name: str) -> str | None:
    if not name:
        return "is empty"
    return "holds a dot" if "." in name else name_complaint(name)


# ---- inputs ------------------------------------------------------------------------------------------------------


def _check_inputs(name: str, module: nn.Module, inputs: Sequence[Any]) -> None:
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # written in another language
        return
    try:
        signature.bind(*inputs)
    except TypeError as error:
        takes = f"takes {signature}, and cannot be called with {_count(inputs)}: {error}"
        raise InputError(f"the forward of {name} {takes}; {_how(signature, inputs)}") from None
    for leaf in pytree.tree_leaves(tuple(inputs)):
        if isinstance(leaf, Tensor) and not leaf.is_meta and (kind := odd_kind(leaf)):
            raise InputError(f"an example input is {kind}; give an ordinary tensor")
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == 0:
            raise InputError(f"an example input has no samples: its shape is {_shape(leaf)}; give one at least")


def _count(inputs: Sequence[Any]) -> str:
    return "one example input" if len(inputs) == 1 else f"{len(inputs)} example inputs"


def _how(signature: inspect.Signature, inputs: Sequence[Any]) -> str:
    needed = [p for p in signature.parameters.values() if p.default is p.empty]
    keyword = [p.name for p in needed if p.kind is p.KEYWORD_ONLY]
    if keyword:
        return f"give '{keyword[0]}' a default, since inputs are given by position"
    if not inputs:
        return f"give one for each, such as {EXAMPLE}"
    packed = " by themselves, not in a tuple" if len(inputs) == 1 and isinstance(inputs[0], tuple | list) else ""
    return f"give one for each, in this order{packed}"


def refuse_misfit(module: nn.Module, inputs: Sequence[Any], run: Callable[[], object]) -> None:
    """Raises CaptureError where the model does not even run on its example inputs, with its own reason and line."""
    try:
        with torch.no_grad(), memory_told(f"running {name_of(module)}"):
            run()
    except (EndedError, MachineError):
        raise
    except Exception as error:
        strange = any(not isinstance(v, Tensor) for v in inputs)
        packed = len(inputs) == 1 and isinstance(inputs[0], tuple | list)
        how = ", and each is given by itself, not all in a tuple" if packed else ""
        hint = f"; example inputs are tensors, such as {EXAMPLE}{how}" if strange else ""
        line = line_of_error(error)
        inside = f" in {line.name}" if line is not None and "." in line.name else ""
        place = f" at {line}{inside}" if line is not None else ""
        shown = ", ".join(_describe(inputs)) or "no inputs"
        reason = re.sub(r" - got \(.*", "", first_line(error))
        raise CaptureError(
            f"{name_of(module)} does not run on its example inputs ({shown}){place}: {reason}{hint}"
        ) from error


def _describe(inputs: Sequence[Any]) -> Iterator[str]:
    """`float32 1x3x8x8` for a tensor, its kind for anything else."""
    for value in inputs:
        yield f"{dtype_name(value.dtype)} {_shape(value)}" if isinstance(value, Tensor) else describe_type(value)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "()"
