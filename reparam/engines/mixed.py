"""Layers of an int8 network back in float32, the worst first, until it is good enough on the user's samples."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from reparam.errors import NotEquivalentError
from reparam.ir import Program

from .data_check import DataCheck
from .format import BuildOptions, Format, Runnable, Tell

Judge = Callable[[Runnable], DataCheck]


@dataclass(frozen=True)
class Mixed:
    """What was put back. floats: the names of the nodes, the worst first. errors: their own, relative to the outputs.

    layers: how many were quantised at first. trials: how many networks were built and judged on the way.
    """

    floats: tuple[str, ...]
    errors: Mapping[str, float]
    layers: int
    trials: int

    def describe(self) -> str:
        """In a sentence."""
        told = ", ".join(f"{name} ({self.errors[name]:.2g})" for name in self.floats)
        return f"{len(self.floats)} of {self.layers} quantised nodes are float32 again, the worst first: {told}"


def search(program: Program, format: Format, build: BuildOptions, judge: Judge, first: DataCheck, tell: Tell) -> Mixed:
    """The fewest of the worst layers whose return to float32 holds the gate.

    Layers are ordered by the error of the outputs when each alone is quantised. Their number is doubled until the gate
    holds, and then halved between the last that missed it and the first that held it, so that one fewer misses it.

    first: what the wholly quantised network gave. Raises NotEquivalentError where the gate does not hold until nothing
    with weights is quantised.
    """
    from .onnx import model_of, own_errors, quantised

    tell("layers", 0, 1)
    model = model_of(program)
    errors = own_errors(model, quantised(model, build.calibration), build.calibration)
    tell("layers", 1, 1)
    order, trials = list(errors), 0
    missed, held, best = 0, len(order), first
    count = 1
    while missed + 1 < held:
        count = min(count, held - 1)
        found = _tried(program, format, replace(build, floats=tuple(order[:count])), judge, tell)
        trials += 1
        if found.holds:
            held = count
        else:
            missed, best = count, found
        count = 2 * count if held == len(order) else (missed + held) // 2
    if held == len(order):
        raise NotEquivalentError(
            f"{best.complaint} with {missed} of {len(order)} quantised nodes back in float32; calibrate on more "
            "samples, try --equalize, allow more, or choose fp16"
        )
    return Mixed(tuple(order[:held]), errors, len(order), trials)


def _tried(program: Program, format: Format, build: BuildOptions, judge: Judge, tell: Tell) -> DataCheck:
    with tempfile.TemporaryDirectory(prefix="reparam-") as folder:
        path = Path(folder) / f"network{format.suffix}"
        format.build(program, path, build, tell)
        return judge(format.load(path))
