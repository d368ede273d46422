"""Builds the Program of a `Spec` without torch.export, as its capture would be.

A capture takes a good part of a second and the direct way a few milliseconds, so that many more networks can be tried.
The interpreter is written apart from the one in `networks.py`; `test_fuzz.py` holds them against each other.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from sympy import sympify
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from reparam.ir import Constant, InputSpec, Program, aten
from support.networks import ACTS, ARITHMETIC, CALLS, POOLS, Net
from support.specs import Conv, Linear, Norm, Op, PReLU, Spec


def _is_default(argument: Any, value: Any) -> bool:
    default = argument.default_value if argument.has_default_value() else ...
    return type(default) is type(value) and bool(default == value)


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are one symbol. Comparing the sizes themselves would fix them."""
    return not isinstance(a, int) and bool(a.node.expr == b.node.expr)


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
        self._sizes: list[fx.Node] = []

    def build(self) -> Program:
        placeholders = [self._input(k) for k in range(self.spec.inputs)]
        free = [(p, k) for p in placeholders for k, s in enumerate(p.meta["val"].shape) if not isinstance(s, int)]
        self._sizes = [self.call(aten.sym_size.int, p, k) for p, k in free]
        values = list(placeholders)
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
        inputs = tuple(self._contract(n) for n in placeholders)
        assert self.mode.shape_env is not None
        self.mode.shape_env.freeze()  # from here on, as after a capture, nothing fixes a size that is free
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
        """What the program asks of an input; an operation may have fixed a size that was free at first."""
        exprs = [sympify(s if isinstance(s, int) else s.node.expr) for s in node.meta["val"].shape]
        sizes = tuple(int(e) if e.is_number else str(e) for e in exprs)
        return InputSpec(str(node.target), sizes, self.dtype, self.spec.low, self.spec.high)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call without the trailing arguments that have their default value, as torch.export writes it."""
        schema = getattr(target, "_schema", None)
        while schema and len(args) > 1 and _is_default(schema.arguments[len(args) - 1], args[-1]):
            args = args[:-1]
        with self.mode, torch.no_grad(), enable_python_dispatcher():  # as torch.export: else some ops fix free sizes
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
        """A number where the size is fixed; one that is free is read off the first input that has it."""
        value = node.meta["val"].shape[axis]
        if isinstance(value, int):
            return value
        return next(n for n in self._sizes if _same(n.meta["val"], value))

    # ---- one method for each kind of operation -----------------------------------------------------------------------

    def _layer(self, op: Op, x: fx.Node) -> fx.Node:
        layer, k = self.spec.layers[op.how[0]], f"layers.{op.how[0]}"
        if isinstance(layer, PReLU):
            return self.call(aten.prelu.default, x, self.weight(f"{k}.weight"))
        if isinstance(layer, Conv) and layer.gain:
            weight = self.call(aten.mul.Tensor, self.weight(f"{k}.conv.weight"), self.weight(f"{k}.gain"))
            return self._conv(layer, x, weight, self.weight(f"{k}.conv.bias"))
        w, b = self.weight(f"{k}.weight"), self.weight(f"{k}.bias")
        if isinstance(layer, Linear):
            return self.call(aten.linear.default, x, w, b)
        if isinstance(layer, Conv):
            return self._conv(layer, x, w, b)
        assert isinstance(layer, Norm)
        if layer.kind == "layer":
            return self.call(aten.layer_norm.default, x, [layer.channels], w, b, 1e-05, False)
        if layer.kind == "group":
            return self.call(aten.group_norm.default, x, layer.groups, w, b, 1e-05, False)
        if layer.kind == "instance":
            return self.call(aten.instance_norm.default, x, w, b, None, None, True, 0.1, 1e-05, False)
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
        _, target, rest = ACTS[op.how[0]]
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
        return self.call(ARITHMETIC[name][1], *((c, x) if flipped else (x, c)))

    def _scalar(self, op: Op, x: fx.Node) -> fx.Node:
        name, c, flipped = op.how
        if flipped and name == "sub":
            return self.call(aten.rsub.Scalar, x, c)
        return self.call(ARITHMETIC[name][1], x, c)

    def _call(self, op: Op, x: fx.Node) -> fx.Node:
        name, *rest = op.how
        return self.call(CALLS[name][1], x, *rest)

    def _matmul(self, op: Op, x: fx.Node, y: fx.Node) -> fx.Node:
        return self.call(aten.matmul.default, x, y)

    def _cat(self, op: Op, *values: fx.Node) -> fx.Node:
        return self.call(aten.cat.default, list(values), op.how[0])

    def _pool(self, x: fx.Node, name: str, *rest: Any) -> fx.Node:
        target = POOLS[name, x.meta["val"].dim() - 2][1]
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
        for axis in range(op.how[0]):  # x[:, a:b]: where a size is free, the plain colon is an operation too
            if not isinstance(x.meta["val"].shape[axis], int):
                x = self.call(aten.slice.Tensor, x, axis, 0, 2**63 - 1)
        return self.call(aten.slice.Tensor, x, *op.how)

    def _pad(self, op: Op, x: fx.Node) -> fx.Node:
        flat, mode = op.how
        return self.call(aten.pad.default, x, list(flat), *(() if mode == "constant" else (mode,)))

    def _upsample(self, op: Op, x: fx.Node) -> fx.Node:
        n = x.meta["val"].dim() - 2
        if op.how[0] == "nearest":
            target = aten.upsample_nearest1d.vec if n == 1 else aten.upsample_nearest2d.vec
            return self.call(target, x, None, [2.0] * n)
        target = aten.upsample_linear1d.vec if n == 1 else aten.upsample_bilinear2d.vec
        return self.call(target, x, None, False, [2.0] * n)


def build(spec: Spec, net: Net) -> Program:
    """The Program of `spec` over the weights of `net`. In-place writes must not meet values that share storage."""
    return _Builder(spec, net).build()
