"""Draws small random networks (`specs`) out of blocks that look like those that are rewritten, and near misses.

The blocks overlap on purpose: a branch may start in the middle of another block, a layer may be used again, a value may
be an output as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import strategies as st

from support.growing import Growing
from support.growing_layouts import attention, channels_last, head, in_batch
from support.growing_linear import branches, conv_norm, deconv, depthwise, norm_conv, residual, two_convs, two_norms
from support.specs import Norm, Spec

Block = Callable[[Growing, int], int]


# ---- affines on their way ------------------------------------------------------------------------------------------


def _opaque(net: Growing, i: int) -> int:
    """Something that no affine passes, so that what comes next has to find its way on the other side."""
    return net.add("act", (i,), (net.one("gelu", "sigmoid", "tanh", "relu6"),), net.shapes[i])


def _passage(net: Growing, i: int) -> int:
    """Something that may let an affine through, under conditions."""
    kinds: list[Block] = [_small("rectify"), _small("rectify"), _small("pool"), _small("pool"), _small("movement")]
    kinds += [fork, fork, met_by_layer, met_by_layer, meet, join, split_and_join, _small("constant"), swish]
    kinds += [_small("movement"), centred, unbound]
    return net.one(*kinds)(net, i)


def _sink(net: Growing, i: int) -> int:
    kinds: list[Block] = [_small("pointwise"), lambda net, i: net.same(i, net.one(4, 2, 6), 3), _small("conv")]
    return net.one(*kinds, *kinds, _small("transposed"), _small("transposed"), branches)(net, i)


def fork(net: Growing, i: int) -> int:
    """A value and something made of it, met again."""
    other = net.one(*(_small(k) for k in ("act", "movement", "pool", "constant", "noop", "norm")))(net, i)
    order = net.one((i, other), (other, i), (i, i))
    if net.shapes[other] == net.shapes[i] and net.maybe(4):
        return net.add("cat", order, (1,), (2 * net.shapes[i][0], *net.shapes[i][1:]))
    return net.sum(*order) if net.shapes[other] == net.shapes[i] else other


def met_by_layer(net: Growing, i: int) -> int:
    """A sum, difference or product with a layer of another value of the same size."""
    sources = [j for j in net.maps if net.shapes[j][1:] == net.shapes[i][1:]]
    j = net.same(net.one(*sources), net.shapes[i][0], net.one(1, 3))
    j = net.affine(j) if net.maybe(3) else j
    j = net.rectify(j) if net.maybe(3) else j
    order = net.one((i, j), (j, i))
    return net.add("mul", order, (), net.shapes[i]) if net.maybe(4) else net.sum(*order)


def swish(net: Growing, i: int) -> int:
    """x * f(x), or a product with another value."""
    if net.maybe(2):
        g = net.add("act", (i,), (net.one("sigmoid", "relu", "leaky"),), net.shapes[i])
        return net.add("mul", net.one((i, g), (g, i)), (), net.shapes[i])
    return net.add("mul", (i, net.one(*net.alike(i))), (), net.shapes[i])


def carried_ahead(net: Growing, i: int) -> int:
    """An affine that cannot go back, passages, and layers that may take it."""
    i = net.affine(_opaque(net, i) if net.maybe(2) else i)
    for _ in range(net.one(1, 2)):
        i = _passage(net, i)
    return _sink(net, i)


def carried_back(net: Growing, i: int) -> int:
    """Layers, passages, and an affine that has to go back."""
    i = _sink(net, i)
    for _ in range(net.one(1, 2)):
        i = _passage(net, i)
    i = net.affine(i)
    return _opaque(net, i) if net.maybe(2) else i


# ---- where several values meet ---------------------------------------------------------------------------------------


def split_and_join(net: Growing, i: int) -> int:
    """Channels split, one piece worked on, concatenated again (ShuffleNet, CSP)."""
    c, *space = net.shapes[i]
    if c < 2:
        return net.norm(i)
    first = net.one(c // 2, 1)
    how = net.one(("sizes", (first, c - first)), ("chunk", 2), ("each", -(-c // 2)))
    sizes = how[1] if how[0] == "sizes" else (-(-c // 2), c - -(-c // 2))
    whole = net.add("split", (i,), how, (), hidden=True)
    pieces = [net.add("item", (whole,), (k,), (s, *space)) for k, s in enumerate(sizes)]
    worked = net.affine(pieces[0]) if net.maybe(2) else net.same(pieces[0], sizes[0], net.one(1, 3))
    order = net.one((pieces[1], worked), (worked, pieces[1]), (worked, pieces[1], worked))
    shapes = [net.shapes[j] for j in order]
    joined = net.add("cat", order, (1,), (sum(s[0] for s in shapes), *space))
    return net.affine(joined) if net.maybe(3) else joined


def inception(net: Growing, i: int) -> int:
    """Pointwise convolutions of one value, each with the same activation, concatenated."""
    name = net.one("relu", "silu", "relu6")
    parts = [net.pointwise(i, net.one(2, 3, 1), groups=net.one(0, 1)) for _ in range(2)]
    parts = [net.norm(p) for p in parts] if net.maybe(3) else parts
    acts = [net.add("act", (p,), (name,), net.shapes[p]) for p in parts]
    return net.add("cat", acts, (1,), (sum(net.shapes[a][0] for a in acts), *net.shapes[i][1:]))


def join(net: Growing, i: int) -> int:
    """Two maps concatenated, mostly along the channels."""
    c, *space = net.shapes[i]
    if net.maybe(4) and space[0] <= 5 and not net.free:
        order = (i, net.one(*net.alike(i)))
        return net.add("cat", order, (2,), (c, 2 * space[0], *space[1:]))
    others = [j for j in net.maps if net.shapes[j][1:] == net.shapes[i][1:] and net.shapes[j][0] + c <= 10]
    if not others:
        return net.noop(i)
    order = net.one((i, net.one(*others)), (net.one(*others), i))
    joined = net.add("cat", order, (1,), (sum(net.shapes[j][0] for j in order), *space))
    return net.affine(joined) if net.maybe(2) else net.pointwise(joined)


def meet(net: Growing, i: int) -> int:
    """A sum, difference or product with an earlier value of the same shape."""
    j = net.one(*net.alike(i))
    return net.add("mul", (i, j), (), net.shapes[i]) if net.maybe(5) else net.sum(i, j)


def gate(net: Growing, i: int) -> int:
    """Squeeze and excite."""
    c, *space = net.shapes[i]
    one = (c, *[1] * len(space))
    g = net.add("gap", (i,), (net.one("adaptive", "mean"),), one, hidden=True)
    g = net.pointwise(g, net.one(2, 4))
    net.maps.remove(g)
    g = net.add("act", (g,), ("relu",), net.shapes[g], hidden=True)
    g = net.pointwise(g, c)
    net.maps.remove(g)
    g = net.add("act", (g,), (net.one("sigmoid", "hardsigmoid"),), one, hidden=True)
    return net.add("mul", (i, g), (), net.shapes[i])


def centred(net: Growing, i: int) -> int:
    """A value and a mean of it, which broadcasts."""
    kind = net.one("sub", "add", "mul")
    return net.add(kind, (i, net.average(i)), () if kind == "mul" else (1,), net.shapes[i])


def filled(net: Growing, i: int) -> int:
    """Zero padding, its border filled with a norm's value of zero as in DBB. Only a capture can make sense of it."""
    c, *space = net.shapes[i]
    if not net.views or len(space) != 2 or min(space) < 3:
        return net.norm(i)
    v = net.apply(Norm("batch", c, 3, net.one("mixed", "positive")), i, net.shapes[i])
    return net.conv(net.add("fill", (v,), (len(net.layers) - 1,), (c, *(h + 2 for h in space))), kernel=(3, 3))


def unbound(net: Growing, i: int) -> int:
    """Channels as two halves along an axis of their own."""
    c, *space = net.shapes[i]
    if c % 2:
        return net.affine(i)
    v = net.call("unflatten", i, 1, [2, c // 2], shape=(2, c // 2, *space), hidden=True)
    if net.maybe(2):
        picked = [net.call("select", v, 1, k, shape=(c // 2, *space)) for k in range(2)]
    else:
        v = net.call("unbind", v, 1, shape=(), hidden=True)
        picked = [net.add("item", (v,), (k,), (c // 2, *space)) for k in range(2)]
    worked = net.affine(picked[0])
    return net.add("mul", (worked, picked[1]), (), net.shapes[worked]) if net.maybe(2) else net.sum(worked, picked[1])


def _small(name: str) -> Block:
    return lambda net, i: int(getattr(net, name)(i))


# Each with the number of operations that it may take, and how often it is tried.
_WEIGHTS: tuple[tuple[Block, int, int], ...] = (
    *((_small(name), 1, 1) for name in ("act", "pool", "constant", "conv", "movement", "again", "group_norm")),
    *((block, 2, 1) for block in (conv_norm, norm_conv, depthwise, deconv)),
    *((block, 3, 1) for block in (join, meet, gate, in_batch, centred, filled, unbound)),
    *((block, 6, 1) for block in (two_norms, split_and_join, inception, channels_last)),
    (two_convs, 4, 2),
    (residual, 7, 2),
    (attention, 10, 1),
    (branches, 9, 6),
    (carried_ahead, 5, 8),
    (carried_back, 5, 8),
)
BLOCKS = tuple((block, size) for block, size, often in _WEIGHTS for _ in range(often))


def _piece(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


@st.composite
def specs(draw: st.DrawFn, *, views: bool = False, limit: int = 14) -> Spec:
    """A random network of at most about `limit` operations.

    views: in-place writes may meet values that share storage, which only a real capture can make sense of.
    """
    head, blocks, tail = draw(st.tuples(_piece(12), st.lists(_piece(40), min_size=1, max_size=6), _piece(40)))
    net = Growing(iter(head), [], limit, False, views)
    shape = (net.one(4, 2, 3, 6, 1), *(net.one(5, 4, 6, 7, 3, 8, 11, 1, 2) for _ in range(net.one(2, 2, 2, 2, 1))))
    dynamic = net.one((), (), (), (), (), (), ("batch",), ("batch",), ("batch", "height", "width"))
    low, high = net.one((-math.inf, math.inf), (-math.inf, math.inf), (0.0, math.inf), (-1.0, 1.0))
    inputs, dtype, weights = net.one(1, 1, 1, 1, 2), net.one("float64", "float32"), net.one(*range(100))
    net.free = len(dynamic) == 3 and len(shape) == 3
    net.shapes, net.maps = [shape] * inputs, list(range(inputs))
    last = net.one(*net.maps)
    for block in blocks:
        net.tape = iter(block)
        fits = [b for b, size in BLOCKS if size <= net.room]
        last = net.one(*fits)(net, last if not net.maybe(3) else net.pick()) if fits else last
    net.tape = iter(tail)
    last = _end(net, last)
    outputs = (last, net.one(*net.maps, *net.vectors)) if net.maybe(4) else (last,)
    return Spec(shape, tuple(net.layers), tuple(net.ops), outputs, inputs, dtype, dynamic, low, high, weights)


def _end(net: Growing, last: int) -> int:
    """Mostly a head or a layer: what stands last is an output, which no affine passes."""
    if net.maybe(5):
        return head(net, last)
    return last if net.maybe(4) else _sink(net, last)
