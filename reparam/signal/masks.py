"""Masks of attention: which keys the queries look at, where the mask does not depend on the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
    ADDS,
    CASTS,
    DROPOUTS,
    IDENTITIES,
    MOVEMENTS,
    Program,
    arguments,
    aten,
    evaluate_region,
    is_call,
    is_tensor,
    shape_of,
    upstream,
)

from .boxes import Axis, Box, Extent, opened
from .functions import STACKED_PRODUCTS, depending, first_of

HIDDEN = -1e4  # what is added to a score, from which on its key is left out


def masks_of(program: Program) -> dict[fx.Node, Tensor]:
    """The keys that some head or sample looks at, (queries, keys) of truth values, where a mask leaves some out.

    Of each call of attention with a constant mask; where it is spelled out, of the call that masks the scores, and of
    the product of the shares with values.
    """
    found: dict[fx.Node, Tensor] = {}
    for node in program.calls():
        if not node.meta["data"]:
            continue
        if is_call(node, {aten.scaled_dot_product_attention.default}):
            _add(found, (node,), _of_call(program, node))
        elif is_call(node, STACKED_PRODUCTS) and (scores := _scores_of(node)) is not None:
            _add(found, (node, scores), _of_scores(program, scores))
    return found


def _add(found: dict[fx.Node, Tensor], nodes: tuple[fx.Node, ...], mask: Tensor | None) -> None:
    if mask is not None and mask.dim() > 1 and not bool(mask.all()):
        found.update(dict.fromkeys(nodes, mask.reshape(-1, *mask.shape[-2:]).any(0)))


def masked(node: fx.Node, operand: fx.Node, box: Box, part: Box, mask: Tensor) -> Box:
    """What a call of `masks_of` reads of an operand, without the keys that no query of the box looks at.

    box: of the result. part: what it reads without a mask.
    """
    keys = keys_seen(mask, box[-2])
    args = arguments(node)
    if keys is None:
        return part
    if operand in (args.get("key"), args.get("value")) or (
        is_call(node, STACKED_PRODUCTS) and operand is not _first(node)
    ):
        return (*part[:-2], keys, part[-1])
    scores = "query" not in args and not is_call(node, STACKED_PRODUCTS)
    return (*part[:-1], keys) if scores and shape_of(operand)[-2:] == shape_of(node)[-2:] else part


def _first(node: fx.Node) -> object:
    return next(iter(arguments(node).values()))


def keys_seen(mask: Tensor, rows: Axis) -> Axis | None:
    """The keys that queries of an interval look at; None for all queries. mask: (queries, keys)."""
    span, size = opened(rows), mask.shape[1]
    if span.whole:
        return None
    last = mask.shape[0] - 1
    low, high = (int(min(max(end, 0), last)) for end in (span.low, span.high))
    at = mask[low : high + 1].any(0).nonzero().flatten()
    return (Extent(size, float(at.min()), float(at.max()), closed=True),) if len(at) else None


def _of_call(program: Program, node: fx.Node) -> Tensor | None:
    args = arguments(node)
    if args.get("is_causal"):
        return torch.ones(shape_of(args["query"])[-2], shape_of(args["key"])[-2], dtype=torch.bool).tril()
    mask = _constant(program, args.get("attn_mask"))
    return None if mask is None else mask if mask.dtype == torch.bool else mask > HIDDEN


def _scores_of(node: fx.Node) -> fx.Node | None:
    """The scores, masked or not, of which the first operand of a product is a softmax over keys."""
    shares = _unmoved(_first(node))
    if not is_call(shares, {aten.softmax.int}):
        return None
    assert isinstance(shares, fx.Node)
    args = arguments(shares)
    scores = first_of(args)
    return _unmoved(scores) if args["dim"] in (-1, len(shape_of(scores)) - 1) else None


def _unmoved(node: Any) -> Any:
    """What a value is in front of dropouts, casts and views that leave its last two axes."""
    while is_call(node, DROPOUTS | CASTS | IDENTITIES | MOVEMENTS):
        held = depending(node)
        if len(held) != 1 or not is_tensor(held[0]) or shape_of(held[0])[-2:] != shape_of(node)[-2:]:
            break
        node = held[0]
    return node


def _of_scores(program: Program, scores: fx.Node) -> Tensor | None:
    args = arguments(scores) if scores.op == "call_function" else {}
    if is_call(scores, {aten.masked_fill.Scalar}):
        mask = _constant(program, args["mask"])
        return None if mask is None or float(args["value"]) > HIDDEN else ~mask.bool()
    if is_call(scores, {aten.where.self}):
        mask, other = _constant(program, args["condition"]), _constant(program, args["other"])
        return None if mask is None or other is None or float(other.max()) > HIDDEN else mask.bool()
    if is_call(scores, ADDS):
        added = _constant(program, args["other"])
        return None if added is None else added > HIDDEN
    return None


def _constant(program: Program, node: object) -> Tensor | None:
    """A value that does not depend on the inputs, of two axes or more."""
    if not isinstance(node, fx.Node) or node.meta.get("data"):
        return None
    inner = upstream([node])
    if any(n.op == "placeholder" for n in inner):
        return None
    try:
        value = evaluate_region(program, inner, {})[node]
    except Exception:  # of any kind: it may need sizes that are not known
        return None
    return value if isinstance(value, Tensor) else None
