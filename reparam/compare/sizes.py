"""Two modules compared at sizes that neither was captured at: where both run, they have to be the same function.

A captured program is one path through a module. A branch on a size, a padding to an even number, a loop over the batch
show only when the modules themselves run at other sizes. Where one of them refuses a size, nothing is claimed there.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.check import ErrorSums, Judge
from reparam.ir import Feed, InputSpec, Program, random_input, with_integers
from reparam.loading import LoadedModel

LARGEST = 256  # sides above are not made larger still
GROWN = 32  # what sides are made larger by, beside by one
VARIANTS = ((48, 2), (81, 3), (53, 5), (3, 7))  # a side that is even, odd, prime, small, and the batch beside it
TIMES = 4  # a batch has no more values than an image of so many times the traced sides: networks may be wide


def difference_at_sizes(
    models: tuple[LoadedModel, LoadedModel], programs: tuple[Program, Program], floor: float, seed: int
) -> str:
    """Where two modules differ, in words; "" where they do not, as far as both run. floor: what may always be lost."""
    generator = torch.Generator().manual_seed(seed)
    judges = [Judge(m.module, p) for m, p in zip(models, programs, strict=True)]
    for specs in _variants(_as_traced(programs[0])):
        values = _draw(programs[0], specs, generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a variance of one number: nobody asked for this size
            found = [j.truth_where_it_runs(values) for j in judges]
            if any(f is None for f in found):
                continue
            own = [j.own_where_it_runs(values) for j in judges]
        complaint = _complaint(found, own, floor)
        if complaint:
            shapes = ", ".join(str(list(v.shape)) for v in values if isinstance(v, Tensor))
            return f"on inputs of {shapes}, {complaint}"
    return ""


def _as_traced(program: Program) -> list[InputSpec]:
    """The inputs with free sizes as they were traced, but for the batch."""
    traced = program.traced_sizes
    return [
        dataclasses.replace(s, shape=(*s.shape[:1], *(traced[n] if isinstance(n, str) else n for n in s.shape[1:])))
        for s in program.inputs
    ]


def _variants(inputs: Sequence[InputSpec]) -> Iterator[tuple[InputSpec, ...]]:
    """The inputs with other batches, with other sides where they have any, and with sequences of other lengths."""
    sides = [n for s in inputs for n in s.shape[2:] if s.dtype.is_floating_point and isinstance(n, int)]
    if max((len(s.shape) for s in inputs), default=0) < 4:
        for batch in (1, 3, 7):
            yield tuple(_sized(s, None, batch) for s in inputs)
    if sides:
        grows = max(sides) <= LARGEST
        if grows:
            yield tuple(_sized(s, 1, 1, grown=True) for s in inputs)
        for side, batch in _no_longer_than(TIMES * max(sides)):
            yield tuple(_sized(s, side, batch) for s in inputs)
        if grows:
            more = min(GROWN, (TIMES - 1) * max(sides))
            yield tuple(_sized(s, more, 1, grown=True) for s in inputs)
        for axis in range(2, max(len(s.shape) for s in inputs)):
            yield tuple(_one_along(s, axis) for s in inputs)
    if any(map(_is_sequence, inputs)):
        for length, batch in (*VARIANTS, (1, 2)):
            yield tuple(_of_length(s, length, batch) for s in inputs)


def _no_longer_than(most: int) -> Iterator[tuple[int, int]]:
    """The variants, with the next shorter sides of the same kind where the batch is larger than an image of `most`."""
    for side, batch in VARIANTS:
        longest = min(side, math.isqrt(most * most // batch))
        yield next((n for n in range(longest, 0, -1) if _kind(n) == _kind(side)), 1), batch


def _kind(n: int) -> str:
    if n % 2 == 0:
        return "even"
    return "prime" if n > 1 and all(n % d for d in range(3, math.isqrt(n) + 1, 2)) else "odd"


def _is_sequence(spec: InputSpec) -> bool:
    """Whether axis 1 may be a length: of tokens (N, L), or of vectors (N, L, C)."""
    return len(spec.shape) == (3 if spec.dtype.is_floating_point else 2)


def _of_length(spec: InputSpec, length: int, batch: int) -> InputSpec:
    if not spec.shape:
        return spec
    rest = (length, *spec.shape[2:]) if _is_sequence(spec) else spec.shape[1:]
    return dataclasses.replace(spec, shape=(batch, *rest))


def _sized(spec: InputSpec, side: int | None, batch: int, *, grown: bool = False) -> InputSpec:
    """The input with this batch, and each side `side`, or that much longer."""
    if not spec.shape:
        return spec
    rest: list[Any] = list(spec.shape[1:])
    if side is not None and spec.dtype.is_floating_point:
        rest[1:] = [n + side if grown and isinstance(n, int) else side for n in rest[1:]]
    return dataclasses.replace(spec, shape=(batch, *rest))


def _one_along(spec: InputSpec, axis: int) -> InputSpec:
    """The input as it was captured, but of size one along an axis: no trace tells what a model does there."""
    if len(spec.shape) <= axis or not spec.dtype.is_floating_point:
        return spec
    return dataclasses.replace(spec, shape=(*spec.shape[:axis], 1, *spec.shape[axis + 1 :]))


def _draw(program: Program, specs: Sequence[InputSpec], generator: torch.Generator) -> Feed:
    """One entry for each placeholder: numbers of the input's dtype, as float64."""
    by_name = {s.name: s for s in specs}
    values: Feed = []
    for node in program.placeholders:
        spec = by_name.get(str(node.target))
        if spec is None:
            values.append(node.meta["val"])
            continue
        shape = [n if isinstance(n, int) else 2 for n in spec.shape]
        value = random_input(with_integers(spec, node), shape, generator)
        values.append(value.to(spec.dtype).double() if value.is_floating_point() else value)
    return values


def _complaint(outputs: list[list[Any] | None], own: list[list[Any] | None], floor: float) -> str:
    """How the outputs of two models in float64 differ, by what they lose in their own dtypes."""
    (truth, other), (own_a, own_b) = outputs, own
    assert truth is not None and other is not None
    if len(truth) != len(other):
        return f"they return {len(truth)} and {len(other)} values"
    for i, (t, o) in enumerate(zip(truth, other, strict=True)):
        if not isinstance(t, Tensor) or not isinstance(o, Tensor):
            continue
        if t.shape != o.shape:
            return f"output {i} has shape {list(t.shape)} in one and {list(o.shape)} in the other"
        if not t.is_floating_point():
            if not torch.equal(t, o):
                return f"output {i} differs"
            continue
        if own_a is None or own_b is None or not bool(torch.isfinite(t).all()):
            continue
        sums = ErrorSums()
        sums.add(t, o, own_a[i].double(), own_b[i].double())
        result = sums.result(i, floor)
        if not result.ok:
            return result.complaint
    return ""
