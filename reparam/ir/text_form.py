"""A program as text: one line for each call, the same for the same program whatever its nodes are called.

    x: float32[N, 3, 8, 8]
    %0 = conv2d(x, conv.weight[4x3x3x3], conv.bias[4], padding=1) : Nx4x8x8  # conv
    %1 = relu(%0) : Nx4x8x8
    return %1

Values are numbered in execution order. A weight stands where it is read, by its name and shape. Arguments that are as
they would be when left out are left out, and an operand behind one of those is named: `clamp(%0, max=%1)`. Behind the
colon stands the shape of the result, N for a free batch, and its dtype where that is not the program's; behind the hash
the module that made the call.
"""

from __future__ import annotations

import itertools
from typing import Any

import sympy  # type: ignore[import-untyped]  # it ships no types
import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from reparam.utils import dtype_name, one_line

from .aten import arguments, op_name
from .cost import batch_one
from .program import Program, fixed_size, module_of

# Arguments that no result depends on.
UNIMPORTANT = frozenset({"momentum", "cudnn_enabled", "cudnn_enable", "memory_format"})


def text_of(program: Program) -> str:
    """The program as text, see above."""
    return "\n".join(_Writer(program).lines())


class _Writer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.batch = {name: sympy.Symbol(f"N{i or ''}") for i, name in enumerate(batch_one(program))}
        self.names: dict[fx.Node, str] = {}
        self.numbers = itertools.count()

    def lines(self) -> list[str]:
        found = []
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.names[node] = one_line(str(node.target))
                if node.users or isinstance(node.meta["val"], Tensor):
                    found.append(self._input(node))
            elif node.op == "get_attr":
                self.names[node] = self._weight(node)
            elif node.op == "output":
                found.append(f"return {self._value(node.args[0])}")
            else:
                self.names[node] = f"%{next(self.numbers)}"
                found.append(self._call(node))
        return found

    def _input(self, node: fx.Node) -> str:
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            return f"{self.names[node]} = {one_line(str(value))}"
        return f"{self.names[node]}: {dtype_name(value.dtype)}[{', '.join(self._sizes(value))}]"

    def _weight(self, node: fx.Node) -> str:
        constant = self.program.constants[str(node.target)]
        sizes = "x".join(str(int(n)) for n in constant.value.shape)
        return f"{one_line(str(node.target))}[{sizes}]"

    def _call(self, node: fx.Node) -> str:
        parts = [f"{name}{self._value(a)}" for name, a in _operands(node)] + settings_of(node)
        made = f"{self.names[node]} = {op_name(node)}({', '.join(parts)}) : {self._shape(node.meta['val'])}"
        place = one_line(module_of(node))
        return f"{made}  # {place}" if place else made

    def _shape(self, value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return f"({', '.join(self._shape(v) for v in value)})"
        if not isinstance(value, Tensor):
            return type(value).__name__
        sizes = "x".join(self._sizes(value)) or "scalar"
        return sizes if value.dtype == self.program.dtype else f"{sizes} {dtype_name(value.dtype)}"

    def _sizes(self, value: Tensor) -> list[str]:
        return [self._size(n) for n in value.shape]

    def _size(self, size: Any) -> str:
        fixed = fixed_size(size)
        if fixed is not None:
            return str(fixed)
        expr = size.node.expr
        named = expr.xreplace({s: self.batch[str(s)] for s in expr.free_symbols if str(s) in self.batch})
        text = str(named).replace(" ", "")
        return text if named.is_Symbol else f"({text})"

    def _value(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(self._value(v) for v in value)}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{one_line(str(k))}: {self._value(v)}' for k, v in value.items())}}}"
        return one_line(str(value))


def _operands(node: fx.Node) -> list[tuple[str, Any]]:
    """The arguments that hold values of the graph, in order; of a plain Python function all of them.

    Each with `name=` where an argument before it, which could hold a value too, is left out; else with "".
    """
    if not isinstance(node.target, OpOverload):
        return [("", a) for a in node.args]
    found, skipped = [], False
    for name, value in arguments(node).items():
        if _has_nodes(value):
            found.append((f"{name}=" if skipped else "", value))
        skipped = skipped or value is None
    return found


def settings_of(node: fx.Node) -> list[str]:
    """`stride=2`: the arguments of an ATen call that are neither operands nor what they would be when left out."""
    target = node.target
    if not isinstance(target, OpOverload):
        return []
    defaults = {a.name: a.default_value for a in target._schema.arguments}
    return [
        f"{name}={compact(value)}"
        for name, value in arguments(node).items()
        if name not in UNIMPORTANT and not _is_default(value, defaults.get(name)) and not _has_nodes(value)
    ]


def compact(value: Any) -> str:
    """`2` for [2, 2]; `[2,1]` otherwise."""
    if isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(v, int) and v == value[0] for v in value):
        return str(value[0])
    text = dtype_name(value) if isinstance(value, torch.dtype) else str(value)
    return one_line(text).replace(" ", "")


def _is_default(value: Any, default: Any) -> bool:
    return value is None or (value is False and default is None) or value == default


def _has_nodes(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(v, fx.Node) for v in values)
