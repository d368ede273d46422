"""Turns a `Spec` into an nn.Module, and, without torch.export, into the Program that its capture would be.

A capture takes a good part of a second and the direct way a few milliseconds, so that many more networks can be tried.
Both interpreters are written out separately; `test_fuzz.py` holds them against each other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from specs import Const, Conv, Layer, Linear, Norm, Op, PReLU, Spec
from torch import Tensor, fx, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from reparam.ops import aten
from reparam.program import Constant, InputSpec, Program

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}
_POOLS = {
    ("avg", 1): (F.avg_pool1d, aten.avg_pool1d.default),
    ("avg", 2): (F.avg_pool2d, aten.avg_pool2d.default),
    ("max", 1): (F.max_pool1d, aten.max_pool1d.default),
    ("max", 2): (F.max_pool2d, aten.max_pool2d.default),
}
_ACTS: dict[str, tuple[Callable[..., Tensor], Any, tuple[Any, ...]]] = {
    "relu": (F.relu, aten.relu.default, ()),
    "relu6": (F.relu6, aten.relu6.default, ()),
    "leaky": (F.leaky_relu, aten.leaky_relu.default, ()),
    "gelu": (F.gelu, aten.gelu.default, ()),
    "silu": (F.silu, aten.silu.default, ()),
    "hardswish": (F.hardswish, aten.hardswish.default, ()),
    "sigmoid": (torch.sigmoid, aten.sigmoid.default, ()),
    "hardsigmoid": (F.hardsigmoid, aten.hardsigmoid.default, ()),
    "hardtanh": (F.hardtanh, aten.hardtanh.default, (-1.0, 1.0)),
    "elu": (F.elu, aten.elu.default, ()),
    "tanh": (torch.tanh, aten.tanh.default, ()),
    "abs": (torch.abs, aten.abs.default, ()),
}
_ARITHMETIC: dict[str, tuple[Callable[..., Any], Any]] = {
    "add": (operator.add, aten.add.Tensor),
    "sub": (operator.sub, aten.sub.Tensor),
    "mul": (operator.mul, aten.mul.Tensor),
    "div": (operator.truediv, aten.div.Tensor),
}


# ---- layers ----------------------------------------------------------------------------------------------------------


class Weight(nn.Module):
    """A bare parameter."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)


def _numbers(shape: tuple[int, ...], values: str) -> Tensor:
    x = 0.5 + torch.rand(shape)
    if values == "ones":
        return torch.ones(shape)
    if values == "zeros":
        return torch.where(torch.rand(shape) < 0.4, 0.0, x)
    return x if values == "positive" else torch.where(torch.rand(shape) < 0.4, -x, x)


def _norm(spec: Norm) -> nn.Module:
    c, affine = spec.channels, spec.gamma != "none"
    norm: Any
    if spec.kind == "layer":
        norm = nn.LayerNorm(c)
    elif spec.kind == "group":
        norm = nn.GroupNorm(spec.groups, c)
    else:
        norm = _NORMS[spec.rank](c, affine=affine)
        norm.running_mean.copy_(0.5 * torch.randn(c) if spec.shift else torch.zeros(c))
        norm.running_var.copy_(0.5 + torch.rand(c))
        if spec.tiny:
            norm.running_var[::2] = 1e-9
    if affine:
        norm.weight.copy_(_numbers((c,), spec.gamma))
        norm.bias.copy_(torch.randn(c) if spec.shift else torch.zeros(c))
    return nn.Module.eval(norm)


def _module(layer: Layer) -> nn.Module:
    if isinstance(layer, Norm):
        return _norm(layer)
    if isinstance(layer, Linear):
        return nn.Linear(layer.c_in, layer.c_out, layer.bias)
    if isinstance(layer, PReLU):
        return nn.PReLU(layer.count)
    if isinstance(layer, Const):
        return Weight(_numbers(layer.shape, layer.values))
    n = len(layer.kernel)
    options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    options |= {"groups": layer.groups, "bias": layer.bias, "padding_mode": layer.mode}
    if layer.transposed:
        return _TRANSPOSED[n](layer.c_in, layer.c_out, layer.kernel, output_padding=layer.extra, **options)
    return _CONVS[n](layer.c_in, layer.c_out, layer.kernel, **options)


# ---- as a module -----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """The network of a spec, with random weights from its seed."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        torch.manual_seed(spec.seed)
        with torch.no_grad():
            self.layers = nn.ModuleList(_module(layer) for layer in spec.layers)
        self.to(getattr(torch, spec.dtype)).eval()

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        values: list[Any] = list(inputs)
        for op in self.spec.ops:
            values.append(getattr(self, f"_{op.kind}")(op, *(values[i] for i in op.args)))
        return [values[i] for i in self.spec.outputs]

    def _layer(self, op: Op, x: Tensor) -> Any:
        return self.layers[op.how[0]](x)

    def _act(self, op: Op, x: Tensor) -> Tensor:
        call, _, rest = _ACTS[op.how[0]]
        return call(x, *rest)

    def _act_(self, op: Op, x: Tensor) -> Tensor:
        return _ACTS[op.how[0]][0](x, inplace=True)

    def _add(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return torch.add(x, y, alpha=op.how[0])

    def _sub(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return torch.sub(x, y, alpha=op.how[0])

    def _add_(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return x.add_(y, alpha=op.how[0])

    def _mul(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def _const(self, op: Op, x: Tensor) -> Any:
        name, k, flipped = op.how
        c = self.layers[k].value
        return _ARITHMETIC[name][0](c, x) if flipped else _ARITHMETIC[name][0](x, c)

    def _scalar(self, op: Op, x: Tensor) -> Any:
        name, c, flipped = op.how
        return _ARITHMETIC[name][0](c, x) if flipped else _ARITHMETIC[name][0](x, c)

    def _cat(self, op: Op, *values: Tensor) -> Tensor:
        return torch.cat(values, op.how[0])

    def _avg(self, op: Op, x: Tensor) -> Tensor:
        return _POOLS["avg", x.dim() - 2][0](x, *op.how)

    def _max(self, op: Op, x: Tensor) -> Tensor:
        kernel, stride, padding, ceil, _ = op.how
        return _POOLS["max", x.dim() - 2][0](x, kernel, stride, padding, ceil_mode=ceil)

    def _gap(self, op: Op, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.dim()))
        if op.how[0] == "adaptive":
            return F.adaptive_avg_pool1d(x, 1) if len(axes) == 1 else F.adaptive_avg_pool2d(x, 1)
        return x.mean(axes, keepdim=op.how[0] == "mean")

    def _noop(self, op: Op, x: Tensor) -> Tensor:
        name = op.how[0]
        if name == "dropout":
            return F.dropout(x, 0.5, self.training)
        return x.to(x.dtype) if name == "cast" else getattr(x, name)()

    def _flatten(self, op: Op, x: Tensor) -> Tensor:
        return x.flatten(*op.how)

    def _transpose(self, op: Op, x: Tensor) -> Tensor:
        return x.transpose(*op.how)

    def _unsqueeze(self, op: Op, x: Tensor) -> Tensor:
        return x.unsqueeze(*op.how)

    def _permute(self, op: Op, x: Tensor) -> Tensor:
        return x.permute(*op.how)

    def _shuffle(self, op: Op, x: Tensor) -> Tensor:
        groups, unflatten = op.how
        if unflatten:
            return x.unflatten(1, (groups, x.shape[1] // groups)).transpose(1, 2).flatten(1, 2)
        n, c, *space = x.shape
        return x.reshape(n, groups, c // groups, *space).transpose(1, 2).reshape(n, c, *space)

    def _like(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], *y.shape[2:])

    def _to_batch(self, op: Op, x: Tensor) -> Tensor:
        return x.reshape(-1, 1, *x.shape[2:])

    def _from_batch(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return x.reshape(-1, y.shape[1], *x.shape[2:])

    def _split(self, op: Op, x: Tensor) -> Any:
        name, how = op.how
        return x.chunk(how, 1) if name == "chunk" else x.split(list(how) if name == "sizes" else how, 1)

    def _item(self, op: Op, pieces: tuple[Tensor, ...]) -> Tensor:
        return pieces[op.how[0]]

    def _slice(self, op: Op, x: Tensor) -> Tensor:
        axis, start, stop = op.how
        return x[(slice(None),) * axis + (slice(start, stop),)]

    def _pad(self, op: Op, x: Tensor) -> Tensor:
        return F.pad(x, op.how[0], mode=op.how[1])

    def _upsample(self, op: Op, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


# ---- as a program ----------------------------------------------------------------------------------------------------


class _Builder:
    """Appends ATen calls to a graph, each with its fake value, as a capture leaves them."""

    def __init__(self, spec: Spec, net: Net) -> None:
        self.spec, self.net = spec, net
        self.graph = fx.Graph()
        self.mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False))
        self.constants: dict[str, Constant] = {}
        self.dtype = getattr(torch, spec.dtype)
        self._weights: dict[str, fx.Node] = {}
        self._path = ""

    def build(self) -> Program:
        values = [self._input(k) for k in range(self.spec.inputs)]
        inputs = tuple(self._contract(n) for n in values)
        for op in self.spec.ops:
            self._path = f"layers.{op.how[0]}" if op.kind == "layer" else ""
            made = getattr(self, f"_{op.kind.rstrip('_')}")(op, *(values[i] for i in op.args))
            if op.kind.endswith("_"):  # whoever reads the old name from now on sees what was written
                old = values[op.args[0]]
                values = [made if v is old else v for v in values]
            values.append(made)
        self.graph.output([values[i] for i in self.spec.outputs])
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        used = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        constants = {k: c for k, c in self.constants.items() if k in used}
        next(iter(reversed(self.graph.nodes))).meta = {"val": None, "module": "", "data": True}
        return Program(self.graph, constants, inputs, None, None, self.mode, self.dtype)

    def _input(self, k: int) -> fx.Node:
        names = {0: "batch", len(self.spec.shape): "width", len(self.spec.shape) - 1: "height"}
        rank = len(self.spec.shape) + 1
        dynamic = [names.get(a) in self.spec.dynamic and (a == 0 or rank == 4) for a in range(rank)]
        sizes = [DimDynamic.DYNAMIC if d else DimDynamic.STATIC for d in dynamic]
        name = f"inputs_{k}"
        with torch.no_grad():
            value = self.mode.from_tensor(
                torch.empty(2, *self.spec.shape, dtype=self.dtype),
                source=ConstantSource(name),
                symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes),
            )
        node = self.graph.placeholder(name)
        node.meta = {"val": value, "module": "", "data": True}
        return node

    def _contract(self, node: fx.Node) -> InputSpec:
        sizes = tuple(s if isinstance(s, int) else str(s.node.expr) for s in node.meta["val"].shape)
        return InputSpec(str(node.target), sizes, self.dtype, self.spec.low, self.spec.high)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with self.mode, torch.no_grad():
            fakes = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
            value = target(*fakes[0], **fakes[1])
        node = self.graph.call_function(target, args, kwargs)
        data = any(i.meta["data"] for i in node.all_input_nodes)
        node.meta = {"val": value, "module": self._path, "data": data}
        return node

    def weight(self, name: str) -> fx.Node | None:
        """The get_attr node of a parameter or buffer of the module; None when it has no such tensor."""
        path, _, leaf = name.rpartition(".")
        tensor = getattr(self.net.get_submodule(path), leaf)
        if tensor is None:
            return None
        if name not in self._weights:
            node = self.graph.create_node("get_attr", name)
            value = self.mode.from_tensor(tensor, static_shapes=True)
            node.meta = {"val": value, "module": "", "data": False}
            self.constants[name] = Constant(tensor, tensor.dtype, name, isinstance(tensor, nn.Parameter))
            self._weights[name] = node
        return self._weights[name]

    def size(self, node: fx.Node, axis: int) -> Any:
        value = node.meta["val"].shape[axis]
        return value if isinstance(value, int) else self.call(aten.sym_size.int, node, axis)

    # ---- one method for each kind of operation -----------------------------------------------------------------------

    def _layer(self, op: Op, x: fx.Node) -> fx.Node:
        layer, k = self.spec.layers[op.how[0]], f"layers.{op.how[0]}"
        w, b = self.weight(f"{k}.weight"), None
        if not isinstance(layer, PReLU):
            b = self.weight(f"{k}.bias")
        if isinstance(layer, PReLU):
            return self.call(aten.prelu.default, x, w)
        if isinstance(layer, Linear):
            return self.call(aten.linear.default, x, w, b)
        if isinstance(layer, Conv):
            return self._conv(layer, x, w, b)
        assert isinstance(layer, Norm)
        if layer.kind == "layer":
            return self.call(aten.layer_norm.default, x, [layer.channels], w, b, 1e-05, False)
        if layer.kind == "group":
            return self.call(aten.group_norm.default, x, layer.groups, w, b, 1e-05, False)
        mean, var = self.weight(f"{k}.running_mean"), self.weight(f"{k}.running_var")
        return self.call(aten.batch_norm.default, x, w, b, mean, var, False, 0.1, 1e-05, False)

    def _conv(self, layer: Conv, x: fx.Node, w: Any, b: Any) -> fx.Node:
        n = len(layer.kernel)
        stride, dilation = list(layer.stride), list(layer.dilation)
        if layer.transposed:
            target = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input}[n]
            assert not isinstance(layer.padding, str)
            rest = (list(layer.padding), list(layer.extra), layer.groups, dilation)
            return self.call(target, x, w, b, stride, *rest)
        if layer.padding == "same":
            target = {1: aten.conv1d.padding, 2: aten.conv2d.padding}[n]
            return self.call(target, x, w, b, stride, "same", dilation, layer.groups)
        padding = [int(p) for p in layer.padding]
        if layer.mode != "zeros":
            flat = [p for p in reversed(padding) for _ in range(2)]
            x, padding = self.call(aten.pad.default, x, flat, layer.mode), [0] * n
        target = {1: aten.conv1d.default, 2: aten.conv2d.default}[n]
        return self.call(target, x, w, b, stride, padding, dilation, layer.groups)

    def _act(self, op: Op, x: fx.Node) -> fx.Node:
        _, target, rest = _ACTS[op.how[0]]
        return self.call(target, x, *rest)

    def _add(self, op: Op, x: fx.Node, y: fx.Node) -> fx.Node:
        return self.call(aten.add.Tensor, x, y, **({} if op.how[0] == 1 else {"alpha": op.how[0]}))

    def _sub(self, op: Op, x: fx.Node, y: fx.Node) -> fx.Node:
        return self.call(aten.sub.Tensor, x, y, **({} if op.how[0] == 1 else {"alpha": op.how[0]}))

    def _mul(self, op: Op, x: fx.Node, y: fx.Node) -> fx.Node:
        return self.call(aten.mul.Tensor, x, y)

    def _const(self, op: Op, x: fx.Node) -> fx.Node:
        name, k, flipped = op.how
        c = self.weight(f"layers.{k}.value")
        return self.call(_ARITHMETIC[name][1], *((c, x) if flipped else (x, c)))

    def _scalar(self, op: Op, x: fx.Node) -> fx.Node:
        name, c, flipped = op.how
        if flipped and name == "sub":
            return self.call(aten.rsub.Scalar, x, c)
        return self.call(_ARITHMETIC[name][1], x, c)

    def _cat(self, op: Op, *values: fx.Node) -> fx.Node:
        return self.call(aten.cat.default, list(values), op.how[0])

    def _pool(self, x: fx.Node, name: str, *rest: Any) -> fx.Node:
        target = _POOLS[name, x.meta["val"].dim() - 2][1]
        return self.call(target, x, *(list(r) if isinstance(r, tuple) else r for r in rest))

    def _avg(self, op: Op, x: fx.Node) -> fx.Node:
        return self._pool(x, "avg", *op.how)

    def _max(self, op: Op, x: fx.Node) -> fx.Node:
        kernel, stride, padding, ceil, _ = op.how
        return self._pool(x, "max", kernel, stride, padding, (1,) * len(kernel), ceil)

    def _gap(self, op: Op, x: fx.Node) -> fx.Node:
        n = x.meta["val"].dim() - 2
        if op.how[0] == "adaptive":
            target = aten.adaptive_avg_pool1d.default if n == 1 else aten.adaptive_avg_pool2d.default
            return self.call(target, x, [1] * n)
        return self.call(aten.mean.dim, x, list(range(2, n + 2)), op.how[0] == "mean")

    def _noop(self, op: Op, x: fx.Node) -> fx.Node:
        name = op.how[0]
        if name == "dropout":
            return self.call(aten.dropout.default, x, 0.5, False)
        if name == "cast":
            return self.call(aten.to.dtype, x, self.dtype)
        return self.call({"contiguous": aten.contiguous.default, "clone": aten.clone.default}[name], x)

    def _flatten(self, op: Op, x: fx.Node) -> fx.Node:
        return self.call(aten.flatten.using_ints, x, *op.how)

    def _transpose(self, op: Op, x: fx.Node) -> fx.Node:
        return self.call(aten.transpose.int, x, *op.how)

    def _unsqueeze(self, op: Op, x: fx.Node) -> fx.Node:
        return self.call(aten.unsqueeze.default, x, *op.how)

    def _permute(self, op: Op, x: fx.Node) -> fx.Node:
        return self.call(aten.permute.default, x, list(op.how[0]))

    def _shuffle(self, op: Op, x: fx.Node) -> fx.Node:
        groups, unflatten = op.how
        n, c, *space = x.meta["val"].shape
        if unflatten:
            x = self.call(aten.unflatten.int, x, 1, [groups, c // groups])
            return self.call(aten.flatten.using_ints, self.call(aten.transpose.int, x, 1, 2), 1, 2)
        n = self.size(x, 0)
        x = self.call(aten.reshape.default, x, [n, groups, c // groups, *space])
        return self.call(aten.reshape.default, self.call(aten.transpose.int, x, 1, 2), [n, c, *space])

    def _like(self, op: Op, x: fx.Node, y: fx.Node) -> fx.Node:
        sizes = [self.size(x, 0), x.meta["val"].shape[1], *y.meta["val"].shape[2:]]
        return self.call(aten.reshape.default, x, sizes)

    def _to_batch(self, op: Op, x: fx.Node) -> fx.Node:
        return self.call(aten.reshape.default, x, [-1, 1, *x.meta["val"].shape[2:]])

    def _from_batch(self, op: Op, x: fx.Node, y: fx.Node) -> fx.Node:
        return self.call(aten.reshape.default, x, [-1, y.meta["val"].shape[1], *x.meta["val"].shape[2:]])

    def _split(self, op: Op, x: fx.Node) -> fx.Node:
        name, how = op.how
        if name == "chunk":
            return self.call(aten.chunk.default, x, how, 1)
        if name == "sizes":
            return self.call(aten.split_with_sizes.default, x, list(how), 1)
        return self.call(aten.split.Tensor, x, how, 1)

    def _item(self, op: Op, pieces: fx.Node) -> fx.Node:
        return self.call(operator.getitem, pieces, op.how[0])

    def _slice(self, op: Op, x: fx.Node) -> fx.Node:
        return self.call(aten.slice.Tensor, x, *op.how)

    def _pad(self, op: Op, x: fx.Node) -> fx.Node:
        flat, mode = op.how
        return self.call(aten.pad.default, x, list(flat), *(() if mode == "constant" else (mode,)))

    def _upsample(self, op: Op, x: fx.Node) -> fx.Node:
        n = x.meta["val"].dim() - 2
        target = aten.upsample_nearest1d.vec if n == 1 else aten.upsample_nearest2d.vec
        return self.call(target, x, None, [2.0] * n)


def build(spec: Spec, net: Net) -> Program:
    """The Program of `spec` over the weights of `net`. In-place writes must not meet values that share storage."""
    return _Builder(spec, net).build()
