"""Blocks that leave the layout of a map for another: tokens, channels last, channels in the batch axis, a vector."""

from __future__ import annotations

import math

from support.growing import Growing
from support.specs import Const, Linear, Norm


def attention(net: Growing, i: int) -> int:
    """Queries, keys and values of one value."""
    c, *space = net.shapes[i]
    if len(space) != 2 or net.free:
        return net.affine(i)
    tokens, wide = math.prod(space), net.one(4, 2)
    shape = (tokens, c)
    v = net.call("transpose", net.call("flatten", i, 2, shape=(c, tokens), hidden=True), 1, 2, shape=shape, hidden=True)
    if net.maybe(2):
        v = net.apply(Norm("layer", c, 2, "mixed"), v, shape, hidden=True)
    q, k, w = (net.apply(Linear(c, wide, net.one(True, False)), v, (tokens, wide), hidden=True) for _ in range(3))
    q = net.add("scalar", (q,), ("mul", 0.5, False), (tokens, wide), hidden=True) if net.maybe(2) else q
    k = net.call("transpose", k, 1, 2, shape=(wide, tokens), hidden=True)
    scores = net.add("matmul", (q, k), (), (tokens, tokens), hidden=True)
    scores = net.call("softmax", scores, -1, hidden=True)
    v = net.add("matmul", (scores, w), (), (tokens, wide), hidden=True)
    v = net.apply(Linear(wide, c), v, shape, hidden=True)
    return net.add("like", (net.call("transpose", v, 1, 2, shape=(c, tokens), hidden=True), i), (), (c, *space))


def channels_last(net: Growing, i: int) -> int:
    """A permute, linear layers and affines on the last axis, and back (ConvNeXt, Swin)."""
    c, *space = net.shapes[i]
    n = len(space)
    tokens = net.one("permute", "permute", "flatten") if n == 2 else "permute"
    if tokens == "permute":
        shape = (*space, c)
        v = net.call("permute", i, [0, *range(2, n + 2), 1], shape=shape, hidden=True)
    else:
        v = net.call("flatten", i, 2, 3, shape=(c, math.prod(space)), hidden=True)
        shape = (math.prod(space), c)
        v = net.call("transpose", v, 1, 2, shape=shape, hidden=True)
    for _ in range(net.one(1, 2)):
        kind = net.one("linear", "norm", "linear", "const", "act")
        if kind == "linear":
            shape = (*shape[:-1], net.one(c, 3, 6))
            v = net.apply(Linear(net.shapes[v][-1], shape[-1], net.one(True, False)), v, shape, hidden=True)
        elif kind == "norm":
            v = net.apply(Norm("layer", shape[-1], len(shape), net.one("mixed", "positive")), v, shape, hidden=True)
        elif kind == "act":
            v = net.add("act", (v,), (net.one("relu", "gelu"),), shape, hidden=True)
        else:
            net.layers.append(Const((shape[-1],), net.one("mixed", "positive")))
            v = net.add("const", (v,), (net.one("mul", "add"), len(net.layers) - 1, False), shape, hidden=True)
    c = shape[-1]
    if tokens == "permute":
        return net.call("permute", v, [0, n + 1, *range(1, n + 1)], shape=(c, *space))
    v = net.call("transpose", v, 1, 2, shape=(c, shape[0]), hidden=True)
    if net.free:
        return net.call("unsqueeze", v, 2, shape=(c, 1, shape[0]))
    return net.add("like", (v, i), (), (c, *space))


def in_batch(net: Growing, i: int) -> int:
    """Channels moved into the batch axis, something done there, and back."""
    if net.free:
        return net.norm(i)
    c, *space = net.shapes[i]
    v = net.add("to_batch", (i,), (), (1, *space), hidden=True)
    if net.maybe(2):
        v = net.apply(Norm("batch", 1, len(space) + 1), v, (1, *space), hidden=True)
    else:
        v = net.same(v, 1, net.one(1, 3))
        net.maps.remove(v)
    return net.add("from_batch", (v, i), (), (c, *space))


def head(net: Growing, i: int) -> int:
    """Global pooling, or flattening, and linear layers."""
    c, *space = net.shapes[i]
    if net.free or math.prod(space) > 16 or net.maybe(2):
        how = net.one("mean_flat", "adaptive")
        v = net.add("gap", (i,), (how,), (c,) if how == "mean_flat" else (c, *[1] * len(space)), hidden=True)
        width = c
        v = v if how == "mean_flat" else net.call("flatten", v, 1, -1, shape=(c,), hidden=True)
    else:
        width = c * math.prod(space)
        v = net.call("flatten", i, 1, -1, shape=(width,), hidden=True)
    for _ in range(net.one(1, 2)):
        kind = net.one("linear", "norm", "noop", "act", "heads")
        if kind == "norm":
            v = net.apply(Norm("batch", width, 1, net.one("mixed", "positive", "zeros")), v, (width,), hidden=True)
        elif kind == "noop":
            v = net.add("noop", (v,), ("dropout",), (width,), hidden=True)
        elif kind == "act":
            v = net.add("act", (v,), ("relu",), (width,), hidden=True)
        elif kind == "heads":
            outs = [net.apply(Linear(width, 3, net.one(True, False)), v, (3,), hidden=True) for _ in range(2)]
            v = net.add("add", outs, (1,), (3,), hidden=True)
            v = net.add("scalar", (v,), (net.one("div", "mul"), 2.0, False), (3,), hidden=True)
            width = 3
        else:
            v = net.apply(Linear(width, 4, net.one(True, False)), v, (4,), hidden=True)
            width = 4
    v = net.apply(Linear(width, 3), v, (3,), hidden=True) if net.maybe(2) else v
    net.vectors.append(v)
    return v
