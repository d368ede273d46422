"""What a program costs: multiply-accumulates, parameters, merges, gates, and whether it is a chain."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from reparam.errors import UnknownSizeError

from .aten import (
    ACTIVATIONS,
    ADDS,
    CONVS,
    DIVS,
    LINEARS,
    MATMULS,
    MULS,
    NORMS,
    RECURRENT,
    SUBS,
    TRANSPOSED_CONVS,
    arguments,
    aten,
    is_call,
    reads_size_alone,
)
from .program import Program, is_float, shape_of

_PRODUCTS = RECURRENT | {
    *(aten.einsum.default, aten.tensordot.default, aten.inner.default, aten.linalg_matrix_power.default),
    *(aten.linalg_multi_dot.default, aten.chain_matmul.default),
}
_SQUASHED = frozenset({aten.sigmoid.default, aten.hardsigmoid.default, aten.softmax.int, aten.tanh.default})


@dataclass(frozen=True)
class Census:
    """The counts that the report gives before and after; `macs` is for one sample of the traced size."""

    nodes: int
    merges: int
    gates: int
    convs: int
    norms: int
    params: int
    macs: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def batch_one(program: Program) -> dict[str, int]:
    """Symbol values that make the batch 1 and leave the other sizes as traced."""
    return {str(s.shape[0]): 1 for s in program.inputs if s.shape and isinstance(s.shape[0], str)}


def node_macs(node: fx.Node, env: dict[str, int] | None = None) -> int:
    """Multiply-accumulates of one call; 0 for whatever is neither a convolution nor a matrix product.

    Those of a call whose size depends on the values of the inputs are not counted either. Where the sizes of `env`
    leave nothing of a call, as one sample of a batch that is split in four, those that were traced count.
    """
    try:
        return _macs(node, env) or (_macs(node, None) if env else 0)
    except UnknownSizeError:
        return 0


def _macs(node: fx.Node, env: dict[str, int] | None) -> int:
    if is_call(node, CONVS):
        weight = shape_of(arguments(node)["weight"], env)
        return math.prod(shape_of(node, env)) * math.prod(weight[1:])
    if is_call(node, TRANSPOSED_CONVS):
        weight = shape_of(arguments(node)["weight"], env)
        return math.prod(shape_of(arguments(node)["input"], env)) * math.prod(weight[1:])
    if is_call(node, LINEARS):
        return math.prod(shape_of(node, env)) * shape_of(arguments(node)["weight"], env)[1]
    if is_call(node, _PRODUCTS):
        return _counted(node, env)
    if not is_call(node, MATMULS):
        return 0
    operands = [a for a in node.args if isinstance(a, fx.Node) and is_float(a)]
    if node.target is aten.scaled_dot_product_attention.default:
        q, k, v = (shape_of(a, env) for a in operands[:3])
        return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])
    if len(operands) < 2:
        return 0
    left = shape_of(operands[-2], env)
    return math.prod(shape_of(node, env)) * left[-1]


def _counted(node: fx.Node, env: dict[str, int] | None) -> int:
    """Multiply-accumulates of an operator that is several products, as torch counts them; nothing is computed."""

    def empty(value: Any) -> Any:
        known = value.meta.get("val") if isinstance(value, fx.Node) else value
        return (
            torch.empty(shape_of(value, env), dtype=known.dtype, device="meta") if isinstance(known, Tensor) else known
        )

    assert callable(node.target)
    args, kwargs = fx.node.map_aggregate(node.args, empty), fx.node.map_aggregate(node.kwargs, empty)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        try:
            node.target(*args, **kwargs)
        except RuntimeError:  # at sizes that the network was not traced at
            return 0
    return int(counter.get_total_flops()) // 2


def _extent(node: fx.Node) -> tuple[Any, ...]:
    """The shape, to be compared with others; a size that depends on the values of the inputs is a symbol."""
    try:
        return shape_of(node)
    except UnknownSizeError:
        return tuple(map(str, node.meta["val"].shape))


def _is_gate(node: fx.Node, operands: Iterable[fx.Node]) -> bool:
    """A squeeze-excite-like product: one operand broadcasts over space and comes out of a squashing function."""
    if not is_call(node, MULS):
        return False
    out = node.meta["val"].dim()
    for operand in operands:
        sizes = _extent(operand)
        if out >= 3 and len(sizes) == out and all(s == 1 for s in sizes[2:]) and _extent(node) != sizes:
            return True
        if is_call(operand, _SQUASHED) and sizes != _extent(node):
            return True
    return False


_POINTWISE = (
    frozenset(ACTIVATIONS)
    | ADDS
    | SUBS
    | MULS
    | DIVS
    | {aten.erf.default, aten.exp.default, aten.pow.Tensor_Scalar, aten.square.default, aten.reciprocal.default}
)


def _operands(program: Program) -> dict[fx.Node, list[fx.Node]]:
    """For each node what it reads of floats that depend on what the inputs are, and not on their sizes alone."""
    varying: set[fx.Node] = set()
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in program.graph.nodes:
        read = [i for i in node.all_input_nodes if i in varying]
        if node.op == "placeholder" or not all(reads_size_alone(node, i) for i in read):
            varying.add(node)
        found[node] = [i for i in read if is_float(i)]
    return found


def _sources(program: Program, data: dict[fx.Node, list[fx.Node]]) -> dict[fx.Node, fx.Node]:
    """For each node the value that it is a pointwise function of: itself, unless all its operands have one source."""
    source: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        source[node] = node
        if not is_call(node, _POINTWISE):
            continue
        operands = data[node]
        found = {source[i] for i in operands}
        if len(found) == 1 and all(_extent(i) == _extent(node) for i in operands):
            source[node] = found.pop()
    return source


def spelled_out(program: Program) -> dict[fx.Node, fx.Node]:
    """The calls inside activations of one source that are spelled by several calls: each with the activation's last.

    x * sigmoid(x) is one node however it is spelled. A call belongs to the last product or sum that reads it again.
    """
    data = _operands(program)
    source = _sources(program, data)
    inside: dict[fx.Node, fx.Node] = {}
    for node in reversed(list(program.calls())):
        if node in inside or len(data[node]) < 2 or source[node] is node:
            continue
        stack = list(data[node])
        inside[node] = node
        while stack:
            n = stack.pop()
            if n in inside or n is source[node]:
                continue
            if any(u not in inside or inside[u] is not node for u in n.users):
                continue
            inside[n] = node
            stack.extend(data[n])
        reads = {i for n in inside if inside[n] is node for i in data[n] if inside.get(i) is not node}
        if len(reads) != 1:  # a value inside is read from outside as well: then it is a merge after all
            inside = {n: last for n, last in inside.items() if last is not node}
    return inside


def joins(program: Program) -> dict[fx.Node, Literal["merge", "gate"]]:
    """The calls that join several values that depend on the inputs, and whether each is a merge or a gate."""
    inside, data = spelled_out(program), _operands(program)
    found: dict[fx.Node, Literal["merge", "gate"]] = {}
    for node in program.calls():
        operands = data[node]
        if len(operands) > 1 and node not in inside:
            found[node] = "gate" if _is_gate(node, operands) else "merge"
    return found


def census(program: Program) -> Census:
    """Counts nodes, merges, gates, convolutions, norms, parameters and MACs of `program`."""
    env = batch_one(program)
    joined = list(joins(program).values())
    convs = norms = macs = nodes = 0
    for node in program.calls():
        nodes += 1
        macs += node_macs(node, env)
        convs += is_call(node, CONVS | TRANSPOSED_CONVS)
        norms += is_call(node, NORMS) and node.meta["data"]
    merges, gates = joined.count("merge"), joined.count("gate")
    return Census(nodes, merges, gates, convs, norms, program.parameters(), macs // program.samples)


def is_chain(program: Program) -> bool:
    """True when no value that depends on the input has two users and nothing merges: one register, one path."""
    counts = census(program)
    if counts.merges or counts.gates:
        return False
    inside = spelled_out(program)
    return all(_users(n, inside) <= 1 for n in program.graph.nodes if n.meta["data"] and is_float(n))


def _users(node: fx.Node, inside: dict[fx.Node, fx.Node]) -> int:
    """The users of a value but for its sizes, an activation that is spelled by several calls counted once."""
    own = inside.get(node)
    users = {inside.get(u, u) for u in node.users if not isinstance(u.meta.get("val"), (int, torch.SymInt))}
    return 1 if own is not None and users == {own} else len(users)
