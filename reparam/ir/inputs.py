"""The shapes of a model's inputs, and example tensors of them. Imports torch only where tensors are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from reparam.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")


class Shape(tuple[int, ...]):
    """The sizes of one input, without the batch.

    dtype: the name of the input's integer dtype; None for numbers of the dtype that the model's weights have.
    """

    dtype: str | None

    def __new__(cls, sizes: Iterable[int], dtype: str | None = None) -> Self:
        shape = super().__new__(cls, sizes)
        shape.dtype = dtype
        return shape

    def __str__(self) -> str:
        return ",".join(map(str, self)) + (f":{self.dtype}" if self.dtype else "")


Shapes = tuple[tuple[int, ...], ...]


def draw_examples(
    module: nn.Module, shapes: Sequence[Sequence[int]] | None, *, batch: int, seed: int = 0
) -> tuple[Tensor, ...]:
    """Random tensors (batch, *shape), normal in the dtype of the module's weights; integers are 0 or 1.

    shapes: a `Shape` for an input of integers. Raises InputError when they are not known.
    """
    import torch

    if shapes is None:
        examples = "for example 3,224,224, or 16:int64 for integers"
        raise InputError(f"the input's shape is not known; pass it with --input-shape, {examples}")
    weight = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: Sequence[int]) -> Tensor:
        if isinstance(shape, Shape) and shape.dtype is not None:
            integers = torch.randint(2, (batch, *shape), generator=generator)
            return integers.to(weight.device, getattr(torch, shape.dtype))
        return torch.randn((batch, *shape), generator=generator).to(weight.device, weight.dtype)

    return tuple(draw(s) for s in shapes)


def shape_of_input(value: Tensor) -> Shape:
    """The shape that `value` is an example of; free sizes are as they were traced."""
    from .program import size_hint

    dtype = None if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
    return Shape((size_hint(s) for s in value.shape[1:]), dtype)


def exported_shapes(program: torch.export.ExportedProgram) -> Shapes | None:
    """The shapes of an exported program's inputs at their traced sizes, without the batch."""
    names = set(program.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    return tuple(shape_of_input(v) for v in values if getattr(v, "shape", ())) or None
