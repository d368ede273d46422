"""Layers of an int8 network back in float32, the worst first, until it is good enough on the user's samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reparam.errors import NotEquivalentError
from reparam.ir import Program

from .data_check import DataCheck
from .format import BuildOptions, Runnable, Tell

if TYPE_CHECKING:
    from .onnx import Layer

Judge = Callable[[Runnable], DataCheck]


@dataclass(frozen=True)
class Mixed:
    """What is put back. order: all layers that were quantised at first, the worst first. count: how many are put back.

    trials: how many networks were judged on the way.
    """

    order: tuple[Layer, ...]
    count: int
    trials: int

    @property
    def kept(self) -> tuple[Layer, ...]:
        """The layers that are float32."""
        return self.order[: self.count]

    @property
    def floats(self) -> tuple[str, ...]:
        """The nodes of those layers."""
        return tuple(name for layer in self.kept for name in layer.nodes)

    def describe(self) -> str:
        """In a sentence."""
        told = ", ".join(f"{layer.name} ({layer.error:.2g})" for layer in self.kept)
        return f"{self.count} of {len(self.order)} quantised layers are float32 again, by their own errors: {told}"

    def one_more(self, found: DataCheck) -> Mixed:
        """With one more layer, where `found` misses the gate. Raises NotEquivalentError for the last one."""
        if self.count + 1 >= len(self.order):
            raise NotEquivalentError(
                f"{found.complaint} with {self.count} of {len(self.order)} layers back in float32; calibrate on more "
                "samples, try --equalize, allow more, or choose fp16"
            )
        return replace(self, count=self.count + 1, trials=self.trials + 1)


def search(program: Program, build: BuildOptions, judge: Judge, first: DataCheck, tell: Tell) -> Mixed:
    """The fewest of the worst layers whose return to float32 holds the gate, where onnxruntime runs the network.

    Layers are ordered by the error of the outputs when each alone is quantised. Their number is doubled until the gate
    holds, and then halved between the last that missed it and the first that held it, so that one fewer misses it.

    first: what the wholly quantised network gave. Raises NotEquivalentError where the gate holds only when nothing is
    quantised any more.
    """
    from .onnx import OnnxRunnable, copied, model_of, own_errors, quantised

    tell("layers", 0, 1)
    model = model_of(program)
    order = tuple(own_errors(model, build.calibration))
    tell("layers", 1, 1)
    missed, held, trials, last = 0, len(order), 0, first
    count = 1
    while missed + 1 < held:
        count = min(count, held - 1)
        tell("trials", trials, trials + 1)
        mixed = quantised(copied(model), build.calibration, floats=Mixed(order, count, 0).floats)
        found = judge(OnnxRunnable(Path("trial.onnx"), mixed))
        trials += 1
        if found.holds:
            held = count
        else:
            missed, last = count, found
        count = 2 * count if held == len(order) else (missed + held) // 2
    if held == len(order):
        return Mixed(order, missed, trials).one_more(last)
    return Mixed(order, held, trials)
