"""Layers of an int8 network back in float32, the worst first, until it is good enough on the user's samples."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reparam.errors import NotEquivalentError
from reparam.ir import Program

from .data_check import DataCheck
from .format import BuildOptions, Format, Runnable, Tell

if TYPE_CHECKING:
    from .onnx import Layer

Judge = Callable[[Runnable], DataCheck]


@dataclass(frozen=True)
class Mixed:
    """What was put back. kept: the layers, the worst first. layers: how many were quantised at first.

    trials: how many networks were built and judged on the way.
    """

    kept: tuple[Layer, ...]
    layers: int
    trials: int

    @property
    def floats(self) -> tuple[str, ...]:
        """The nodes of those layers."""
        return tuple(name for layer in self.kept for name in layer.nodes)

    def describe(self) -> str:
        """In a sentence."""
        told = ", ".join(f"{layer.name} ({layer.error:.2g})" for layer in self.kept)
        return f"{len(self.kept)} of {self.layers} quantised layers are float32 again, by their own errors: {told}"


def search(program: Program, format: Format, build: BuildOptions, judge: Judge, first: DataCheck, tell: Tell) -> Mixed:
    """The fewest of the worst layers whose return to float32 holds the gate.

    Layers are ordered by the error of the outputs when each alone is quantised. Their number is doubled until the gate
    holds, and then halved between the last that missed it and the first that held it, so that one fewer misses it.

    first: what the wholly quantised network gave. Raises NotEquivalentError where the gate holds only when nothing is
    quantised any more.
    """
    from .onnx import model_of, own_errors

    tell("layers", 0, 1)
    order = own_errors(model_of(program), build.calibration)
    tell("layers", 1, 1)
    mixed = [Mixed(tuple(order[:count]), len(order), 0) for count in range(len(order) + 1)]
    missed, held, trials, last = 0, len(order), 0, first
    count = 1
    while missed + 1 < held:
        count = min(count, held - 1)
        found = _tried(program, format, replace(build, floats=mixed[count].floats), judge, tell)
        trials += 1
        if found.holds:
            held = count
        else:
            missed, last = count, found
        count = 2 * count if held == len(order) else (missed + held) // 2
    if held == len(order):
        raise NotEquivalentError(
            f"{last.complaint} with {missed} of {len(order)} layers back in float32; calibrate on more samples, try "
            "--equalize, allow more, or choose fp16"
        )
    return replace(mixed[held], trials=trials)


def _tried(program: Program, format: Format, build: BuildOptions, judge: Judge, tell: Tell) -> DataCheck:
    with tempfile.TemporaryDirectory(prefix="reparam-") as folder:
        path = Path(folder) / f"network{format.suffix}"
        format.build(program, path, build, tell)
        return judge(format.load(path))
