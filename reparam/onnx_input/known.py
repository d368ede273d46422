"""Tensors whose numbers are known while the network is only being looked at: small constants, and sizes.

The sizes of free axes are symbols then. Python computes with them as it does with whole numbers, so that what a file
computes of shapes stays arithmetic on sizes and never becomes part of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam.ir import size_hint
from reparam.utils import dtype_name

from .size_floats import SizeFloat, plain_number, size_float

MOST = 4096  # whole numbers; a larger constant is a tensor alone
MOST_FLOATS = 16
MOST_NUMBERS = 1 << 16  # that are computed at once


@dataclass(frozen=True)
class Known:
    """A small tensor as an array of Python's numbers, some of which may be symbols of sizes.

    values: of dtype object and the tensor's shape. dtype: what the tensor's numbers are. held: the tensor itself, for a
    constant.
    """

    values: np.ndarray[Any, Any]
    dtype: torch.dtype
    held: Tensor | None = None

    @property
    def symbolic(self) -> bool:
        """Whether the size of a free axis is among the numbers."""
        return any(isinstance(v, torch.SymInt | torch.SymFloat | torch.SymBool) for v in self.list())

    def list(self) -> list[Any]:
        """The numbers, one after the other; those that are computed of sizes without any rounding."""
        return [plain_number(v) for v in self.values.reshape(-1)]

    def tensor(self) -> Tensor:
        """The tensor itself."""
        if self.held is not None:
            return self.held
        if not self.symbolic:
            return torch.tensor(self.list(), dtype=self.dtype).reshape(self.values.shape)
        parts = [torch.scalar_tensor(v, dtype=self.dtype) for v in self.list()]
        return torch.stack(parts).reshape(self.values.shape)


Value = Tensor | Known
Results = Value | tuple[Value, ...]


def known(numbers: Sequence[Any] | np.ndarray[Any, Any] | Any, dtype: torch.dtype = torch.int64) -> Known:
    """A list of numbers, or a single one, as a `Known`."""
    if isinstance(numbers, np.ndarray):
        return Known(numbers.astype(object), dtype)
    if not isinstance(numbers, list | tuple):
        single = np.empty((), dtype=object)
        single[()] = numbers
        return Known(single, dtype)
    array = np.empty(len(numbers), dtype=object)
    array[:] = list(numbers)
    return Known(array, dtype)


def known_tensor(value: Tensor) -> Known | None:
    """A constant as a `Known` that holds it; None where it is too large."""
    if value.numel() > (MOST_FLOATS if value.is_floating_point() else MOST) or value.is_complex():
        return None
    array = np.empty(value.numel(), dtype=object)
    array[:] = value.reshape(-1).tolist()
    return Known(array.reshape(tuple(value.shape)), value.dtype, value)


def truncated(a: Any, b: Any) -> Any:
    """a / b of whole numbers, rounded towards zero, as ONNX divides them."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            raise ZeroDivisionError("a size is divided by zero")
        quotient = abs(a) // abs(b)
        return quotient if (a >= 0) == (b >= 0) else -quotient
    turned = [n if size_hint(n) >= 0 else -n for n in (a, b)]  # a size that is negative once is taken to be so always
    quotient = turned[0] // turned[1]
    return quotient if (turned[0] is a) == (turned[1] is b) else -quotient


def as_kind(value: Any, dtype: torch.dtype) -> Any:
    """A number as one of the kind that a dtype has.

    Raises ValueError for a number of sizes that no arithmetic on sizes gives as the file rounds it.
    """
    if dtype == torch.bool:
        return (value.number if isinstance(value, SizeFloat) else value) != 0
    if isinstance(value, torch.SymBool):
        value = torch.sym_ite(value, 1, 0)
    if dtype.is_floating_point:
        return float(value) if isinstance(value, float) else size_float(value, dtype)
    whole = value.truncated() if isinstance(value, SizeFloat) else value
    if isinstance(whole, torch.SymInt):
        if dtype not in (torch.int32, torch.int64):
            raise ValueError(f"it computes sizes in {dtype_name(dtype)}")
        return whole
    whole = math.trunc(whole)
    return whole if dtype == torch.int64 else int(torch.tensor(whole).to(dtype))
