"""Which channels go: those that are missed least for what they spare, down to a cost, and no layer below its floor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.ir import place_of

from .gated import Gated
from .gates import Gate
from .price import Currency, Price, cost, prices

FLOOR = 0.1  # of a gate's channels stay at least
PROBED = 0.3  # of a gate's channels that are left are switched off to learn what one of them spares


@dataclass(frozen=True)
class Candidate:
    """Channels of one gate that go together. worth: their score for each unit of cost that they spare."""

    gate: Gate
    channels: tuple[int, ...]
    worth: float


def candidates(
    gated: Gated, scores: Mapping[Gate, Tensor], currency: Currency, floor: float, *, priced: bool = True
) -> list[Candidate]:
    """What can go, what is missed least in front. priced: whether scores are divided by what a channel spares."""
    before = cost(gated.plan(), currency)
    found: list[Candidate] = []
    for gate in gated.gates:
        mask = gated.mask(gate).clone()
        units = _units(gate, mask, scores[gate])
        spare = units[: max(0, len(units) - least(gate, floor))]
        if not spare:
            continue
        probe = spare[: max(1, math.ceil(PROBED * len(units)))]
        trial = mask.clone()
        for channels in probe:
            trial[list(channels)] = 0
        gated.set_mask(gate, trial)
        saved = (before - cost(gated.plan(), currency)) / len(probe)
        gated.set_mask(gate, mask)
        if saved <= 0:
            continue
        for channels in spare:
            worth = float(scores[gate][list(channels)].sum())
            found.append(Candidate(gate, channels, worth / saved if priced else worth / len(channels)))
    return sorted(found, key=lambda c: c.worth)


def cheapest(gated: Gated, floor: float, currency: Currency) -> tuple[float, Price]:
    """The cost with every gate at its floor, and what costs most then."""
    before = gated.masks()
    for gate in gated.gates:
        mask = torch.zeros(gate.parts, gate.count // gate.parts)
        mask[:, : least(gate, floor)] = 1.0
        gated.set_mask(gate, mask.flatten())
    left = prices(gated.plan(), currency)
    gated.put_back(before)
    return sum(price.left for price in left), max(left, key=lambda price: price.left)


def too_small(share: float, name: str, least: float, dearest: Price, full: float) -> InputError:
    """What to say of a budget below what the floors leave; both are shares of the original, which costs `full`.

    dearest: what costs most at the floors. It is named where it alone is above the budget.
    """
    held = ""
    if dearest.left > share * full:
        part = "" if dearest.left < dearest.whole else ", which loses no channels"
        held = f", of them {100 * dearest.left / full:.3g} % in '{place_of(dearest.node)}'{part}"
    return InputError(
        f"{100 * share:.3g} % of the {name} is less than the floors leave ({100 * least:.3g} %{held}); "
        "raise the budget, lower the floor, keep fewer layers, or round to smaller multiples"
    )


def least(gate: Gate, floor: float) -> int:
    """How many units of a gate stay at least."""
    return max(1, math.ceil(floor * gate.count / gate.parts))


def _units(gate: Gate, mask: Tensor, score: Tensor) -> list[tuple[int, ...]]:
    """The channels that are left, as they go together: the worst of each part, then the second worst, and so on."""
    parts = []
    size = gate.count // gate.parts
    for p in range(gate.parts):
        ids = [i for i in range(p * size, (p + 1) * size) if mask[i] != 0]
        parts.append(sorted(ids, key=lambda i: float(score[i])))
    return list(zip(*parts, strict=False))


def cut(gated: Gated, order: Sequence[Candidate], target: float, currency: Currency, *, round_to: int = 1) -> float:
    """Switches off as many of `order` as it takes to cost no more than `target`; returns what is left.

    round_to: what is left of each gate that loses channels is a multiple of this, the nearest one that it can be.
    """
    before = gated.masks()

    def apply(count: int) -> float:
        gated.put_back(before)
        gone: dict[Gate, list[Candidate]] = {}
        for c in order[:count]:
            gone.setdefault(c.gate, []).append(c)
        for gate, lost in gone.items():
            alive = int(before[gate].sum())
            width = len(lost[0].channels)
            kept = _rounded(alive - width * len(lost), alive, round_to)
            mask = before[gate].clone()
            for c in lost[: (alive - kept) // width]:
                mask[list(c.channels)] = 0
            gated.set_mask(gate, mask)
        return cost(gated.plan(), currency)

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if apply(middle) <= target:
            high = middle
        else:
            low = middle + 1
    return apply(high)


def _rounded(width: int, most: int, multiple: int) -> int:
    """The next multiple above a width, or `most`."""
    return min(most, -(-width // multiple) * multiple)


def give_back(gated: Gated, target: float, currency: Currency) -> None:
    """Switches channels on again that are computed all the same, as picking the others would not pay."""
    plan = gated.plan()
    best = cost(plan, currency)
    for gate in gated.gates:
        mask = gated.mask(gate).clone()
        held = torch.zeros(gate.count, dtype=torch.bool)
        for name in gate.masks:
            product = gated.spots[name].product
            facts, kept = plan.known.of(product), plan.kept.get(product)
            if facts is not None and kept is not None:
                held[kept.flatten()] = True
        if not bool((held & (mask == 0)).any()):
            continue
        gated.set_mask(gate, torch.where(held, torch.ones_like(mask), mask))
        now = cost(gated.plan(), currency)
        if now > max(target, best):
            gated.set_mask(gate, mask)
        else:
            best = max(best, now)


def at_floor(gated: Gated, floor: float) -> list[str]:
    """The gates that have no more channels than their floor."""
    return [g.name for g in gated.gates if int(gated.mask(g).sum()) // g.parts <= least(g, floor) < g.count // g.parts]
