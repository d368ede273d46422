"""A graph as the page shows it: calls with their shapes, weights and costs, whatever file they come from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.engines import ListedCall
from reparam.ir import Program, batch_one, fixed_size, is_tensor, joins, module_of, node_macs, op_name, settings_of
from reparam.utils import dtype_name, one_line

# What an operator is for, by its name: the first pattern that is found decides.
KINDS = (
    ("layer", r"conv|^linear|matmul|gemm|mm$|bmm|einsum|attention|embedding"),
    ("norm", r"norm"),
    ("activation", r"relu|sigmoid|silu|gelu|swish|hardtanh|clamp|clip|tanh|softmax|mish|elu|softplus|erf"),
    ("pool", r"pool|^mean|reduce"),
)
DEEPEST = 24  # parts of a module path, at most


@dataclass(frozen=True)
class Weight:
    """A weight of a call. low, high: the range of its numbers, None where it has none or they are not finite."""

    name: str
    shape: str
    dtype: str
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Call:
    """One call, an input or the output.

    name: unique in its graph. module: the path of the layer that it belongs to. kind: what it is for: input, output,
    layer, norm, activation, pool, merge, gate, other. macs: multiply-accumulates of one sample. params: numbers in
    weights that no earlier call reads. reads: names of the calls whose results it takes.
    """

    name: str
    op: str
    settings: str
    module: str
    shape: str
    dtype: str
    kind: str
    macs: int = 0
    params: int = 0
    weights: tuple[Weight, ...] = ()
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """The calls in execution order. costs: whether multiply-accumulates are known of them."""

    calls: tuple[Call, ...]
    costs: bool = True

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Pairs of indices: read, reader."""
        index = {c.name: i for i, c in enumerate(self.calls)}
        return [(index[r], i) for i, c in enumerate(self.calls) for r in c.reads if r in index]

    @property
    def modules(self) -> set[str]:
        """Every module path, and every path that one begins with."""
        found: set[str] = set()
        for call in self.calls:
            found.update(prefixes(call.module))
        return found


def prefixes(module: str) -> list[str]:
    """`a.b.c` -> `a`, `a.b`, `a.b.c`; nothing for the whole network. Of a very long path the first parts."""
    parts = module.split(".")[:DEEPEST] if module else []
    return [path for i in range(len(parts)) if (path := ".".join(parts[: i + 1]))]


# ---- of a program ------------------------------------------------------------------------------------------------


def read_program(program: Program) -> Graph:
    """The calls of a program, its inputs and its output. What computes sizes is left out."""
    return Graph(tuple(_Reader(program).calls()))


class _Reader:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.env = batch_one(program)
        self.batch = set(self.env)
        self.joins = joins(program)
        self.counted: set[str] = set()

    def calls(self) -> Iterator[Call]:
        for node in self.program.graph.nodes:
            if node.op == "output":
                reads = tuple(dict.fromkeys(n.name for n in node.all_input_nodes))
                yield Call(node.name, "output", "", "", "", "", "output", reads=reads)
            elif node.op == "placeholder" and is_tensor(node):
                value = node.meta["val"]
                yield Call(node.name, one_line(str(node.target)), "", "", self._shape(value), _dtype(value), "input")
            elif node.op == "call_function" and _tensors(node.meta["val"]):
                yield self._call(node)

    def _call(self, node: fx.Node) -> Call:
        program, value = self.program, node.meta["val"]
        names = list(dict.fromkeys(str(n.target) for n in node.all_input_nodes if n.op == "get_attr"))
        fresh = [n for n in names if n not in self.counted]
        self.counted.update(fresh)
        constants = [program.constants[n] for n in names]
        tensors = [program.constants[n].value for n in fresh]
        name = op_name(node)
        return Call(
            name=node.name,
            op=one_line(name),
            settings=one_line(", ".join(settings_of(node))),
            module=one_line(module_of(node) or _owner(program, names)),
            shape=self._shape(value),
            dtype=_dtype(value),
            kind=self.joins.get(node) or kind_of(name),
            macs=node_macs(node, self.env) // program.samples,
            params=sum(t.numel() for t in tensors if t.is_floating_point()),
            weights=tuple(_weight(c.origin, c.value, dtype_name(c.dtype)) for c in constants),
            reads=tuple(dict.fromkeys(n.name for n in node.all_input_nodes if n.op != "get_attr")),
        )

    def _shape(self, value: Any) -> str:
        return ", ".join("x".join(self._size(s) for s in t.shape) or "scalar" for t in _tensors(value))

    def _size(self, size: Any) -> str:
        fixed = fixed_size(size)
        if fixed is not None:
            return str(fixed)
        return re.sub(r"\w+", lambda m: "N" if m[0] in self.batch else m[0], one_line(str(size)).replace(" ", ""))


def _tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, Tensor)]


def _dtype(value: Any) -> str:
    return ", ".join(dict.fromkeys(dtype_name(t.dtype) for t in _tensors(value)))


def _owner(program: Program, weights: Sequence[str]) -> str:
    return program.constants[weights[0]].origin.rpartition(".")[0] if weights else ""


def _weight(name: str, value: Tensor, dtype: str = "") -> Weight:
    """dtype: what it is emitted as, where that is not what it is kept in."""
    low, high = _range(value)
    shape = "x".join(map(str, value.shape)) or "scalar"
    return Weight(one_line(name), shape, dtype or dtype_name(value.dtype), low, high)


def _range(value: Tensor) -> tuple[float | None, float | None]:
    real = value.is_floating_point() or value.dtype in (torch.int8, torch.uint8, torch.int32, torch.int64)
    if not value.numel() or not real:
        return None, None
    ends = [float(v) for v in value.detach().aminmax()]
    finite = [v if abs(v) < float("inf") else None for v in ends]
    return finite[0], finite[1]


def kind_of(op: str) -> str:
    """What an operator is for, by its name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, op)), "other")


# ---- of other files ----------------------------------------------------------------------------------------------


def read_listed(calls: Sequence[ListedCall]) -> Graph:
    """The calls that an engine shows. What they cost is not known."""
    makers: dict[str, str] = {}
    found: list[Call] = []
    for i, call in enumerate(calls):
        name, (op, settings) = listed_name(i), _split(call.op)
        weights = tuple(_weight(f"{call.anchor.rpartition(' ')[2]} {k}", w) for k, w in enumerate(call.weights))
        if weights and settings.partition(",")[0] == weights[0].shape:  # the box shows it with the weight
            settings = settings.partition(",")[2].strip()
        reads = dict.fromkeys(_maker(makers, o, found) for o in call.operands)
        makers.update(dict.fromkeys(call.results, name))
        found.append(
            Call(
                name=name,
                op=op,
                settings=settings,
                module=call.module,
                shape=call.shape,
                dtype="",
                kind="merge" if len(reads) > 1 else kind_of(op),
                params=sum(w.numel() for w in call.weights),
                weights=weights,
                reads=tuple(reads),
            )
        )
    return Graph(tuple(found), costs=False)


def listed_name(index: int) -> str:
    """What the call of that place in a list is called in its graph."""
    return f"call {index}"


def _maker(makers: dict[str, str], operand: str, found: list[Call]) -> str:
    """The name of the call that makes a value; an input, where none does."""
    if operand not in makers:
        makers[operand] = f"input {operand}"
        found.append(Call(makers[operand], one_line(operand), "", "", "", "", "input"))
    return makers[operand]


def _split(text: str) -> tuple[str, str]:
    """`conv2d(64x3x7x7, stride=2)` -> the operator and what it depends on."""
    op, bracket, settings = text.partition("(")
    return op, settings.removesuffix(")") if bracket else ""


def by_module(graph: Graph) -> Mapping[str, list[Call]]:
    """The calls below each module path, "" for all of them."""
    found: dict[str, list[Call]] = {"": []}
    for call in graph.calls:
        found[""].append(call)
        for path in prefixes(call.module):
            found.setdefault(path, []).append(call)
    return found
