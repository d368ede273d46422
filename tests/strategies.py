"""Draws small random networks (`specs`) out of blocks that look like those that are rewritten, and near misses.

The blocks overlap on purpose: a branch may start in the middle of another block, a layer may be used again, a value may
be an output as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import strategies as st
from specs import Const, Growing, Linear, Norm, Spec

Block = Callable[[Growing, int], int]


# ---- linear blocks -----------------------------------------------------------------------------------------------


def conv_norm(net: Growing, i: int) -> int:
    return net.affine(net.conv(i))


def norm_conv(net: Growing, i: int) -> int:
    """A norm before a convolution, which is often padded."""
    return net.conv(net.affine(i)) if net.maybe(3) else net.same(net.affine(i), net.one(4, 2, 6), 3)


def two_convs(net: Growing, i: int) -> int:
    """Pointwise, then k x k: composes, unless a bias meets the border; or the other way round."""
    pointwise_first = not net.maybe(3)
    i = net.pointwise(i) if pointwise_first else net.conv(i)
    i = net.norm(i) if net.maybe(2) else i
    i = net.conv(i) if pointwise_first else net.pointwise(i)
    return net.norm(i) if net.maybe(3) else i


def depthwise(net: Growing, i: int) -> int:
    c = net.shapes[i][0]
    return net.affine(net.same(i, c * (2 if c <= 4 and net.maybe(3) else 1), 3, net.one(1, 2), groups=c))


def deconv(net: Growing, i: int) -> int:
    i = net.affine(i) if net.maybe(3) else i
    i = net.transposed(i)
    return net.affine(i) if net.maybe(2) else i


def _branch(net: Growing, i: int, c_out: int, stride: int, k: int) -> int:
    """One linear branch of the given width and stride, for same-size windows of k."""
    c, n = net.shapes[i][0], len(net.shapes[i]) - 1
    kinds = ["kxk", "1x1", "wide", "pool", "two", "two"]
    kinds += ["skip", "skip", "skip"] if stride == 1 and c == c_out else []
    kind = net.one(*kinds)
    if kind == "kxk":
        i = net.same(i, c_out, k, stride)
    elif kind == "1x1":
        i = net.pointwise(i, c_out, stride)
    elif kind == "wide":
        i = net.same(i, c_out, 3, stride, dilation=net.one(1, 2))
    elif kind == "two":
        i = net.pointwise(i, net.one(c, 2, 4))
        i = net.norm(i) if net.maybe(3) else i
        i = net.same(i, c_out, k, stride)
    elif kind == "pool":
        i = net.pointwise(i, c_out) if c != c_out or net.maybe(2) else i
        i = net.norm(i) if net.maybe(3) else i
        how = ((3,) * n, (stride,) * n, (1,) * n, net.maybe(4), net.one(True, False))
        out = tuple((h - 1) // stride + 1 for h in net.shapes[i][1:])
        if how[3]:
            out = tuple(-(-(h - 1) // stride) + 1 for h in net.shapes[i][1:])
        i = net.add("avg", (i,), how, (c_out, *out))
    return net.affine(i) if net.maybe(2) or kind == "skip" else i


def branches(net: Growing, i: int) -> int:
    """Parallel linear branches of one value: RepVGG, ACNet, DBB, MobileOne, FastViT and worse."""
    c_out = net.one(net.shapes[i][0], net.shapes[i][0], 4, 2)
    stride = net.one(1, 1, 1, 2)
    k = net.one(3, 1, 3, 5)
    total = _branch(net, i, c_out, stride, k)
    for _ in range(net.one(1, 2)):
        other = i if net.maybe(6) and net.shapes[i] == net.shapes[total] else _branch(net, i, c_out, stride, k)
        if net.shapes[other] == net.shapes[total]:
            total = net.sum(total, other)
    return net.affine(total) if net.maybe(4) else total


def residual(net: Growing, i: int) -> int:
    c = net.shapes[i][0]
    inner = net.same(i, net.one(c, 4), 3)
    if net.maybe(2):
        inner = net.act(net.norm(inner) if net.maybe(2) else inner)
        inner = net.same(inner, c, net.one(3, 1))
    if net.shapes[inner] != net.shapes[i]:
        return net.pointwise(inner, c)
    inner = net.affine(inner) if net.maybe(2) else inner
    return net.sum(*(net.one((inner, i), (i, inner))))


def two_norms(net: Growing, i: int) -> int:
    """A sum of two norms whose result and whose skip go on into convolutions."""
    skip = net.norm(i)
    inner = net.same(skip, net.shapes[i][0], net.one(1, 3))
    inner = net.norm(net.act(inner)) if net.maybe(2) else net.norm(inner)
    total = net.add("add", (inner, skip), (1,), net.shapes[i])
    return net.pointwise(total) if net.maybe(3) else net.act(net.pointwise(total))


# ---- affines on their way ------------------------------------------------------------------------------------------


def _opaque(net: Growing, i: int) -> int:
    """Something that no affine passes, so that what comes next has to find its way on the other side."""
    return net.add("act", (i,), (net.one("gelu", "sigmoid", "tanh", "relu6"),), net.shapes[i])


def _passage(net: Growing, i: int) -> int:
    """Something that may let an affine through, under conditions."""
    kinds: list[Block] = [_small("rectify"), _small("rectify"), _small("pool"), _small("pool"), _small("movement")]
    kinds += [fork, fork, met_by_layer, met_by_layer, meet, join, split_and_join, _small("constant"), swish]
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


# ---- other blocks --------------------------------------------------------------------------------------------------


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
    """Any maps of one size concatenated."""
    space = net.shapes[i][1:]
    others = [j for j in net.maps if net.shapes[j][1:] == space and net.shapes[j][0] + net.shapes[i][0] <= 10]
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
    small = net.one(2, 4)
    g = net.pointwise(g, small)
    net.maps.remove(g)
    g = net.add("act", (g,), ("relu",), net.shapes[g], hidden=True)
    g = net.pointwise(g, c)
    net.maps.remove(g)
    g = net.add("act", (g,), (net.one("sigmoid", "hardsigmoid"),), one, hidden=True)
    return net.add("mul", (i, g), (), net.shapes[i])


def channels_last(net: Growing, i: int) -> int:
    """A permute, linear layers and affines on the last axis, and back (ConvNeXt, Swin)."""
    c, *space = net.shapes[i]
    n = len(space)
    tokens = net.one("permute", "permute", "flatten") if n == 2 else "permute"
    if tokens == "permute":
        shape = (*space, c)
        v = net.add("permute", (i,), ((0, *range(2, n + 2), 1),), shape, hidden=True)
    else:
        v = net.add("flatten", (i,), (2, 3), (c, math.prod(space)), hidden=True)
        shape = (math.prod(space), c)
        v = net.add("transpose", (v,), (1, 2), shape, hidden=True)
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
        return net.add("permute", (v,), ((0, n + 1, *range(1, n + 1)),), (c, *space))
    v = net.add("transpose", (v,), (1, 2), (c, shape[0]), hidden=True)
    if net.free:
        return net.add("unsqueeze", (v,), (2,), (c, 1, shape[0]))
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
        v = v if how == "mean_flat" else net.add("flatten", (v,), (1, -1), (c,), hidden=True)
    else:
        width = c * math.prod(space)
        v = net.add("flatten", (i,), (1, -1), (width,), hidden=True)
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


def _small(name: str) -> Block:
    return lambda net, i: int(getattr(net, name)(i))


# Each with the number of operations that it may take, and how often it is tried.
_WEIGHTS: tuple[tuple[Block, int, int], ...] = (
    (branches, 9, 5),
    (carried_ahead, 5, 6),
    (carried_back, 5, 6),
    (residual, 7, 2),
    (two_convs, 4, 2),
    *((block, 2, 1) for block in (conv_norm, norm_conv, depthwise, deconv)),
    *((block, 6, 1) for block in (two_norms, split_and_join, inception, channels_last)),
    *((block, 3, 1) for block in (join, meet, gate, in_batch)),
    *((_small(name), 1, 1) for name in ("act", "pool", "constant", "conv", "movement", "again", "group_norm")),
)
BLOCKS = tuple((block, size) for block, size, often in _WEIGHTS for _ in range(often))


@st.composite
def specs(draw: st.DrawFn, *, views: bool = False, limit: int = 14) -> Spec:
    """A random network of at most about `limit` operations.

    views: in-place writes may meet values that share storage, which only a real capture can make sense of.
    """
    n = draw(st.sampled_from([2, 2, 2, 2, 1]))
    shape = (
        draw(st.sampled_from([4, 2, 3, 6, 1])),
        *(draw(st.sampled_from([5, 4, 6, 7, 3, 8, 11, 1, 2])) for _ in range(n)),
    )
    dynamic = draw(st.sampled_from([(), (), (), (), (), (), ("batch",), ("batch",), ("batch", "height", "width")]))
    free = "height" in dynamic
    inputs = draw(st.sampled_from([1, 1, 1, 1, 2]))
    net = Growing(draw, [shape] * inputs, limit, free and n == 2, views, maps=list(range(inputs)))
    last = draw(st.sampled_from(range(inputs)))
    for _ in range(draw(st.sampled_from([3, 2, 4, 5, 1]))):
        fits = [b for b, size in BLOCKS if size <= net.room]
        if not fits:
            break
        last = draw(st.sampled_from(fits))(net, last if not net.maybe(3) else net.pick())
    if net.maybe(5):
        last = head(net, last)
    elif not net.maybe(4):  # else what stands last is an output, which no affine passes
        last = _sink(net, last)
    outputs = [last]
    if net.maybe(4):
        outputs.append(net.one(*net.maps, *net.vectors))
    low, high = draw(st.sampled_from([(-math.inf, math.inf), (-math.inf, math.inf), (0.0, math.inf), (-1.0, 1.0)]))
    return Spec(
        shape, tuple(net.layers), tuple(net.ops), tuple(outputs), inputs, net.one("float64", "float32"),
        dynamic, low, high, draw(st.integers(0, 99)),
    )  # fmt: skip
