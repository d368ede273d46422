"""Sums of a value and a constant, in every spelling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x + c": lambda x, c: x + c,
    "c + x": lambda x, c: c + x,
    "x - c": lambda x, c: x - c,
    "c - x": lambda x, c: c - x,
    "x + 3c": lambda x, c: torch.add(x, c, alpha=3),
    "c + 3x": lambda x, c: torch.add(c, x, alpha=3),
    "x - 3c": lambda x, c: torch.sub(x, c, alpha=3),
    "c - 3x": lambda x, c: torch.sub(c, x, alpha=3),
    "rsub": torch.rsub,
    "rsub 3": lambda x, c: torch.rsub(x, c, alpha=3),
    "rsub of c": lambda x, c: torch.rsub(c, x, alpha=3),
}
