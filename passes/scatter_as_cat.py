"""y = x with y[a:b] = v is y = [x[:a], v, x[b:]]: a write into a part of a value is a concatenation.

Turns writes into a slice or into listed channels, and slices of a concatenation into concatenations, and the parts
themselves.

Fires on a slice_scatter of step one along the channels; on an index_put that replaces constant, distinct
positions along one axis; on a slice of a concatenation that takes whole parts of it.

Refuses nothing: another write is left alone, a border that is filled to `lower_border_fill`.

Source: the definitions of slice_scatter, index_put and slice.

    y = f(x); y[:, :k] += x[:, :k]        becomes        cat([f(x)[:, :k] + x[:, :k], f(x)[:, k:]], 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from reparam.ir import CATS, SLICES, Program, arguments, aten, fixed_size, is_call, may_cut, op_name, place_of
from reparam.rewrite import Match, Pattern, Rewrite, op

_SCATTERS = frozenset({aten.slice_scatter.default})
_PUTS = frozenset({aten.index_put.default})


@dataclass(frozen=True)
class Plan:
    """The call, the values that make up the result along `axis`, and in which order of their elements.

    parts: a value with the range of it that is taken, None for all of it. order: None for the order as they stand.
    unread: values that the call reads and that do not come into the result.
    """

    node: fx.Node
    axis: int
    parts: tuple[tuple[fx.Node, tuple[int, int] | None], ...]
    order: Tensor | None = None
    unread: tuple[fx.Node, ...] = ()


@dataclass(frozen=True)
class ScatterAsCat:
    """Writes writes into parts as concatenations."""

    name: ClassVar[str] = "scatter-as-cat"
    pattern: ClassVar[Pattern] = op(_SCATTERS | _PUTS | SLICES)

    def check(self, program: Program, match: Match) -> Plan | None:
        """What the result consists of."""
        node = match.root
        if is_call(node, _SCATTERS):
            return _scatter(node)
        return _put(program, node) if is_call(node, _PUTS) else _slice(node)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """A concatenation, or the one part."""
        values = [v if r is None else _cut(program, v, plan.axis, r, plan.node) for v, r in plan.parts]
        made = values[0]
        if len(values) > 1:
            made = program.call(aten.cat.default, (values, plan.axis), like=plan.node)
        if plan.order is not None:
            index = program.weight(plan.order, f"{place_of(plan.node)}.order", like=plan.node)
            made = program.call(aten.index_select.default, (made, plan.axis, index), like=plan.node)
        count = len(values)
        told = f"a concatenation of {count} parts" if count > 1 else "the part that it takes"
        return Rewrite({plan.node: made}, f"{op_name(plan.node)} became {told}", unread=plan.unread)


def _cut(program: Program, value: fx.Node, axis: int, where: tuple[int, int], like: fx.Node) -> fx.Node:
    return program.call(aten.slice.Tensor, (value, axis, *where), like=like)


def _range(node: fx.Node, size: int) -> tuple[int, int] | None:
    """The elements that a slice or slice_scatter of step one means, of `size`."""
    args = arguments(node)
    start, end = args["start"] or 0, args.get("end")
    if not isinstance(start, int):
        return None
    if node.target is aten.narrow.default:
        start = start + size if start < 0 else start
        end = start + args["length"]
    if not isinstance(end, (int, type(None))) or args.get("step", 1) != 1:
        return None
    low, high, _ = slice(start, end).indices(size)
    return low, max(low, high)


def _shape(node: fx.Node) -> list[str]:
    return [str(s) for s in node.meta["val"].shape]


def _scatter(node: fx.Node) -> Plan | None:
    args = arguments(node)
    x, v = args["self"], args["src"]
    whole = node.meta["val"]
    axis = args["dim"] % whole.dim()
    if v.meta["val"].dtype != whole.dtype:
        return None
    if _shape(v) == _shape(node) and not may_cut(node):
        return Plan(node, axis, ((v, None),), unread=(x,))
    size = fixed_size(whole.shape[axis]) if axis == 1 else None
    where = None if size is None else _range(node, size)
    if size is None or where is None or where[0] == where[1]:
        return None
    before: list[Any] = [(x, (0, where[0]))] if where[0] else []
    after: list[Any] = [(x, (where[1], size))] if where[1] < size else []
    return Plan(node, axis, (*before, (v, None), *after))


def _put(program: Program, node: fx.Node) -> Plan | None:
    args = arguments(node)
    x, v, indices = args["self"], args["values"], args["indices"]
    axes = [a for a, i in enumerate(indices) if i is not None]
    whole = node.meta["val"]
    if len(axes) != 1 or args["accumulate"]:
        return None
    axis, index = axes[0], program.tensor(indices[axes[0]])
    size = fixed_size(whole.shape[axis])
    if index is None or index.dim() != 1 or size is None or index.dtype is not torch.int64:
        return None
    index = torch.where(index < 0, index + size, index)
    shape = _shape(node)
    shape[axis] = str(len(index))
    if len(index.unique()) != len(index) or not len(index) or _shape(v) != shape:
        return None
    order = torch.arange(size)
    order[index.cpu()] = size + torch.arange(len(index))
    return Plan(node, axis, ((x, None), (v, None)), order)


def _slice(node: fx.Node) -> Plan | None:
    args = arguments(node)
    cat, axis = args["self"], args["dim"] % node.meta["val"].dim()
    if not is_call(cat, CATS):
        return None
    made = arguments(cat)
    if made["dim"] % node.meta["val"].dim() != axis or len({p.meta["val"].dtype for p in made["tensors"]}) > 1:
        return None
    sizes = [fixed_size(p.meta["val"].shape[axis]) for p in made["tensors"]]
    if any(s is None for s in sizes):
        return None
    where = _range(node, sum(sizes))  # type: ignore[arg-type]
    if where is None:
        return None
    kept, start = [], 0
    for part, size in zip(made["tensors"], sizes, strict=True):
        assert size is not None
        low, high = max(where[0], start), min(where[1], start + size)
        if low < high:
            kept.append((part, None if (low, high) == (start, start + size) else (low - start, high - start)))
        start += size
    if not kept or not _pays(kept, cat):
        return None
    read = {p for p, _ in kept}
    return Plan(node, axis, tuple(kept), unread=tuple(p for p in made["tensors"] if p not in read))


def _pays(kept: list[Any], cat: fx.Node) -> bool:
    """Whether one part is left; or, of a concatenation that nothing else reads, several whole ones."""
    return len(kept) == 1 or (len(cat.users) == 1 and all(r is None for _, r in kept))


PASS = ScatterAsCat
PHASE = "clean"
AFTER = "name_activation"
