"""Calls of a graph as text, from whatever file it comes: what `diff` aligns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MODULE_WIDTH = 14  # columns that a module's name keeps in a narrow table


@dataclass(frozen=True)
class ListedCall:
    """One call of a graph. module: its path, or its weights' owner. anchor: its first weight's name, if any.

    op: the operator with what its result depends on beside the operands (sizes of weights, strides, …).
    results: the names of what it gives. operands: those of the values that it reads, without
    weights and what is computed of them alone.
    """

    module: str
    op: str
    shape: str
    anchor: str = ""
    weights: tuple[torch.Tensor, ...] = ()
    results: tuple[str, ...] = ()
    operands: tuple[str, ...] = ()

    def text(self, width: int) -> str:
        """`module | op | shape` in `width` columns: of a long line the module's beginning goes first."""
        rest = f" | {self.op} | {self.shape}"
        module = self.module or "."
        room = max(width - len(rest), min(len(module), MODULE_WIDTH))
        if len(module) > room:
            module = f"..{module[len(module) - room + 2 :]}"
        line = module + rest
        return line if len(line) <= width else f"{line[: width - 2]}.."
