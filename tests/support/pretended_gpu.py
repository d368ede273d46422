"""A device that torch takes for a GPU and that is the CPU's memory; an operator on values of both devices fails.

It catches, on a machine without a GPU, what would fail on one because a tensor was made on the wrong device. torch lets
a process have one such device, once and for all: use it in a process of its own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

NAME = "pgpu"
# Operators that read tensors of the CPU beside those of a GPU.
_MIXED = frozenset(
    f"aten::{n}"
    for n in (
        "_copy_from",
        "copy_",
        "_to_copy",
        "index",
        "index_put_",
        "index_put",
        "_index_put_impl_",
        "_unsafe_index",
    )
)
_MOVES = ("_to_copy", "copy", "copy_", "_copy_from", "to")
_held: dict[int, Tensor] = {}  # what lies in a storage of the device
_libraries: list[torch.library.Library] = []


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of the module of a device."""

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers are the CPU's."""

    def device_count(self) -> int:
        return 1

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        torch.set_rng_state(state)


def install() -> None:
    """Makes the device known to torch."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    every = torch.library.Library("_", "IMPL")
    every.fallback(_run, "PrivateUse1")
    some = torch.library.Library("aten", "IMPL")
    some.impl("convolution_overrideable", functools.partial(_run, torch.ops.aten.convolution.default), "PrivateUse1")
    for full in torch._C._dispatch_get_all_op_names():
        if full.startswith("aten::") and (op := _spelled_by_others(full)) is not None:
            some.impl(full.removeprefix("aten::"), functools.partial(_run, op), "PrivateUse1")
    _libraries.extend((every, some))
    plain = Tensor.__deepcopy__

    def deep(self: Tensor, memo: dict[int, Any]) -> Tensor:
        if self.device.type != NAME or type(self) is not Tensor:
            return plain(self, memo)  # type: ignore[no-any-return, no-untyped-call]
        if id(self) not in memo:
            memo[id(self)] = self.detach().clone()
        return memo[id(self)]  # type: ignore[no-any-return]

    Tensor.__deepcopy__ = deep  # type: ignore[method-assign]


def _spelled_by_others(full: str) -> Any:
    """An operator that torch would make of others, by way of results that are resized; None for another one."""
    packet, _, overload = full.removeprefix("aten::").partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default", None)
    spelled = torch._C._dispatch_has_kernel_for_dispatch_key(full, "CompositeExplicitAutograd")
    known = torch._C._dispatch_has_kernel_for_dispatch_key(full, "PrivateUse1")
    if op is None or not spelled or known or packet in _MOVES or "overrideable" in packet:
        return None
    aliases = any(a.alias_info is not None for a in (*op._schema.arguments, *op._schema.returns))
    return None if aliases else op


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    name = op._schema.name
    if name not in _MIXED and any(t.device.type != NAME and t.dim() for t in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices: {op}")
    inner, keywords = pytree.tree_map(_inside, (args, kwargs))
    if name == "aten::_copy_from":
        inner[1].copy_(inner[0])
        return args[1]
    made = op(*inner, **keywords)
    own = {id(_inside(t)): t for t in tensors if t.device.type == NAME}
    return pytree.tree_map(lambda v: own.get(id(v), _outside(v)) if isinstance(v, Tensor) else v, made)


def _inside(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, Tensor) and value.device.type == NAME:
        return _held[value.untyped_storage()._cdata]
    return value


def _outside(value: Tensor) -> Tensor:
    made: Tensor = torch._C._acc.create_empty_tensor(value.shape, value.dtype)
    _held[made.untyped_storage()._cdata] = value
    return made
