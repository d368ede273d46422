"""Linear forms: a value as a sum of structured linear maps of other values, plus a shift.

Only the structure (channel ranges, groups, windows) is computed when forms are built and composed; the numbers behind
a map are a function that is called once, when the map is written into a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, fx

from reparam.algebra import (
    Window,
    compose_over,
    compose_windows,
    dirac,
    expand_groups,
    identity_window,
    is_aligned,
    is_padded,
)
from reparam.ir import FOLD_DTYPE, Refusal

from .activation import LINEAR, Activation

Numbers = Callable[[], Tensor]


@dataclass(frozen=True)
class Map:
    """A linear map from channels [cols, cols + n_in) of one value to channels [rows, rows + n_out) of another.

    groups: it is block diagonal with that many equal blocks. numbers: gives (n_out, n_in/groups, *window.size).
    """

    window: Window
    groups: int
    rows: int
    n_out: int
    cols: int
    n_in: int
    numbers: Numbers = field(compare=False, repr=False)

    @property
    def plain(self) -> bool:
        """One tap, no stride, no padding: it only mixes channels."""
        w = self.window
        return all(n == 1 and s == 1 for n, s in zip(w.size, w.stride, strict=True)) and is_aligned(w)

    @property
    def diagonal(self) -> bool:
        return self.groups == self.n_out == self.n_in


@dataclass(frozen=True)
class Shift:
    """A constant (n,) added to channels [rows, rows + n)."""

    rows: int
    n: int
    numbers: Numbers = field(compare=False, repr=False)


ValueKind = Literal["input", "layer", "pool", "gate"]


@dataclass(eq=False)
class RegisterValue:
    """A tensor that a register may hold.

    kind: the region's input, the result of a layer (form and activation), a pooled or a gated value.
    space: the sizes of its spatial axes, None where free. positions: their product at the traced sizes.
    optional: it may also be inlined into what reads it. low: a proven lower bound of its elements.
    """

    index: int
    node: fx.Node
    kind: ValueKind
    channels: int
    space: tuple[int | None, ...]
    positions: int
    low: float = -math.inf
    optional: bool = False
    form: LinearForm | None = None
    act: Activation = LINEAR
    body: tuple[fx.Node, ...] = ()
    gate_width: int = 0

    @property
    def operands(self) -> tuple[RegisterValue, ...]:
        return tuple(dict.fromkeys(v for v, _ in self.form.maps)) if self.form is not None else ()


@dataclass(frozen=True)
class LinearForm:
    """sum of maps of values, plus shifts; `channels` in all."""

    channels: int
    maps: tuple[tuple[RegisterValue, Map], ...]
    shifts: tuple[Shift, ...] = ()

    @property
    def bare(self) -> RegisterValue | None:
        """The value that this form is, unchanged and whole; None when it is anything else."""
        if len(self.maps) != 1 or self.shifts:
            return None
        value, m = self.maps[0]
        same = m.rows == m.cols == 0 and m.n_in == m.n_out == value.channels == self.channels
        return value if same and m.numbers is unit and m.plain else None


def unit() -> Tensor:
    """Marks a map that is the identity on its channels."""
    raise AssertionError("a unit map has no numbers of its own; see `numbers_of`")


def numbers_of(m: Map) -> Tensor:
    """(n_out, n_in/groups, *window.size) in float64."""
    if m.numbers is unit:
        return dirac(m.n_out, m.groups, len(m.window.size))
    return m.numbers()


def reference(value: RegisterValue) -> LinearForm:
    """The form that is `value` itself."""
    c = value.channels
    window = identity_window(len(value.space))
    return LinearForm(c, ((value, Map(window, c, 0, c, 0, c, unit)),))


def diagonal_map(channels: int, ndim: int, scale: Tensor) -> Map:
    """scale (C,) times each channel."""
    shape = [channels, 1] + [1] * ndim
    return Map(identity_window(ndim), channels, 0, channels, 0, channels, lambda: scale.to(FOLD_DTYPE).reshape(shape))


# ---- editing ---------------------------------------------------------------------------------------------------------


def add_forms(a: LinearForm, b: LinearForm) -> LinearForm:
    """The sum of two forms of equal width."""
    return LinearForm(a.channels, a.maps + b.maps, a.shifts + b.shifts)


def cat_forms(forms: Sequence[LinearForm]) -> LinearForm:
    """The concatenation along the channels."""
    maps: list[tuple[RegisterValue, Map]] = []
    shifts: list[Shift] = []
    offset = 0
    for form in forms:
        maps += [(v, replace(m, rows=m.rows + offset)) for v, m in form.maps]
        shifts += [replace(s, rows=s.rows + offset) for s in form.shifts]
        offset += form.channels
    return LinearForm(offset, tuple(maps), tuple(shifts))


def slice_form(form: LinearForm, start: int, count: int) -> LinearForm:
    """Channels [start, start + count)."""
    maps: list[tuple[RegisterValue, Map]] = []
    shifts: list[Shift] = []
    for value, m in form.maps:
        cut = narrow_rows(m, start, count)
        if cut is not None:
            maps.append((value, replace(cut, rows=cut.rows - start)))
    for s in form.shifts:
        low, high = max(s.rows, start), min(s.rows + s.n, start + count)
        if low < high:
            maps_from = low - s.rows
            shifts.append(Shift(low - start, high - low, _part(s.numbers, maps_from, high - low)))
    return LinearForm(count, tuple(maps), tuple(shifts))


def scale_form(form: LinearForm, scale: Tensor | None, shift: Tensor | None, ndim: int) -> LinearForm:
    """scale*form + shift, both (C,) or (1,)."""
    c = form.channels
    if scale is not None:
        scaled = apply_map(diagonal_map(c, ndim, scale.reshape(-1).expand(c)), form)
        assert isinstance(scaled, LinearForm)
        form = scaled
    if shift is not None and bool((shift != 0).any()):
        values = shift.reshape(-1).expand(c).to(FOLD_DTYPE)
        form = replace(form, shifts=(*form.shifts, Shift(0, c, lambda: values)))
    return form


def _part(numbers: Numbers, start: int, count: int) -> Numbers:
    return lambda: numbers()[start : start + count]


def narrow_rows(m: Map, start: int, count: int) -> Map | None:
    """The part of `m` that computes channels [start, start + count) of the result; None when there is none."""
    low, high = max(m.rows, start), min(m.rows + m.n_out, start + count)
    if low >= high:
        return None
    if (low, high) == (m.rows, m.rows + m.n_out):
        return m
    a, n = low - m.rows, high - low
    per_out, per_in = m.n_out // m.groups, m.n_in // m.groups
    if a % per_out == 0 and n % per_out == 0:
        groups = n // per_out
        numbers = m.numbers if m.numbers is unit else _part(m.numbers, a, n)
        return Map(m.window, groups, low, n, m.cols + a // per_out * per_in, groups * per_in, numbers)
    return Map(m.window, 1, low, n, m.cols, m.n_in, lambda: _dense(m)[a : a + n])


def narrow_cols(m: Map, start: int, count: int) -> Map | None:
    """The part of `m` that reads channels [start, start + count) of the operand; None when there is none."""
    low, high = max(m.cols, start), min(m.cols + m.n_in, start + count)
    if low >= high:
        return None
    if (low, high) == (m.cols, m.cols + m.n_in):
        return m
    a, n = low - m.cols, high - low
    per_out, per_in = m.n_out // m.groups, m.n_in // m.groups
    if a % per_in == 0 and n % per_in == 0:
        groups, first = n // per_in, a // per_in * per_out
        rows = groups * per_out
        numbers = m.numbers if m.numbers is unit else _part(m.numbers, first, rows)
        return Map(m.window, groups, m.rows + first, rows, low, n, numbers)
    return Map(m.window, 1, m.rows, m.n_out, low, n, lambda: _dense(m)[:, a : a + n])


def _dense(m: Map) -> Tensor:
    return expand_groups(numbers_of(m), m.groups, 1)


def apply_map(outer: Map, form: LinearForm) -> LinearForm | Refusal:
    """outer(form) as a form, or why it is not exact at the border."""
    maps: list[tuple[RegisterValue, Map]] = []
    for value, inner in form.maps:
        made = _compose_maps(outer, inner)
        if isinstance(made, Refusal):
            return made
        if made is not None:
            maps.append((value, made))
    shifts: list[Shift] = []
    for s in form.shifts:
        part = narrow_cols(outer, s.rows, s.n)
        if part is None:
            continue
        if is_padded(outer.window):
            return Refusal("a shift would meet the zero padding that follows, which is wrong on the border")
        shifts.append(_shifted(part, s))
    return LinearForm(outer.rows + outer.n_out, tuple(maps), tuple(shifts))


def _shifted(part: Map, s: Shift) -> Shift:
    def numbers() -> Tensor:
        vector = s.numbers()[part.cols - s.rows : part.cols - s.rows + part.n_in]
        weight = numbers_of(part).flatten(2).sum(2) if part.window.size else numbers_of(part)
        blocks: Tensor = weight.unflatten(0, (part.groups, -1)) @ vector.reshape(part.groups, -1, 1)
        return blocks.reshape(-1)

    return Shift(part.rows, part.n_out, numbers)


def _compose_maps(outer: Map, inner: Map) -> Map | Refusal | None:
    first = narrow_rows(inner, outer.cols, outer.n_in)
    if first is None:
        return None
    second = narrow_cols(outer, first.rows, first.n_out)
    if second is None:
        return None
    again = narrow_rows(first, second.cols, second.n_in)
    assert again is not None
    first = again
    if first.numbers is unit and first.diagonal and first.plain:
        return replace(second, cols=first.cols)
    if second.numbers is unit and second.diagonal and second.plain:
        return replace(first, rows=second.rows)
    window = compose_windows(first.window, second.window)
    if isinstance(window, Refusal):
        return window
    groups = math.gcd(first.groups, second.groups)
    joint, a, b = window, first, second

    def numbers() -> Tensor:
        return compose_over(joint, a.window, numbers_of(a), a.groups, b.window, numbers_of(b), b.groups)

    return Map(joint, groups, b.rows, b.n_out, a.cols, a.n_in, numbers)


def shift_vector(form: LinearForm) -> Tensor | None:
    """The form's shift as one (C,) vector, None when there is none."""
    if not form.shifts:
        return None
    total = torch.zeros(form.channels, dtype=FOLD_DTYPE)
    for s in form.shifts:
        total[s.rows : s.rows + s.n] += s.numbers()
    return total
