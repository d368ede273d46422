"""`convert` and `explain`: from a module to a verified program."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .capture.torch_export import Captured, capture, from_exported
from .check.network_check import NetworkEvidence, check_emitted, check_float64
from .emit.finalize import finalize
from .emit.source.writer import write_source
from .emit.torch_module import save_pt2, to_module
from .errors import InputError, NotEquivalentError
from .ir.cost import census, is_chain
from .ir.program import Program
from .options import check_choices
from .passes import fused_phases, plain_phases
from .report import Remark, Report
from .rewrite.driver import Driver, Outcome, Phase, Progress

TARGETS: Mapping[str, Callable[..., tuple[Phase, ...]]] = {
    "fused": lambda **_: fused_phases(),
    "plain": plain_phases,
    "as-is": lambda **_: (),
}
Range = tuple[float, float]


@dataclass(frozen=True)
class Conversion:
    """A verified conversion.

    module: runs like the original. program: what it computes, as it is emitted. original: the captured original.
    """

    module: nn.Module
    program: Program
    original: Program
    report: Report

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Writes a `.pt2` archive. Raises InputError when it exists and not `force`, MachineError when it cannot."""
        start = time.perf_counter()
        save_pt2(self.program, Path(path), force=force)
        self.report.add_seconds("emit", time.perf_counter() - start)

    def save_source(self, folder: str | Path, *, force: bool = False) -> None:
        """Writes a readable `model.py` and its weights, `model.safetensors`, into `folder`."""
        start = time.perf_counter()
        write_source(self.program, Path(folder), force=force)
        self.report.add_seconds("emit", time.perf_counter() - start)


def convert(  # noqa: PLR0913  # the keywords are the options
    model: nn.Module | torch.export.ExportedProgram,
    *example_inputs: Any,
    to: str = "fused",
    dynamic: Sequence[str] = ("batch",),
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    input_ranges: Sequence[Range] | None = None,
    carry: str = "auto",
    max_pool: str = "keep",
    signed: str = "prelu",
) -> Conversion:
    """Rewrites `model` into the target form and proves that it is the same function.

    model: a module, left untouched, or an exported program. example_inputs: its positional arguments (for a module).
    dynamic: axes whose size stays free ("batch", "height", "width"). dtype: of the emitted weights, default their own.
    input_ranges: (low, high) of each tensor input; values are drawn from it and rules may rely on it.
    carry: for `plain`, how layers carry channels: auto (fewest multiply-accumulates), grouped, dense, split=G (partial
        sums over G slices), or measured (auto or dense, by the clock of this machine).
    max_pool: for `plain`, keep, or relu to spell max-pools beside other values as max(a, b) = a + relu(b - a).
    signed: for `plain`, prelu, or relu to carry signed values past ReLUs as x = relu(x) - relu(-x), without PReLU.

    Raises InputError or CaptureError for a model that cannot be taken in, NotEquivalentError when the result is not
    the same function (naming the first rewrite that diverges).
    """
    job = _Job(to, seed, progress, {"carry": carry, "max_pool": max_pool, "signed": signed})
    original = job.take_in(model, example_inputs, dynamic, input_ranges)
    final = original.copy()
    outcome = job.rewrite(final)
    evidence = job.verify(original, final)
    start = time.perf_counter()
    emitted = finalize(final, dtype)
    job.seconds["emit"] = time.perf_counter() - start
    start = time.perf_counter()
    check_emitted(original, emitted, job.rounds, evidence, dtype if dtype != original.dtype else None)
    job.rounds.clear()
    job.seconds["verify"] += time.perf_counter() - start
    report = Report(
        target=to,
        before=census(original),
        after=census(emitted),
        plain=is_chain(emitted),
        remarks=job.notes + tuple(outcome.remarks),
        kinds=outcome.kinds,
        evidence=evidence,
        equivalent=True,
        seconds=job.seconds,
    )
    return Conversion(to_module(emitted), emitted, original, report)


def explain(  # noqa: PLR0913  # the keywords are the options
    model: nn.Module | torch.export.ExportedProgram,
    *example_inputs: Any,
    to: str = "fused",
    dynamic: Sequence[str] = ("batch",),
    seed: int = 0,
    progress: Progress | None = None,
    input_ranges: Sequence[Range] | None = None,
    carry: str = "auto",
    max_pool: str = "keep",
    signed: str = "prelu",
) -> Report:
    """A dry run: what would be rewritten, what would not and why, and the price. Raises like `convert`."""
    job = _Job(to, seed, progress, {"carry": carry, "max_pool": max_pool, "signed": signed})
    original = job.take_in(model, example_inputs, dynamic, input_ranges)
    before = census(original)
    outcome = job.rewrite(original)
    return Report(
        target=to,
        before=before,
        after=census(original),
        plain=is_chain(original),
        remarks=job.notes + tuple(outcome.remarks),
        kinds=outcome.kinds,
        seconds=job.seconds,
    )


class _Job:
    """One conversion under way: its options, its clock, its notes."""

    def __init__(self, to: str, seed: int, progress: Progress | None, choices: Mapping[str, str]) -> None:
        if to not in TARGETS:
            raise InputError(f"unknown target '{to}'; choose from {', '.join(TARGETS)}")
        check_choices(choices)
        self.to, self.seed, self.progress, self.choices = to, seed, progress, choices
        self.seconds: dict[str, float] = {}
        self.notes: tuple[Remark, ...] = ()
        self.rounds: list[Any] = []

    def take_in(
        self,
        model: nn.Module | torch.export.ExportedProgram,
        example_inputs: Sequence[Any],
        dynamic: Sequence[str],
        ranges: Sequence[Range] | None,
    ) -> Program:
        """Captures the model and refuses weights that are not finite."""
        start = time.perf_counter()
        self._tell("capture", 0, 1)
        if isinstance(model, torch.export.ExportedProgram):
            notes: list[str] = []
            captured = Captured(from_exported(model, notes), tuple(notes))
        else:
            captured = capture(model, example_inputs, dynamic=dynamic)
        self.seconds["capture"] = time.perf_counter() - start
        self._tell("capture", 1, 1)
        self.notes = tuple(Remark("analysis", "capture", "", "", note) for note in captured.notes)
        _check_finite(captured.program)
        return _with_ranges(captured.program, ranges)

    def rewrite(self, program: Program, limit: int | None = None) -> Outcome:
        """Runs the target's phases in place. The time of the checks counts as verification."""
        start = time.perf_counter()
        driver = Driver(program, allow_cost=False, seed=self.seed, progress=self.progress, limit=limit)
        outcome = driver.run(TARGETS[self.to](**self.choices))
        spent = time.perf_counter() - start
        self.seconds["rewrite"] = spent - outcome.seconds_checking
        self.seconds["verify"] = outcome.seconds_checking
        return outcome

    def verify(self, original: Program, final: Program) -> NetworkEvidence:
        """The float64 check of the whole network; on failure names the first rewrite that diverges."""
        start = time.perf_counter()
        self._tell("verify", 0, 1)
        try:
            evidence, self.rounds = check_float64(original, final, self.seed)
        except NotEquivalentError as error:
            raise NotEquivalentError(f"{error}; {self._culprit(original)}") from error
        self.seconds["verify"] += time.perf_counter() - start
        self._tell("verify", 1, 1)
        return evidence

    def _culprit(self, original: Program) -> str:
        """Bisects over the number of rewrites; the run is deterministic, so a prefix is what it was."""
        total = len(self._passed(original.copy(), None))
        good, bad = 0, total
        while bad - good > 1:
            middle = (good + bad) // 2
            trial = original.copy()
            self._passed(trial, middle)
            if _same(original, trial, self.seed):
                good = middle
            else:
                bad = middle
        passed = self._passed(original.copy(), bad)
        if not passed:
            return "no rewrite was made"
        last = passed[-1]
        return (
            f"the first rewrite that diverges is {last.rule} at '{last.module or last.node}' (number {bad} of {total})"
        )

    def _passed(self, program: Program, limit: int | None) -> list[Remark]:
        return [r for r in self.rewrite(program, limit).remarks if r.kind == "passed"]

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)


def _same(original: Program, other: Program, seed: int) -> bool:
    try:
        check_float64(original, other, seed)
    except NotEquivalentError:
        return False
    return True


def _check_finite(program: Program) -> None:
    for name, constant in program.constants.items():
        value = constant.value
        if not value.is_floating_point():
            continue
        broken = ~torch.isfinite(value) if constant.trainable else torch.isnan(value)
        if bool(broken.any()):
            raise InputError(f"weight '{name}' holds NaN or infinite values; the checkpoint is damaged or diverged")


def _with_ranges(program: Program, ranges: Sequence[Range] | None) -> Program:
    if ranges is None:
        return program
    if len(ranges) != len(program.inputs):
        raise InputError(f"{len(ranges)} input ranges were given for {len(program.inputs)} tensor inputs")
    empty = next((r for r in ranges if not r[0] <= r[1]), None)
    if empty is not None:
        raise InputError(f"the input range ({empty[0]}, {empty[1]}) is empty; the first number is the lower one")
    specs = tuple(replace(s, low=low, high=high) for s, (low, high) in zip(program.inputs, ranges, strict=True))
    return replace(program, inputs=specs)
