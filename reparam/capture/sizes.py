"""Sizes that follow from a free one, in plain words: (h + 1) // 2 for what "same" padding makes of h with stride 2.

torch writes such a size as the code computes it, with a maximum, a ceiling and a quotient of floating point, and every
further layer puts the whole of it in several places of its own. Its analysis of the sizes then takes minutes.

A size e(h) that is made of sums, multiples, quotients by whole numbers, roundings, remainders and maxima is linear on
every class of h modulo some P, e(P q + r) = a q + b_r for all q >= 0, which is computed exactly. When all of them are
what a plain form gives on these classes, the two are equal for every h, and the plain form takes its place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import sympy  # type: ignore[import-untyped]  # it ships no types
from torch.fx.experimental import sym_node
from torch.utils._sympy import functions as of_torch

LONGEST = 256  # classes that are looked at

_INNER = sympy.Dummy("n", integer=True, nonnegative=True)  # stands for a quotient of the free size
_Line = tuple[Fraction, Fraction]  # (a, b) for a q + b


class _UnknownError(Exception):
    """An expression is not linear on the classes, or holds what is not known here."""


class _FinerError(Exception):
    """A quotient is linear on classes modulo so many times as much."""

    def __init__(self, by: int) -> None:
        super().__init__(by)
        self.by = by


@contextmanager
def plain_sizes() -> Iterator[None]:
    """In the block, whole numbers that torch computes of free sizes are written in their plain form.

    And whether a size is a number is found out once, where sympy goes through all of it each time that it is asked.
    """
    init: Callable[..., None] = sym_node.SymNode.__init__

    def made(self: Any, expr: Any, shape_env: Any, pytype: type, *rest: Any, **options: Any) -> None:
        found = plain(expr) if pytype is int and isinstance(expr, sympy.Expr) else expr
        if found is not expr:
            options["optimized_summation"] = False
        init(self, found, shape_env, pytype, *rest, **options)

    asked = sympy.Expr.is_number
    known = functools.lru_cache(maxsize=1 << 16)(asked.fget)  # torch asks for it whenever it looks at a size
    sym_node.SymNode.__init__ = made  # type: ignore[method-assign]
    sympy.Expr.is_number = property(known)
    try:
        yield
    finally:
        sym_node.SymNode.__init__ = init  # type: ignore[method-assign]
        sympy.Expr.is_number = asked


@functools.lru_cache(maxsize=4096)
def plain(size: sympy.Expr) -> sympy.Expr:
    """The plain form of a whole number that follows from one free size; the expression itself where there is none."""
    if not size.args or not size.has(*_ROUNDED):
        return size
    symbols = size.free_symbols
    if len(symbols) != 1:
        return size
    (symbol,) = symbols
    if not (symbol.is_integer and symbol.is_nonnegative):
        return size
    for inner in (symbol, _common_quotient(size, symbol)):
        if inner is None:
            continue
        found = _plain_in(size.xreplace({inner: _INNER}) if inner is not symbol else size, inner, symbol)
        if found is not None and _length(found) < _length(size):
            return found
    return size


def _plain_in(size: sympy.Expr, inner: sympy.Expr, symbol: sympy.Symbol) -> sympy.Expr | None:
    """The plain form in terms of `inner`, which is the free size or a quotient of it."""
    free = symbol if inner is symbol else _INNER
    period = 1
    while period <= LONGEST:
        try:
            found = _named(free, period, [_line(size, free, period, r) for r in range(period)])
        except _FinerError as error:
            period *= error.by
            continue
        except _UnknownError:
            return None
        return found if found is None or free is symbol else found.xreplace({_INNER: inner})
    return None


def _common_quotient(size: sympy.Expr, symbol: sympy.Symbol) -> sympy.Expr | None:
    """The one quotient (h + t) // v, t >= 0, that is all that an expression reads of h."""
    quotients = [q for q in size.atoms(of_torch.FloorDiv) if symbol in q.free_symbols]
    least = min(quotients, key=_length, default=None)
    if least is None or least == size:
        return None
    rest = least.args[0] - symbol
    fits = rest.is_Integer and rest >= 0 and least.args[1].is_Integer and least.args[1] > 0
    return least if fits and symbol not in size.xreplace({least: _INNER}).free_symbols else None


def _length(size: sympy.Basic) -> int:
    """How many parts it has, where one with a floating point or a choice counts for three."""
    return (3 if isinstance(size, _COSTLY) else 1) + sum(_length(part) for part in size.args)


# ---- what an expression is on a class -------------------------------------------------------------------------------


def _line(size: sympy.Basic, symbol: sympy.Symbol, period: int, remainder: int) -> _Line:
    """(a, b) with e(P q + r) = a q + b for all q >= 0."""
    if size == symbol:
        return Fraction(period), Fraction(remainder)
    if isinstance(size, sympy.Rational):
        return Fraction(0), Fraction(int(size.p), int(size.q))
    compute = next((f for kinds, f in _RULES.items() if isinstance(size, kinds)), None)
    if compute is None:
        raise _UnknownError
    return compute(*(_line(part, symbol, period, remainder) for part in size.args))


def _added(*lines: _Line) -> _Line:
    return sum((a for a, _ in lines), Fraction(0)), sum((b for _, b in lines), Fraction(0))


def _multiplied(*lines: _Line) -> _Line:
    slope, value = Fraction(0), Fraction(1)
    for a, b in lines:
        if slope and a:
            raise _UnknownError
        slope, value = slope * b + value * a, value * b
    return slope, value


def _divided(x: _Line, by: _Line) -> _Line:
    if by[0] or by[1] <= 0:
        raise _UnknownError
    return x[0] / by[1], x[1] / by[1]


def _rounded(how: Callable[[Fraction], int]) -> Callable[[_Line], _Line]:
    def compute(x: _Line) -> _Line:
        if x[0].denominator != 1:
            raise _FinerError(x[0].denominator)
        return x[0], Fraction(how(x[1]))

    return compute


def _cut(x: _Line) -> _Line:
    """Rounded towards zero: of what is never negative."""
    if x[0] < 0 or x[1] < 0:
        raise _UnknownError
    return _rounded(math.floor)(x)


def _remainder(x: _Line, by: _Line) -> _Line:
    whole = _rounded(math.floor)(_divided(x, by))
    return x[0] - whole[0] * by[1], x[1] - whole[1] * by[1]


def _largest(*lines: _Line) -> _Line:
    """The one that is at least all others for every q >= 0."""
    found = next((x for x in lines if all(x[0] >= y[0] and x[1] >= y[1] for y in lines)), None)
    if found is None:
        raise _UnknownError
    return found


def _smallest(*lines: _Line) -> _Line:
    a, b = _largest(*((-a, -b) for a, b in lines))
    return -a, -b


_RULES: Mapping[tuple[Any, ...], Callable[..., _Line]] = {
    (sympy.Add,): _added,
    (sympy.Mul,): _multiplied,
    (of_torch.FloorDiv,): lambda x, by: _rounded(math.floor)(_divided(x, by)),
    (of_torch.IntTrueDiv,): _divided,
    (of_torch.ToFloat,): lambda x: x,
    (of_torch.CeilToInt, sympy.ceiling): _rounded(math.ceil),
    (of_torch.FloorToInt, sympy.floor): _rounded(math.floor),
    (of_torch.TruncToInt,): _cut,
    (of_torch.Mod, of_torch.PythonMod): _remainder,
    (of_torch.Max, sympy.Max): _largest,
    (of_torch.Min, sympy.Min): _smallest,
}
_COSTLY = (
    of_torch.IntTrueDiv,
    of_torch.ToFloat,
    of_torch.CeilToInt,
    of_torch.FloorToInt,
    of_torch.TruncToInt,
    of_torch.Max,
    of_torch.Min,
)
_ROUNDED = tuple(kind for kinds in _RULES for kind in kinds if kind not in (sympy.Add, sympy.Mul))


# ---- the plain forms -------------------------------------------------------------------------------------------------


def _named(symbol: sympy.Symbol, period: int, lines: list[_Line]) -> sympy.Expr | None:
    """u h + c, (u h + t) // v + c, m ((h + t) // m) + c, or u h + c with a remainder; None where it is none of them."""
    slopes = {a for a, _ in lines}
    if len(slopes) != 1 or any(b.denominator != 1 for _, b in lines):
        return None
    slope = slopes.pop() / period
    u, v = slope.numerator, slope.denominator
    values = [int(b) for _, b in lines]
    for t in range(v):
        left = [value - (u * r + t) // v for r, value in enumerate(values)]
        if len(set(left)) == 1:
            linear = u * symbol + t
            return (of_torch.FloorDiv(linear, sympy.Integer(v)) if v > 1 else linear) + left[0]
    if v > 1:
        return None
    return _multiple(symbol, u, values) or _with_remainder(symbol, u, [x - u * r for r, x in enumerate(values)])


def _multiple(symbol: sympy.Symbol, u: int, values: list[int]) -> sympy.Expr | None:
    """u m ((h + t) // m) + c: what is filled up, or cut off, to a multiple of m."""
    for m in (m for m in range(2, len(values) + 1) if u and len(values) % m == 0):
        for t in range(m):
            left = {value - u * m * ((r + t) // m) for r, value in enumerate(values)}
            if len(left) == 1:
                return u * m * of_torch.FloorDiv(symbol + t, sympy.Integer(m)) + left.pop()
    return None


def _with_remainder(symbol: sympy.Symbol, u: int, left: list[int]) -> sympy.Expr | None:
    """u h + c + (h + t) mod m, or less that."""
    for m in (m for m in range(2, len(left) + 1) if len(left) % m == 0):
        for t in range(m):
            remainders = [(r + t) % m for r in range(len(left))]
            for sign in (1, -1):
                rest = {value - sign * n for value, n in zip(left, remainders, strict=True)}
                if len(rest) == 1:
                    return u * symbol + rest.pop() + sign * of_torch.Mod(symbol + t, sympy.Integer(m))
    return None
