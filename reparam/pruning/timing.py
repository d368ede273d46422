"""What a network takes in the engine that will run it, beside the original in the same rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from reparam.emit import to_module
from reparam.ir import Program, batch_one, shape_of
from reparam.loading import LoadedModel
from reparam.measure import Where, time_models

ROUNDS = 15


@dataclass(frozen=True)
class Time:
    """Milliseconds for one sample, the median of the rounds; share: of the original's."""

    ms: float
    share: float


def times(programs: Mapping[str, Program], engine: str, *, rounds: int = ROUNDS, seed: int = 0) -> dict[str, Time]:
    """The time of each program; the first is the original. On as many threads as torch has."""
    env = batch_one(next(iter(programs.values())))
    first = next(iter(programs.values()))
    shapes = tuple(tuple(shape_of(n, env)[1:]) for n in first.placeholders)
    models = {
        name: LoadedModel(module=to_module(program), spec=None, arch_inferred=False, input_shapes=shapes)
        for name, program in programs.items()
    }
    where = Where() if engine == "torch" else Where(runtimes=(engine,))
    result = time_models(models, input_shapes=shapes, where=where, rounds=rounds, seed=seed)
    base = result.rows[0].median_ms
    return {row.model: Time(row.median_ms, row.median_ms / base if base else math.nan) for row in result.rows}
