"""The original as the judge: the caller's own model, run eagerly in float64. What it gives is the truth.

The captured graph is one path through the model, traced at one size. Whether it is the model at other sizes only the
model itself can say. So it is run as it is, on the very inputs that the converted network is run on, with every number
in float64: its weights are widened where an operator reads them, and what asks for a narrower dtype gets float64.

Each run is that of a fresh copy, which shares the weights. What the model remembers (a grid for the last size, a cache)
is then neither seen by the caller nor by the next run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.errors import CaptureError, InputError
from reparam.ir import Feed, Program, default_dtype, evaluate, typed

from .values import largest_difference

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
_FAILS = (
    InputError,
    RuntimeError,
    ValueError,
    IndexError,
    TypeError,
    AssertionError,
    NotImplementedError,
    KeyError,
    AttributeError,
)


class Judge:
    """Runs a model on feeds of a program that was captured from it."""

    def __init__(self, module: nn.Module, program: Program) -> None:
        self._module, self._program = module, program

    def truth(self, values: Feed) -> list[Any]:
        """The model's flat outputs in float64. Raises what the model raises."""
        with default_dtype(torch.float64), _CallsInFloat64(), _InFloat64():  # type: ignore[no-untyped-call]
            return self._run(values)

    def truth_where_it_runs(self, values: Feed) -> list[Any] | None:
        """`truth`; None for inputs that the model does not take."""
        try:
            return self.truth(values)
        except _FAILS:
            return None

    def own_where_it_runs(self, values: Feed) -> list[Any] | None:
        """The model's flat outputs in its own dtypes; None for inputs that it does not take."""
        try:
            return self._run(typed(self._program, values))
        except _FAILS:
            return None

    def able(self, values: Feed) -> bool:
        """Whether the model runs in float64 on inputs of the traced size; an operator may lack that dtype.

        Where it does not, its results in its own dtypes have to be those of the captured program. Raises CaptureError
        when they are not.
        """
        if self.truth_where_it_runs(values) is not None:
            return True
        own = typed(self._program, values)
        theirs, ours = self._run(own), evaluate(self._program, own, None)
        gap = largest_difference(theirs, ours)
        room = 1e3 * torch.finfo(self._program.dtype).eps
        if not gap <= room:
            raise CaptureError(
                f"the captured graph is not the model: on the traced size they differ by {gap:.3g}, relative to the "
                "largest output"
            )
        return False

    def _run(self, values: Feed) -> list[Any]:
        module = fresh_copy(self._module).eval()
        args, kwargs = self._arguments(values)
        with torch.no_grad():
            return list(pytree.tree_leaves(module(*args, **kwargs)))

    def _arguments(self, values: Feed) -> tuple[Sequence[Any], Mapping[str, Any]]:
        spec = self._program.in_spec
        if spec is None:
            return list(values), {}
        args, kwargs = pytree.tree_unflatten(list(values), spec)
        return args, kwargs


def fresh_copy(module: nn.Module) -> nn.Module:
    """A copy of the module's structure and of all that it remembers, which shares its weights."""
    shared: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


class _CallsInFloat64(TorchFunctionMode):
    """Widens the arguments of torch's functions, some of which compare dtypes before any operator runs.

    What a function writes to is left as it is, and so is what is only asked for its shape or dtype.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(getattr(func, "__name__", ""))
        if name in _ASKS or (name.startswith("__") and name not in _COMPUTES):
            return func(*args, **(kwargs or {}))
        writes = name.endswith("_") and not name.endswith("__")
        first = args[:1] if writes else pytree.tree_map(_widen, args[:1])
        return func(*first, *pytree.tree_map(_widen, args[1:]), **pytree.tree_map(_widen, dict(kwargs or {})))


# Special methods that compute a new value; all others ask for something, or write.
_COMPUTES = frozenset(
    f"__{prefix}{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
    for prefix in ("", "r")
)
_ASKS = frozenset({"size", "dim", "ndimension", "numel", "stride", "is_floating_point", "is_complex", "requires_grad_"})


class _InFloat64(TorchDispatchMode):
    """Widens what every operator reads and makes to float64."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        written = func._schema.arguments if func._schema.is_mutable else ()
        kept = {i for i, a in enumerate(written) if a.alias_info is not None and a.alias_info.is_write}
        wide = [a if i in kept else pytree.tree_map(_widen, a) for i, a in enumerate(args)]
        return func(*wide, **pytree.tree_map(_widen, dict(kwargs or {})))


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(_WIDE[value.dtype]) if value.dtype in _WIDE else value
    return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value
