"""Pointwise functions in a program: which calls make up one, from which value, what it does to a normal variable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
    ACTIVATIONS,
    ADDS,
    AVG_POOLS,
    BATCH_NORMS,
    CASTS,
    CATS,
    DIVS,
    DROPOUTS,
    IDENTITIES,
    MATMULS,
    MAX_POOLS,
    MEANS,
    MOVEMENTS,
    MULS,
    PADS,
    STACKS,
    SUBS,
    SUMS,
    WEIGHTED,
    Program,
    aten,
    evaluate_region,
    free_shape,
    is_call,
    is_float,
    is_tensor,
    op_name,
    upstream,
)

from .gaussian import points_of, power_of
from .power import Power
from .roles import TURNS
from .values import by_groups

STACKED_PRODUCTS = frozenset({aten.matmul.default, aten.bmm.default})  # of attention that is spelled out
_UNTAGGED = frozenset({aten.prelu.default, aten.log_sigmoid.default, aten.softplus.default})
_POWERS = frozenset(
    {
        aten.pow.Tensor_Scalar,
        aten.square.default,
        aten.sqrt.default,
        aten.rsqrt.default,
        aten.reciprocal.default,
        aten.abs.default,
    }
)
_AVERAGES = MEANS | SUMS
PASSIVE = MOVEMENTS | IDENTITIES | DROPOUTS | CASTS
POOLS = (
    AVG_POOLS
    | MAX_POOLS
    | {aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default}
)
_PASSING = (
    PASSIVE | POOLS | TURNS | PADS | {aten.mean.dim, aten.amax.default, aten.index.Tensor, aten.take_along_dim.default}
)
_PASSING_FAMILIES = ("reflection_pad", "replication_pad", "upsample_", "_upsample", "adaptive_max_pool")


def passes(node: fx.Node) -> bool:
    """Whether a call gives values of its operand as they are, or means or the largest of them, perhaps beside zeros."""
    return is_call(node, _PASSING) or op_name(node).startswith(_PASSING_FAMILIES)


def is_pointwise(node: fx.Node) -> bool:
    """Whether each element of the result is a function of the elements at its place alone."""
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and (
        torch.Tag.pointwise in tags or is_call(node, ACTIVATIONS) or is_call(node, _UNTAGGED)
    )


def depending(node: fx.Node) -> list[fx.Node]:
    """The tensors among the operands of a call that depend on the inputs."""
    return [
        n for n in node.all_input_nodes if n.meta.get("data") and isinstance(n.meta.get("val"), Tensor | tuple | list)
    ]


def first_of(args: Mapping[str, Any]) -> Any:
    """The first operand among the arguments of a call, which operators name in two ways."""
    return args.get("self", args.get("input"))


@dataclass(frozen=True)
class Function:
    """result = f(root), element by element. calls: those that compute it, in order."""

    program: Program
    root: fx.Node
    result: fx.Node
    calls: tuple[fx.Node, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """f at points x (points,): (points,), or (K, points) where channels differ, with a row for each group."""
        known: dict[fx.Node, Tensor] = {self.root: x}
        for call in self.calls:
            for operand in call.all_input_nodes:
                if operand in known or operand in self.calls:
                    continue
                inner = upstream([operand])
                value = evaluate_region(self.program, [n for n in inner if n.op != "placeholder"], {})[operand]
                spread = by_groups(value) if isinstance(value, Tensor) else value
                known[operand] = spread if isinstance(spread, Tensor) else torch.tensor(spread, dtype=torch.float64)
        for call in self.calls:
            if is_call(call, {aten.prelu.default}):
                inside, slope = (known[n] for n in call.all_input_nodes)
                known[call] = torch.where(inside > 0, inside, slope * inside)
            else:
                known |= {call: evaluate_region(self.program, [call], known)[call]}
        return known[self.result]

    @property
    def linear(self) -> bool:
        """Whether f(x) = a*x + b, as far as points up to +-1e6 show: a clamp at 100 is an activation, too."""
        sizes = torch.tensor([0.05, 0.25, *(2.0**k for k in range(21))], dtype=torch.float64)
        x = torch.cat([torch.zeros(1, dtype=torch.float64), -sizes, sizes])
        y = self(x).reshape(-1, len(x))
        slopes = ((y[:, 1:] - y[:, :1]) / x[1:]).t()
        return bool(torch.allclose(slopes, slopes[:1].expand_as(slopes), rtol=1e-9, atol=1e-12))

    def power(self, of: Power | None = None) -> Power:
        """Of f(X); X ~ N(0, 1) unless told."""
        return power_of(self(points_of(of or Power(place=1.0))))

    def slope_power(self) -> float:
        """E f'(X)^2, X ~ N(0, 1)."""
        x = torch.linspace(-10, 10, 40_000, dtype=torch.float64)
        step = 1e-6
        slope = (self(x + step) - self(x - step)).reshape(-1, len(x)) / (2 * step)
        w = torch.exp(-x.square() / 2)
        return float((slope.square().mean(0) * w).sum() / w.sum())


def function_at(program: Program, node: fx.Node) -> Function | None:
    """The longest pointwise function of one value whose result `node` is; None where it is none."""
    if not is_float(node):
        return None
    roots: dict[fx.Node, fx.Node] = {}
    calls = [n for n in upstream([node], stop=lambda n: not goes_on(n))]
    for call in calls:
        held = depending(call)
        above = {roots.get(n, n) for n in held}
        alike = all(is_tensor(n) and free_shape(n) == free_shape(call) for n in held)
        if len(above) == 1 and alike:
            roots[call] = above.pop()
    if node not in roots:
        return None
    root = roots[node]
    if not is_float(root):  # of complex numbers
        return None
    kept = [c for c in upstream([node], stop=lambda n: n is root or not goes_on(n)) if c in roots]
    found = Function(program, root, node, tuple(kept))
    return found if all(roots[c] is root for c in kept) else None


def goes_on(node: fx.Node) -> bool:
    """Whether a call may be a part of a function: also a comparison, by which `where` chooses."""
    chosen = is_tensor(node) and node.meta["val"].dtype == torch.bool
    return is_pointwise(node) and bool(node.meta.get("data")) and (is_float(node) or chosen)


def activations(program: Program) -> Iterator[Function]:
    """The pointwise functions, not linear, of what a layer has made, each as a whole, in order.

    Gates are left out, and so are the squares and roots of a norm that is spelled out.
    """
    made: set[fx.Node] = set()  # by some layer
    for node in program.calls():
        if node.meta["data"] and (is_call(node, WEIGHTED | MATMULS) or any(n in made for n in node.all_input_nodes)):
            made.add(node)
        if not goes_on(node) or not is_float(node) or node not in made or _is_scaling(node):
            continue
        found = function_at(program, node)
        if found is None or _continued(program, node, found.root) or _is_gate(node) or found.linear:
            continue
        if _is_statistic(node, found.root):
            continue
        yield found


def _is_statistic(node: fx.Node, root: fx.Node) -> bool:
    """Whether a power is only there to be averaged, or is one of an average."""
    power = is_call(node, _POWERS) or (is_call(node, MULS) and node.args[0] is node.args[1])
    return power and (is_call(root, _AVERAGES) or all(is_call(user, _AVERAGES) for user in node.users))


def _continued(program: Program, node: fx.Node, root: fx.Node) -> bool:
    """Whether some user computes more of the same function of `root`, other than by scaling and shifting the whole."""
    for user in node.users:
        if not goes_on(user):
            continue
        if _is_scaling(user):
            if _continued(program, user, root):
                return True
            continue
        longer = function_at(program, user)
        if longer is not None and longer.root is root:
            return True
    return False


def _is_scaling(node: fx.Node) -> bool:
    """Whether a call only scales or shifts one value."""
    alone = len(depending(node)) == 1
    return is_call(node, ADDS | SUBS | MULS | DIVS) and len(node.all_input_nodes) >= 1 and alone


def _is_gate(node: fx.Node) -> bool:
    """Whether the result only multiplies other values that depend on the inputs."""

    def multiplies(user: fx.Node) -> bool:
        if is_call(user, PASSIVE):
            return _is_gate(user)
        return is_call(user, MULS) and len(depending(user)) > 1

    return bool(node.users) and all(multiplies(user) for user in node.users)


def function_read(program: Program, node: fx.Node) -> Function | None:
    """The function whose values `node` is, perhaps moved, padded, pooled or dropped from, or joined with those of
    others that have the same power behind a normal variable; None where it is something else."""
    while True:
        if goes_on(node) and (found := function_at(program, node)) is not None:
            return found
        held = depending(node)
        if is_call(node, CATS | STACKS) and held:
            parts = [function_read(program, n) for n in held]
            first = parts[0]
            same = first is not None and all(p is not None and _alike(p, first) for p in parts[1:])
            return first if same else None
        if not passes(node) or len(held) != 1:
            return None
        node = held[0]


def _alike(one: Function, other: Function) -> bool:
    return math.isclose(gain_of(one), gain_of(other), rel_tol=1e-6)


def function_behind(program: Program, node: fx.Node) -> Function | None:
    """The function that reads the result of `node`, behind batch norms and movement; None unless all users agree."""
    while True:
        users = [u for u in node.users if u.op == "call_function"]
        if len(users) == 1 and is_call(users[0], PASSIVE | BATCH_NORMS):
            node = users[0]
            continue
        ends = [u for u in node.users if goes_on(u)]
        if not ends or len(ends) != len(node.users):
            return None
        found: Function | None = None
        stack = list(ends)
        seen: set[fx.Node] = set()
        while stack:
            user = stack.pop()
            if user in seen:
                continue
            seen.add(user)
            whole = function_at(program, user)
            if whole is None or whole.root is not node:
                continue
            found = whole if found is None or len(whole.calls) > len(found.calls) else found
            stack += [u for u in user.users if goes_on(u)]
        return found


def gain_of(function: Function | None, *, backward: bool = False, of: float = 1.0) -> float:
    """1/E f(X)^2, X ~ N(0, of), or 1/E f'(X)^2, X ~ N(0, 1); 1 without a function."""
    if function is None:
        return 1.0
    power = function.slope_power() if backward else function.power(Power(place=of)).second
    return 1 / power if power > 0 and math.isfinite(power) else 1.0
