"""The inputs and outputs of a program as an engine has them, and names for free sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from reparam.ir import Program
from reparam.utils import axis_name, dtype_name, name_complaint, unused_name

from .format import Port


def port_axis(index: int, rank: int) -> str:
    """What the free size of an axis is called in an engine: its name, or `size2` for axis 2."""
    name = axis_name(index, rank)
    return f"size{name}" if name.isdigit() else name


def named_axes(sizes: Iterable[int]) -> tuple[int | str, ...]:
    """A shape in which free sizes are negative, with their names in place of them."""
    shape = tuple(sizes)
    return tuple(s if s >= 0 else port_axis(i, len(shape)) for i, s in enumerate(shape))


def ports_of(program: Program) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs and the tensor outputs of a program. Free sizes of one name are equal."""
    names: dict[str, str] = {}
    for spec in program.inputs:
        for i, symbol in enumerate(spec.shape):
            if isinstance(symbol, str) and symbol not in names:
                name = port_axis(i, len(spec.shape))
                taken = sum(n.rpartition("_")[0] == name or n == name for n in names.values())
                names[symbol] = f"{name}_{taken}" if taken else name
    inputs = tuple(
        Port(s.label or s.name, tuple(_renamed(n, names) for n in s.shape), dtype_name(s.dtype)) for s in program.inputs
    )
    leaves: list[torch.fx.Node] = []
    torch.fx.node.map_arg(program.output.args, leaves.append)
    values = [n.meta["val"] for n in leaves if isinstance(n.meta.get("val"), torch.Tensor)]
    outputs = tuple(
        Port(name, tuple(_renamed(n, names) for n in value.shape), dtype_name(value.dtype))
        for name, value in zip(names_of_outputs(program, len(values)), values, strict=True)
    )
    return inputs, outputs


def _renamed(size: Any, names: Mapping[str, str]) -> int | str:
    """An int, or a size in terms of the named ones, such as `batch` or `height - 2`."""
    if isinstance(size, int):
        return size
    text = str(size)
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), text)


def output_names(count: int) -> list[str]:
    """Names for outputs that have none of their own."""
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def names_of_outputs(program: Program, count: int) -> list[str]:
    """`output` alone, else `output_0`, `output_1`, …; a dict's keys where the result is one and they are names."""
    if program.out_spec is not None:
        leaves = pytree.tree_unflatten(list(range(program.out_spec.num_leaves)), program.out_spec)
        if isinstance(leaves, dict) and len(leaves) == count and all(isinstance(k, str) for k in leaves):
            return _plain(list(leaves))
    return output_names(count)


def _plain(names: list[str]) -> list[str]:
    """The names, where they are plain; else with `_` in place of what is not, and each once."""
    found: list[str] = []
    for name in names:
        plain = name if name and name_complaint(name) is None else re.sub(r"\W", "_", name, flags=re.ASCII)[:60] or "_"
        found.append(unused_name(plain, found))
    return found
