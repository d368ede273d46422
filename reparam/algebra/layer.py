"""Reads a convolution, transposed convolution or linear call as a `Layer`, and writes one back.

A Layer has constant weights. Its padding is kept as (low, high) pairs, since "same" padding can be uneven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, fx

from reparam.ir import CONVS, LINEARS, TRANSPOSED_CONVS, Program, arguments, aten, is_call, module_of, pair, shape_of

Kind = Literal["conv", "transposed", "linear"]
_CONV = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


@dataclass(frozen=True)
class Geometry:
    """How a sliding window moves.

    padding: one (low, high) pair for each spatial axis. output_padding: of a transposed convolution, where a node
    computes it from a free size.
    """

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int | fx.Node, ...] = ()

    @property
    def padded(self) -> bool:
        return any(p != (0, 0) for p in self.padding)


@dataclass(frozen=True)
class Layer:
    """One weighted call: y = W * x + b.

    conv:       weight (C_out, C_in/groups, *kernel), channel axis 1
    transposed: weight (C_in, C_out/groups, *kernel), channel axis 1
    linear:     weight (C_out, C_in), channel axis last; geometry without spatial axes
    """

    node: fx.Node
    kind: Kind
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    geometry: Geometry

    @property
    def kernel(self) -> tuple[int, ...]:
        return shape_of(self.weight)[2:]

    @property
    def axis(self) -> int:
        """The axis of the result that holds its channels."""
        return 1 if self.kind != "linear" else len(shape_of(self.node)) - 1

    @property
    def in_axis(self) -> int:
        """The axis of the input that holds its channels."""
        return 1 if self.kind != "linear" else len(shape_of(self.x)) - 1

    @property
    def out_channels(self) -> int:
        return shape_of(self.node)[self.axis]

    @property
    def in_channels(self) -> int:
        return shape_of(self.x)[self.in_axis]

    @property
    def pointwise(self) -> bool:
        """A linear layer, or a kernel of size one without padding."""
        return self.kind != "transposed" and all(k == 1 for k in self.kernel) and not self.geometry.padded


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The pairs that padding="same" stands for: the smaller half goes first."""
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((t // 2, t - t // 2) for t in totals)


def read_layer(program: Program, node: Any) -> Layer | None:
    """`node` as a Layer; None when it is no weighted call, is unbatched, or computes its weights from data."""
    if is_call(node, LINEARS):
        return _read_linear(program, node)
    if not is_call(node, CONVS | TRANSPOSED_CONVS):
        return None
    args = arguments(node)
    if program.constant(args["weight"]) is None or (
        args["bias"] is not None and program.constant(args["bias"]) is None
    ):
        return None
    kernel = shape_of(args["weight"])[2:]
    n = len(kernel)
    if len(shape_of(args["input"])) != n + 2:
        return None
    dilation = pair(args["dilation"], n)
    if args["padding"] == "same":
        padding = same_padding(kernel, dilation)
    elif args["padding"] == "valid":
        padding = ((0, 0),) * n
    else:
        padding = tuple((p, p) for p in pair(args["padding"], n))
    transposed = is_call(node, TRANSPOSED_CONVS)
    extra = _output_padding(args["output_padding"], n) if transposed else ()
    geometry = Geometry(pair(args["stride"], n), padding, dilation, int(args["groups"]), extra)
    kind: Kind = "transposed" if transposed else "conv"
    return Layer(node, kind, args["input"], args["weight"], args["bias"], geometry)


def _output_padding(sizes: Sequence[int | fx.Node], n: int) -> tuple[int | fx.Node, ...]:
    return tuple(sizes) * n if len(sizes) == 1 else tuple(sizes)


def _read_linear(program: Program, node: fx.Node) -> Layer | None:
    args = arguments(node)
    if program.constant(args["weight"]) is None or (
        args["bias"] is not None and program.constant(args["bias"]) is None
    ):
        return None
    if len(shape_of(args["weight"])) != 2:
        return None
    return Layer(node, "linear", args["input"], args["weight"], args["bias"], Geometry((), (), (), 1))


def weights(program: Program, layer: Layer) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in float64."""
    weight = program.tensor(layer.weight)
    assert weight is not None
    return weight, program.tensor(layer.bias)


def write_layer(
    program: Program,
    layer: Layer,
    weight: Tensor,
    bias: Tensor | None,
    *,
    x: fx.Node | None = None,
    geometry: Geometry | None = None,
    like: fx.Node | None = None,
) -> fx.Node:
    """A new call of the kind of `layer`, on `x` (default: the same input), with new float64 weights.

    weight, bias: as in Layer. like: where the node goes and whose module path it takes (default: `layer.node`).
    """
    like = like or layer.node
    geometry = geometry or layer.geometry
    constant = program.constants[str(layer.weight.target)]
    stem = constant.origin.removesuffix(".weight") if constant.origin.endswith(".weight") else ""
    path = module_of(layer.node) or stem
    bias_origin = (
        program.constants[str(layer.bias.target)].origin if layer.bias is not None else f"{path or 'conv'}.bias"
    )
    w = program.weight(weight, constant.origin, dtype=constant.dtype, like=like)
    b = program.weight(bias, bias_origin, dtype=constant.dtype, like=like) if bias is not None else None
    source = x or layer.x
    alike = source is layer.x and geometry is layer.geometry and shape_of(w) == shape_of(layer.weight)
    same = layer.node if alike else None
    if layer.kind == "linear":
        new = program.call(aten.linear.default, (source, w, b), like=like, same=same)
    elif layer.kind == "conv":
        new = conv_call(program, source, w, b, geometry, like=like, same=same)
    else:
        low = [p[0] for p in geometry.padding]
        args = (
            source,
            w,
            b,
            [*geometry.stride],
            low,
            [*geometry.output_padding],
            geometry.groups,
            [*geometry.dilation],
        )
        new = program.call(_TRANSPOSED[len(low)], args, like=like, same=same)
    new.meta["module"] = module_of(layer.node)
    return new


def renewed(program: Program, old: fx.Node, value: Tensor, *, like: fx.Node) -> fx.Node:
    """A new float64 weight before `like` in place of `old`, of which it has name and dtype; `old` itself stays."""
    was = program.constants[str(old.target)]
    return program.weight(value, was.origin, dtype=was.dtype, trainable=was.trainable, like=like)


def conv_call(
    program: Program,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    geometry: Geometry,
    *,
    like: fx.Node,
    same: fx.Node | None = None,
) -> fx.Node:
    """A convolution call. Uneven padding is spelled as a zero pad in front of it. same: as in `Program.call`."""
    n = len(geometry.stride)
    padding = [low for low, _ in geometry.padding]
    if any(low != high for low, high in geometry.padding):
        flat = [p for pair_ in reversed(geometry.padding) for p in pair_]
        x = program.call(aten.pad.default, (x, flat), like=like)
        padding = [0] * n
    args = (x, weight, bias, [*geometry.stride], padding, [*geometry.dilation], geometry.groups)
    return program.call(_CONV[n], args, like=like, same=same)
