"""The program as it is emitted: folded weights cast once, under the names that they want."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.check import Round, not_finite_in
from reparam.errors import InputError
from reparam.ir import Constant, Program, Scratchpad, evaluate, is_floating, module_of, typed
from reparam.utils import dtype_name, is_plain_path, plain_path, prefixes


def finalize(program: Program, dtype: torch.dtype | None = None) -> Program:
    """The program as it is emitted: each folded weight cast once, each weight under the name that it wants.

    dtype: what every weight of the program's main dtype becomes; None keeps each weight's own. The program is used up:
    float64 weights are released one by one, so that memory never holds both forms of all of them.

    Names of weights and of layers are written in plain characters from here on: they become names in files.
    """
    _share_equal(program)
    for node in program.graph.nodes:
        node.meta["module"] = plain_path(module_of(node))
    names = _names(program)
    constants: dict[str, Constant] = {}
    for node in program.graph.nodes:
        if node.op != "get_attr":
            continue
        old = str(node.target)
        constant = program.constants.pop(old)
        wanted = dtype if dtype is not None and constant.dtype == program.dtype else constant.dtype
        value = constant.value.to(wanted)
        if value.is_floating_point() and not _fits(value, constant.value):
            raise InputError(f"weight '{constant.origin}' does not fit {str(wanted).removeprefix('torch.')}")
        node.target = names[old]
        origin = constant.origin if is_plain_path(constant.origin) else names[old]
        constants[names[old]] = Constant(value, wanted, origin, constant.trainable)
    final = replace(program, constants=constants, notes=Scratchpad())
    return retyped(final, program.dtype, dtype) if dtype is not None and dtype != program.dtype else final


def _fits(value: Tensor, wide: Tensor) -> bool:
    """Whether what was finite before a cast is finite after it."""
    return bool(torch.isfinite(value).all()) or not bool((~torch.isfinite(value) & torch.isfinite(wide)).any())


def _share_equal(program: Program) -> None:
    """A layer that is called twice was folded at each call; where the results are equal they are one weight again."""
    first: dict[tuple[str, torch.dtype], list[fx.Node]] = {}
    for node in [n for n in program.graph.nodes if n.op == "get_attr"]:
        constant = program.constants[str(node.target)]
        group = first.setdefault((constant.origin, constant.dtype), [])
        twin = next((g for g in group if torch.equal(program.constants[str(g.target)].value, constant.value)), None)
        if twin is None:
            group.append(node)
            continue
        node.replace_all_uses_with(twin)
        program.erase([node])


def _names(program: Program) -> dict[str, str]:
    """Unique names for the weights: the wanted one for the first that asks for it."""
    taken: set[str] = set()
    modules: set[str] = set()  # of the names that are taken
    names: dict[str, str] = {}
    used = [str(n.target) for n in program.graph.nodes if n.op == "get_attr"]
    for name in sorted(used, key=lambda n: n != program.constants[n].origin):
        origin = plain_path(program.constants[name].origin)
        stem = origin.replace(".", "_") if taken.intersection(prefixes(origin)) else origin
        unique, serial = stem, 0
        while unique in taken or unique in modules or taken.intersection(prefixes(unique)):  # a.b beside a.b.c
            serial += 1
            unique = f"{stem}_{serial}"
        taken.add(unique)
        modules.update(prefixes(unique))
        names[name] = unique
    return names


def retyped(program: Program, old: torch.dtype, new: torch.dtype) -> Program:
    """The program, changed, with dtype arguments, inputs and values of `new` in place of `old`, as its weights are."""

    def swap(value: Any) -> Any:
        return new if isinstance(value, torch.dtype) and value == old else value

    for node in program.calls():
        node.args = fx.node.map_aggregate(node.args, swap)
        node.kwargs = fx.node.map_aggregate(node.kwargs, swap)
    with program.fake_mode:
        for node in program.graph.nodes:
            value = node.meta.get("val")
            if node.op in ("placeholder", "get_attr") and isinstance(value, Tensor) and value.dtype == old:
                node.meta["val"] = value.to(new)
    program.infer()
    inputs = tuple(replace(s, dtype=new) if s.dtype == old else s for s in program.inputs)
    return replace(program, inputs=inputs, dtype=new if program.dtype == old else program.dtype)


@contextmanager
def overflow_told(original: Program, rounds: Sequence[Round], dtype: torch.dtype | None) -> Iterator[None]:
    """Where a weight does not fit in the block, the original that overflows in that dtype itself is to blame.

    rounds: of inputs that it was checked on. Raises InputError.
    """
    try:
        yield
    except InputError:
        own = dtype or original.dtype
        for r in rounds:
            values = evaluate(original, typed(original, r.values, dtype), dtype)
            if not all(bool(torch.isfinite(v).all()) for v in values if is_floating(v)):
                raise not_finite_in(dtype_name(own)) from None
        raise
