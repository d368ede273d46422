"""Finds what a module assigns to itself while it runs, which torch.export forgets without a word."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from reparam.errors import CaptureError

from .fresh import in_slots

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
_ROWS = (list, tuple, set, frozenset, deque)
_WHOLE = (type, FunctionType, BuiltinFunctionType, ModuleType, Tensor)  # which are not looked into
_OWN_OF_MODULES = frozenset(vars(nn.Module())) - {"training"}  # hooks, and what is looked at by itself
_OWN_OF_RECURRENT = _OWN_OF_MODULES | {"_flat_weights", "_flat_weight_refs"}  # which hold its weights once more
_DEEPEST = 12  # what holds what holds a value
_MOST = 30_000  # values that are looked at


@dataclass(frozen=True)
class Written:
    """The paths of what a module and its parts wrote to themselves. A tensor that is tied has all of its names."""

    tensors: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)  # whatever they hold: numbers, containers, tensors, objects


@contextmanager
def watched(module: nn.Module) -> Iterator[Written]:
    """Yields what `module` and its copies write to themselves when they run, as it is found."""
    names: dict[int, set[str]] = {}
    for path, tensor in _tensors(module).items():
        names.setdefault(id(tensor), set()).add(path)
    tied = {path: group for group in names.values() for path in group}
    found = Written()
    before: list[tuple[dict[str, Tensor], dict[str, list[Any]]]] = []

    def enter(module: nn.Module, args: Any) -> None:
        before.append((_tensors(module), _attributes(module)))

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        tensors, attributes = before.pop()
        after = _tensors(module)
        for path, tensor in tensors.items():
            if after.get(path) is not tensor:
                found.tensors.update(tied.get(path, {path}))
        now = _attributes(module)
        found.attributes.update(p for p in {**attributes, **now} if not _same(attributes.get(p, ()), now.get(p, ())))

    hooks = [module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter, buffer and plain attribute that is a tensor, by its path."""
    found: dict[str, Tensor] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, value in (*part.__dict__.items(), *part._buffers.items(), *part._parameters.items()):
            if isinstance(value, Tensor):
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


def _attributes(module: nn.Module) -> dict[str, list[Any]]:
    """What each attribute of the module and of its parts holds, by its path; what two hold is listed once."""
    parts = list(module.named_modules())
    seen = {id(part) for _, part in parts}
    left = [_MOST]
    found: dict[str, list[Any]] = {}
    for prefix, part in parts:
        known = _OWN_OF_RECURRENT if isinstance(part, nn.RNNBase) else _OWN_OF_MODULES
        slots = ((slot.__name__, value) for slot, value in in_slots(part))
        for name, value in (*vars(part).items(), *part._buffers.items(), *part._parameters.items(), *slots):
            if name not in known:
                held = found[f"{prefix}.{name}" if prefix else name] = [part]
                _look_into(value, held, seen, _DEEPEST, left)
    return found


def _look_into(value: Any, held: list[Any], seen: set[int], depth: int, left: list[int]) -> None:
    """Adds a value to what is held, and what it holds itself; of a very large one how much it holds alone.

    left: how many values may still be looked at.
    """
    held.append(value)
    if type(value) in _ATOMS or isinstance(value, _WHOLE) or depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (dict, *_ROWS)) and len(value) > left[0]:
        held.append(len(value))
        return
    inner = list(_inside(value))
    held.append(len(inner))
    left[0] -= len(inner)
    for one in inner:
        _look_into(one, held, seen, depth - 1, left)


def _inside(value: Any) -> Iterator[Any]:
    """What an object holds: elements, attributes, the object of a method, the numbers of an array."""
    kind = type(value)
    if kind is MethodType:
        yield value.__self__
        return
    if isinstance(value, dict):
        yield from (*value, *value.values())
    elif isinstance(value, _ROWS):
        yield from tuple(value)
    elif hasattr(kind, "tobytes"):
        yield hash(value.tobytes())
    elif isinstance(value, random.Random):
        yield hash(value.getstate())
    elif hasattr(kind, "bit_generator") or hasattr(kind, "get_state"):  # a generator of NumPy's, or of torch
        yield repr(value.bit_generator.state if hasattr(kind, "bit_generator") else value.get_state())
    elif hasattr(kind, "__next__"):
        yield _Moving()
    yield from tuple(getattr(value, "__dict__", {}).values())
    yield from (content for _, content in in_slots(value))


class _Moving:
    """Stands for the place of an iterator, which cannot be read: no two are the same."""


def _same(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether two lists hold the same objects, or equal numbers and texts."""
    return len(before) == len(after) and all(
        a is b or (type(a) in _ATOMS and type(a) is type(b) and a == b) for a, b in zip(before, after, strict=True)
    )


def refuse_state(exported: torch.export.ExportedProgram, assigned: set[str]) -> None:
    """Raises CaptureError when the program reads the old value of a tensor that the model assigns anew.

    One that is assigned and only read afterwards is a memo, not state.
    """
    read = {n.name for n in exported.graph.nodes if n.op == "placeholder" and n.users}
    for spec in exported.graph_signature.input_specs:
        stored = spec.kind in (InputKind.BUFFER, InputKind.PARAMETER, InputKind.CONSTANT_TENSOR)
        if stored and spec.target in assigned and spec.arg.name in read:
            raise CaptureError(written(str(spec.target), "an assignment"))


def written(name: str, how: str) -> str:
    """The sentence for a model that has state in a tensor."""
    return f"the model writes to its own tensor '{name}' ({how}) while it runs, {_REMOVE}"


def kept(what: str) -> str:
    """The sentence for a model that has state in Python."""
    return f"the model writes to {what} while it runs, which changes its next results, {_REMOVE}"


_REMOVE = "so it is not a function of its inputs; remove the write from its evaluation path"
