"""Is an engine the network that it was built from? Both run on random inputs of every kind of shape that is declared.

The truth is the original in float64. The engine's RMS error may be `check.output_error.SLACK` times that of the emitted
network in torch in the same precision, plus a few roundings: engines add in other orders and by other algorithms, and
that is all that they may do. Quantised networks have no such yardstick; they are measured, and a gate decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reparam.check import DISTURBED, IN_ORDER, ErrorSums, OutputError, depth_limit, disturbed, sizes_of_one
from reparam.errors import InputError, NotEquivalentError
from reparam.ir import (
    Feed,
    Program,
    batch_one,
    evaluate,
    evaluate_where_it_runs,
    feed,
    filled,
    is_floating,
    shape_of,
    tensors_of,
    typed,
)
from reparam.utils import dtype_name

from .format import Runnable

BATCHES = (1, 2, 5)
MORE = 8  # further inputs for the share of equal decisions in low precision
ALONE = 8  # inputs of a network whose batch is fixed
QUANTISED = "quantised"  # the word for what is no longer the same function, and was measured
FEW = 10  # of the first free axis beside the batch, of the second twice as much
GROWTH = 32  # what the i-th free axis grows by, i times: a multiple of all strides


@dataclass(frozen=True)
class EngineCheck:
    """What was measured on an engine. Errors are RMS, of the output with the largest share of what is allowed.

    ran: False for one that was built for a machine unlike this one; `why` says it. error: against the original in
    float64; None where all outputs are integers, which are equal unless the file is quantised. own_error: of the
    emitted network in torch, in the same precision; None when it is quantised. sqnr: dB, signal to error, of the worst
    output. top1: share of equal decisions (the largest along axis 1 of the first output, or its integers), None where
    that decides nothing. data: what the inputs were, "random" or "held-out": samples of the calibration data that the
    calibration did not see. quantised: whether it was only measured, and not judged.
    """

    ran: bool
    runtime: str = ""
    why: str = ""
    error: float | None = None
    own_error: float | None = None
    sqnr: float | None = None
    top1: float | None = None
    samples: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    seed: int = 0
    data: str = "random"
    quantised: bool = False

    @property
    def verdict(self) -> str:
        """`equivalent`, `quantised` for what was measured alone, or `not run`."""
        if self.quantised:
            return QUANTISED
        return "equivalent" if self.ran else "not run"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values; what is infinite (an error of zero) becomes None."""
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in vars(self).items()}
        return row | {"shapes": [list(s) for s in self.shapes], "verdict": self.verdict}


@dataclass
class _Count:
    """Equal decisions and all decisions: the largest along axis 1, or integers as they are."""

    equal: int = 0
    total: int = 0

    def add(self, truth: Tensor, other: Tensor) -> None:
        if not truth.is_floating_point():
            same = truth.cpu() == other.to(truth.dtype)
            self.equal, self.total = self.equal + int(same.sum()), self.total + same.numel()
            return
        if truth.dim() < 2 or truth.shape[1] < 2 or not truth.numel():
            return
        same = truth.argmax(1) == other.argmax(1)
        self.equal, self.total = self.equal + int(same.sum()), self.total + same.numel()

    @property
    def share(self) -> float | None:
        return self.equal / self.total if self.total else None


@dataclass
class _Measurement:
    """An engine under measurement."""

    original: Program
    emitted: Program
    engine: Runnable
    quantised: bool
    sums: list[ErrorSums] = field(default_factory=list)
    count: _Count = field(default_factory=_Count)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    samples: int = 0
    feeds: list[Feed] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the outputs that are real or complex numbers

    def measure(self, values: Feed, few: bool = False) -> None:
        """Adds what one feed shows; a size that the engine or the original itself is not for is passed over.

        few: whether a free axis beside the batch is short, or one, where engines may stop, and a variance is no number.
        """
        shapes = [tuple(v.shape) for v in tensors_of(self.original, values)]
        if len(shapes) == len(self.engine.inputs) and not self.engine.takes(shapes):
            return
        found = evaluate_where_it_runs(self.original, values) if self.samples else evaluate(self.original, values)
        if found is None:
            return
        truth = as_reals(found)
        if few and not all(bool(torch.isfinite(t).all()) for t in floats(truth)):
            return
        try:
            got = run_engine(self.engine, self.original, values)
        except InputError:
            if few:
                return
            raise
        if not got.fits(truth):
            raise NotEquivalentError(f"the engine gives other outputs: {got.describe()} for {_shapes(truth)}")
        called = [p.name for p in self.engine.outputs]
        self.names = [n for n, v in zip(called, got.values, strict=False) if v.is_floating_point()]
        own = got.values if self.quantised else as_reals(evaluate(self.emitted, typed(self.emitted, values), None))
        for name, wanted, given in zip(called, got.dtypes_of(truth, own), got.values, strict=False):
            if given.dtype is not wanted:
                raise NotEquivalentError(
                    f"the engine gives '{name}' in {dtype_name(given.dtype)}, and the network in {dtype_name(wanted)}"
                )
        different, total = got.other_integers(truth, own)
        if different:
            raise NotEquivalentError(f"the engine is not the network: {different:,} of {total:,} integers differ")
        pairs = list(zip(floats(truth), got.floats, strict=True))
        self.sums = self.sums or [ErrorSums() for _ in pairs]
        for s, (t, o), p in zip(self.sums, pairs, floats(own), strict=True):
            if not bool(torch.isfinite(o).all()):
                raise NotEquivalentError("the engine's outputs are not finite where the original's are")
            s.add(t, o.double(), p.double(), o.double())
        whole = not any(isinstance(v, Tensor) and v.is_complex() for v in found)
        for decision, told in zip(got.given(truth)[:1] if whole else (), got.values, strict=False):
            self.count.add(decision, told)
        first = next(v for v in values if isinstance(v, Tensor))
        self.feeds.append(values)
        self.shapes.append(tuple(first.shape))
        self.samples += first.shape[0] if first.dim() else 1

    def widen(self, generator: torch.Generator) -> None:
        """Takes the errors of the network itself where its numbers are off by a rounding, or added in another order."""
        for values in self.feeds:
            truth = floats(as_reals(evaluate(self.original, values)))
            for _ in range(DISTURBED):
                program, moved = disturbed(self.emitted, typed(self.emitted, values), None, generator)
                self._widen("disturbed", truth, evaluate(program, moved, None))
            self._widen("in order", truth, evaluate(self.emitted, typed(self.emitted, values), None, by=IN_ORDER))

    def _widen(self, how: str, truth: Sequence[Tensor], found: Sequence[Any]) -> None:
        for s, t, off in zip(self.sums, truth, floats(as_reals(found)), strict=True):
            s.widen(t, off.double(), how)


def check_engine(
    original: Program,
    emitted: Program,
    engine: Runnable,
    *,
    seed: int = 0,
    quantised: bool = False,
    data: Sequence[Sequence[Tensor]] = (),
    beyond: bool = True,
) -> EngineCheck:
    """Measures `engine` against `original`, beside `emitted`, the same network in torch in the engine's precision.

    data: held-out inputs to measure on in place of random ones, one entry for each tensor input of the program. beyond:
    whether sizes that break what torch took for granted when it traced are tried as well.

    Raises NotEquivalentError naming the first output that differs by more than is allowed, InputError for an engine
    that takes none of the sizes.
    """
    job = _Measurement(original, emitted, engine, quantised)
    generator = torch.Generator().manual_seed(seed)
    low = quantised or emitted.dtype.itemsize < torch.float32.itemsize
    feeds = (filled(original, d) for d in data) if data else _feeds(original, generator, low, beyond)
    for values in feeds:
        job.measure(values)
    for sizes in () if data else (*sizes_of_one(original), *_small(original)):
        job.measure(feed(original, sizes, generator), few=True)
    if not job.samples:
        raise InputError("the engine takes none of the sizes that it would be checked on; widen its ranges")
    eps = torch.finfo(emitted.dtype).eps
    floor = max(4.0 * eps, depth_limit(original))
    errors = [s.result(i, floor) for i, s in enumerate(job.sums)]
    if not quantised and not all(e.ok for e in errors):
        job.widen(generator)
        errors = [s.result(i, floor) for i, s in enumerate(job.sums)]
    bad = None if quantised else next((e for e in errors if not e.ok), None)
    if bad is not None:
        name = job.names[bad.index]
        raise NotEquivalentError(f"the engine is not the network: {bad.complaint} (output '{name}')")
    worst = max(errors, key=lambda e: e.error_b / e.bar if e.bar else 0.0, default=None)
    return EngineCheck(
        True,
        engine.runtime,
        error=None if worst is None else worst.error_b,
        own_error=None if quantised or worst is None else worst.error_a,
        sqnr=min((sqnr(e) for e in errors), default=None),
        top1=job.count.share,
        samples=job.samples,
        shapes=tuple(job.shapes),
        seed=seed,
        data="held-out" if data else "random",
        quantised=quantised,
    )


def sqnr(error: OutputError) -> float:
    """Signal to quantisation noise, dB: 20 log10(RMS of the output / RMS of its error); infinite without an error."""
    if error.error_b == 0.0:
        return math.inf
    return 20.0 * math.log10(error.size / error.error_b) if error.size else -math.inf


# ---- inputs ------------------------------------------------------------------------------------------------------


def _feeds(program: Program, generator: torch.Generator, low: bool, beyond: bool) -> Iterator[Feed]:
    for sizes in (*declared_sizes(program, low), *(map(dict, program.probes) if beyond else ())):
        yield feed(program, sizes, generator)


def declared_sizes(program: Program, low: bool = False) -> list[dict[str, int]]:
    """Values of the free sizes to try: several batches, and other sizes of the other free axes."""
    batch, others = list(batch_one(program)), _others(program)
    if not batch:
        plans: list[dict[str, int]] = [{} for _ in range(ALONE)]
    else:
        plans = [dict.fromkeys(batch, n) for n in (*BATCHES, *((MORE,) if low else ()))]
    if others:
        grown = {s: h + GROWTH * (i + 1) for i, (s, h) in enumerate(others.items())}
        odd = {s: max((3 * h // 4 | 1) - 2 * i, 1) for i, (s, h) in enumerate(others.items())}
        plans += [dict.fromkeys(batch, 1) | grown, dict.fromkeys(batch, 2) | odd]
    return plans


def _others(program: Program) -> dict[str, int]:
    """The free sizes beside the batch, as they were traced."""
    batch, found = batch_one(program), dict[str, int]()
    for spec, node in _tensor_inputs(program):
        free = zip(spec.shape, shape_of(node), strict=True)
        found |= {str(s): h for s, h in free if isinstance(s, str) and s not in batch}
    return found


def _small(program: Program) -> list[dict[str, int]]:
    """Sizes below those that are traced mostly: what is computed of them is small too, or negative."""
    others = _others(program)
    return [dict.fromkeys(batch_one(program), 2) | {s: FEW * (i + 1) for i, s in enumerate(others)}] if others else []


def _tensor_inputs(program: Program) -> Iterator[tuple[Any, Any]]:
    specs = {s.name: s for s in program.inputs}
    return ((specs[str(n.target)], n) for n in program.placeholders if str(n.target) in specs)


# ---- outputs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EngineOutputs:
    """What an engine gave."""

    values: list[Tensor]

    @property
    def floats(self) -> list[Tensor]:
        return floats(self.values)

    def fits(self, truth: Sequence[Any]) -> bool:
        """Whether the truth has outputs of the same number and shapes, real numbers where these have them."""
        kinds = [(tuple(t.shape), t.is_floating_point()) for t in self.given(truth)]
        return kinds == [(tuple(v.shape), v.is_floating_point()) for v in self.values]

    def dtypes_of(self, truth: Sequence[Any], own: Sequence[Any]) -> list[torch.dtype]:
        """What each output is in: the truth's where that is no real number, else the network's own in its dtype."""
        pairs = zip(self.given(truth), self.given(own), strict=True)
        return [o.dtype if t.is_floating_point() else t.dtype for t, o in pairs]

    def other_integers(self, truth: Sequence[Any], own: Sequence[Any]) -> tuple[int, int]:
        """How many integers are neither those of the truth nor the network's own in its dtype, and how many there are.

        A decision between two equal numbers hangs on their rounding. The outputs fit the truth.
        """
        different = total = 0
        for t, o, v in zip(self.given(truth), self.given(own), self.values, strict=True):
            if not t.is_floating_point():
                same = v.to(t.dtype)
                different, total = different + int(((same != t) & (same != o)).sum()), total + t.numel()
        return different, total

    def given(self, values: Sequence[Any]) -> list[Tensor]:
        """The tensors among outputs, on the CPU; sizes as well where the engine gives these."""
        tensors = [v.cpu() for v in values if isinstance(v, Tensor)]
        if len(tensors) == len(self.values):
            return tensors
        return [v.cpu() if isinstance(v, Tensor) else torch.tensor(v) for v in values if isinstance(v, Tensor | int)]

    def describe(self) -> str:
        """Their shapes."""
        return _shapes(self.values)


def _shapes(values: Sequence[Any]) -> str:
    return ", ".join("x".join(map(str, v.shape)) or "a number" for v in values if isinstance(v, Tensor)) or "none"


def as_reals(values: Sequence[Any]) -> list[Any]:
    """Outputs with complex ones by their real and imaginary parts, along an axis behind the others."""
    complexes = (isinstance(v, Tensor) and v.is_complex() for v in values)
    return [torch.view_as_real(v.resolve_conj()) if c else v for v, c in zip(values, complexes, strict=True)]


def floats(values: Sequence[Any]) -> list[Tensor]:
    """The floating tensors among outputs, on the CPU."""
    return [v.detach().cpu() for v in values if is_floating(v)]


def run_engine(engine: Runnable, program: Program, values: Feed) -> EngineOutputs:
    """The engine's outputs on one feed of the program that it was built from, each value in the port's dtype.

    Raises InputError when the engine takes another number of inputs.
    """
    tensors = tensors_of(program, values)
    if len(tensors) != len(engine.inputs):
        raise InputError(f"the models take {len(tensors)} and {len(engine.inputs)} tensor inputs")
    ported = [v.to(getattr(torch, p.dtype)) for v, p in zip(tensors, engine.inputs, strict=True)]
    return EngineOutputs(as_reals(engine.run(ported)))
