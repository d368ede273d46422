"""Example tensors for a model's inputs, and the shapes of those that it has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import InputError
from reparam.utils import Shape, Shapes, dtype_name, memory_size

from .program import Program, size_hint

Range = tuple[float, float]  # the lowest and the highest value of an input
BYTES = 12  # of one number of an example, which is held in float32 and in float64


def draw_examples(
    module: nn.Module, shapes: Sequence[Sequence[int]] | None, *, batch: int | Sequence[int], seed: int = 0
) -> tuple[Tensor, ...]:
    """Random tensors (batch, *shape), normal in the dtype of the module's weights; integers are 0 or 1.

    shapes: a `Shape` for an input of integers. batch: one number, or one for each input.

    Raises InputError when they are not known, and for what is no shape or would not fit into the memory.
    """
    if shapes is None:
        examples = "for example 3,224,224, or 16:int64 for integers"
        raise InputError(f"the input's shape is not known; pass it with --input-shape, {examples}")
    rows = [batch] * len(shapes) if isinstance(batch, int) else list(batch)
    check_shapes(shapes, max(rows, default=1))
    weight = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: Sequence[int], batch: int) -> Tensor:
        if isinstance(shape, Shape) and shape.dtype is not None:
            integers = torch.randint(2, (batch, *shape), generator=generator)
            return integers.to(weight.device, getattr(torch, shape.dtype))
        return torch.randn((batch, *shape), generator=generator).to(weight.device, weight.dtype)

    return tuple(draw(s, n) for s, n in zip(shapes, rows, strict=True))


def check_shapes(shapes: Any, batch: int = 1) -> None:
    """Raises InputError unless these are shapes of inputs, of whole positive sizes, that fit into the memory."""
    rows = shapes if isinstance(shapes, list | tuple) else [shapes]
    for shape in rows:
        sizes = shape if isinstance(shape, list | tuple) else [None]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
            raise InputError(
                f"{str(shape)[:60]!r} is not a shape; give one for each input, without the batch, such as "
                "[(3, 224, 224)]"
            )
    need, have = sum(batch * math.prod(s) for s in rows) * BYTES, memory_size()
    if need > 2**62 or (have is not None and need > have // 4):
        shown = "; ".join(",".join(map(str, s)) for s in rows)[:60]
        raise InputError(f"the input shape {shown} is too large for this machine: its values take {need >> 20} MiB")


def shape_of_input(value: Tensor) -> Shape:
    """The shape that `value` is an example of; free sizes are as they were traced."""
    dtype = None if value.is_floating_point() else dtype_name(value.dtype)
    return Shape((size_hint(s) for s in value.shape[1:]), dtype)


def exported_shapes(program: torch.export.ExportedProgram) -> Shapes | None:
    """The shapes of an exported program's inputs at their traced sizes, without the batch."""
    names = set(program.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    return tuple(shape_of_input(v) for v in values if getattr(v, "shape", ())) or None


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(isinstance(n, int | float) for n in value)


def with_labels(program: Program, labels: Mapping[str, str]) -> Program:
    """The program with the names that a file has for its inputs. labels: by the program's own names."""
    return replace(program, inputs=tuple(replace(s, label=labels.get(s.name, "")) for s in program.inputs))


def with_ranges(program: Program, ranges: Sequence[Range] | None) -> Program:
    """The program with (low, high) of each tensor input. Raises InputError for what are no such pairs."""
    if ranges is None:
        return program
    if not isinstance(ranges, Sequence) or not all(_is_pair(r) for r in ranges):
        raise InputError("each input range is a pair of numbers, such as (0.0, 1.0), one for each tensor input")
    if len(ranges) != len(program.inputs):
        raise InputError(f"{len(ranges)} input ranges were given for {len(program.inputs)} tensor inputs")
    empty = next((r for r in ranges if not r[0] <= r[1]), None)
    if empty is not None:
        raise InputError(f"the input range ({empty[0]}, {empty[1]}) is empty; the first number is the lower one")
    specs = tuple(replace(s, low=low, high=high) for s, (low, high) in zip(program.inputs, ranges, strict=True))
    return replace(program, inputs=specs)
