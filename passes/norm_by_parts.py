"""BN(cat(x, y)) = cat(BN_1(x), BN_2(y)): a batch norm behind a concatenation is one for each part, some of which fold.

Turns a batch norm of concatenated channels into a batch norm of the one part whose layers do not take it.

Fires on a batch norm that alone reads a concatenation of channels, when nothing takes it as a whole, and the layers
before all parts but one take their share: a convolution beside a pooled copy of its input. Where more parts are left,
there would be more norms than before.

Refuses nothing: what is in the way of the whole is said by fold-batch-norm.

Source: a batch norm treats each channel by itself.

    batch_norm(cat([conv(x), max_pool(x)], 1))        becomes        cat([conv'(x), batch_norm(max_pool(x))], 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx

from reparam.algebra import Affine, Pair, Route, backward, execute, read_affine
from reparam.ir import BATCH_NORMS, CATS, Program, arguments, aten, place_of, shape_of
from reparam.rewrite import Match, Pattern, Rewrite, op

_WEIGHTS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Plan:
    """The norm, and of each part before it: the value, its first channel, and the way of its share, if any."""

    node: fx.Node
    parts: tuple[tuple[fx.Node, int, Route | None], ...]


@dataclass(frozen=True)
class NormByParts:
    """Folds a batch norm into those parts of a concatenation that take it."""

    name: ClassVar[str] = "norm-by-parts"
    pattern: ClassVar[Pattern] = op(BATCH_NORMS, op(CATS, name="cat"))

    def check(self, program: Program, match: Match) -> Plan | None:
        """The parts whose layers take their share."""
        node, cat = match.root, match.nodes["cat"]
        affine = read_affine(program, node)
        args = arguments(cat)
        operands = list(args["tensors"])
        if not isinstance(affine, Affine) or len(cat.users) > 1:
            return None
        if args["dim"] % len(shape_of(cat)) != 1 or len(set(operands)) < len(operands):
            return None
        taken: set[fx.Node] = set()
        parts: list[tuple[fx.Node, int, Route | None]] = []
        start = 0
        for part in operands:
            width = shape_of(part)[1]
            share = Pair(*(_slice(v, start, width) for v in (affine.pair.scale, affine.pair.shift)))
            route = backward(program, cat, part, share)
            own = {s.node for s in route.steps} if isinstance(route, Route) else set()
            folds = isinstance(route, Route) and not own & taken
            taken |= own if folds else set()
            parts.append((part, start, route if folds and isinstance(route, Route) else None))
            start += width
        folded = sum(route is not None for _, _, route in parts)
        return Plan(node, tuple(parts)) if 0 < folded == len(parts) - 1 else None

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The re-weighted layers, a smaller norm for the other part, and the concatenation."""
        made: dict[fx.Node, fx.Node] = {}
        for _, _, route in plan.parts:
            if route is not None:
                execute(program, route, made)
        values = [
            made[part] if route is not None else _norm(program, plan.node, part, start)
            for part, start, route in plan.parts
        ]
        whole = program.call(aten.cat.default, (values, 1), like=plan.node)
        others = {o: made[o] for _, _, route in plan.parts if route is not None for o in route.others}
        folded = sum(route is not None for _, _, route in plan.parts)
        return Rewrite({plan.node: whole} | others, f"folded into {folded} of {len(plan.parts)} concatenated parts")


def _slice(value: Tensor | None, start: int, width: int) -> Tensor | None:
    return None if value is None else value.narrow(1, start, width)


def _norm(program: Program, node: fx.Node, part: fx.Node, start: int) -> fx.Node:
    """The norm of the part's own channels."""
    args = dict(arguments(node))
    width = shape_of(part)[1]
    for name in _WEIGHTS:
        tensor = program.tensor(args[name])
        if tensor is not None:
            origin = f"{place_of(node)}.{name}"
            own = tensor.narrow(0, start, width)
            args[name] = program.weight(own, origin, trainable=name in ("weight", "bias"), like=node)
    args["input"] = part
    return program.call(node.target, tuple(args.values()), like=node)


PASS = NormByParts
PHASE = "late"
AFTER = "leave_shift"
