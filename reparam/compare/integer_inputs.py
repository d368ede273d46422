"""Which integers two models are compared on, and inputs in the dtypes of an engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reparam.engines import Runnable
from reparam.ir import Feed, InputSpec, is_floating, is_whole

Specs = tuple[InputSpec, ...]


def ported(engine: Runnable, values: Sequence[Tensor]) -> list[Tensor]:
    """The values in the dtypes that an engine takes."""
    return [v.to(getattr(torch, p.dtype)) for v, p in zip(values, engine.inputs, strict=True)]


def drawn_for_both(
    inputs: Specs,
    whole: Specs,
    truth: Callable[[list[Tensor]], Any],
    other: Callable[[list[Tensor]], Any],
    draw: Callable[[], Feed],
) -> Specs:
    """The inputs with all integers of a dtype, where both models run on the ends of these; else with the first two.

    An index of 255 is refused where a table is shorter, and not every function of all integers is finite.

    inputs: as they are declared. whole: with what would be drawn. truth, other: run the two, the first of which has to
    give finite numbers. draw: gives one tensor for each input, which both take.
    """
    free = [is_whole(w) and not math.isfinite(s.high) for s, w in zip(inputs, whole, strict=True)]
    if not any(free):
        return whole
    values = draw()
    coins = torch.Generator().manual_seed(0)  # a network that divides by a standard deviation takes no constant image
    heads = [torch.rand(v.shape, generator=coins) < 0.5 for v in values]
    for first in ("low", "high"):
        moved = [
            _ends(v, w, h if first == "low" else ~h) if f else v
            for v, w, h, f in zip(values, whole, heads, free, strict=True)
        ]
        try:
            runs = all(bool(torch.isfinite(v).all()) for v in truth(moved) if is_floating(v))
            other(moved)
        except Exception:  # of any kind: one of the two does not run there
            runs = False
        if not runs:
            return tuple(_first_two(w) if f else w for w, f in zip(whole, free, strict=True))
    return whole


def _ends(value: Tensor, spec: InputSpec, low: Tensor) -> Tensor:
    return torch.where(low, int(spec.low), int(spec.high)).to(value.dtype)


def _first_two(spec: InputSpec) -> InputSpec:
    low = max(spec.low, 0.0)
    return replace(spec, low=low, high=low + 1)
