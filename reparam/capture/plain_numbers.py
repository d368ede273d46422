"""`int(size)` and `len(tensor)` in the code of a model: traced as sizes that stay free.

Python wants a plain number of either, so that torch fixes the size. Where a model asks so, it is traced again with
functions of these names beside its classes, which hand sizes on as they are.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import CaptureError

from .open_ones import Traced

_ASKS = re.compile(r"`.*\b(int|len)\(.*`", re.DOTALL)  # in the line of the model that a reason names
_OURS = frozenset({"torch", "reparam", "builtins"})


def with_numbers_left_open(module: nn.Module, traced: Callable[[], Traced]) -> Traced:
    """What `traced` gives; where a line with int() or len() fixes an axis, with such numbers left open, if that helps.

    Raises what `traced` raises.
    """
    first = traced()
    if not any(_ASKS.search(why) for why in first[1].values()):
        return first
    try:
        with _numbers_left_open(module, " ".join(first[1].values())):
            again = traced()
    except CaptureError:
        return first
    return again if again[1].keys() < first[1].keys() else first


class _AlsoOfSizes(type):
    """What `int` is to the code of a model, but for sizes, which stay what they are."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        sizes = len(args) == 1 and not options and isinstance(args[0], torch.SymInt | torch.SymFloat)
        return torch.sym_int(args[0]) if sizes else builtins.int(*args, **options)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, builtins.int)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, builtins.int)


class _Int(builtins.int, metaclass=_AlsoOfSizes):
    pass


def _len(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else builtins.len(value)


@contextmanager
def _numbers_left_open(module: nn.Module, reasons: str) -> Iterator[None]:
    """In the packages of the parts of a model and the files that reasons name, but for names that these have."""
    roots = {type(m).__module__.partition(".")[0] for m in module.modules()} - _OURS
    names = {"int": _Int, "len": _len}
    spaces = [
        vars(space)
        for name, space in list(sys.modules.items())
        if name.partition(".")[0] in roots or f"{getattr(space, '__file__', None)}:" in reasons
    ]
    added = [(space, name) for space in spaces for name in names if name not in space]
    for space, name in added:
        space[name] = names[name]
    try:
        yield
    finally:
        for space, name in added:
            space.pop(name, None)
