"""A channel affine on its way back past values that others read as well: what these read is taken back behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from reparam.ir import Program, Refusal

from .channel_affine import Pair, times_shift
from .propagate_backward import Shared, backward
from .propagate_forward import forward_all
from .route import Route, execute


@dataclass(frozen=True)
class TwoWays:
    """back: the way of an affine into the layers before it. ahead: of its inverse into what else reads `shared`."""

    back: Route
    ahead: Route
    shared: Mapping[fx.Node, Pair]


def past_readers(program: Program, user: fx.Node, x: fx.Node, wanted: Pair) -> TwoWays | Refusal | None:
    """`backward` of an affine, where other readers of the values on the way can take its inverse, exactly.

    A value v becomes v' = s v + t, and what else reads it takes v = (v' - t) / s. None where nobody else reads a value
    on the way; Refusal names what is in the way, a scale of zero among it.
    """
    shared: dict[fx.Node, Shared] = {}
    back = backward(program, user, x, wanted, shared=shared)
    if isinstance(back, Refusal):
        return back
    if not shared:
        return None
    on_the_way = {user, *(step.node for step in back.steps)}
    twice = next((r for s in shared.values() for r in s.readers if r in on_the_way), None)
    if twice is not None:
        return Refusal("it reads a value that changes, and takes none of the change", twice)
    zeros = next((v for v, s in shared.items() if s.pair.scale is not None and bool((s.pair.scale == 0).any())), None)
    if zeros is not None:
        return Refusal("a scale of zero cannot be taken back", zeros)
    inverses = {value: _inverse(s.pair) for value, s in shared.items()}
    ahead = forward_all(program, inverses, leaving=on_the_way, joining=True)
    return ahead if isinstance(ahead, Refusal) else TwoWays(back, ahead, {v: s.pair for v, s in shared.items()})


def build_two_ways(program: Program, node: fx.Node, x: fx.Node, ways: TwoWays) -> dict[fx.Node, fx.Node]:
    """The nodes of both ways: what takes the place of `node`, the affine of `x`, and of the last ones of the others."""
    made = execute(program, ways.back, {})
    replaced = {node: made[x]} | {o: made[o] for o in ways.back.others}
    behind = execute(program, ways.ahead, {value: made[value] for value in ways.shared})
    return replaced | {sink: behind[sink] for sink in ways.ahead.sinks}


def _inverse(pair: Pair) -> Pair:
    scale = None if pair.scale is None else pair.scale.reciprocal()
    shift = None if pair.shift is None else -pair.shift
    return Pair(scale, times_shift(shift, scale))
