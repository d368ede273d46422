"""Moments of a product of two values, summed over what both have: entries of features, or places."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from reparam.ir import arguments, upstream

from .drawing import by_drawing
from .power import Power
from .values import Value
from .walk import Walk


def product(walk: Walk, node: fx.Node) -> Value | None:
    """Of two independent values: E y^2 of each sum of K products exactly, its parts by drawing.

    E (sum_k a_k b_k)^2 = K*E a^2*E b^2 + K(K - 1)*E a_k a_l*E b_k b_l

    Where k counts places of what both are made of, E a_k a_l b_k b_l is more than that, and it is told: layers make of
    places that are alike what is alike, in both.
    """
    drawn = by_drawing(walk, node)
    held = [walk.values[n] for n in list(arguments(node).values())[:2]]
    if not isinstance(drawn, Value) or drawn.power is None or not all(isinstance(v, Value) for v in held):
        return None
    a, b = held
    if over_common_places(walk, node):
        walk.dependent.append(node)
    if a is b or min(len(a.shape), len(b.shape)) < 2 or "n" in a.roles[-1] | b.roles[-2]:
        return drawn
    count, p = a.shape[-1], drawn.power
    second = count * a.known.second * b.known.second
    second += count * (count - 1) * _common(a.known, a.roles[-1]) * _common(b.known, b.roles[-2])
    mean = count * a.known.mean * b.known.mean
    share = max(0.0, second - mean * mean) / p.variance if p.variance > 0 else 0.0
    walk.drawn.pop(node, None)
    return replace(drawn, power=Power(mean, p.channel * share, p.sample * share, p.place * share))


def over_common_places(walk: Walk, node: fx.Node) -> bool:
    """Whether a product sums over places of two values that are made of the same; shares, as of attention, aside."""
    operands = list(arguments(node).values())[:2]
    a, b = (walk.values[n] if isinstance(n, fx.Node) else None for n in operands)
    if not isinstance(a, Value) or not isinstance(b, Value) or min(len(a.shape), len(b.shape)) < 2:
        return False
    if "p" not in a.roles[-1] & b.roles[-2] or "p" in a.woven | b.woven:
        return False
    one, other = (set(upstream([n])) for n in operands)
    return any(n.op == "placeholder" or n.meta.get("data") for n in one & other)


def _common(power: Power, axis: frozenset[str]) -> float:
    """E y_k y_l of two entries along an axis that counts that."""
    if "c" in axis:
        return power.mean * power.mean
    return power.second - power.place if axis else power.second
