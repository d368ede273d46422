"""Floats that a file computes of sizes, each step rounded to the file's own dtype.

`floor(float32(h) * float32(0.7))` is 7 for h = 10: the product, 6.9999999, becomes 7 in float32. torch.export knows
sizes as whole numbers and as real ones, not as rounded ones. So what becomes a whole number again is written as a
quotient of whole numbers, h * 7 // 10, or else as what the real numbers give, and held against what the file computes
for thousands of sizes.
"""

from __future__ import annotations

import functools
import math
import operator as py
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from reparam.ir import SizeCondition
from reparam.utils import dtype_name

LONGEST = 4096  # sizes that are tried of one free axis
PAIRS = 20_000  # combinations of sizes of several axes
MOST_PARTS = 1000  # a number that the file has is taken for p / q with q up to this
_LIFT = 2.0**-40  # a share that changes no product that is not rounded, for sizes that there are
MOST_STARTS = 64  # of which a number is still written as a quotient; the parts of longer ones grow too large
_KINDS = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
_STEPS: dict[str, Callable[..., Any]] = {
    "add": py.add,
    "sub": py.sub,
    "mul": py.mul,
    "div": py.truediv,
    "neg": py.neg,
    "sqrt": np.sqrt,
    "max": np.maximum,
    "min": np.minimum,
    "cast": lambda value: value,
}
_ON_REALS = _STEPS | {"sqrt": lambda v: torch.sym_float(v) ** 0.5, "max": torch.sym_max, "min": torch.sym_min}
_Whole = Callable[[Any], Any]


@dataclass(frozen=True)
class _Rounding:
    """To a whole number: of a real number, which may be a symbol, of an array of those, and of a quotient."""

    of_real: Callable[[Any], Any]
    of_reals: Callable[[Any], Any]
    of_ratio: Callable[[Any, Any], Any]


_BELOW = _Rounding(math.floor, np.floor, py.floordiv)
_ABOVE = _Rounding(math.ceil, np.ceil, lambda a, b: -(-a // b))


class SizeFloat:
    """A number of a floating dtype: a whole number or a constant to start with, then a step of arithmetic.

    value: the real number, without any rounding, which may be a symbol. step: how it is made of its parts.
    """

    __slots__ = ("count", "dtype", "parts", "start", "step", "value")
    count: int
    value: Any

    def __init__(self, dtype: torch.dtype, step: str, *parts: SizeFloat, start: Any = None) -> None:
        """start: the number, where it is made of no others. Raises ValueError for a dtype that sizes do not have."""
        if dtype not in _KINDS:
            raise ValueError(f"it computes sizes in {dtype_name(dtype)}")
        self.dtype, self.step, self.parts, self.start = dtype, step, parts, start
        self.count = sum(p.count for p in parts) if parts else 1
        self.value = _ON_REALS[step](*(p.value for p in parts)) if parts else torch.sym_float(start)

    # ---- arithmetic ----------------------------------------------------------------------------------------------

    def _with(self, step: str, other: Any, *, swapped: bool = False) -> SizeFloat:
        one, two = self, size_float(other, self.dtype)
        return SizeFloat(self.dtype, step, *((two, one) if swapped else (one, two)))

    def __add__(self, other: Any) -> SizeFloat:
        return self._with("add", other)

    def __sub__(self, other: Any) -> SizeFloat:
        return self._with("sub", other)

    def __mul__(self, other: Any) -> SizeFloat:
        return self._with("mul", other)

    def __truediv__(self, other: Any) -> SizeFloat:
        return self._with("div", other)

    def __radd__(self, other: Any) -> SizeFloat:
        return self._with("add", other, swapped=True)

    def __rsub__(self, other: Any) -> SizeFloat:
        return self._with("sub", other, swapped=True)

    def __rmul__(self, other: Any) -> SizeFloat:
        return self._with("mul", other, swapped=True)

    def __rtruediv__(self, other: Any) -> SizeFloat:
        return self._with("div", other, swapped=True)

    def __neg__(self) -> SizeFloat:
        return SizeFloat(self.dtype, "neg", self)

    def root(self) -> SizeFloat:
        """The square root."""
        return SizeFloat(self.dtype, "sqrt", self)

    def larger(self, other: Any) -> SizeFloat:
        """The larger of two."""
        return self._with("max", other)

    def smaller(self, other: Any) -> SizeFloat:
        """The smaller of two."""
        return self._with("min", other)

    # ---- whole numbers -------------------------------------------------------------------------------------------

    @property
    def symbolic(self) -> bool:
        """Whether it depends on the size of a free axis."""
        return not isinstance(self.value, float)

    @property
    def number(self) -> Any:
        """What the file computes; the real number where sizes are free."""
        return self.value if self.symbolic else float(self._in_file(_itself))

    def floor(self) -> Any:
        """The whole number below. Raises ValueError where no arithmetic on sizes gives what the file computes."""
        return self._whole(np.floor, _BELOW)

    def ceil(self) -> Any:
        """The whole number above. Raises ValueError where no arithmetic on sizes gives what the file computes."""
        return self._whole(np.ceil, _ABOVE)

    def truncated(self) -> Any:
        """The whole number towards zero, which has to be that below for all sizes that there are.

        Raises ValueError where it is not, or where no arithmetic on sizes gives what the file computes.
        """
        return self._whole(np.trunc, _BELOW)

    def _whole(self, rounded: Callable[..., Any], way: _Rounding) -> Any:
        if not self.symbolic:
            return int(rounded(self._in_file(_itself)))
        tried = _Tried(self)
        wanted = rounded(self._in_file(tried.of))
        kept = tried.sound & np.isfinite(wanted)
        off = []
        for whole, tries in self._as_whole(tried, way):
            off.append(kept & (tries != wanted))
            if not off[-1].any():
                return whole()
        at = int(np.argmax(off[0]))
        raise ValueError(
            f"it rounds what it computes of sizes to {dtype_name(self.dtype)}, so that it is {int(wanted[at])} for a "
            f"size of {'x'.join(str(n) for n in tried.rows[at])}; no arithmetic on whole numbers gives all such sizes"
        )

    def _as_whole(self, tried: _Tried, way: _Rounding) -> Iterator[tuple[Callable[[], Any], Any]]:
        """Ways to write it as a whole number: how, and what that gives for the sizes that are tried."""
        with np.errstate(all="ignore"):
            pair, tries = self._ratio(_itself), self._ratio(tried.of)
            if pair is not None and tries is not None:
                yield lambda: way.of_ratio(*pair), way.of_ratio(*tries)
            yield lambda: way.of_real(self.value), way.of_reals(self._in_file(tried.of, real=True))

    def _in_file(self, whole: _Whole, *, real: bool = False) -> Any:
        """What the file computes for sizes, which `whole` gives for each that it starts from. real: in float64."""
        found: dict[int, Any] = {}
        with np.errstate(all="ignore"):
            for one in self.order():
                made = _STEPS[one.step](*(found[id(p)] for p in one.parts)) if one.parts else whole(one.start)
                found[id(one)] = np.asarray(made).astype(np.float64 if real else _KINDS[one.dtype])
        return found[id(self)]

    def _ratio(self, whole: _Whole) -> tuple[Any, Any] | None:
        """The number as a quotient of whole ones, with constants that are the nearest ones to be written so."""
        found: dict[int, tuple[Any, Any]] = {}
        for one in self.order() if self.count <= MOST_STARTS else ():
            if one.parts:
                known = [found.get(id(p)) for p in one.parts]
                pairs = [p for p in known if p is not None]
                if len(pairs) == len(known) and one.step in _ON_RATIOS:
                    found[id(one)] = _shortened(*_ON_RATIOS[one.step](*(n for p in pairs for n in p)))
            elif not isinstance(one.start, float):
                found[id(one)] = whole(one.start), 1
            elif math.isfinite(one.start):
                near = Fraction(one.start).limit_denominator(MOST_PARTS)
                found[id(one)] = near.numerator, near.denominator
        return found.get(id(self))

    def order(self) -> list[SizeFloat]:
        """All that it is made of, each behind its parts, and itself."""
        found: dict[int, SizeFloat] = {}
        waiting = [(self, False)]
        while waiting:
            one, ready = waiting.pop()
            if ready:
                found[id(one)] = one
            elif id(one) not in found:
                waiting += [(one, True), *((p, False) for p in one.parts)]
        return list(found.values())


_ON_RATIOS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "add": lambda a, b, c, d: (a * d + c * b, b * d),
    "sub": lambda a, b, c, d: (a * d - c * b, b * d),
    "mul": lambda a, b, c, d: (a * c, b * d),
    "div": lambda a, b, c, d: (a * d, b * c),
    "neg": lambda a, b: (-a, b),
    "cast": lambda a, b: (a, b),
}


class _Tried:
    """Sizes that a number is tried for: all small ones of one symbol, or combinations of several.

    sound: of which of them all sizes that it is computed of are positive.
    """

    def __init__(self, number: SizeFloat) -> None:
        symbols = [s.start for s in number.order() if isinstance(s.start, torch.SymInt)]
        starts = {str(s.node.expr): s.node.expr for s in symbols}
        self.symbols = sorted({s for e in starts.values() for s in e.free_symbols}, key=str)
        self.rows = _combinations(len(self.symbols))
        self._sizes = {t: SizeCondition(e, self.symbols).sizes(self.rows) for t, e in starts.items()}
        self.sound = functools.reduce(np.logical_and, (v > 0 for v in self._sizes.values()))

    def of(self, start: Any) -> Any:
        """The sizes for a symbol; a number is itself."""
        return self._sizes[str(start.node.expr)] if isinstance(start, torch.SymInt) else start


def _combinations(count: int) -> Any:
    if count == 1:
        return np.arange(1, LONGEST + 1)[:, None]
    drawn = np.random.default_rng(0)
    near, far = (drawn.integers(1, most, (PAIRS // 2, count)) for most in (40, 600))
    return np.concatenate([near, far])


def _itself(start: Any) -> Any:
    return start


def _shortened(top: Any, bottom: Any) -> tuple[Any, Any]:
    if isinstance(top, int) and isinstance(bottom, int) and bottom:
        short = Fraction(top, bottom)
        return short.numerator, short.denominator
    return top, bottom


def scale_for_torch(scale: float, size: int | None = None) -> float | None:
    """A scale for which torch makes as many positions of a size as a file that has `scale` in float32; of any, if free.

    torch rounds size * scale down in float64, where neither 10 * float32(0.7) is 7 nor 90 * 0.7 is 63, as both are in
    float32. None where neither the number of the file, nor the nearest short quotient or what is just above it is one.
    """
    sizes = np.arange(1, LONGEST + 1) if size is None else np.array([size])
    wanted = np.floor(sizes.astype(np.float32) * np.float32(scale))
    near = float(Fraction(scale).limit_denominator(MOST_PARTS))
    tried = (scale, near, near * (1 + _LIFT))
    return next((s for s in tried if bool((np.floor(sizes * s) == wanted).all())), None)


def size_float(value: Any, dtype: torch.dtype) -> SizeFloat:
    """A number or a size as one of a floating dtype. Raises ValueError for a dtype that sizes are not computed in."""
    if not isinstance(value, SizeFloat):
        return SizeFloat(dtype, "start", start=value)
    return value if value.dtype == dtype else SizeFloat(dtype, "cast", value)


def plain_number(value: Any) -> Any:
    """The real number that a `SizeFloat` is, any other value as it is."""
    return value.value if isinstance(value, SizeFloat) else value
