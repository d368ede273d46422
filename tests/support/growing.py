"""`Growing`: a spec under construction, whose methods draw one layer or operation each.

Shapes are computed as it grows, so that every drawn spec is valid. Choices are read off a tape of bytes, which
Hypothesis draws in a few pieces (with a draw for each choice most of its examples would be each other's near copies)
and shrinks towards zeros: what is simplest comes first in each list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from support.specs import Const, Conv, Layer, Norm, Op, PReLU, Shape

ACTIVATIONS = (
    "relu",
    "relu6",
    "leaky",
    "gelu",
    "silu",
    "hardswish",
    "sigmoid",
    "hardtanh",
    "elu",
    "tanh",
    "abs",
    "clamp",
)
INPLACE = ("relu", "leaky", "hardswish", "relu6", "silu")
_WIDTHS = (4, 2, 6, 3, 8, 1)


def window_size(n: int, kernel: int, stride: int, padding: int, dilation: int = 1, ceil: bool = False) -> int:
    """How many places a sliding window takes along an axis of n; padding counts both ends."""
    span = n + padding - dilation * (kernel - 1) - 1
    if span < 0:
        return 0
    out = (-(-span // stride) if ceil else span // stride) + 1
    return out - 1 if ceil and (out - 1) * stride >= n + padding // 2 else out


@dataclass
class Growing:
    """A spec under construction. Methods named after a layer or block append it to a value and return the new value."""

    tape: Iterator[int]
    shapes: list[Shape]
    limit: int
    free: bool
    views: bool
    layers: list[Layer] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    maps: list[int] = field(default_factory=list)
    vectors: list[int] = field(default_factory=list)

    # ---- basics --------------------------------------------------------------------------------------------------

    def one(self, *items: Any) -> Any:
        """One of the items, the first when the tape has run out."""
        return items[next(self.tape, 0) % len(items)]

    def maybe(self, chance: int = 2) -> bool:
        """True once in `chance`, and false when shrunk."""
        return next(self.tape, 0) % chance == chance - 1

    @property
    def room(self) -> int:
        return self.limit - len(self.ops)

    def add(self, kind: str, args: Sequence[int], how: tuple[Any, ...], shape: Shape, *, hidden: bool = False) -> int:
        """Appends an operation. hidden: its value is in between and is not offered to other blocks."""
        self.ops.append(Op(kind, tuple(args), how))
        self.shapes.append(shape)
        index = len(self.shapes) - 1
        if not hidden:
            (self.maps if len(shape) > 1 else self.vectors).append(index)
        return index

    def apply(self, layer: Layer, i: int, shape: Shape, *, hidden: bool = False) -> int:
        self.layers.append(layer)
        return self.add("layer", (i,), (len(self.layers) - 1,), shape, hidden=hidden)

    def pick(self) -> int:
        """A map to go on from: mostly the last one."""
        return int(self.maps[-1] if not self.maybe(4) else self.one(*self.maps))

    def alike(self, i: int) -> list[int]:
        return [j for j in self.maps if self.shapes[j] == self.shapes[i]]

    # ---- layers --------------------------------------------------------------------------------------------------

    def conv(self, i: int, *, c_out: int = 0, kernel: Shape = (), **options: Any) -> int:
        """Any convolution where nothing is given, else the one asked for."""
        c_in, *space = self.shapes[i]
        n = len(space)
        fixed = bool(kernel)
        kernel = kernel or tuple(self.one(3, 1, 2) for _ in range(n))
        stride = options.get("stride") or ((1,) * n if fixed else tuple([self.one(1, 1, 2, 3)] * n))
        dilation = options.get("dilation") or ((1,) * n if fixed else tuple([self.one(1, 1, 1, 2)] * n))
        padding = options.get("padding") or ((0,) * n if fixed else self._padding(kernel, stride))
        c_out = c_out or self.one(c_in, *_WIDTHS)
        groups = options.get("groups") or self._groups(c_in, c_out)
        mode = "zeros" if fixed or padding == "same" else self.one("zeros", "zeros", "zeros", "reflect", "circular")
        out = [
            window_size(h, k, s, d * (k - 1) if padding == "same" else 2 * padding[a], d)  # type: ignore[operator]
            for a, (h, k, s, d) in enumerate(zip(space, kernel, stride, dilation, strict=True))
        ]
        if min(out) < 1 or (mode != "zeros" and any(p >= h for p, h in zip(padding, space, strict=True))):
            kernel, padding, mode, out = (
                (1,) * n,
                (0,) * n,
                "zeros",
                [(h - 1) // s + 1 for h, s in zip(space, stride, strict=True)],
            )
        bias, gain = self.one(True, False), self.maybe(10)
        layer = Conv(c_in, c_out, kernel, stride, padding, dilation, groups, bias, mode, gain=gain)
        return self.apply(layer, i, (c_out, *out))

    def _padding(self, kernel: Shape, stride: Shape) -> Shape | str:
        if set(stride) == {1} and self.maybe(5):
            return "same"
        return tuple(self.one(*dict.fromkeys(((k - 1) // 2, 0, 1, 2))) for k in kernel)

    def _groups(self, c_in: int, c_out: int) -> int:
        return int(self.one(1, 1, *(g for g in range(2, 9) if c_in % g == 0 and c_out % g == 0)))

    def same(self, i: int, c_out: int, k: int, stride: int = 1, dilation: int = 1, groups: int = 0) -> int:
        """A convolution of an odd kernel that keeps the size (divided by the stride)."""
        n = len(self.shapes[i]) - 1
        pad = dilation * (k - 1) // 2
        shape = {"stride": (stride,) * n, "padding": (pad,) * n, "dilation": (dilation,) * n, "groups": groups}
        return self.conv(i, c_out=c_out, kernel=(k,) * n, **shape)

    def pointwise(self, i: int, c_out: int = 0, stride: int = 1, groups: int = 0) -> int:
        return self.same(i, c_out or self.one(self.shapes[i][0], *_WIDTHS), 1, stride, groups=groups)

    def transposed(self, i: int) -> int:
        c_in, *space = self.shapes[i]
        n = len(space)
        c_out = self.one(c_in, *_WIDTHS)
        kernel, stride = tuple(self.one(2, 3, 1) for _ in range(n)), tuple([self.one(1, 2)] * n)
        padding = tuple(self.one(*range(k)) for k in kernel)
        extra = tuple(self.one(*range(s)) for s in stride)
        sizes = zip(space, kernel, stride, padding, extra, strict=True)
        out = [(h - 1) * s - 2 * p + k - 1 + e + 1 for h, k, s, p, e in sizes]
        if min(out) < 1 or max(out) > 14:
            return self.norm(i)
        groups = self._groups(c_in, c_out)
        bias = self.one(True, False)
        layer = Conv(c_in, c_out, kernel, stride, padding, (1,) * n, groups, bias, "zeros", True, extra)
        return self.apply(layer, i, (c_out, *out))

    def norm(self, i: int) -> int:
        shape = self.shapes[i]
        gamma = self.one("positive", "mixed", "mixed", "zeros", "none")
        tiny, shift = self.maybe(8), not self.maybe(3)
        return self.apply(Norm("batch", shape[0], len(shape), gamma, tiny, shift), i, shape)

    def group_norm(self, i: int) -> int:
        c, *space = self.shapes[i]
        if max(space) > 1 and self.maybe(3):
            return self.apply(Norm("instance", c, len(space) + 1, self.one("mixed", "none")), i, self.shapes[i])
        groups = self.one(1, *(g for g in (2, c) if c % g == 0))
        return self.apply(
            Norm("group", c, len(self.shapes[i]), self.one("mixed", "positive"), groups=groups), i, self.shapes[i]
        )

    def act(self, i: int, name: str = "") -> int:
        name = name or self.one("relu", "relu", "relu", *ACTIVATIONS)
        if self.maybe(8):
            return self.apply(PReLU(self.one(1, self.shapes[i][0])), i, self.shapes[i])
        if name in INPLACE and self.maybe(3) and self._writable(i):
            return self.add("act_", (i,), (name,), self.shapes[i])
        return self.add("act", (i,), (name,), self.shapes[i])

    def rectify(self, i: int) -> int:
        """What lets a positive scale through."""
        return self.add("act", (i,), (self.one("relu", "leaky"),), self.shapes[i])

    def _writable(self, i: int) -> bool:
        """Whether an in-place write is to a value of its own; with `views` any value but the inputs will do."""
        made = i - (len(self.shapes) - len(self.ops))
        if made < 0:
            return False
        fresh = self.ops[made].kind in ("layer", "act", "add", "mul", "cat")
        return self.views or (
            fresh and not any(i in op.args and op.kind not in ("layer", "act", "add") for op in self.ops)
        )

    def constant(self, i: int) -> int:
        """Arithmetic with a constant: along the channels, a scalar, along the width, or over the whole map."""
        shape = self.shapes[i]
        rank = len(shape)
        along = (shape[0], *[1] * (rank - 1))
        others = [] if self.free else [(shape[-1],), shape, (1, *shape[1:]), (1, shape[1], *[1] * (rank - 2))]
        chosen = self.one(along, along, along, (1, *along), (1,), *others)
        operator, flipped = self.one("mul", "add", "sub", "div"), self.maybe(3)
        values = self.one("mixed", "positive", "zeros", "ones")
        if operator == "div":
            values, flipped = "positive" if values == "zeros" else values, False
        if self.maybe(5):
            value = self.one(2.0, -0.5, 1.0, 0.0 if operator != "div" else 4.0)
            return self.add("scalar", (i,), (operator, value, flipped), shape)
        self.layers.append(Const(tuple(chosen), values))
        return self.add("const", (i,), (operator, len(self.layers) - 1, flipped), shape)

    def affine(self, i: int) -> int:
        return self.norm(i) if not self.maybe(4) else self.constant(i)

    def sum(self, i: int, j: int) -> int:
        kind = self.one("add", "add", "sub", "add_")
        if kind == "add_" and not (self._writable(i) and i != j):
            kind = "add"
        return self.add(kind, (i, j), (self.one(1, 1, 1, 1, 2.0, -0.5),), self.shapes[i])

    # ---- single operations -----------------------------------------------------------------------------------------

    def pool(self, i: int) -> int:
        c, *space = self.shapes[i]
        n = len(space)
        kernel = tuple(self.one(2, 3, 1) for _ in range(n))
        stride = tuple(self.one(1, 2, 3) for _ in range(n))
        padding = tuple(self.one(0, 0, k // 2) for k in kernel)
        ceil, last = self.maybe(3), self.one(True, False)
        sizes = zip(space, kernel, stride, padding, strict=True)
        out = [window_size(h, k, s, 2 * p, ceil=ceil) for h, k, s, p in sizes]
        if min(out) < 1:
            return self.act(i)
        how = (kernel, stride, padding, ceil, last)
        return self.add(self.one("avg", "max"), (i,), how, (c, *out))

    def noop(self, i: int) -> int:
        return self.add("noop", (i,), (self.one("dropout", "contiguous", "clone", "cast"),), self.shapes[i])

    def call(self, name: str, i: int, *how: Any, shape: Shape | None = None, hidden: bool = False) -> int:
        """An operation that ATen has under (nearly) the same name and with the same arguments."""
        return self.add("call", (i,), (name, *how), self.shapes[i] if shape is None else shape, hidden=hidden)

    def movement(self, i: int) -> int:
        """Elements go elsewhere, or a zero joins them."""
        kind = self.one("shuffle", "pad", "pad", "cut", "resample", "repeat", "shift", "swap")
        moved: int | None = getattr(self, f"_{kind}")(i)
        return self._shuffle(i) if moved is None else moved

    def _shuffle(self, i: int) -> int:
        c = self.shapes[i][0]
        groups = self.one(*(g for g in range(1, c + 1) if c % g == 0))
        return self.add("shuffle", (i,), (groups, self.free or self.maybe(2)), self.shapes[i])

    def _pad(self, i: int) -> int:
        c, *space = self.shapes[i]
        n = len(space)
        flat = tuple(self.one(1, 0) for _ in range(2 * n))
        mode = "constant" if min(space) < 2 else self.one("constant", "constant", "reflect")
        grown = [h + flat[2 * (n - 1 - a)] + flat[2 * (n - 1 - a) + 1] for a, h in enumerate(space)]
        return self.add("pad", (i,), (flat, mode), (c, *grown))

    def _cut(self, i: int) -> int | None:
        shape = self.shapes[i]
        axis, start = self.one(1, 1, 2), self.one(0, 1)
        size = shape[axis - 1] - 1
        if size < 1 or (axis == 2 and self.free and not start):
            return None
        stop = start + size if axis == 1 or not start else 2**63 - 1
        return self.add(
            "slice", (i,), (axis, start, stop), tuple(size if a == axis - 1 else s for a, s in enumerate(shape))
        )

    def _resample(self, i: int) -> int | None:
        c, *space = self.shapes[i]
        pixels = len(space) == 2 and self.maybe(2)
        if max(space) <= 5 and not pixels:
            return self.add("upsample", (i,), (self.one("nearest", "linear"),), (c, *(2 * h for h in space)))
        if max(space) <= 5 and pixels and c % 4 == 0:
            return self.call("pixel_shuffle", i, 2, shape=(c // 4, *(2 * h for h in space)))
        if pixels and c <= 2 and not self.free and all(h % 2 == 0 for h in space):
            return self.call("pixel_unshuffle", i, 2, shape=(c * 4, *(h // 2 for h in space)))
        return None

    def _repeat(self, i: int) -> int | None:
        c, *space = self.shapes[i]
        return self.call("repeat", i, [1, 2, *[1] * len(space)], shape=(2 * c, *space)) if c <= 4 else None

    def _shift(self, i: int) -> int:
        axis = self.one(1, 2)
        return self.call("roll", i, [1], [axis]) if self.maybe(2) else self.call("flip", i, [axis])

    def _swap(self, i: int) -> int | None:
        c, *space = self.shapes[i]
        return None if self.free or len(space) == 1 else self.call("transpose", i, 2, 3, shape=(c, *reversed(space)))

    def average(self, i: int) -> int:
        """A mean over the channels, one axis or all of them, which broadcasts."""
        c, *space = self.shapes[i]
        axes = self.one(tuple(range(2, len(space) + 2)), (1,), (2,), (1, 2))
        shape = tuple(1 if a + 1 in axes else s for a, s in enumerate((c, *space)))
        return self.call("mean", i, list(axes), True, shape=shape, hidden=True)

    def again(self, i: int) -> int:
        """A layer that is already there, on another value (or once more on its own result)."""
        fits = []
        for k, layer in enumerate(self.layers):
            if isinstance(layer, Norm) and layer.kind == "batch" and layer.channels == self.shapes[i][0]:
                fits.append((k, self.shapes[i]))
            if isinstance(layer, Conv) and not layer.transposed and layer.mode == "zeros":
                shape = self._conv_shape(layer, i)
                fits += [(k, shape)] if shape else []
        fits = [(k, s) for k, s in fits if getattr(self.layers[k], "rank", len(self.shapes[i])) == len(self.shapes[i])]
        if not fits:
            return self.act(i)
        k, shape = self.one(*fits)
        return self.add("layer", (i,), (k,), shape)

    def _conv_shape(self, layer: Conv, i: int) -> Shape | None:
        c, *space = self.shapes[i]
        if layer.c_in != c or len(layer.kernel) != len(space):
            return None
        out = [
            window_size(h, k, s, d * (k - 1) if layer.padding == "same" else 2 * layer.padding[a], d)  # type: ignore[operator]
            for a, (h, k, s, d) in enumerate(zip(space, layer.kernel, layer.stride, layer.dilation, strict=True))
        ]
        return (layer.c_out, *out) if min(out) > 0 else None
