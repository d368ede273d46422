"""x*sigmoid(x) = silu(x), clamp(x/6 + 1/2, 0, 1) = hardsigmoid(x): an activation that is spelled out gets its name.

Turns hardsigmoid, SiLU, hardswish, mish and GELU that are spelled out, ReLU as a clamp, and RReLU, which is a leaky
ReLU outside of training, into one call each.

    hardsigmoid(x) = clamp(x + 3, 0, 6)/6        silu(x) = x*sigmoid(x)        hardswish(x) = x*hardsigmoid(x)
    mish(x) = x*tanh(softplus(x))                gelu(x) = x*(1 + erf(x/sqrt 2))/2
    gelu_tanh(x) = x*(1 + tanh(sqrt(2/pi)*(x + 0.044715 x^3)))/2        rrelu(x, l, u) = leaky_relu(x, (l + u)/2)

Fires when the numbers are those of the definition and the intermediate values have no other reader. Where they are
rounded, as in 0.1667*relu6(x + 3), it is another function, and stays.

Refuses nothing.

Source: each activation's definition.

    x * relu6(x + 3) / 6        becomes        hardswish(x)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from reparam.algebra import Affine, read_affine
from reparam.ir import ADDS, DIVS, MULS, RRELUS, SUBS, Program, arguments, aten, is_call, is_float, op_name
from reparam.rewrite import Match, Pattern, Rewrite, op

_CLAMPS = frozenset(
    {
        aten.relu6.default,
        aten.hardtanh.default,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.clamp_max.default,
    }
)
_ARITHMETIC = ADDS | SUBS | MULS | DIVS
_CUBES = frozenset({aten.pow.Tensor_Scalar})
CLOSE = 1e-14  # what arithmetic with the numbers of a definition, none above one, may lose


@dataclass(frozen=True)
class Plan:
    """The last call of the spelled form, the activation's input, and what to call on it."""

    node: fx.Node
    x: fx.Node
    target: Any
    kwargs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Line:
    """slope*x + offset, with one number for all elements."""

    x: fx.Node
    slope: float
    offset: float


@dataclass(frozen=True)
class NameActivation:
    """Calls activations by their names."""

    name: ClassVar[str] = "name-activation"
    pattern: ClassVar[Pattern] = op(_ARITHMETIC | _CLAMPS | RRELUS)

    def check(self, program: Program, match: Match) -> Plan | None:
        """The activation that ends in this call."""
        node = match.root
        if not is_float(node):
            return None
        if is_call(node, RRELUS):
            return _leaky(node)
        if is_call(node, _CLAMPS):
            return _clamp(node) or _hard_sigmoid(program, node)
        if is_call(node, MULS | DIVS):
            return _gated(program, node) or _hard_sigmoid(program, node)
        return _hard_sigmoid(program, node)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """One call."""
        made = program.call(plan.target, (plan.x,), dict(plan.kwargs), like=plan.node)
        return Rewrite({plan.node: made}, f"its spelled form became {op_name(made)}")


def _leaky(node: fx.Node) -> Plan | None:
    """A random slope outside of training, where it is the middle of its range."""
    args = arguments(node)
    slope = (args["lower"] + args["upper"]) / 2
    return None if args["training"] else Plan(node, args["self"], aten.leaky_relu.default, (("negative_slope", slope),))


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= CLOSE


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    p, q = a.meta["val"], b.meta["val"]
    return p.dtype == q.dtype and [str(s) for s in p.shape] == [str(s) for s in q.shape]


def _lines(program: Program, node: fx.Node) -> Iterator[Line]:
    """The value as a line of itself, then of what it comes from, as far as that is a line with no other reader."""
    x, slope, offset = node, 1.0, 0.0
    while True:
        yield Line(x, slope, offset)
        affine = read_affine(program, x)
        if not isinstance(affine, Affine) or (x is not node and len(x.users) > 1):
            return
        a, t = affine.pair.scale, affine.pair.shift
        if any(v is not None and v.numel() != 1 for v in (a, t)) or not _same_shape(affine.x, x):
            return
        offset += slope * (0.0 if t is None else float(t))
        slope *= 1.0 if a is None else float(a)
        x = affine.x


def _ends(node: fx.Node) -> tuple[float, float] | None:
    """Of a clamp with numbers."""
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    args = arguments(node)
    ends = (args.get("min", args.get("min_val")), args.get("max", args.get("max_val")))
    if any(isinstance(e, fx.Node) for e in ends):
        return None
    low, high = ends
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def _clamp(node: fx.Node) -> Plan | None:
    """A clamp that is a ReLU."""
    return Plan(node, node.args[0], aten.relu.default) if _ends(node) == (0.0, math.inf) else None  # type: ignore[arg-type]


def _hard_sigmoid(program: Program, node: fx.Node) -> Plan | None:
    """A line of a clamp of a line: a*clamp(p*x + q, low, high) + b with the ends 0 and 1, slope 1/6 and offset 1/2."""
    return _hard_sigmoid_of(program, node, node, 1.0)


def _hard_sigmoid_of(program: Program, node: fx.Node, root: fx.Node, factor: float) -> Plan | None:
    for outer in _lines(program, node):
        clamp, a, b = outer.x, factor * outer.slope, factor * outer.offset
        ends = _ends(clamp) if is_call(clamp, _CLAMPS) else None
        if ends is None or not is_float(clamp.args[0]):
            continue
        if clamp is not root and len(clamp.users) > 1:
            return None
        if a <= 0 or not (_near(a * ends[0] + b, 0) and _near(a * ends[1] + b, 1)):
            return None
        for inner in _lines(program, clamp.args[0]):  # type: ignore[arg-type]
            if _near(a * inner.slope, 1 / 6) and _near(a * inner.offset + b, 1 / 2):
                alone = inner.x is clamp.args[0] or len(clamp.args[0].users) == 1  # type: ignore[union-attr]
                return Plan(root, inner.x, aten.hardsigmoid.default) if alone else None
        return None
    return None


def _gated(program: Program, node: fx.Node) -> Plan | None:
    """A product of x, g(x) and numbers."""
    factors, number = _factors(program, node)
    if len(factors) != 2:
        return None
    for x, g in (factors, factors[::-1]):
        found = _gate(program, g, x, number) if len(g.users) == 1 else None
        if found is not None:
            target, kwargs = found
            return Plan(node, x, target, kwargs)
    return None


def _factors(program: Program, node: fx.Node) -> tuple[list[fx.Node], float]:
    """The values whose product the call is, and the number beside them. Values in between have no other reader."""
    number, found, stack = 1.0, [], [node]
    while stack:
        n = stack.pop()
        if n is not node and len(n.users) > 1:
            found.append(n)
            continue
        affine = read_affine(program, n)
        if isinstance(affine, Affine) and affine.pair.shift is None and affine.pair.scale is not None:
            if affine.pair.scale.numel() == 1 and _same_shape(affine.x, n):
                number *= float(affine.pair.scale)
                stack.append(affine.x)
                continue
        elif is_call(n, MULS) and all(is_float(a) for a in n.args):
            stack += n.args  # type: ignore[arg-type]
            continue
        found.append(n)
    return found, number


def _gate(program: Program, g: fx.Node, x: fx.Node, number: float) -> tuple[Any, tuple[tuple[str, Any], ...]] | None:
    """The activation that number*g*x is."""
    plain = {aten.sigmoid.default: aten.silu.default, aten.hardsigmoid.default: aten.hardswish.default}
    if _near(number, 1.0):
        if g.target in plain and g.args[0] is x:
            return plain[g.target], ()
        soft = g.args[0] if g.target is aten.tanh.default else None
        if isinstance(soft, fx.Node) and soft.target is aten.softplus.default and soft.args[0] is x:
            args = arguments(soft)
            return (aten.mish.default, ()) if args["beta"] == 1 and args["threshold"] >= 20 else None
    hard = _hard_sigmoid_of(program, g, g, number)
    if hard is not None and hard.x is x:
        return aten.hardswish.default, ()
    return _gelu(program, g, x, number)


def _gelu(program: Program, g: fx.Node, x: fx.Node, number: float) -> tuple[Any, tuple[tuple[str, Any], ...]] | None:
    for outer in _lines(program, g):
        inner = outer.x
        if inner.target not in (aten.erf.default, aten.tanh.default):
            continue
        if not _near(number * outer.slope, 0.5) or not _near(number * outer.offset, 0.5) or len(inner.users) > 1:
            return None
        operand = inner.args[0]
        assert isinstance(operand, fx.Node)
        if inner.target is aten.erf.default:
            half = any(
                o.x is x and _near(o.slope, math.sqrt(0.5)) and o.offset == 0.0 for o in _lines(program, operand)
            )
            return (aten.gelu.default, ()) if half else None
        return (aten.gelu.default, (("approximate", "tanh"),)) if _is_cubic(program, operand, x) else None
    return None


def _is_cubic(program: Program, node: fx.Node, x: fx.Node) -> bool:
    """Whether the value is sqrt(2/pi)*(x + 0.044715 x^3)."""
    factor = math.sqrt(2 / math.pi)
    for outer in _lines(program, node):
        total = outer.x
        if not is_call(total, frozenset({aten.add.Tensor})) or outer.offset or not _near(outer.slope, factor):
            continue
        args = arguments(total)
        for first, other in ((args["self"], args["other"]), (args["other"], args["self"])):
            if first is not x or args["alpha"] != 1 or not isinstance(other, fx.Node):
                continue
            for line in _lines(program, other):
                cube = is_call(line.x, _CUBES) and line.x.args[0] is x and line.x.args[1] == 3
                if cube and not line.offset and _near(line.slope, 0.044715):
                    return True
    return False


PASS = NameActivation
PHASE = "clean"
AFTER = "narrow_operand"
