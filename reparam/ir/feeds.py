"""Random inputs for a program, one entry for each of its placeholders."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .aten import CONVS, arguments, is_call
from .integers import random_integers, with_integers
from .program import InputSpec, Program, shape_of

# Sides of smaller images, each for networks that do not run at the one before. Five halvings leave 2 pixels of 33, the
# two borders, and 3 of 65, with an inside between them; branches of some networks meet at even sizes only.
SMALL_SIZE = 33
MIDDLE_SIZE = 65
EVEN_SIZE = 96
EVEN_VOLUME = 32  # of volumes, whose cost grows with the third power

Feed = list[Any]


def own_generator(*names: object) -> torch.Generator:
    """A generator that is seeded by all of these names: a seed and what the numbers are for, say.

    Two generators of one seed give the same numbers, so that inputs would be the weights. torch looks at 32 bits of a
    seed and no more.
    """
    bits = random.Random(" ".join(map(str, names))).getrandbits(32)
    return torch.Generator().manual_seed(bits)


def random_input(spec: InputSpec, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A random tensor for one input: normal, or uniform where the declared range is finite.

    It is float64, complex128 with both parts normal, or of the input's own integers.
    """
    if spec.dtype.is_complex:
        return torch.randn(tuple(shape), generator=generator, dtype=torch.complex128)
    if not spec.dtype.is_floating_point:
        return random_integers(spec, shape, generator)
    if math.isfinite(spec.low) and math.isfinite(spec.high):
        return spec.low + (spec.high - spec.low) * torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    if math.isfinite(spec.low):
        return spec.low + x.abs()
    return spec.high - x.abs() if math.isfinite(spec.high) else x


def feed(program: Program, sizes: dict[str, int], generator: torch.Generator, small: int | None = None) -> Feed:
    """One entry for each placeholder, with the symbols of `sizes`.

    small: what large images shrink to; small ones go to three quarters of their size, see `_shrunk`.

    Floating values are rounded to the input's dtype, so that every dtype sees the same numbers.
    """
    specs = {s.name: s for s in program.inputs}
    values: Feed = []
    for node in program.placeholders:
        spec = specs.get(str(node.target))
        if spec is None:
            values.append(node.meta["val"])
            continue
        value = random_input(with_integers(spec, node, sizes), _sized(program, shape_of(node, sizes), small), generator)
        if value.is_floating_point() or value.is_complex():
            value = value.to(spec.dtype).to(value.dtype)
        values.append(value)
    return values


def _sized(program: Program, shape: Sequence[int], small: int | None) -> list[int]:
    sized = list(shape)
    if small is not None and len(sized) >= 4:
        axes = 3 if len(sized) > 4 and axes_of_images(program) == 3 else 2
        sized[-axes:] = [_shrunk(s, small) for s in sized[-axes:]]
    return sized


def shrinks_much(program: Program, small: int) -> bool:
    """Whether images that shrink to `small` make inputs of less than half as many values as the traced ones."""
    shapes = [shape_of(n) for n in program.placeholders if isinstance(n.meta["val"], Tensor)]
    return 2 * sum(math.prod(_sized(program, s, small)) for s in shapes) < sum(map(math.prod, shapes))


def smaller_sides(program: Program) -> tuple[int, ...]:
    """What large images shrink to: the first at which a network runs."""
    return (SMALL_SIZE, EVEN_VOLUME) if axes_of_images(program) == 3 else (SMALL_SIZE, MIDDLE_SIZE, EVEN_SIZE)


def axes_of_images(program: Program) -> int:
    """3 for a network with convolutions over volumes, else 2."""
    kernels = (arguments(n)["weight"] for n in program.calls() if is_call(n, CONVS))
    return 3 if any(len(shape_of(w)) == 5 for w in kernels) else 2


def _shrunk(size: int, small: int) -> int:
    """The side of a smaller image: `small`, or three quarters; odd when `small` is, else a multiple of eight."""
    if size > small:
        return small
    return 3 * size // 4 | 1 if small % 2 else 3 * size // 4 // 8 * 8 or size


def typed(program: Program, values: Feed, dtype: torch.dtype | None = None) -> Feed:
    """The values in the dtypes that the program's inputs have; floating ones in `dtype` when it is given."""
    specs = {s.name: s for s in program.inputs}
    result: Feed = []
    for node, value in zip(program.placeholders, values, strict=True):
        spec = specs.get(str(node.target))
        if spec is None or not isinstance(value, Tensor):
            result.append(value)
            continue
        result.append(value.to(dtype if dtype is not None and value.is_floating_point() else spec.dtype))
    return result


def filled(program: Program, tensors: Sequence[Tensor]) -> Feed:
    """One entry for each placeholder, from one tensor for each tensor input."""
    given = iter(tensors)
    names = {s.name for s in program.inputs}
    return [next(given) if str(n.target) in names else n.meta["val"] for n in program.placeholders]


def tensors_of(program: Program, values: Feed) -> list[Tensor]:
    """The tensor inputs among a feed's entries, which there is one of for each placeholder."""
    names = {s.name for s in program.inputs}
    return [v for v, n in zip(values, program.placeholders, strict=True) if str(n.target) in names]
