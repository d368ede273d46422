"""Draws small random networks (`specs`) that a register may hold: residuals, concatenations, splits, pairs, gates.

A network is `carriable` when everything in it has a place in one register, so that it must become a chain (with the
gates that it has). What is not is drawn too, rarely: the rest of its network is converted all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import strategies as st

from support.growing import Growing, window_size
from support.growing_layouts import head
from support.specs import Linear, PReLU, Spec

STYLES = ("relu", "leaky", "prelu", "relu6", "hardtanh", "clamp", "silu", "gelu", "hardswish")
OFTEN = ("relu", "relu", "relu", *STYLES)
ODD = ("elu", "abs", "sigmoid", "tanh", "hardsigmoid", *STYLES)


@dataclass(frozen=True)
class Drawn:
    """A network, and what the target `plain` owes it. gates: how many squeeze-excite gates it has."""

    spec: Spec
    carriable: bool
    gates: int = 0


@dataclass
class Blocks(Growing):
    """A `Growing` whose blocks share one activation. strict: whatever it takes can be carried."""

    style: str = "relu"
    strict: bool = True
    gates: int = 0

    def turn(self, i: int) -> int:
        """The activation of this network, or any one where not strict."""
        name = self.style if self.strict or not self.maybe(3) else self.one(*ODD)
        if name == "prelu":
            return self.apply(PReLU(self.one(1, self.shapes[i][0])), i, self.shapes[i])
        return self.add("act", (i,), (name,), self.shapes[i])

    def normed(self, i: int) -> int:
        return self.norm(i) if self.maybe(2) else i

    # ---- bodies of blocks ------------------------------------------------------------------------------------------

    def body(self, i: int, c_out: int, stride: int = 1, *, ends: bool = False) -> int:
        """A chain of layers with activations between them. ends: with one behind it, too."""
        kind = self.one("basic", "single", "bottleneck", "inverted", "grouped", "dilated", "pointwise")
        c, k = self.shapes[i][0], self.one(3, 3, 5)
        if kind == "basic":
            i = self.turn(self.normed(self.same(i, self.one(c_out, 4, 2), k, stride)))
            i = self.same(i, c_out, self.one(3, 1))
        elif kind == "single":
            i = self.same(i, c_out, k, stride)
        elif kind == "bottleneck":
            middle = self.one(2, 3, 1)
            i = self.turn(self.normed(self.pointwise(i, middle)))
            i = self.turn(self.normed(self.same(i, middle, 3, stride)))
            i = self.pointwise(i, c_out)
        elif kind == "inverted":
            wide = self.one(2 * c, c, 6)
            i = self.turn(self.normed(self.pointwise(i, wide)))
            i = self.turn(self.normed(self.same(i, wide, k, stride, groups=wide)))
            i = self.pointwise(self.squeezed(i) if self.maybe(6) else i, c_out)
        elif kind == "grouped":
            i = self.turn(self.normed(self.same(i, 4, 3, stride, groups=2 if c % 2 == 0 else 1)))
            i = self.same(i, c_out, 1, groups=self.one(*(g for g in (1, 2) if c_out % g == 0)))
        elif kind == "dilated":
            i = self.turn(self.normed(self.same(i, self.one(4, 2), 3, dilation=2)))
            i = self.same(i, c_out, 3, stride)
        else:
            i = self.turn(self.pointwise(i, 3))
            i = self.same(i, c_out, 1, stride)
        i = self.normed(i)
        return self.turn(i) if ends else i

    def squeezed(self, i: int) -> int:
        """A squeeze-excite gate behind an activation."""
        c, *space = self.shapes[i]
        if set(space) == {1}:
            return i
        self.gates += 1
        one = (c, *[1] * len(space))
        g = self.add("gap", (i,), (self.one("adaptive", "mean"),), one, hidden=True)
        for width, name in ((2, "relu"), (c, self.one("sigmoid", "hardsigmoid"))):
            g = self.pointwise(g, width, groups=1)
            self.maps.remove(g)
            g = self.add("act", (g,), (name,), self.shapes[g], hidden=True)
        return self.add("mul", (i, g), (), self.shapes[i])

    def shortcut(self, i: int, c_out: int, stride: int) -> int:
        c, *space = self.shapes[i]
        n = len(space)
        if stride == 1:
            plain = c == c_out and not self.maybe(3)
            return i if plain else self.normed(self.pointwise(i, c_out))
        kind = self.one("projection", "pooled", "decimated", "padded")
        if kind == "projection" or (kind != "decimated" and (self.free or any(s % stride for s in space))):
            return self.normed(self.pointwise(i, c_out, stride))
        size = stride if kind != "decimated" else 1
        out = tuple(window_size(s, size, stride, 0) for s in space)
        i = self.add("avg", (i,), ((size,) * n, (stride,) * n, (0,) * n, False, True), (c, *out))
        if kind == "padded" and c < c_out:
            low = self.one(0, (c_out - c) // 2)
            flat = (*[0] * 2 * n, low, c_out - c - low)
            return self.add("pad", (i,), (flat, "constant"), (c_out, *out))
        return i if c == c_out else self.normed(self.pointwise(i, c_out))

    # ---- blocks ----------------------------------------------------------------------------------------------------

    def residual_block(self, i: int) -> int:
        """Any of the residual blocks: where the norm and the activation stand, what the shortcut does."""
        c, *space = self.shapes[i]
        stride = self.one(1, 1, 2) if min(space) > 2 else 1
        c_out = self.one(c, c, 4, 6)
        before = self.turn(self.norm(i)) if self.maybe(3) else i
        inner = self.body(before, c_out, stride)
        changes = stride > 1 or c != c_out
        skip = self.shortcut(before if changes and self.maybe(2) else i, c_out, stride)
        if self.shapes[inner] != self.shapes[skip]:
            return inner
        total = self.sum(*self.one((inner, skip), (skip, inner)))
        total = self.norm(total) if self.maybe(5) else total
        return self.turn(total) if before == i and not self.maybe(3) else total

    def nested(self, i: int) -> int:
        """A skip past other blocks."""
        inner = self.residual_block(self.residual_block(i))
        if self.shapes[inner] != self.shapes[i]:
            return self.turn(inner)
        return self.turn(self.sum(inner, i))

    def dense(self, i: int) -> int:
        """Concatenation with what was made of it, two or three times."""
        for _ in range(self.one(2, 1, 3)):
            made = self.body(self.turn(self.norm(i)) if self.maybe(2) else i, self.one(2, 3), ends=not self.maybe(3))
            i = self.joined([i, made])
        return i

    def joined(self, parts: list[int]) -> int:
        shapes = [self.shapes[p] for p in parts]
        return self.add("cat", parts, (1,), (sum(s[0] for s in shapes), *shapes[0][1:]))

    def inception(self, i: int) -> int:
        """Branches of unequal depth, concatenated or summed."""
        summed = self.maybe(3)
        c_out = self.one(4, 2)
        parts = []
        for _ in range(self.one(2, 3)):
            p = i
            for _ in range(self.one(1, 2, 0, 3)):
                width = c_out if summed else self.one(2, 3)
                p = self.turn(self.normed(self.same(p, width, self.one(1, 3))))
            parts.append(p)
        if not summed:
            return self.joined(parts)
        parts = [p if self.shapes[p][0] == c_out else self.pointwise(p, c_out) for p in parts]
        total = parts[0]
        for p in parts[1:]:
            total = self.sum(total, p)
        return self.turn(total) if self.maybe(2) else total

    def halves(self, i: int) -> tuple[int, int]:
        c, *space = self.shapes[i]
        cut = self.one(c // 2, 1)
        if self.maybe(3):
            a = self.add("slice", (i,), (1, 0, cut), (cut, *space))
            return a, self.add("slice", (i,), (1, cut, c), (c - cut, *space))
        whole = self.add("split", (i,), ("sizes", (cut, c - cut)), (), hidden=True)
        a = self.add("item", (whole,), (0,), (cut, *space))
        return a, self.add("item", (whole,), (1,), (c - cut, *space))

    def partial(self, i: int) -> int:
        """CSP: one part goes through blocks, the other past them."""
        if self.shapes[i][0] < 2:
            return self.residual_block(i)
        a, b = self.halves(self.turn(i) if self.maybe(2) else i)
        b = self.body(b, self.shapes[b][0], ends=self.maybe(2))
        joined = self.joined(self.one([a, b], [b, a]))
        return self.turn(self.normed(self.pointwise(joined))) if self.maybe(2) else joined

    def coupled(self, i: int) -> int:
        """RevNet: y1 = x1 + f(x2), y2 = x2 + g(y1)."""
        if self.shapes[i][0] < 2:
            return self.residual_block(i)
        a, b = self.halves(i)
        a = self.sum(a, self.body(b, self.shapes[a][0]))
        b = self.sum(b, self.body(a, self.shapes[b][0]))
        return self.joined([a, b])

    def momentum(self, i: int) -> int:
        """v = g v + (1 - g) f(x), x = x + v."""
        shape = self.shapes[i]
        velocity: int | None = None
        for _ in range(self.one(2, 3)):
            f = self.add("scalar", (self.body(i, shape[0]),), ("mul", 0.25, False), shape)
            if velocity is not None:
                f = self.sum(self.add("scalar", (velocity,), ("mul", 0.75, False), shape), f)
            velocity, i = f, self.add("add", (i, f), (1,), shape)
        return i

    def gated(self, i: int) -> int:
        """SE-ResNet: the gate before the sum."""
        inner = self.squeezed(self.turn(self.body(i, self.shapes[i][0])))
        return self.turn(self.sum(inner, i))

    def transition(self, i: int) -> int:
        """Between blocks nothing has to be carried, so anything may stand here."""
        i = self.turn(self.normed(self.same(i, self.one(4, 6, 2), self.one(1, 3))))
        return self.pool(i) if min(self.shapes[i][1:]) > 2 and self.maybe(2) else i

    def stuck(self, i: int) -> int:
        """Something beside a skip that nothing can be carried past."""
        shape = self.shapes[i]
        n = len(shape) - 1
        inner = self.turn(self.same(i, shape[0], 3))
        kind = self.one("norm", "max", "squash", "softmax", "mean")
        if kind == "norm":
            inner = self.group_norm(inner)
        elif kind == "max":
            inner = self.add("max", (inner,), ((3,) * n, (1,) * n, (1,) * n, False, True), shape)
        elif kind == "squash":
            inner = self.add("act", (inner,), (self.one("sigmoid", "tanh"),), shape)
        elif kind == "softmax":
            inner = self.call("softmax", inner, 1)
        else:
            inner = self.add("sub", (inner, self.average(inner)), (1,), shape)
        return self.sum(self.same(inner, shape[0], 1), i)

    def vectors_block(self, i: int) -> int:
        """A residual block of linear layers."""
        (c,) = self.shapes[i]
        inner = self.turn(self.apply(Linear(c, 5), i, (5,)))
        inner = self.apply(Linear(5, c), inner, (c,))
        total = self.add("add", (inner, i), (1,), (c,))
        return self.turn(total) if self.maybe(2) else total


def _piece(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


# How many operations a block may take, and how often it is tried.
_SIZES = {"residual_block": 14, "nested": 22, "dense": 20, "inception": 18, "partial": 14, "coupled": 18}
_SIZES |= {"momentum": 22, "gated": 16, "transition": 4}
_KINDS = ("residual_block",) * 4 + tuple(_SIZES)


@st.composite
def specs(draw: st.DrawFn, *, limit: int = 30) -> Drawn:
    """A random network of at most about `limit` operations."""
    start, blocks, tail = draw(st.tuples(_piece(14), st.lists(_piece(100), min_size=1, max_size=3), _piece(12)))
    net = Blocks(iter(start), [], limit, False, False)
    net.strict, net.style = not net.maybe(5), net.one(*OFTEN)
    shape = (net.one(4, 2, 3, 6, 1), *(net.one(5, 4, 6, 7, 8, 3, 2, 1) for _ in range(net.one(2, 2, 2, 1))))
    dynamic = net.one((), ("batch",), ("batch",), ("batch", "height", "width"))
    low, high = net.one((-math.inf, math.inf), (-math.inf, math.inf), (0.0, math.inf), (-1.0, 1.0))
    dtype, weights = net.one("float64", "float32"), net.one(*range(100))
    net.free = len(dynamic) == 3 and len(shape) == 3
    net.shapes, net.maps = [shape], [0]
    last = net.turn(net.normed(net.same(0, 4, 3))) if net.maybe(3) else 0
    for block in blocks:
        net.tape = iter(block)
        fits = [k for k in _KINDS if _SIZES[k] <= net.room]
        if not net.strict and net.maybe(3):
            last = net.stuck(last)
        elif fits:
            last = getattr(net, net.one(*fits))(last)
    net.tape = iter(tail)
    last = net.turn(net.pointwise(last)) if net.maybe(3) else last
    if net.maybe(3):
        last = _vectors(net, last)
    outputs = (last,) if net.strict or not net.maybe(3) else (last, net.one(*net.maps))
    spec = Spec(shape, tuple(net.layers), tuple(net.ops), outputs, 1, dtype, dynamic, low, high, weights)
    # traced at one, a free size is a number in some of torch's shapes and a formula in others
    unclear = net.free and any(1 in net.shapes[i][1:] for i in net.maps)
    return Drawn(spec, net.strict and not unclear, net.gates)


def _vectors(net: Blocks, last: int) -> int:
    """Means over space, and residual blocks of linear layers."""
    if net.maybe(3):
        return head(net, last)
    last = net.add("gap", (last,), ("flat",), net.shapes[last][:1])
    for _ in range(net.one(1, 2)):
        last = net.vectors_block(last)
    return last
