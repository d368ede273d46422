"""Inputs of engines, and which integers are drawn for those of two engines, where no graph tells what they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reparam.engines import Runnable, as_reals, floats
from reparam.ir import InputSpec, is_whole, whole_range


def ported(engine: Runnable, values: Sequence[Tensor]) -> list[Tensor]:
    """The values in the dtypes that an engine takes."""
    return [v.to(getattr(torch, p.dtype)) for v, p in zip(values, engine.inputs, strict=True)]


def drawn_by_dtype(
    inputs: tuple[InputSpec, ...], engines: Sequence[Runnable], values: Sequence[Tensor]
) -> tuple[InputSpec, ...]:
    """The inputs with all integers of 8 and 16 bits, where every engine gives numbers for the ends of these.

    An index of 255 is refused where a table is shorter. A GPU that was asked for it may give nothing from then on, so
    that there integers stay 0 and 1.

    values: inputs that all of the engines take.
    """
    whole = tuple(map(whole_range, inputs))
    if whole == inputs or any(e.kind != "cpu" for e in engines):
        return inputs
    for end in ("low", "high"):
        moved = [
            torch.full_like(v, int(getattr(s, end))) if is_whole(s) else v for s, v in zip(whole, values, strict=True)
        ]
        try:
            found = [v for e in engines for v in floats(as_reals(e.run(ported(e, moved))))]
        except Exception:  # of any kind: one of them does not run there
            return inputs
        if not all(bool(torch.isfinite(v).all()) for v in found):
            return inputs
    return whole
