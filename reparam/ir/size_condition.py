"""Whether a condition on sizes holds, and what a size is, fast enough to be asked of hundreds and of thousands.

Where layers pad by what the size of their input asks for, the size of a deep layer is an expression of thousands of
terms, of which a hundred differ. Each of those is computed once, for all sizes, where its operation is known here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import sympy  # type: ignore[import-untyped]  # it ships no types
from torch.utils._sympy import functions as sizes

_MOST = 1 << 31  # larger numbers, the end of a slice among them, do not fit where whole numbers are added up
_Operation = Callable[[Sequence[Any]], Any]


def _of_two(function: Callable[[Any, Any], Any]) -> _Operation:
    return lambda values: function(*values)


def _whole(function: Callable[[Any], Any]) -> _Operation:
    return lambda values: np.asarray(function(values[0])).astype(np.int64)


# Of whole numbers, which are no larger than sizes are.
_OPERATIONS: dict[Any, _Operation] = {
    sympy.Add: partial(reduce, np.add),
    sympy.Mul: partial(reduce, np.multiply),
    sizes.Max: partial(reduce, np.maximum),
    sizes.Min: partial(reduce, np.minimum),
    sympy.And: partial(reduce, np.logical_and),
    sympy.Or: partial(reduce, np.logical_or),
    sympy.Not: lambda values: np.logical_not(values[0]),
    **dict.fromkeys((sympy.Mod, sizes.Mod, sizes.PythonMod), _of_two(np.mod)),
    **dict.fromkeys((sizes.FloorDiv, sizes.CleanDiv), _of_two(np.floor_divide)),
    sizes.IntTrueDiv: _of_two(np.true_divide),
    sizes.CeilToInt: _whole(np.ceil),
    sizes.FloorToInt: _whole(np.floor),
    sizes.TruncToInt: _whole(np.trunc),
    sympy.Eq: _of_two(operator.eq),
    sympy.Ne: _of_two(operator.ne),
    sympy.Lt: _of_two(operator.lt),
    sympy.Le: _of_two(operator.le),
    sympy.Gt: _of_two(operator.gt),
    sympy.Ge: _of_two(operator.ge),
}


class SizeCondition:
    """A condition, or a size, in terms of some symbols, which stand for sizes."""

    def __init__(self, expression: Any, symbols: Sequence[Any]) -> None:
        self.expression, self.symbols = expression, tuple(symbols)
        self._terms: list[tuple[Any, tuple[int, ...]]] = []  # each behind those that it is made of
        self._known = True
        self._place()

    def holds(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """Whether it does for each row of sizes, one for each symbol.

        True where it divides by zero, as h % (w // 8): the model does not run there, so that nothing can be asked.
        """
        if self._known and rows:
            return [bool(v) for v in self._found(np.array(rows, dtype=np.int64), True)]
        return [self._by_sympy(row) for row in rows]

    def sizes(self, rows: Any) -> Any:
        """The size for each row of an array, which has one column for each symbol; 0 where it divides by zero."""
        if self._known:
            return self._found(rows, 0).astype(np.int64)
        return np.array([self._size_by_sympy(row) for row in rows.tolist()], dtype=np.int64)

    def _found(self, rows: Any, undefined: int) -> Any:
        """A value for each row; `undefined` where it divides by zero, for which rows are then computed one by one."""
        try:
            with np.errstate(all="raise"):
                return np.broadcast_to(self._computed(rows), len(rows))
        except FloatingPointError:
            if len(rows) == 1:
                return np.array([undefined])
            return np.concatenate([self._found(rows[i : i + 1], undefined) for i in range(len(rows))])

    def _size_by_sympy(self, row: Sequence[int]) -> int:
        try:
            return int(self.expression.xreplace(self._columns_of(row)).doit())
        except ZeroDivisionError:
            return 0

    def _columns_of(self, row: Sequence[int]) -> dict[Any, Any]:
        return {s: sympy.Integer(n) for s, n in zip(self.symbols, row, strict=True)}

    def _computed(self, rows: Any) -> Any:
        columns = {s: rows[:, i] for i, s in enumerate(self.symbols)}
        values: list[Any] = []
        for term, parts in self._terms:
            if parts:
                values.append(_OPERATIONS[term.func]([values[i] for i in parts]))
            else:
                values.append(columns[term] if term in columns else _constant(term))
        return values[-1]

    def _by_sympy(self, row: Sequence[int]) -> bool:
        try:
            value = self.expression.xreplace(self._columns_of(row))
            return bool(value) if value in (sympy.true, sympy.false) else bool(value.doit())
        except ZeroDivisionError:
            return True

    def _place(self) -> None:
        """Puts the terms into an order in which each can be computed."""
        place: dict[Any, int] = {}
        waiting = [(self.expression, False)]
        while waiting:
            term, ready = waiting.pop()
            if term in place:
                continue
            if term.args and not ready:
                waiting += [(term, True), *((part, False) for part in term.args)]
                continue
            self._known &= term.func in _OPERATIONS if term.args else term in self.symbols or _is_constant(term)
            place[term] = len(self._terms)
            self._terms.append((term, tuple(place[part] for part in term.args)))


def _is_constant(term: Any) -> bool:
    """Whether it is a number that is no larger than sizes are, or a truth value."""
    return abs(term) < _MOST if isinstance(term, sympy.Integer) else term in (sympy.true, sympy.false)


def _constant(term: Any) -> int | bool:
    return int(term) if isinstance(term, sympy.Integer) else bool(term)
