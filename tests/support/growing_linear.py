"""Linear blocks that a `Growing` may take: layers in a row, parallel branches of one value, residuals."""

from __future__ import annotations

from support.growing import Growing


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
