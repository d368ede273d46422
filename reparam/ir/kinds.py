"""Kinds of tensors: those that networks compute with, and those that a file or a module may hold beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from reparam.errors import InputError
from reparam.utils import describe_type, dtype_name

from .aten import CASTS, is_call

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
_PLAIN = frozenset((*_FLOATS, *_COMPLEX, *_WHOLE, torch.bool))
META = "a tensor without values"
_LAYOUTS = {
    torch.sparse_coo: "sparse",
    torch.sparse_csr: "sparse",
    torch.sparse_csc: "sparse",
    torch.sparse_bsr: "sparse",
    torch.sparse_bsc: "sparse",
}


def is_floating(value: Any) -> bool:
    """Whether a value is a tensor of real floating numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def is_float_cast(node: Any) -> bool:
    """Whether a call casts from one of the dtypes that networks compute in to another, and so only rounds.

    float8 is none of them: a cast to it is there for its rounding.
    """
    if not is_call(node, CASTS):
        return False
    given, made = node.args[0].meta["val"], node.meta["val"]
    return isinstance(given, Tensor) and given.dtype in _FLOATS and made.dtype in _FLOATS


def odd_kind(value: Any) -> str:
    """What a value is that no network computes with: "a sparse tensor", "a str"; "" for an ordinary tensor."""
    if not isinstance(value, Tensor):
        return describe_type(value)
    if is_uninitialised(value):
        return "a tensor that was never initialised"
    if value.is_nested:
        return "a nested tensor"
    if value.layout is not torch.strided:
        return f"a {_LAYOUTS.get(value.layout, dtype_name(value.layout).lstrip('_'))} tensor"
    if value.is_quantized:
        return "a quantised tensor"
    if torch.utils._python_dispatch.is_traceable_wrapper_subclass(value):
        return f"a {type(value).__name__}"
    if value.dtype not in _PLAIN:
        return f"a {dtype_name(value.dtype)} tensor"
    return META if value.is_meta else ""


def stored_once(value: Tensor) -> Tensor:
    """A view without what is only repeated: 1 in place of each size without a stride. `expand` gives the rest back."""
    for axis, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
        value = value.narrow(axis, 0, 1) if stride == 0 and size > 1 else value
    return value


def is_uninitialised(value: Any) -> bool:
    """Whether a tensor's shape is not known before its layer has run once."""
    return isinstance(value, UninitializedParameter | UninitializedBuffer)


def category(dtype: torch.dtype) -> str:
    """`floating`, `complex`, `bool` or `integer`."""
    if dtype.is_floating_point:
        return "floating"
    if dtype.is_complex:
        return "complex"
    return "bool" if dtype is torch.bool else "integer"


def refuse_odd_tensors(values: Iterable[tuple[str, Any]], where: str) -> None:
    """Raises InputError naming the first value of an odd kind. where: whose they are."""
    for name, value in values:
        if kind := odd_kind(value):
            raise InputError(f"{where} has {_in_words(kind, name)}; {_advice(kind)}")


def _in_words(kind: str, name: str) -> str:
    if kind == META:
        return f"no values for '{name}', only its shape"
    return f"{kind} in '{name}', which no network takes"


def _advice(kind: str) -> str:
    if "initialised" in kind:
        return "run the model once on an input first"
    if kind == META:
        return "save the real weights"
    if "quantised" in kind:
        return "give the network as it was before, and quantise it with export"
    return "make it an ordinary tensor"
