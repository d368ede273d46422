"""Whether what a model wrote while it ran changes what it gives next: runs of copies of it tell."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.errors import CaptureError, EndedError, MachineError

from .fresh import Outside, fresh_copy
from .statefulness import Written, kept

_TRIED = 16  # attributes that are looked at one by one
_SHOWN = 3
_RUNS = 5  # one after the other
ROUNDINGS = 64  # of the largest number of a result: what is fused on the first run may change the others by

Run = Callable[[nn.Module, Sequence[Any]], Any]


def refuse_other_results(module: nn.Module, wrote: Written, outside: Outside, args: Sequence[Any], run: Run) -> None:
    """Raises CaptureError where a run of the module changes the next one, for the same inputs or for others.

    Where it wrote nothing, nothing is run. What it wrote and never reads, or would write again, is no state: a memo, a
    grid that is made on the first run, maps that are kept for others to look at.

    wrote: what was written to the module while it was traced. run: runs a copy of it on inputs, which it leaves alone.
    """
    if not wrote.attributes and not outside.changed:
        return
    judge = _NextRun(module, outside, run, tuple(args))
    if judge.changes():
        raise CaptureError(kept(judge.describe(sorted(wrote.attributes))))


class _NextRun:
    """Runs of one model, each row of them with a copy of its own and with what it keeps outside as it was."""

    def __init__(self, module: nn.Module, outside: Outside, run: Run, args: tuple[Any, ...]) -> None:
        self._module, self._outside, self._run, self._args = module, outside, run, args

    def changes(self) -> bool:
        """Whether results depend on the runs before. Those that depend on chance do not count."""
        others, fewer = _others(self._args), _fewer(self._args)
        first, *again, then, less = self._row(*[self._args] * _RUNS, others, fewer)
        other, back = self._row(others, self._args)
        alone = self._row(fewer)[0]
        if first is None or (
            all(_same(first, a) for a in (*again, back)) and _same(other, then) and _same(alone, less)
        ):
            return False
        fresh = (self._row(args)[0] for args in (self._args, others, fewer))
        return all(map(_same, (first, other, alone), fresh))

    def _row(self, *inputs: tuple[Any, ...]) -> list[list[Any] | None]:
        with self._outside.kept():
            copy = fresh_copy(self._module, to_write=True)
            return [self._outputs(copy, args) for args in inputs]

    def _outputs(self, copy: nn.Module, args: tuple[Any, ...]) -> list[Any] | None:
        """Its outputs, in memory of their own; None where it does not run."""
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = pytree.tree_leaves(self._run(copy, args))
        except (EndedError, MachineError):
            raise
        except Exception:  # of any kind: it is the model's own
            return None
        return [v.detach().clone() if isinstance(v, Tensor) else v for v in found]

    def describe(self, paths: Sequence[str]) -> str:
        """Names what makes the difference, or all that was written where no single attribute does."""
        wanted = self._row(self._args)[0], self._row(_others(self._args))[0]
        alone = [p for p in paths[:_TRIED] if len(paths) > 1 and self._is_right_without(p, wanted)]
        named = [f"'{p}'" for p in (alone[:1] or paths)]
        if not named:
            return "something outside of it, such as a global variable or what a function closes over,"
        more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        return f"its own {', '.join(named[:_SHOWN])}{more}"

    def _is_right_without(self, path: str, wanted: tuple[list[Any] | None, list[Any] | None]) -> bool:
        """Whether the results are those of a first run where this attribute alone is put back after each."""
        inputs, found = (self._args, self._args, _others(self._args), self._args), []
        with self._outside.kept():
            copy = fresh_copy(self._module, to_write=True)
            for args in inputs:
                found.append(self._outputs(copy, args))
                _put_back(copy, fresh_copy(self._module, to_write=True), path)
        first, other = wanted
        return all(_same(a, b) for a, b in zip(found, (first, first, other, first), strict=True))


def _put_back(copy: nn.Module, fresh: nn.Module, path: str) -> None:
    """The attribute as another copy has it, that has not run."""
    prefix, _, name = path.rpartition(".")
    try:
        part, as_it_was = copy.get_submodule(prefix), fresh.get_submodule(prefix)
        if hasattr(as_it_was, name):
            setattr(part, name, getattr(as_it_was, name))
        else:
            delattr(part, name)
    except Exception:  # of the model's own ways to set and delete
        return


def _others(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Other inputs of the same sizes, out of the same numbers: those of each tensor backwards, floats a little nearer
    to zero.
    """

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.is_meta:
            return value
        turned = value.detach().flatten().flip(0).reshape(value.shape)
        if not (value.is_floating_point() or value.is_complex()):
            return turned
        return 0.75 * turned if bool(turned.any()) else torch.full_like(turned, 0.5)

    return tuple(pytree.tree_map(other, args))


def _fewer(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Without the last sample, where all tensors have as many of them, and more than one; else the same."""
    tensors = [v for v in pytree.tree_leaves(args) if isinstance(v, Tensor)]
    counts = {v.shape[0] if v.dim() else 0 for v in tensors}
    if len(counts) != 1 or max(counts) < 2:
        return args
    return tuple(pytree.tree_map(lambda v: v[:-1] if isinstance(v, Tensor) else v, args))


def _same(first: list[Any] | None, second: list[Any] | None) -> bool:
    """Whether two results are equal but for roundings; NaN is equal to NaN, and so are two failures."""
    if first is None or second is None:
        return first is second
    return len(first) == len(second) and all(map(_equal, first, second))


def _rounded_alike(a: Tensor, b: Tensor) -> bool:
    """Whether the numbers of two tensors differ by no more than roundings of the largest of them."""
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()) or not (a.is_floating_point() or a.is_complex()):
        return bool(same.all())
    largest = a[a.isfinite()].abs().amax() if bool(a.isfinite().any()) else a.abs().amax()
    return bool((same | ((a - b).abs() <= ROUNDINGS * torch.finfo(a.dtype).eps * largest)).all())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return a.is_meta or _rounded_alike(a, b)
    if isinstance(a, bool | int | float | complex | str) or a is None:
        return type(a) is type(b) and (a == b or repr(a) == repr(b) == "nan")
    return type(a) is type(b)
