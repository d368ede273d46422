"""Products of values: attention in one call, and matrix products; heads that nobody reads, and what is summed over.

y_h = softmax(s q_h k_h^T) v_h:   q_hd = 0 or k_hd = 0  =>  the product does without d, s stays as it was
                                  v_hd = k              =>  y_hd = k, since each row of the softmax sums to one
y_h = a_h b_h:                    a_hd = 0 or b_hd = 0  =>  the product does without d;  b_hm = 0  =>  y_hm = 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import arguments, aten, shape_of

from .family import Ask, Builder, Conflict, Known, Request
from .value import Channels, first_of, structure, unknown


def is_attention(node: fx.Node) -> bool:
    """Whether the call is scaled dot-product attention."""
    return node.target is aten.scaled_dot_product_attention.default


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node]:
    given = arguments(node)
    return given["query"], given["key"], given["value"]


class Attention:
    """Queries, keys and values whose channels lie along the heads and the last axis, or along the last axis alone."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        given, ndim = arguments(node), len(shape_of(node))
        facts = [known.of(x) for x in _operands(node)]
        if given["enable_gqa"] or given["dropout_p"] or any(f is None for f in facts):
            return None
        q, k, v = (f for f in facts if f is not None)
        heads = q.axes[:-1]
        fits = q.axes == k.axes == v.axes and q.sizes == k.sizes and q.sizes[:-1] == v.sizes[:-1]
        if not fits or q.axes[-1] != ndim - 1 or ndim - 2 in heads or len(heads) > 1:
            return None
        head = torch.arange(v.count) // v.sizes[-1]
        varies = v.constant.isnan()
        return Channels(v.axes, v.sizes, v.constant, first_of(torch.where(varies, head, -1), v.first, v.constant))

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        (query, key, value), facts = _operands(node), known.facts[node]
        kept = structure(wanted, facts.sizes)
        q, k = known.facts[query], known.facts[key]
        heads = torch.isin(torch.arange(q.count) // q.sizes[-1], kept // facts.sizes[-1])
        ids = (heads & (q.constant != 0) & (k.constant != 0)).nonzero().flatten()
        lacking = set((kept.flatten() // facts.sizes[-1]).tolist()) - set((ids // q.sizes[-1]).tolist())
        ids = torch.cat([ids, torch.tensor([h * q.sizes[-1] for h in sorted(lacking)], dtype=torch.int64)])
        dims = Request(structure(ids, q.sizes).flatten().sort().values, ordered=True)
        return Ask(kept, {query: dims, key: dims, value: Request(kept.flatten(), ordered=True)})

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        (query, key, value), facts = _operands(node), builder.known.facts[node]
        whole = builder.known.facts[query]
        if len(facts.axes) == 1:
            dims = self.ask(builder.known, node, kept).requests[query].ids
            heads = torch.zeros(1, dtype=torch.int64)
        else:
            dims = _agreed(builder, node, kept)
            heads = kept[:, 0] // facts.sizes[-1]
        given = dict(arguments(node))
        scale = given.pop("scale")
        if scale is None and dims.shape[-1] != whole.sizes[-1]:
            scale = 1 / math.sqrt(whole.sizes[-1])
        mask = given["attn_mask"]
        given |= {
            "query": builder.take(query, dims, like=node),
            "key": builder.take(key, dims, like=node),
            "value": builder.take(value, kept, like=node),
            "attn_mask": None if mask is None else _masked(builder, node, mask, heads),
        }
        enable_gqa = given.pop("enable_gqa")
        args = tuple(given.values())
        return builder.call(node.target, args, {"scale": scale, "enable_gqa": enable_gqa}, like=node)


def _agreed(builder: Builder, node: fx.Node, kept: Tensor) -> Tensor:
    """What queries and keys keep, the same of both and of the same heads as the values. Raises Conflict."""
    (query, key, value), facts = _operands(node), builder.known.facts[node]
    dims = _same(builder, query, key)
    if not torch.equal(builder.kept[value], kept):
        raise Conflict(node, builder.kept[value].flatten())
    own, theirs = kept[:, 0] // facts.sizes[-1], dims[:, 0] // builder.known.facts[query].sizes[-1]
    if not torch.equal(own, theirs):
        raise Conflict(node, torch.cat([kept.flatten(), theirs * facts.sizes[-1]]))
    return dims


def _same(builder: Builder, left: fx.Node, right: fx.Node) -> Tensor:
    """What two values of the same channels keep, the same of both. Raises Conflict."""
    mine, theirs = builder.kept[left], builder.kept[right]
    if not torch.equal(mine, theirs):
        short = left if bool(torch.isin(mine, theirs).all()) else right
        raise Conflict(short, torch.cat([mine.flatten(), theirs.flatten()]))
    return mine


def _masked(builder: Builder, node: fx.Node, mask: fx.Node, heads: Tensor) -> Any:
    """The mask of the heads that are left, where heads have masks of their own."""
    facts, shape = builder.known.facts[node], shape_of(mask)
    axis = len(shape) - len(shape_of(node)) + facts.axes[0] if len(facts.axes) > 1 else -1
    value = builder.whole(mask, like=node)
    if axis < 0 or shape[axis] == 1:
        return value
    return builder.pick(value, axis, heads, shape[axis], like=node)


def is_product(node: fx.Node) -> bool:
    """Whether the call is a matrix product of two values."""
    return node.target is aten.matmul.default


@dataclass(frozen=True)
class _Roles:
    """Both operands' channels: along the heads, along the axis that is summed over, along the columns of the result."""

    left: Channels
    right: Channels
    heads: tuple[int, ...]
    summed: bool
    columns: bool


def _roles(known: Known, node: fx.Node) -> _Roles | None:
    left, right = (known.of(x) for x in node.args[:2])
    ndim = len(shape_of(node))
    if left is None or right is None or any(len(shape_of(x)) != ndim for x in node.all_input_nodes):
        return None
    heads = tuple(a for a in left.axes if a < ndim - 2)
    summed, columns = ndim - 1 in left.axes, ndim - 1 in right.axes
    fits = left.axes == heads + ((ndim - 1,) if summed else ())
    fits &= right.axes == heads + ((ndim - 2,) if summed else ()) + ((ndim - 1,) if columns else ())
    fits &= len(heads) == 1 and left.sizes[:1] == right.sizes[:1] and not (summed and columns)
    return _Roles(left, right, heads, summed, columns) if fits else None


class Product:
    """Matrix products over the dimensions of heads, or of weights over positions with the dimensions of heads."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        roles = _roles(known, node)
        if roles is None:
            return None
        if not roles.columns:
            return unknown(roles.heads, roles.left.sizes[:1])
        right = roles.right
        constant = torch.where(right.constant == 0, 0.0, math.nan)
        head = torch.arange(right.count) // right.sizes[-1]
        first = first_of(torch.where(constant.isnan(), head, -1), torch.where(constant.isnan(), right.first, 0))
        return Channels(right.axes, right.sizes, constant, first)

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        roles, facts = _roles(known, node), known.facts[node]
        assert roles is not None
        left, right = (x for x in node.args[:2] if isinstance(x, fx.Node))
        kept = structure(wanted, facts.sizes)
        if roles.columns:
            heads = (kept.flatten() // facts.sizes[-1]).unique()
            return Ask(kept, {left: Request(heads, ordered=True), right: Request(kept.flatten(), ordered=True)})
        size = roles.left.sizes[-1] if roles.summed else 1
        ids = torch.isin(torch.arange(roles.left.count) // size, kept)
        ids &= (roles.left.constant != 0) & (roles.right.constant != 0)
        needed = ids.nonzero().flatten()
        lacking = sorted(set(kept.tolist()) - set((needed // size).tolist()))
        needed = torch.cat([needed, torch.tensor(lacking, dtype=torch.int64) * size])
        dims = Request(structure(needed, roles.left.sizes).flatten().sort().values, ordered=True)
        return Ask(kept.sort().values, {left: dims, right: dims})

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        roles, facts = _roles(builder.known, node), builder.known.facts[node]
        assert roles is not None
        left, right = (x for x in node.args[:2] if isinstance(x, fx.Node))
        if not roles.columns:
            dims = _same(builder, left, right)
            theirs = dims.reshape(dims.shape[0], -1)[:, 0] // (roles.left.sizes[-1] if roles.summed else 1)
            if not torch.equal(theirs, kept):
                raise Conflict(node, theirs)
        else:
            if not torch.equal(builder.kept[right], kept):
                raise Conflict(node, builder.kept[right].flatten())
            theirs, own = builder.kept[left].flatten(), kept[:, 0] // facts.sizes[-1]
            if not torch.equal(theirs, own):
                lacks = bool(torch.isin(theirs, own).all())
                raise Conflict(left, own) if lacks else Conflict(node, theirs * facts.sizes[-1])
        return builder.call(node.target, (builder.held(left), builder.held(right)), like=node)
