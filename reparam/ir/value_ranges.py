"""What rules may assume about values: intervals, users, dependence on data. Nothing is guessed from a name.

Intervals come from interval analysis over the graph: every operator maps the intervals of its operands to one that
contains all its results. An operator that is not listed gives (-inf, inf), which is always true.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import fx

from .aten import ADDS, AVG_POOLS, CATS, IDENTITIES, MAX_POOLS, MOVEMENTS, MULS, arguments, aten, pair
from .program import Program, is_float, is_tensor

Interval = tuple[float, float]
_SLACK = 1e-6  # for ends that are rounded, also where the network runs in float32
ALL: Interval = (-math.inf, math.inf)

_FIXED: dict[Any, Interval] = {
    aten.sigmoid.default: (0.0, 1.0),
    aten.hardsigmoid.default: (0.0, 1.0),
    aten.softmax.int: (0.0, 1.0),
    aten.tanh.default: (-1.0, 1.0),
    aten.relu6.default: (0.0, 6.0),
}
# The least value of each of these over all x, rounded down. None of them exceeds |x|.
_FLOORS: dict[Any, float] = {
    aten.gelu.default: -0.171,
    aten.silu.default: -0.279,
    aten.mish.default: -0.309,
    aten.hardswish.default: -0.376,
    aten.abs.default: 0.0,
}
_SIGN_KEEPING = (
    IDENTITIES
    | MOVEMENTS
    | MAX_POOLS
    | frozenset(
        {
            aten.adaptive_avg_pool1d.default,
            aten.adaptive_avg_pool2d.default,
            aten.adaptive_avg_pool3d.default,
            aten.adaptive_max_pool2d.default,
            aten.mean.dim,
            aten.mean.default,
            aten.amax.default,
            aten.amin.default,
            aten.upsample_bilinear2d.vec,
        }
    )
)

_READ = _SIGN_KEEPING | CATS | AVG_POOLS | frozenset(_FLOORS) | {aten.relu.default}


def _hull(intervals: list[Interval]) -> Interval:
    return (min(i[0] for i in intervals), max(i[1] for i in intervals)) if intervals else ALL


def _needed(node: fx.Node) -> list[fx.Node]:
    """Operands whose intervals decide the node's own; none for operators that can return anything."""
    if node.op != "call_function" or not (node.target in _READ or node.target in _HANDLERS):
        return []
    return list(node.all_input_nodes)


def _times(a: float, b: float) -> float:
    """a*b with 0*inf = 0, since an interval's infinite end is never reached."""
    return 0.0 if a == 0.0 or b == 0.0 else a * b


class Ranges:
    """Intervals of the values of one program, computed on demand and remembered by node."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._known: dict[fx.Node, Interval] = {}
        self._specs = {spec.name: spec for spec in program.inputs}

    def of(self, node: Any) -> Interval:
        """An interval that holds every element of `node`'s value."""
        if isinstance(node, (int, float)):
            return (float(node), float(node))
        if not isinstance(node, fx.Node):
            return ALL
        stack = [node]
        while stack:
            top = stack[-1]
            waiting = [] if top in self._known else [i for i in _needed(top) if i not in self._known]
            if waiting:
                stack.extend(waiting)
                continue
            if top not in self._known:
                self._known[top] = self._infer(top)
            stack.pop()
        return self._known[node]

    def inherit(self, old: fx.Node, new: fx.Node) -> None:
        """`new` takes the place of `old`: they are equal, so that what is known of one holds for the other."""
        (low, high), (other_low, other_high) = self.of(old), self.of(new)
        self._known[new] = (max(low, other_low), min(high, other_high))

    def nonnegative(self, node: fx.Node) -> bool:
        """True when every element is proven to be at least zero."""
        return self.of(node)[0] >= 0.0

    def _infer(self, node: fx.Node) -> Interval:
        if node.op == "placeholder":
            spec = self._specs.get(str(node.target))
            return (spec.low, spec.high) if spec else ALL
        if node.op == "get_attr":
            value = self._program.constants[str(node.target)].value.detach()
            if not value.is_floating_point() or not value.numel():
                return ALL
            return (float(value.min()), float(value.max()))
        if node.op != "call_function":
            return ALL
        return self._call(node)

    def _call(self, node: fx.Node) -> Interval:
        if node.target in _FIXED:
            return _FIXED[node.target]
        if not (node.target in _READ or node.target in _HANDLERS):
            return ALL
        operands = [self._known[i] for i in node.all_input_nodes if is_float(i) or node.target in MOVEMENTS]
        if not operands:
            return ALL
        first = operands[0]
        if node.target in _FLOORS:
            return (_FLOORS[node.target], max(abs(first[0]), abs(first[1])))
        if node.target is aten.relu.default:
            return (max(0.0, first[0]), max(0.0, first[1]))
        if node.target in _SIGN_KEEPING:
            return first
        if node.target in CATS:
            return _hull(operands)
        if node.target in AVG_POOLS:
            return self._average(node, first)
        handler = _HANDLERS.get(node.target)
        if handler is None or not all(is_tensor(i) for i in node.all_input_nodes):  # a free size among its numbers
            return ALL
        return handler(self, node)

    def _average(self, node: fx.Node, x: Interval) -> Interval:
        """Padding counts as zero. With a divisor of its own it is a sum over at most all taps, divided by that."""
        args = arguments(node)
        taps = math.prod(pair(args["kernel_size"], node.meta["val"].dim() - 2))
        factor = taps / args["divisor_override"] if args.get("divisor_override") else 1.0
        ends = (_times(factor, min(0.0, x[0])), _times(factor, max(0.0, x[1])))
        return (min(ends), max(ends))

    def _exp(self, node: fx.Node) -> Interval:
        low, high = (self._exponential(v) for v in self.of(node.args[0]))
        return (max(0.0, low * (1 - _SLACK)), high * (1 + _SLACK))

    @staticmethod
    def _exponential(value: float) -> float:
        return math.exp(value) if value < 700.0 else math.inf

    def _square(self, node: fx.Node) -> Interval:
        top = max(abs(v) for v in self.of(node.args[0]))
        return (0.0, top * top)

    def _softplus(self, node: fx.Node) -> Interval:
        """0 <= log(1 + exp(b*x))/b <= max(x, 0) + log(2)/b for b > 0."""
        beta = float(arguments(node)["beta"])
        return (0.0, (max(self.of(node.args[0])[1], 0.0) + math.log(2) / beta) * (1 + _SLACK)) if beta > 0 else ALL

    def _add(self, node: fx.Node) -> Interval:
        args = arguments(node)
        (a, b), (c, d) = self.of(args["self"]), self.of(args["other"])
        alpha = float(args.get("alpha", 1) or 0)
        ends = sorted((_times(alpha, c), _times(alpha, d)))
        return (a + ends[0], b + ends[1])

    def _mul(self, node: fx.Node) -> Interval:
        args = arguments(node)
        if args["self"] is args["other"]:
            top = max(abs(v) for v in self.of(args["self"]))
            return (0.0, top * top)
        ends = [_times(p, q) for p in self.of(args["self"]) for q in self.of(args["other"])]
        return (min(ends), max(ends))

    def _clamp(self, node: fx.Node) -> Interval:
        args = arguments(node)
        low, high = self.of(args["self"])
        floor = args.get("min", args.get("min_val"))
        ceiling = args.get("max", args.get("max_val"))
        if isinstance(floor, (int, float)):
            low, high = max(low, float(floor)), max(high, float(floor))
        if isinstance(ceiling, (int, float)):
            low, high = min(low, float(ceiling)), min(high, float(ceiling))
        return (low, high)

    def _clamp_between(self, node: fx.Node) -> Interval:
        """min(max(x, l), h) with weights l <= h for each channel."""
        low, high = self.of(node.args[0])
        ends = [self._program.tensor(v) if isinstance(v, fx.Node) else None for v in (*node.args[1:3], None)[:2]]
        lower, upper = ends
        if lower is None or upper is None or not lower.numel() or not upper.numel() or bool((lower > upper).any()):
            return ALL
        return (
            max(float(lower.min()), min(low, float(upper.min()))),
            min(float(upper.max()), max(high, float(lower.max()))),
        )

    def _elu(self, node: fx.Node) -> Interval:
        args = arguments(node)
        low, high = self.of(args["self"])
        alpha, scale = float(args["alpha"]), float(args["scale"])
        return (scale * low if low >= 0 else -alpha * scale, max(scale * high, 0.0))


_HANDLERS: dict[Any, Callable[[Ranges, fx.Node], Interval]] = {
    **dict.fromkeys(ADDS, Ranges._add),
    **dict.fromkeys(MULS, Ranges._mul),
    aten.clamp.default: Ranges._clamp,
    aten.clamp.Tensor: Ranges._clamp_between,
    aten.clamp_min.default: Ranges._clamp,
    aten.clamp_max.default: Ranges._clamp,
    aten.hardtanh.default: Ranges._clamp,
    aten.elu.default: Ranges._elu,
    aten.exp.default: Ranges._exp,
    aten.square.default: Ranges._square,
    aten.softplus.default: Ranges._softplus,
}


def ranges_of(program: Program) -> Ranges:
    """The program's intervals, kept with it: a node's value never changes, so neither does its interval."""
    return program.notes.get(Ranges, lambda: Ranges(program))
