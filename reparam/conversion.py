"""`convert` and `explain`: from a module to a verified program."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reparam.capture import Captured, batch_of, capture, from_exported, keep_outputs, read_axes, without_batch
from reparam.check import (
    Judge,
    LostDigitsError,
    NetworkEvidence,
    PathError,
    Round,
    agree_in_float64,
    all_samples_alike,
    check_emitted,
    check_file,
    check_float64,
    check_runs,
    refuse_broken_weights,
    unasked_batch_is_to_blame,
    with_few_integers,
)
from reparam.emit import finalize, overflow_told, save_pt2, to_module
from reparam.ir import Program, Range, census, describe_jumps, is_chain, jumps, unlift, with_labels, with_ranges
from reparam.loading import FileOrModel, take_given
from reparam.onnx_input import ImportedModel
from reparam.passes import phases_of
from reparam.rewrite import Driver, Outcome, Progress
from reparam.utils import DEFAULT_AXES, Reported, as_path, check_callable, check_seed, checked_call, dtype_name

from .errors import InputError, NotEquivalentError, ReparamError
from .options import DEFAULTS, PlainOptions
from .report import Remark, Report

MOST_LEFT_OUT = 6  # rewrites that lose digits and are left out before the whole conversion is refused

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # that weights are emitted in


@dataclass(frozen=True, repr=False)
class Conversion(Reported):
    """A verified conversion.

    module: runs like the original. program: what it computes, as it is emitted. original: the captured original.
    """

    module: nn.Module
    program: Program
    original: Program
    report: Report

    @checked_call
    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Writes a `.pt2` archive, whole or not at all.

        Raises InputError when `path` exists and `force` is false, MachineError when it cannot be written.
        """
        save_pt2(self.program, as_path(path, "the output"), force=force)

    @checked_call
    def save_source(self, folder: str | Path, *, force: bool = False) -> None:
        """Writes a readable `model.py` and its weights, `model.safetensors`, into `folder`.

        Raises like `save`; InputError also for a program that cannot be written as ordinary layers.
        """
        from reparam.emit.source import write_source

        write_source(self.program, as_path(folder, "the folder"), force=force)


@checked_call
def convert(  # noqa: PLR0913  # the keywords are the options
    model: FileOrModel,
    *example_inputs: Any,
    to: str = "fused",
    dynamic: Sequence[str] = DEFAULT_AXES,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    input_ranges: Sequence[Range] | None = None,
    carry: str = DEFAULTS.carry,
    max_pool: str = DEFAULTS.max_pool,
    signed: str = DEFAULTS.signed,
    max_cost: float = DEFAULTS.max_cost,
    outputs: Sequence[str] | None = None,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
    trust: bool = False,
) -> Conversion:
    """Rewrites `model` into the target form and checks that it is the same function.

    model: a module, left untouched, an exported program, or a file, as the command line takes it.
    example_inputs: its positional arguments (for a module); tensors are (N, ...) where the batch stays free, of any N.
        They may be left out for a file whose architecture has a usual size.
    to: fused, plain, or as-is, which rewrites nothing.
    dynamic: axes whose size stays free: "batch" (axis 0), "height" and "width" (the last two of four or more), or any
        other by its input, its number and a name: "x:1=sequence". Left out: batch, or a note where the model fixes it.
    dtype: of the emitted weights, default their own. seed: of the random inputs of all checks.
    progress: called with a stage, the steps done and their number.
    input_ranges: (low, high) of each tensor input; values are drawn from it and rules may rely on it.
    carry: for `plain`, how layers carry channels: auto (fewest multiply-accumulates), grouped, dense, split=G (partial
        sums over G slices), or measured (auto or dense, by the clock of this machine).
    max_pool: for `plain`, keep, or relu to spell max-pools beside other values as max(a, b) = a + relu(b - a).
    signed: for `plain`, prelu, or relu to carry signed values past ReLUs as x = relu(x) - relu(-x), without PReLU.
    max_cost: for `plain`, how many times the multiply-accumulates of a block its chain may cost; a dearer block stays.
    outputs: results to keep, by keys or numbers ("out", "hidden.1"): one by itself, several as a dict. Default: all.
    arch, arch_args, key, prefix, trust: of a file, as in `reparam.loading.load`.

    Raises InputError or CaptureError for a model that cannot be taken in, NotEquivalentError when the result is not
    the same function (naming the first rewrite that diverges).

    >>> import torch, reparam
    >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> result = reparam.convert(block, torch.randn(1, 3, 16, 16))
    >>> result.report.before.norms, result.report.after.norms, result.report.equivalent
    (1, 0, True)
    >>> result.module(torch.randn(5, 3, 16, 16)).shape
    torch.Size([5, 8, 14, 14])
    """
    if dtype is not None and dtype not in DTYPES:
        names = ", ".join(f"torch.{dtype_name(d)}" for d in DTYPES)
        raise InputError(f"weights are not emitted in {str(dtype)[:40]!r}; choose from {names}")
    run = _Run(to, PlainOptions(carry, max_pool, signed, max_cost), seed, progress, outputs)
    how = {"arch": arch, "arch_args": arch_args, "key": key, "prefix": prefix, "trust": trust}
    given = take_given(model, example_inputs, how, dynamic=dynamic, seed=seed)
    captured = run.take_in(given.model, given.inputs, given.dynamic, input_ranges, *given.notes)
    try:
        conversion = run.convert(given.model, captured, dtype)
    except PathError as found:
        axes = read_axes(given.dynamic)
        error = unasked_batch_is_to_blame(found, given.model, given.inputs, axes, seed)
        size, others = batch_of(given.inputs), without_batch(axes)
        note = f"the batch is fixed at {size}, that of the example: {error.what}"
        captured = run.take_in(given.model, given.inputs, others, input_ranges, *given.notes, note)
        captured = replace(captured, program=replace(captured.program, samples=size))
        conversion = run.convert(given.model, captured, dtype)
    return replace(conversion, report=conversion.report.with_(**given.facts))


@checked_call
def explain(  # noqa: PLR0913  # the keywords are the options
    model: FileOrModel,
    *example_inputs: Any,
    to: str = "fused",
    dynamic: Sequence[str] = DEFAULT_AXES,
    seed: int = 0,
    progress: Progress | None = None,
    input_ranges: Sequence[Range] | None = None,
    graphs: bool = False,
    carry: str = DEFAULTS.carry,
    max_pool: str = DEFAULTS.max_pool,
    signed: str = DEFAULTS.signed,
    max_cost: float = DEFAULTS.max_cost,
    outputs: Sequence[str] | None = None,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
    trust: bool = False,
) -> Report:
    """A dry run: what would be rewritten, what would not and why, and the price. The whole network is not compared.

    graphs: whether the report holds the graph before and after. All other arguments are those of `convert`:
    tensors are (N, ...), multiply-accumulates in the report are for one sample.

    Raises InputError or CaptureError like `convert`.

    >>> import torch, reparam
    >>> block = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 8, 3, padding=1))
    >>> report = reparam.explain(block, torch.randn(1, 3, 16, 16))
    >>> [remark.rule for remark in report.remarks if remark.kind == "passed"]
    ['fold-batch-norm']
    """
    run = _Run(to, PlainOptions(carry, max_pool, signed, max_cost), seed, progress, outputs)
    how = {"arch": arch, "arch_args": arch_args, "key": key, "prefix": prefix, "trust": trust}
    given = take_given(model, example_inputs, how, dynamic=dynamic, seed=seed)
    captured = run.take_in(given.model, given.inputs, given.dynamic, input_ranges, *given.notes)
    program, notes = captured.program, _notes(captured)
    check_runs(program, seed)
    before = program.copy()
    outcome = run.rewrite(program)
    report = Report(
        target=to,
        before=census(before),
        after=census(program),
        plain=is_chain(program),
        remarks=(*notes, *outcome.remarks),
        kinds=outcome.kinds,
        seconds=run.seconds,
        graphs={"before": before, "after": program} if graphs else None,
    )
    return report.with_(**given.facts)


def convert_program(
    program: Program, to: str = "fused", *, seed: int = 0, progress: Progress | None = None, notes: Sequence[str] = ()
) -> Conversion:
    """`convert` for what is a program already, left untouched. The module that it makes is the judge.

    notes: become remarks of the report. Raises what `convert` raises.
    """
    refuse_broken_weights(program)
    module, captured = to_module(program, program.home), Captured(program, tuple(notes))
    return _Run(to, DEFAULTS, seed, progress).convert(module, captured, None)


class _Run:
    """One conversion under way: its options and its clock. Every step returns what it made."""

    def __init__(
        self,
        to: str,
        options: PlainOptions,
        seed: int,
        progress: Progress | None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        check_seed(seed)
        check_callable(progress, "progress")
        self.to, self.phases, self.seed = to, phases_of(to, options), seed
        self.progress, self.outputs, self.seconds = progress, outputs, dict[str, float]()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds what the block takes to the seconds of a phase of the report."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def take_in(
        self,
        model: nn.Module | torch.export.ExportedProgram,
        example_inputs: Sequence[Any],
        dynamic: Sequence[str],
        ranges: Sequence[Range] | None,
        *notes: str,
    ) -> Captured:
        """Captures the model and refuses weights that are not finite. notes: what there is to say beforehand."""
        self._tell("capture", 0, 1)
        with self.timed("capture"):
            if isinstance(model, torch.export.ExportedProgram):
                captured = from_exported(model)
            else:
                captured = capture(model, example_inputs, dynamic=dynamic)
            if isinstance(model, ImportedModel):
                labels = model.labels(s.name for s in captured.program.inputs)
                captured = replace(captured, program=with_labels(captured.program, labels))
            captured = keep_outputs(captured, self.outputs)
        self._tell("capture", 1, 1)
        refuse_broken_weights(captured.program)
        program = with_few_integers(with_ranges(captured.program, ranges), self.seed)
        return replace(captured, program=program, notes=(*notes, *captured.notes))

    def convert(
        self, model: nn.Module | torch.export.ExportedProgram, captured: Captured, dtype: torch.dtype | None
    ) -> Conversion:
        """Rewrites and checks. Rewrites that lose digits are left out, one by one and named, before all is refused."""
        original = captured.program
        judge = Judge(unlift(model) if isinstance(model, torch.export.ExportedProgram) else model, original)
        emitted_dtype = dtype if dtype != original.dtype else None
        left: dict[tuple[str, str], str] = {}
        while True:
            final = original.copy()
            try:
                outcome = self.rewrite(final, left=left)
            except ReparamError:
                raise
            except Exception:  # of the checks of rewrites, where the network itself does not run
                check_runs(original, self.seed)
                raise
            lean = original.dtype == torch.float32 and emitted_dtype is None and not isinstance(model, ImportedModel)
            evidence, rounds = self.verify(original, final, judge, lean)
            with self.timed("emit"), overflow_told(original, rounds, dtype):
                emitted = finalize(final, dtype)
            try:
                with self.timed("verify"):
                    evidence = check_emitted(original, emitted, rounds, evidence, emitted_dtype)
                    if isinstance(model, ImportedModel):
                        evidence = replace(evidence, file=check_file(original, model.original, rounds, self.seed))
                break
            except LostDigitsError as error:
                culprit = self._loses_digits(original, rounds, dtype, left) if len(left) < MOST_LEFT_OUT else None
                if culprit is None:
                    raise
                left[culprit.rule, culprit.node] = f"it would lose digits: {error}"
        report = Report(
            target=self.to,
            before=census(original),
            after=census(emitted),
            plain=is_chain(emitted),
            remarks=(*_notes(captured, rounds), *outcome.remarks),
            kinds=outcome.kinds,
            evidence=evidence,
            equivalent=True,
            seconds=self.seconds,
        )
        return Conversion(to_module(emitted, original.home), emitted, original, report)

    def _loses_digits(
        self,
        original: Program,
        rounds: Sequence[Round],
        dtype: torch.dtype | None,
        left: Mapping[tuple[str, str], str],
    ) -> Remark | None:
        """The rewrite with which the result becomes less exact than the original; None when none is alone to blame."""

        def exact(count: int) -> bool:
            trial = original.copy()
            self.rewrite(trial, count, left)
            try:
                check_emitted(original, finalize(trial, dtype), rounds, NetworkEvidence(), dtype)
            except LostDigitsError:
                return False
            return True

        passed = [r for r in self.rewrite(original.copy(), left=left).remarks if r.kind == "passed"]
        good, bad = 0, len(passed)
        if not passed or not exact(0):
            return None
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if exact(middle) else (good, middle)
        return passed[bad - 1]

    def rewrite(
        self, program: Program, limit: int | None = None, left: Mapping[tuple[str, str], str] | None = None
    ) -> Outcome:
        """Runs the target's phases in place. The time of the checks counts as verification."""
        start = time.perf_counter()
        driver = Driver(program, allow_cost=False, seed=self.seed, progress=self.progress, limit=limit, left=left or {})
        outcome = driver.run(self.phases)
        spent = time.perf_counter() - start
        self.seconds["rewrite"] = spent - outcome.seconds_checking
        self.seconds["verify"] = outcome.seconds_checking
        return outcome

    def verify(
        self, original: Program, final: Program, judge: Judge, lean: bool
    ) -> tuple[NetworkEvidence, list[Round]]:
        """The float64 check of the whole network; on failure names the first rewrite that diverges."""
        self._tell("verify", 0, 1)
        try:
            with self.timed("verify"):
                found = check_float64(original, final, self.seed, judge, lean)
        except NotEquivalentError as error:
            raise NotEquivalentError(f"{error}; {self._culprit(original)}") from error
        self._tell("verify", 1, 1)
        return found

    def _culprit(self, original: Program) -> str:
        """Bisects over the number of rewrites; the run is deterministic, so a prefix is what it was."""
        total = len(self._passed(original.copy(), None))
        good, bad = 0, total
        while bad - good > 1:
            middle = (good + bad) // 2
            trial = original.copy()
            self._passed(trial, middle)
            if agree_in_float64(original, trial, self.seed):
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


_ALIKE = "all random samples gave the same outputs, which says little; verify the result on inputs of your own"


def _notes(captured: Captured, rounds: Sequence[Round] = ()) -> list[Remark]:
    """What the capture had to say, which operators jump, and whether the outputs do not move, as remarks."""
    jump = describe_jumps(jumps(captured.program))
    return [
        *(Remark("analysis", "capture", "", "", note) for note in captured.notes),
        *([Remark("analysis", "jumps", "", "", jump)] if jump else []),
        *([Remark("analysis", "outputs", "", "", _ALIKE)] if all_samples_alike(rounds) else []),
    ]
