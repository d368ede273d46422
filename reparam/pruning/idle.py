"""Channels that say nothing on the samples: they never fire, or are one number everywhere.

`analyze --what dead` shows them. What never fires is not missed at all, and what is constant is a bias of the layer
that reads it, which the refit sets. No other channels are as cheap, so they go first, whatever the score says of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import evaluate

from .gated import Gated
from .gates import Gate
from .running import DTYPE, feed_of

SAME = 1e-6  # a channel is constant where it moves by no more than this share of its size: the rounding of float32


def idle(gated: Gated, batches: Iterable[Sequence[Tensor]], *, constant: bool) -> dict[Gate, Tensor]:
    """(count,), bool, for each gate: the channels that are zero on all samples; constant: or one number."""
    at: dict[fx.Node, list[tuple[Gate, int]]] = {}
    for gate in gated.gates:
        for spot in (gated.spots[name] for name in gate.masks):
            at.setdefault(spot.product, []).append((gate, spot.axis))
    ends: dict[tuple[Gate, fx.Node], tuple[Tensor, Tensor]] = {}

    def observe(node: fx.Node, value: Any) -> None:
        for gate, axis in at.get(node, ()):
            rows = value.movedim(axis, -1).reshape(-1, gate.count).double()
            low, high = ends.get((gate, node), (rows[0], rows[0]))
            ends[gate, node] = torch.minimum(low, rows.amin(0)), torch.maximum(high, rows.amax(0))

    for inputs in batches:
        evaluate(gated.program, feed_of(gated.program, inputs), DTYPE, observe=observe)
    found = {gate: torch.ones(gate.count, dtype=torch.bool) for gate in gated.gates}
    for (gate, _), (low, high) in ends.items():
        size = torch.maximum(low.abs(), high.abs())
        found[gate] &= (high - low <= SAME * size) if constant else (size == 0)
    return found


def first(scores: Mapping[Gate, Tensor], idle: Mapping[Gate, Tensor]) -> dict[Gate, Tensor]:
    """The scores, with those of idle channels below all others."""
    return {gate: torch.where(idle[gate], torch.zeros_like(value), value) for gate, value in scores.items()}


def told(idle: Mapping[Gate, Tensor]) -> dict[str, int]:
    """How many channels are idle, by the name of their gate; gates without any are left out."""
    return {gate.name: int(found.sum()) for gate, found in idle.items() if bool(found.any())}
