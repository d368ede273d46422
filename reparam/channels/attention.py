"""Scaled dot-product attention: heads that nobody reads, and dimensions in which a query or a key is zero.

y_h = softmax(s q_h k_h^T) v_h:   q_hd = 0 or k_hd = 0  =>  the product does without d, s stays as it was
                                  v_hd = k              =>  y_hd = k, since each row of the softmax sums to one
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import arguments, aten, shape_of

from .family import Ask, Builder, Conflict, Known, Request
from .value import Channels, first_of, structure


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
    dims, others, size = builder.kept[query], builder.kept[key], builder.known.facts[query].sizes[-1]
    if not torch.equal(dims, others):
        short = query if bool(torch.isin(dims, others).all()) else key
        raise Conflict(short, torch.cat([dims.flatten(), others.flatten()]))
    if not torch.equal(builder.kept[value], kept):
        raise Conflict(node, builder.kept[value].flatten())
    own, theirs = kept[:, 0] // facts.sizes[-1], dims[:, 0] // size
    if not torch.equal(own, theirs):
        raise Conflict(node, torch.cat([kept.flatten(), theirs * facts.sizes[-1]]))
    return dims


def _masked(builder: Builder, node: fx.Node, mask: fx.Node, heads: Tensor) -> Any:
    """The mask of the heads that are left, where heads have masks of their own."""
    facts, shape = builder.known.facts[node], shape_of(mask)
    axis = len(shape) - len(shape_of(node)) + facts.axes[0] if len(facts.axes) > 1 else -1
    value = builder.whole(mask, like=node)
    if axis < 0 or shape[axis] == 1:
        return value
    return builder.pick(value, axis, heads, shape[axis], like=node)
