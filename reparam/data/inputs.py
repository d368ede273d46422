"""The inputs of a program, as samples have to fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.ir import InputSpec, Program, category
from reparam.utils import dtype_name

from .block import LABELS, Block, Column


@dataclass(frozen=True)
class Inputs:
    """What a sample consists of.

    specs: of the inputs. rows: how many consecutive rows are one sample: 1, or the batch where the program fixes it.
    maps: whether labels may be maps.
    """

    specs: tuple[InputSpec, ...]
    rows: int
    maps: bool = False

    @classmethod
    def of(cls, program: Program | Sequence[InputSpec], *, maps: bool = False) -> Inputs:
        """Raises InputError for a program whose inputs have no axis, or no common one, that counts samples."""
        specs = tuple(program.inputs if isinstance(program, Program) else program)
        if not specs:
            raise InputError("the network takes no inputs, so that there are no samples of them")
        bare = [s.name for s in specs if not s.shape]
        if bare:
            raise InputError(f"the input '{bare[0]}' is a single number, without an axis that counts samples")
        fixed = sorted({s.shape[0] for s in specs if isinstance(s.shape[0], int)})
        if len(fixed) > 1:
            raise InputError(f"the inputs have first axes of {fixed}, so that no axis counts samples for all of them")
        return cls(specs, fixed[0] if fixed else 1, maps)

    @property
    def names(self) -> list[str]:
        return [s.name for s in self.specs]

    @property
    def fixed(self) -> bool:
        """Whether the program takes batches of one size alone."""
        return any(isinstance(s.shape[0], int) for s in self.specs)

    @property
    def label_names(self) -> tuple[str, ...]:
        """What labels may be called among arrays: no name of an input."""
        return tuple(name for name in LABELS if name not in self.names)

    @property
    def image(self) -> tuple[int, int | None, int | None] | None:
        """(channels, height, width) of the one input that takes images, None for what is free."""
        shape = self.specs[0].shape
        if len(self.specs) != 1 or len(shape) != 4 or shape[1] not in (1, 3) or not isinstance(shape[1], int):
            return None
        height, width = (n if isinstance(n, int) else None for n in shape[2:])
        return shape[1], height, width

    def check(self, block: Block) -> None:
        """Raises InputError unless the columns of a block have the kinds and shapes of the inputs."""
        for spec, column in zip(self.specs, block.columns, strict=True):
            if not _fits(column, spec):
                wanted = ", ".join(["N", *("any" if isinstance(n, str) else str(n) for n in spec.shape[1:])])
                raise InputError(
                    f"{block.where} holds {dtype_name(column.dtype)} samples of shape {list(column.shape)}, where the "
                    f"input '{spec.name}' is {dtype_name(spec.dtype)} of shape ({wanted})"
                )
        lengths = [column.shape[0] for column in block.columns]
        if len(set(lengths)) != 1:
            raise InputError(f"{block.where} holds unequal numbers of samples for the inputs: {lengths}")
        if block.labels is not None and len(block.labels) != lengths[0]:
            raise InputError(f"{block.where} holds {len(block.labels)} labels for {lengths[0]} samples")

    def typed(self, values: Sequence[Tensor], where: str) -> tuple[Tensor, ...]:
        """The rows in the dtypes that the network is given: float32 for floating inputs, else that of the input.

        Raises InputError for values that are not finite, or that the dtype does not hold.
        """
        return tuple(_typed(value, spec, where) for value, spec in zip(values, self.specs, strict=True))


def _fits(column: Column, spec: InputSpec) -> bool:
    if _kind(column.dtype) != _kind(spec.dtype) or len(column.shape) != len(spec.shape):
        return False
    return all((n > 0 if isinstance(s, str) else s == n) for s, n in zip(spec.shape[1:], column.shape[1:], strict=True))


def _kind(dtype: torch.dtype) -> str:
    """Floating, complex or integer; a truth value is an integer of 0 or 1."""
    return category(dtype).replace("bool", "integer")


def _typed(value: Tensor, spec: InputSpec, where: str) -> Tensor:
    if _kind(spec.dtype) == "integer":
        typed = value.to(spec.dtype)
        if value.dtype is not spec.dtype and not torch.equal(typed.to(value.dtype), value):
            raise InputError(f"{where} holds values that {dtype_name(spec.dtype)}, as '{spec.name}' is, does not hold")
        return typed
    typed = value.to(torch.float32 if spec.dtype.is_floating_point else spec.dtype)
    if not bool(torch.isfinite(typed).all()):
        raise InputError(f"{where} holds NaN or infinite values")
    return typed
