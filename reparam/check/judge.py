"""The original as the judge: the caller's own model, run eagerly in float64. What it gives is the truth.

The captured graph is one path through the model, traced at one size. Whether it is the model at other sizes only the
model itself can say. So it is run as it is, on the very inputs that the converted network is run on, with every number
in float64: its weights are widened where an operator reads them, and what asks for a narrower dtype gets float64.

A model may ask for the dtype of a tensor, or for the smallest number of that dtype, and do something else in float64;
an operator may lack float64. Then the truth is what the captured graph gives, as long as the two agree in their own
dtypes.

Each run is that of a fresh copy, which shares the weights. What the model remembers (a grid for the last size, a cache)
is then neither seen by the caller nor by the next run.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.capture import Line, Outside, fresh_copy, line_of_caller
from reparam.errors import CaptureError, EndedError, MachineError
from reparam.ir import (
    CPU,
    Feed,
    Program,
    convolution,
    default_dtype,
    evaluate,
    give_back,
    on_device,
    stored_once,
    typed,
)
from reparam.utils import as_the_user_set, foreign_code

from .values import largest_difference

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
_SINGLE = (Tensor, bool, int, float, str, type(None), torch.dtype)  # arguments that hold no others
_PLAIN = (Tensor, nn.Parameter)  # whose casts are torch's own
AGAIN = 10  # runs that a model which draws random numbers has to agree with itself in
SAME = 1e-9


class _DrawsError(CaptureError):
    """The results of a model depend on random numbers that are none of torch's."""


class Judge:
    """Runs a model on feeds of a program that was captured from it.

    A model that has `spells_sizes` set calls other functions for other sizes where these compute the same, as one that
    was read from a file does (equal paddings are part of a pool). Its path says nothing, and is left empty.
    """

    def __init__(self, module: nn.Module, program: Program) -> None:
        self._module, self._program, self._drew = module, program, False
        self._outside = Outside(module)
        self._spells_sizes = bool(getattr(module, "spells_sizes", False))
        self.path: tuple[str, ...] = ()  # the functions of torch that the last run called, in their order
        self._lines: list[Line] | None = None  # that called them, where they are to be noted

    def truth(self, values: Feed) -> list[Any]:
        """The model's flat outputs in float64. Raises what the model raises."""
        with default_dtype(torch.float64), _CallsInFloat64(), _InFloat64():  # type: ignore[no-untyped-call]
            return self._run(values)

    def truth_where_it_runs(self, values: Feed) -> list[Any] | None:
        """`truth`; None for inputs that the model does not take."""
        try:
            return self.truth(values)
        except (EndedError, _DrawsError, MachineError):
            raise
        except Exception:  # of any kind: it is the model's own
            return None

    def own_where_it_runs(self, values: Feed) -> list[Any] | None:
        """The model's flat outputs in its own dtypes; None for inputs that it does not take."""
        try:
            return self._run(typed(self._program, values))
        except (EndedError, _DrawsError, MachineError):
            raise
        except Exception:  # of any kind: it is the model's own
            return None

    def lines_where_it_runs(self, values: Feed) -> list[Line] | None:
        """The model's lines that call functions of torch, in their order; None for inputs that it does not take."""
        self._lines = []
        try:
            return self._lines if self.own_where_it_runs(values) is not None else None
        finally:
            self._lines = None

    def in_own_dtypes(self, values: Feed, truth: list[Any]) -> list[Any] | None:
        """The outputs for a model that is not the captured graph in float64, or lacks an operator there.

        Its results in its own dtypes are then compared with those of the captured graph. truth: what that gives in
        float64. Returns the truth where the two agree, the model's own results where they do not, and None for inputs
        that the model does not take.
        """
        theirs = self.own_where_it_runs(values)
        if theirs is None:
            return None
        ours = evaluate(self._program, typed(self._program, values), None)
        room = max(1e3 * torch.finfo(self._program.dtype).eps, 4 * largest_difference(truth, ours))
        return truth if largest_difference(theirs, ours) <= room else theirs

    def _run(self, values: Feed) -> list[Any]:
        """The model's flat outputs. Raises CaptureError where random numbers of Python or NumPy change them."""
        before = _random_state()
        found = self._run_once(values)
        if self._drew or _random_state() == before:
            return found
        self._drew = True
        if not all(largest_difference(found, self._run_once(values)) <= SAME for _ in range(AGAIN)):
            raise _DrawsError(
                "the model draws random numbers while it runs, by Python's random or numpy.random, so it is not a "
                "function of its inputs; switch that off in evaluation mode"
            )
        return found

    def _run_once(self, values: Feed) -> list[Any]:
        with foreign_code(f"copying {type(self._module).__name__}"):
            module = fresh_copy(self._module, to_assign=True).eval()
        args, kwargs = self._arguments(values)
        calls = _Calls(self._lines, None if self._lines is None else inspect.currentframe())
        doing = f"running {type(self._module).__name__}"
        with torch.no_grad(), self._outside.kept(), foreign_code(doing), as_the_user_set(), calls:
            outputs = [on_device(v, CPU) for v in pytree.tree_leaves(module(*args, **kwargs))]
        self.path = () if self._spells_sizes else tuple(calls.names)
        kept = self._program.kept
        return outputs if kept is None else [outputs[i] for i in kept]

    def _arguments(self, values: Feed) -> tuple[Sequence[Any], Mapping[str, Any]]:
        given = [_own(on_device(v, self._program.home)) for v in values]
        spec = self._program.in_spec
        if spec is None:
            return given, {}
        args, kwargs = pytree.tree_unflatten(given, spec)
        return args, kwargs


def _own(value: Any) -> Any:
    """A copy of a tensor: a model may write to its inputs."""
    return value.clone() if isinstance(value, Tensor) else value


def _random_state() -> tuple[Any, ...]:
    """The state of Python's random numbers and of NumPy's own, where that is loaded."""
    numpy = sys.modules.get("numpy.random")
    state = numpy.get_state() if numpy is not None else ()
    return random.getstate(), *(v.tobytes() if hasattr(v, "tobytes") else v for v in state)


class _Calls(TorchFunctionMode):
    """Writes down which functions of torch are called, but for those that only ask for something.

    So are the lines of the model that call them, where those are wanted. Weights that a function has read are given
    back to the files that they lie in.
    """

    def __init__(self, lines: list[Line] | None, runner: FrameType | None) -> None:
        """lines: where they are noted. runner: the frame that runs the model."""
        super().__init__()
        self.names: list[str] = []
        self._lines, self._runner = lines, runner

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(getattr(func, "__name__", ""))
        if name == "__get__" or name in _ASKS:
            return func(*args, **(kwargs or {}))
        self.names.append(name)
        if self._lines is not None:
            line = line_of_caller(inspect.currentframe(), self._runner)
            self._lines += [line] if line is not None else []
        value = func(*args, **(kwargs or {}))
        for read in args:
            if isinstance(read, nn.Parameter):
                give_back(read)
        return value


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
        first = args[:1] if writes else _all_widened(args[:1])
        return func(*first, *_all_widened(args[1:]), **_widened_by_name(kwargs))


# Special methods that compute a new value; all others ask for something, or write.
_COMPUTES = frozenset(
    f"__{prefix}{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
    for prefix in ("", "r")
)
_ASKS = frozenset(
    {
        *("size", "dim", "ndimension", "numel", "nelement", "stride", "element_size", "is_contiguous", "__len__"),
        *("is_floating_point", "is_complex", "requires_grad_"),
    }
)


class _InFloat64(TorchDispatchMode):
    """Widens what every operator reads and makes to float64."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        written = func._schema.arguments if func._schema.is_mutable else ()
        kept = {i for i, a in enumerate(written) if a.alias_info is not None and a.alias_info.is_write}
        wide = [a if i in kept else _widened(a) for i, a in enumerate(args)]
        function = convolution if func is torch.ops.aten.convolution.default else func
        return function(*wide, **_widened_by_name(kwargs))


def _all_widened(values: Sequence[Any]) -> list[Any]:
    return [_widened(v) for v in values]


def _widened_by_name(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: _widened(v) for name, v in values.items()} if values else {}


def _widened(value: Any) -> Any:
    """The argument with all that is in it widened."""
    return _widen(value) if isinstance(value, _SINGLE) else pytree.tree_map(_widen, value)


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.dtype not in _WIDE:
            return value
        plain = type(value) in _PLAIN  # a cast need not pass the mode that widens what it reads
        with torch._C._DisableTorchDispatch() if plain else nullcontext():
            wide = stored_once(value).to(_WIDE[value.dtype]).expand(value.shape)
        give_back(value)  # to the file of a weight
        return wide
    return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value
