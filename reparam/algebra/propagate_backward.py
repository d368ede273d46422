"""Carries a channel affine that follows a value back to the layers that produce it, which absorb it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
    ADDS,
    CATS,
    CONVS,
    DIVS,
    EINSUMS,
    EXTREMES,
    LINEARS,
    MOVEMENTS,
    MULS,
    SUBS,
    Program,
    Refusal,
    arguments,
    aten,
    is_call,
    is_float,
    op_name,
    place_of,
    reads_size_alone,
    shape_of,
)

from .absorbing_constants import TABLES, Term, table_takes, term_takes
from .channel_affine import Affine, Pair, along, read_affine, same
from .einsum_scales import einsum_backward
from .glu_scales import GLUS, glu_backward
from .layer import Layer, read_layer
from .masking import CHOICES, choice_backward, value_and_mask
from .movements import is_movement, move_backward
from .reductions import REDUCTIONS, WITH_POSITIONS, reduced_backward
from .route import (
    Action,
    Route,
    Step,
    is_transparent,
    passes_beside,
    passing,
    positive_only,
)
from .scaled_activation import Swap, scale_behind, takes_scale

_AFFINE_NORMS = frozenset({aten.layer_norm.default, aten.group_norm.default})
_PRODUCTS = frozenset({aten.matmul.default, aten.mm.default, aten.bmm.default})
Demands = dict[fx.Node, Any]


@dataclass(frozen=True)
class Shared:
    """A value that changes by an affine, and what reads it as it was."""

    pair: Pair
    readers: tuple[fx.Node, ...]


class _Last:
    """Orders a heap of nodes from the last in the graph to the first."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node

    def __lt__(self, other: _Last) -> bool:
        return other.node < self.node


def backward(
    program: Program, user: fx.Node, x: fx.Node, wanted: Pair, *, shared: dict[fx.Node, Shared] | None = None
) -> Route | Refusal:
    """Pulls `wanted`, the affine that `user` applies to `x`, back into the layers that make `x`.

    Every value on the way must be used only by nodes that asked for the affine: not by anything else, and not by a
    layer that absorbed it further on, which reads the value as it is. Refusal names the first node that does not let
    it through.

    shared: where it is given, a value may be used by others as well; it becomes an entry there, with its affine.
    """
    demands: Demands = {x: wanted}
    asked: dict[fx.Node, set[fx.Node]] = {x: {user}}
    steps: list[Step] = []
    others: list[fx.Node] = []
    heap, queued = [_Last(x)], {x}
    while heap:
        node = heapq.heappop(heap).node
        if node.op != "call_function":
            source = "an input of the network" if node.op == "placeholder" else "a weight"
            return Refusal(f"what comes before it is {source}", node)
        outsiders = [u for u in node.users if u not in asked[node]]
        siblings = _siblings(node, outsiders, demands[node])
        own = demands[node]
        if len(siblings) != len(outsiders) and shared is not None and isinstance(own, Pair):
            shared[node] = Shared(own, tuple(outsiders))
        elif len(siblings) != len(outsiders):
            user_name = place_of(outsiders[0])
            return Refusal(f"the value before it is also used by '{user_name}'", node)
        steps.extend(Step(s, "clone") for s in siblings)
        others.extend(siblings)
        step = _backward_step(program, node, demands[node])
        if isinstance(step, Refusal):
            return step
        action, taken, operands = step
        swap: Swap | None = None
        if isinstance(taken, Swap):
            swap, taken = taken, Pair()
        steps.append(Step(node, action, taken, swap))
        for operand, demand in operands:
            if operand in demands and not _agree(demands[operand], demand):
                return Refusal("its users ask for different affines", operand)
            demands[operand] = _join(demands.get(operand), demand)
            asked.setdefault(operand, set()).add(node)
            trivial = isinstance(demand, Pair) and demand.trivial  # stays as it is, which its other users may rely on
            if operand not in queued and not trivial:
                queued.add(operand)
                heapq.heappush(heap, _Last(operand))
    if not any(s.action == "sink" for s in steps):
        return Refusal("nothing before it could absorb it", x)
    return Route(tuple(reversed(steps)), "backward", tuple(others))


def _siblings(node: fx.Node, outsiders: list[fx.Node], wanted: Any) -> list[fx.Node]:
    """The outside users that read what stays as it is: another piece of a split, or a size."""
    pieces = wanted if isinstance(wanted, dict) else None
    return [
        u
        for u in outsiders
        if reads_size_alone(u, node) or (pieces is not None and op_name(u) == "getitem" and u.args[1] not in pieces)
    ]


def _agree(a: Any, b: Any) -> bool:
    if isinstance(a, dict):  # of a split, whose pieces are asked one by one
        return not set(a) & set(b)
    return same(a.scale, b.scale) and same(a.shift, b.shift)


def _join(a: Any, b: Any) -> Any:
    return {**a, **b} if isinstance(a, dict) else b


BackwardStep = tuple[Action, Pair | Swap, Sequence[tuple[fx.Node, Any]]]


def _backward_step(program: Program, node: fx.Node, wanted: Any) -> BackwardStep | Refusal:
    if isinstance(wanted, dict):
        return _backward_split(program, node, wanted)
    layer = read_layer(program, node)
    if layer is not None:
        return _backward_sink(layer, wanted)
    if is_call(node, _AFFINE_NORMS):
        return _backward_norm(program, node, wanted)
    affine = read_affine(program, node)
    if isinstance(affine, Affine):
        return "skip", wanted, [(affine.x, affine.pair.then(wanted.scale, wanted.shift))]
    if is_call(node, CATS):
        return _backward_cat(node, wanted)
    for kinds, step in _STEPS:
        if is_call(node, kinds):
            return step(program, node, wanted)
    return _backward_unary(program, node, wanted)


def _backward_sink(layer: Layer, wanted: Pair) -> BackwardStep | Refusal:
    try:
        scale, shift = along(wanted.scale, layer.axis), along(wanted.shift, layer.axis)
    except ValueError:
        if passes_beside(layer, wanted):
            return "clone", wanted, [(layer.x, wanted)]
        return Refusal("the affine does not lie along the channel axis of the layer before it", layer.node)
    width = layer.out_channels
    parts = (v if v is None or v.numel() == width else v.expand(width) for v in (scale, shift))
    return "sink", Pair(*parts), []


def _backward_norm(program: Program, node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    args = arguments(node)
    if any(args[k] is not None and program.tensor(args[k]) is None for k in ("weight", "bias")):
        return Refusal("the norm's weights are computed from the data", node)
    last = is_call(node, frozenset({aten.layer_norm.default}))
    if last and len(args["normalized_shape"]) != 1:
        return Refusal("the norm's affine spans several axes", node)
    axis = len(shape_of(node)) - 1 if last else 1
    width = shape_of(node)[axis]
    try:
        parts = [along(v, axis) for v in (wanted.scale, wanted.shift)]
    except ValueError:
        return Refusal("the affine does not lie along the channel axis of the norm before it", node)
    return "sink", Pair(*(v if v is None else v.expand(width) for v in parts)), []


def _backward_cat(node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    operands: Sequence[fx.Node] = node.args[0]  # type: ignore[assignment]
    if len(set(operands)) != len(operands):
        return Refusal("the same value is concatenated twice", node)
    axis = int(arguments(node)["dim"])
    sizes = [shape_of(o)[axis] for o in operands]
    parts = []
    for value in (wanted.scale, wanted.shift):
        if value is None or value.shape[axis] == 1:
            parts.append([value] * len(operands))
        else:
            parts.append(list(value.split(sizes, axis)))
    return "clone", wanted, [(o, Pair(s, t)) for o, s, t in zip(operands, *parts, strict=True)]


def _two_operands(program: Program, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    left, right = arguments(node)["self"], arguments(node)["other"]
    if any(not is_float(side) or program.constant(side) is not None for side in (left, right)):
        return None
    return (left, right) if left is not right else None


def _backward_sum(program: Program, node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    sides = _two_operands(program, node)
    if sides is None or any(shape_of(s) != shape_of(node) for s in sides):
        term = term_takes(program, node, wanted)
        if isinstance(term, Term):
            return "sink", wanted, [(term.data, Pair(wanted.scale))]
        return term or Refusal(f"the affine does not pass back through this {op_name(node)}", node)
    left, right = sides
    if node.target is aten.rsub.Tensor:
        left, right = right, left  # which is what the other is subtracted from
    even = is_call(node, ADDS) and arguments(node)["alpha"] == 1
    if even and read_layer(program, left) is None and read_layer(program, right) is not None:
        left, right = right, left  # a shift needs only one of them, best a layer
    return "clone", wanted, [(left, Pair(wanted.scale, wanted.shift)), (right, Pair(wanted.scale))]


def _backward_table(program: Program, node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    taken = table_takes(program, node, wanted)
    return taken if isinstance(taken, Refusal) else ("sink", taken, [])


def _backward_product(program: Program, node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    sides = _two_operands(program, node) or value_and_mask(node)
    if sides is None or wanted.shift is not None:
        return Refusal("a shift does not pass back through a product with data", node)
    full = next((s for s in sides if shape_of(s) == shape_of(node)), None)
    if full is None:
        return Refusal("the scale does not pass back through a product that broadcasts", node)
    return "clone", wanted, [(full, wanted)]


def _backward_quotient(program: Program, node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    """a (x / d) = (a x) / d for any d; the divisor itself takes nothing."""
    top, divisor = arguments(node)["self"], arguments(node)["other"]
    if not is_float(top) or program.constant(top) is not None or top is divisor:
        return Refusal("what is divided takes no scale", node)
    if wanted.shift is not None:
        return Refusal("a shift does not pass back through a quotient of data", node)
    if shape_of(top) != shape_of(node):
        return Refusal("the scale does not pass back through a quotient that broadcasts", node)
    return "clone", wanted, [(top, wanted)]


def _backward_extreme(program: Program, node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    """a max(x, y) + t = max(a x + t, a y + t) for a >= 0; the same of the minimum."""
    sides = _two_operands(program, node)
    if sides is None or any(shape_of(s) != shape_of(node) for s in sides):
        return Refusal(f"the affine does not pass back through this {op_name(node)}", node)
    return positive_only(node, Pair(wanted.scale)) or ("clone", wanted, [(side, wanted) for side in sides])


def _backward_einsum(program: Program, node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    found = einsum_backward(program, node, wanted)
    return found if isinstance(found, Refusal) else ("clone", wanted, [found])


def _backward_choice(program: Program, node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    found = choice_backward(program, node, wanted)
    return found if isinstance(found, Refusal) else ("clone", wanted, found)


def _backward_matmul(program: Program, node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    """(r_i c_j) sum_k A_ik B_kj: a scale of the rows goes into A, of the columns into B, of the whole into A."""
    left, right = arguments(node).values()
    scale, rank = wanted.scale, len(shape_of(node))
    if wanted.shift is not None or left is right:
        fixed = any(program.constant(side) is not None for side in (left, right))
        other = "a matrix" if fixed else "data"
        return Refusal(f"a shift does not pass back through a product with {other}", node)
    if scale is None or rank < 2:
        return Refusal("the scale does not pass back through a product that broadcasts", node)
    rows = scale.shape[-1] == 1 and not (scale.shape[-2] == 1 and program.constant(left) is not None)
    taker, axis = (left, -1) if rows else (right, -2)
    if program.constant(taker) is not None or not is_float(taker):
        return Refusal("what would take the scale of this product is a weight that is no layer", node)
    if len(shape_of(taker)) != rank:
        return Refusal("the scale does not pass back through a product that broadcasts", node)
    if scale.shape[axis] != 1 or any(n not in (1, m) for n, m in zip(scale.shape, shape_of(taker), strict=True)):
        return Refusal("the scale varies along rows and columns of a product with data", node)
    return "clone", wanted, [(taker, wanted)]


def _backward_kernel(program: Program, node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    """s_o (sum_i W_oi x_i + b_o) = sum_i (s_o W_oi) x_i + s_o b_o, where W is computed from data, and b as well."""
    args = arguments(node)
    weight, bias = args["weight"], args["bias"]
    axis = 1 if is_call(node, CONVS) else len(shape_of(node)) - 1
    taking = [n for n in (weight, bias) if n is not None]
    if is_call(node, CONVS) and len(shape_of(node)) != len(shape_of(weight)):
        return Refusal(f"the {op_name(node)} is of one sample, which has its channels in front", node)
    if wanted.shift is not None or wanted.scale is None:
        return Refusal("a shift does not pass back through a product with data", node)
    if any(program.constant(n) is not None or not is_float(n) for n in taking):
        return Refusal(f"the {op_name(node)} has weights of its own beside those that are computed", node)
    try:
        scale = along(wanted.scale, axis)
    except ValueError:
        return Refusal(f"the scale does not lie along the channels of {op_name(node)}", node)
    assert scale is not None
    return "clone", wanted, [(n, Pair(scale.reshape(-1, *[1] * (len(shape_of(n)) - 1)))) for n in taking]


def _backward_unary(program: Program, node: fx.Node, wanted: Pair) -> BackwardStep | Refusal:
    x = node.args[0] if node.args else None
    if not isinstance(x, fx.Node):
        return Refusal(f"{op_name(node)} does not commute with a channel affine", node)
    if op_name(node) == "getitem":
        return "clone", wanted, [(x, {int(node.args[1]): wanted})]  # type: ignore[arg-type]
    if is_transparent(node):
        return "clone", wanted, [(x, wanted)]
    if is_movement(program, node):
        moved = _moved_back(program, node, x, wanted)
        return moved if isinstance(moved, Refusal) else ("clone", wanted, [(x, moved)])
    check = passing(node)
    if check is not None:
        return check(node, wanted) or ("clone", wanted, [(x, wanted)])
    if takes_scale(program, node) and wanted.shift is None and wanted.scale is not None:
        swapped = scale_behind(program, node, wanted.scale)
        return swapped if isinstance(swapped, Refusal) else ("clone", swapped[1], [(x, Pair(swapped[0]))])
    if is_call(node, GLUS):
        gated = glu_backward(node, wanted)
        return gated if isinstance(gated, Refusal) else ("clone", wanted, [(x, gated)])
    if is_call(node, REDUCTIONS):
        reduced = reduced_backward(node, x, wanted)
        return reduced if isinstance(reduced, Refusal) else ("clone", wanted, [(x, reduced)])
    return Refusal(f"{op_name(node)} does not commute with a channel affine", node)


def _moved_back(program: Program, node: fx.Node, x: fx.Node, wanted: Pair) -> Pair | Refusal:
    parts: list[Tensor | None] = []
    for value, neutral in ((wanted.scale, 1.0), (wanted.shift, 0.0)):
        moved = None if value is None else move_backward(program, node, x, value, neutral)
        if isinstance(moved, Refusal):
            return moved
        parts.append(moved)
    return Pair(*parts)


def _backward_split(program: Program, node: fx.Node, wanted: dict[int, Pair]) -> BackwardStep | Refusal:
    """A split whose pieces have their own affines; pieces that nobody asked for keep theirs. Or values in order."""
    if is_call(node, WITH_POSITIONS) and set(wanted) == {0}:
        return _backward_unary(program, node, wanted[0])
    if not is_call(node, MOVEMENTS):
        return Refusal(f"{op_name(node)} does not commute with a channel affine", node)
    x = node.args[0]
    assert isinstance(x, fx.Node)
    parts: list[Tensor | None] = []
    shapes = [v.shape for v in node.meta["val"]]
    for part, neutral in (("scale", 1.0), ("shift", 0.0)):
        chosen = [getattr(wanted.get(i, Pair()), part) for i in range(len(shapes))]
        if all(c is None for c in chosen):
            parts.append(None)
            continue
        full = [
            c if c is not None else torch.full([1] * len(s), neutral, dtype=torch.float64)
            for c, s in zip(chosen, shapes, strict=True)
        ]
        moved = move_backward(program, node, x, full, neutral)
        if isinstance(moved, Refusal):
            return moved
        parts.append(moved)
    return "clone", Pair(), [(x, Pair(*parts))]


_STEPS: Sequence[tuple[frozenset[Any], Callable[[Program, fx.Node, Pair], BackwardStep | Refusal]]] = (
    (ADDS | SUBS, _backward_sum),
    (MULS, _backward_product),
    (DIVS, _backward_quotient),
    (_PRODUCTS, _backward_matmul),
    (EXTREMES, _backward_extreme),
    (EINSUMS, _backward_einsum),
    (CHOICES, _backward_choice),
    (TABLES, _backward_table),
    (CONVS | LINEARS, _backward_kernel),
)
