"""x_N = x_0 + sum_j (1 - g^(N-j)) f_j: sums of sums and scalar products become one sum of what they are sums of.

Turns momentum and other recurrences of sums with constant factors, where nothing can be carried into fewer sums: each
state as one combination of what enters it.

A recurrence such as the momentum residual block, v <- g v + (1 - g) f(x), x <- x + v with v = 0 at first, keeps two
streams alive. Where f lets nothing be carried past it (capsule routing, attention), they cannot share a register, but
every state is a linear combination of x_0 and of f_0, f_1, ...: the second stream disappears.

Fires on a connected set of sums, differences and products with numbers, all of one shape, when writing each of its
results as such a combination takes fewer calls and no more sums of two values. A result may start from an earlier one
when that is shorter.

Refuses silently otherwise: from the third step on a state has more terms than the recurrence has sums.

Source: linearity; the recurrence is that of Sander et al., "Momentum Residual Neural Networks" (2021), from rest.

    v = 0.1*f; x1 = x0 + v; x2 = x1 + (0.9*v + 0.1*g)        becomes        x1 = x0 + 0.1*f; x2 = x0 + 0.19*f + 0.1*g
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from reparam.ir import ZEROS, Program, arguments, aten, free_shape, is_call, is_float, op_name
from reparam.rewrite import Match, Pattern, Rewrite, op

_SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor})
_SCALES = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.neg.default})
Terms = Mapping[fx.Node, float]


@dataclass(frozen=True)
class Plan:
    """results: each result of the set as a combination of values that exist by then. before, after: calls."""

    results: tuple[tuple[fx.Node, Terms], ...]
    before: int
    after: int


@dataclass(frozen=True)
class CollectSums:
    """Writes connected sums with scalar factors as linear combinations of what enters them."""

    name: ClassVar[str] = "collect-sums"
    pattern: ClassVar[Pattern] = op(_SUMS)

    def check(self, program: Program, match: Match) -> Plan | None:
        """Plans the set that ends in this sum; None when nothing is gained."""
        root = match.root
        if _combination(root) is None or any(_combination(u) is not None for u in root.users):
            return None
        members = _connected(root)
        if not any(_is_scaled(n) for n in members):
            return None
        terms: dict[fx.Node, Terms] = {}
        for n in members:
            terms[n] = _resolve(n, terms)
        results = tuple(n for n in members if any(u not in terms for u in n.users))
        entering = {x for n in members for x, _ in _combination(n) or () if x not in terms}
        if entering != {x for n in results for x in terms[n]}:
            return None  # something cancels out, and is no part of the function any more
        written = _write(results, terms)
        calls = sum(_calls(t) for _, t in written)
        merges = sum(max(0, len(t) - 1) for _, t in written)
        if calls >= len(members) or merges > sum(_merges(n, terms) for n in members):
            return None
        return Plan(written, len(members), calls)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The combinations, in the order of the graph."""
        made: dict[fx.Node, fx.Node] = {}
        for node, terms in plan.results:
            made[node] = _emit(program, node, {made.get(t, t): c for t, c in terms.items()})
        count = len(plan.results)
        what = f"{count} combination{'s' if count > 1 else ''} of what enters them"
        return Rewrite(made, f"{plan.before} sums and products became {plan.after}: {what}")


def _combination(node: fx.Node) -> tuple[tuple[fx.Node, float], ...] | None:
    """The node as a sum of multiples of values of its own shape (none: zero); None when it is something else."""
    if is_call(node, ZEROS) and is_float(node):
        return ()
    if not is_call(node, _SUMS | _SCALES) or not is_float(node):
        return None
    args = arguments(node)
    x = args["self"]
    if is_call(node, _SUMS):
        y, alpha = args["other"], args["alpha"]
        if not _alike(x, node) or not _alike(y, node) or not isinstance(alpha, (int, float)):
            return None
        return (x, 1.0), (y, float(alpha) if op_name(node) == "add" else -float(alpha))
    if not _alike(x, node):
        return None
    if is_call(node, frozenset({aten.neg.default})):
        return ((x, -1.0),)
    factor = args["other"]
    if not isinstance(factor, (int, float)):
        return None
    if op_name(node) == "div":
        return ((x, 1.0 / factor),) if factor else None
    return ((x, float(factor)),)


def _alike(value: Any, node: fx.Node) -> bool:
    if not isinstance(value, fx.Node) or not value.meta.get("data"):
        return False
    if not is_float(value) or value.meta["val"].dtype is not node.meta["val"].dtype:
        return False
    return free_shape(value) == free_shape(node)


def _is_scaled(node: fx.Node) -> bool:
    return is_call(node, _SCALES | ZEROS) or arguments(node)["alpha"] != 1


def _connected(root: fx.Node) -> list[fx.Node]:
    """Every sum, product and zero that is joined to `root` by others, in the order of the graph."""
    found = {root}
    stack = [root]
    while stack:
        n = stack.pop()
        for m in (*n.all_input_nodes, *n.users):
            if m not in found and _combination(m) is not None:
                found.add(m)
                stack.append(m)
    return sorted(found)


def _resolve(node: fx.Node, known: Mapping[fx.Node, Terms]) -> Terms:
    total: dict[fx.Node, float] = {}
    for value, factor in _combination(node) or ():
        for base, c in known.get(value, {value: 1.0}).items():
            total[base] = total.get(base, 0.0) + factor * c
    return {base: c for base, c in total.items() if c != 0.0}


def _merges(node: fx.Node, known: Mapping[fx.Node, Terms]) -> bool:
    """Whether it is a sum of two values neither of which is zero."""
    return is_call(node, _SUMS) and all(known.get(value, True) for value, _ in _combination(node) or ())


def _write(results: tuple[fx.Node, ...], terms: Mapping[fx.Node, Terms]) -> tuple[tuple[fx.Node, Terms], ...]:
    """Each result over what enters the set, or over the result before it where that has fewer terms."""
    written: list[tuple[fx.Node, Terms]] = []
    for k, node in enumerate(results):
        best = terms[node]
        if k:
            before = terms[results[k - 1]]
            rest = {b: best.get(b, 0.0) - before.get(b, 0.0) for b in (*before, *best)}
            rest = {results[k - 1]: 1.0} | {b: c for b, c in rest.items() if c != 0.0}
            best = rest if len(rest) < len(best) else best
        written.append((node, best))
    return tuple(written)


def _calls(terms: Terms) -> int:
    """Of a sum that starts with a value taken once, if there is one."""
    return max(1, len(terms) - 1) + (len(terms) > 1 and 1.0 not in terms.values())


def _emit(program: Program, node: fx.Node, terms: Terms) -> fx.Node:
    order = sorted(terms.items(), key=lambda t: t[1] != 1.0)
    first, factor = order[0]
    total = first
    if factor != 1.0:
        total = program.call(aten.mul.Tensor, (first, factor), like=node)
    for value, c in order[1:]:
        total = program.call(aten.add.Tensor, (total, value), {} if c == 1.0 else {"alpha": c}, like=node)
    return total


PASS = CollectSums
PHASE = "sums"
