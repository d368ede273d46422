"""What a converted module takes: inputs of the kinds, sizes and constants that it was verified for, and nothing else.

A module of torch would compute something of others, where the original takes another path, or end in words of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._pytree import tree_flatten_spec
from torch.utils import _pytree as pytree

from reparam.errors import InputError
from reparam.ir import CPU, Program, category, odd_kind
from reparam.utils import describe_type, dtype_name


@dataclass(frozen=True)
class _Wanted:
    """One leaf of an input. shape: None for what is no tensor, which then is that constant. main: of the main dtype."""

    shape: tuple[int | str, ...] | None
    dtype: torch.dtype | None
    main: bool
    constant: Any


class InputCheck:
    """Refuses other inputs than a network was verified for, before anything is computed."""

    def __init__(self, program: Program, names: Sequence[str]) -> None:
        specs = {s.name: s for s in program.inputs}
        leaves = []
        for node in program.placeholders:
            spec = specs.get(str(node.target))
            main = spec is not None and spec.dtype == program.dtype
            if spec is None:
                leaves.append(_Wanted(None, None, main, node.meta.get("val")))
            else:
                leaves.append(_Wanted(spec.shape, spec.dtype, main, None))
        counts = [1] * len(leaves)
        if program.in_spec is not None:
            counts = [c.num_leaves for part in program.in_spec.children() for c in part.children()]
        left = iter(leaves)
        self.wanted = {name: list(islice(left, count)) for name, count in zip(names, counts, strict=True)}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raises InputError for inputs that do not fit; a hook before the forward of a module."""
        given = self._named(args, kwargs)
        sizes: dict[str, int] = {}
        specs = _structures(module, list(self.wanted))
        for name, value in given.items():
            leaves = self._leaves(name, value, specs.get(name))
            for leaf, wanted in zip(leaves, self.wanted[name], strict=True):
                if wanted.shape is None:
                    _refuse_other_constant(name, leaf, wanted.constant)
                else:
                    _refuse_other_kind(name, leaf, wanted, module)
                    _refuse_other_sizes(leaf, wanted.shape, sizes)

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        names = list(self.wanted)
        takes = f"this network takes {', '.join(repr(n) for n in names)}"
        if len(args) > len(names):
            raise InputError(f"{takes}, and was given {len(args)} inputs")
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in self.wanted or name in given:
                raise InputError(f"{takes}, and was given {name!r}{' twice' if name in given else ''}")
            given[name] = value
        missing = [n for n in names if n not in given]
        if missing:
            raise InputError(f"{takes}, and was not given {missing[0]!r}")
        return given

    def _leaves(self, name: str, value: Any, spec: pytree.TreeSpec | None) -> list[Any]:
        count = len(self.wanted[name])
        if count == 1 and (spec is None or spec.is_leaf()):
            return [value]
        try:
            leaves = pytree.tree_leaves(value) if spec is None else tree_flatten_spec(value, spec)
        except Exception:  # of any kind: a mapping of other keys, a sequence of another length, no container at all
            leaves = []
        if len(leaves) != count:
            raise InputError(f"the input '{name}' is not built like the example's; give the same containers and keys")
        return leaves


def _structures(module: nn.Module, names: Sequence[str]) -> dict[str, pytree.TreeSpec]:
    """How each input is built, where the module knows that."""
    codegen = module.graph._codegen if isinstance(module, fx.GraphModule) else None
    if not isinstance(codegen, fx.graph._PyTreeCodeGen):
        return {}
    parts = [c for part in codegen.pytree_info.in_spec.children() for c in part.children()]
    return dict(zip(names, parts, strict=True)) if len(parts) == len(names) else {}


def _refuse_other_constant(name: str, value: Any, constant: Any) -> None:
    same = value is constant or (type(value) is type(constant) and value == constant)
    if not same:
        raise InputError(f"this network was verified for '{name}' = {_shown(constant)} alone, not {_shown(value)}")


def _shown(value: Any) -> str:
    plain = value is None or isinstance(value, bool | int | float | complex | str | torch.dtype | torch.device)
    return repr(value)[:60] if plain else describe_type(value)


def _refuse_other_kind(name: str, value: Any, wanted: _Wanted, module: nn.Module) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"the input '{name}' of this network is a tensor, not {describe_type(value)}")
    if value.layout is not torch.strided:
        raise InputError(f"the input '{name}' of this network is an ordinary tensor, not {odd_kind(value)}")
    assert wanted.dtype is not None
    taken = _dtypes_of(module, wanted.dtype)
    other = category(value.dtype) != category(wanted.dtype)
    if other or (wanted.main and taken and value.dtype not in taken):
        raise InputError(
            f"the input '{name}' of this network is {dtype_name((taken or [wanted.dtype])[0])}, not "
            f"{dtype_name(value.dtype)}; convert it with .to"
        )


def _dtypes_of(module: nn.Module, dtype: torch.dtype) -> list[torch.dtype]:
    """What floating inputs may be, that of the weights first; nothing for a network that takes any."""
    if not dtype.is_floating_point or torch.is_autocast_enabled(CPU.type) or torch.is_autocast_enabled("cuda"):
        return []
    own = next((v.dtype for v in (*module.parameters(), *module.buffers()) if v.is_floating_point()), None)
    wide = torch.get_default_dtype()
    return [] if own is None else [own, dtype, *([wide] if wide is torch.float64 else [])]  # a run in float64


def _refuse_other_sizes(tensor: Tensor, shape: Sequence[int | str], sizes: dict[str, int]) -> None:
    """sizes: of the free axes that were seen before; what has one name is of one size."""
    fits = len(shape) == tensor.dim() and all(
        isinstance(s, str) or s == n for s, n in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(s) if isinstance(s, int) else "any" for s in shape)
        raise InputError(f"this network was verified for inputs of shape [{wanted}], not {list(tensor.shape)}")
    for size, n in zip(shape, tensor.shape, strict=True):
        if isinstance(size, str) and sizes.setdefault(size, n) != n:
            raise InputError(f"this network was verified for inputs with one free size, not for {sizes[size]} and {n}")
