"""`verify` where one or both models are engines: files of other formats, which only run.

With a captured program on one side, that is the truth, in float64, and what it loses itself in the coarser precision of
the two is the yardstick. Between two engines the first one is the truth, and what it loses is measured on its twin,
whose weights (or inputs, where the weights are sealed) are off by a rounding. An engine may be `SLACK` times worse.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reparam.check import ErrorSums, OutputError, depth_limit
from reparam.engines import EngineOutputs, Port, Runnable, as_reals, floats
from reparam.errors import InputError
from reparam.ir import InputSpec, Program, drawn_inputs, evaluate, filled, random_input, shape_of, typed, whole_range
from reparam.loading import LoadedModel
from reparam.rewrite import Progress
from reparam.utils import Shape

from .adversarial import FLOOR, SCALES, first_divergence_among, relative_gap, rounding
from .adversarial import SLACK as SEARCH_SLACK
from .integer_inputs import drawn_for_both, ported
from .programs import common_sizes, program_of
from .verdict import Verdict

MOST_SAMPLES = 64  # the largest batch that an engine is asked for
SIDES = (1, 30, 53)  # of free axes, beside the size that is asked for
SEALED = 16.0  # roundings by which the inputs of an engine move whose weights cannot
Shapes = Sequence[Sequence[int]]


class _Reference(ABC):
    """The side that is the truth.

    hints: a size for each free axis, where it is known. floor: relative. engine: where the side is one. drawn: the
    inputs with the bounds of the integers that are drawn.
    """

    inputs: tuple[InputSpec, ...]
    drawn: tuple[InputSpec, ...]
    dtype: torch.dtype
    hints: dict[str, int]
    floor: float
    engine: Runnable | None = None

    @abstractmethod
    def truth(self, values: Sequence[Tensor]) -> list[Any]:
        """The outputs on one tensor for each input."""

    @abstractmethod
    def own(self, values: Sequence[Tensor], dtype: torch.dtype) -> list[Any]:
        """The outputs as the reference itself gives them when it computes in `dtype`, with its losses."""

    def where(self, engine: Runnable, values: Sequence[Tensor], dtype: torch.dtype) -> str | None:
        """The first layer behind which the engine has other values, where that can be told."""
        return None


class _ProgramReference(_Reference):
    def __init__(self, program: Program) -> None:
        self.program, self.inputs, self.dtype = program, program.inputs, program.dtype
        self.drawn = drawn_inputs(program)
        specs = {s.name: s for s in program.inputs}
        self.hints = {}
        for node in program.placeholders:
            spec = specs.get(str(node.target))
            sizes = zip(spec.shape, shape_of(node), strict=True) if spec is not None else ()
            self.hints |= {s: n for s, n in sizes if isinstance(s, str)}
        self.floor = depth_limit(program)

    def truth(self, values: Sequence[Tensor]) -> list[Any]:
        return as_reals(evaluate(self.program, filled(self.program, values)))

    def own(self, values: Sequence[Tensor], dtype: torch.dtype) -> list[Any]:
        wanted = dtype if dtype != self.dtype else None
        feed = typed(self.program, filled(self.program, values))
        if wanted is not None:
            feed = [v.to(wanted) if isinstance(v, Tensor) and v.is_floating_point() else v for v in feed]
        try:
            return as_reals(evaluate(self.program, feed, wanted))
        except RuntimeError as error:
            raise InputError(f"this machine cannot run the model in {str(dtype)[6:]}: {error}") from error

    def where(self, engine: Runnable, values: Sequence[Tensor], dtype: torch.dtype) -> str | None:
        theirs = engine.trace(ported(engine, values))
        if not theirs:
            return None
        doubled = [t.double() for t in theirs]
        return first_divergence_among(self.program, doubled, filled(self.program, values), FLOOR * rounding(dtype))


class _EngineReference(_Reference):
    engine: Runnable

    def __init__(self, engine: Runnable, shapes: Shapes | None, seed: int) -> None:
        self.engine, self.seed = engine, seed
        self.inputs = self.drawn = specs_of(engine.inputs)
        if engine.kind == "cpu":  # a GPU that is asked for an index beyond a table may give nothing from then on
            self.drawn = tuple(map(whole_range, self.inputs))
        self.dtype = dtype_of(engine)
        self.hints = {}
        for spec, shape in zip(self.inputs, shapes or (), strict=False):
            self.hints |= {s: n for s, n in zip(spec.shape[1:], shape, strict=False) if isinstance(s, str)}
        self.floor = 0.0
        self.twins: dict[torch.dtype, Runnable | None] = {}

    def truth(self, values: Sequence[Tensor]) -> list[Any]:
        found = as_reals(self.engine.run(ported(self.engine, values)))
        return [v.double() if v.is_floating_point() else v for v in found]

    def own(self, values: Sequence[Tensor], dtype: torch.dtype) -> list[Any]:
        eps = rounding(dtype)
        if dtype not in self.twins:
            self.twins[dtype] = self.engine.twin(eps, self.seed)
        other = self.twins[dtype]
        if other is not None:
            return as_reals(other.run(ported(other, values)))
        noise = torch.Generator().manual_seed(self.seed)
        moved = [
            v * (1.0 + SEALED * eps * (2.0 * torch.rand(v.shape, generator=noise, dtype=torch.float64) - 1.0))
            if v.is_floating_point()
            else v
            for v in values
        ]
        return as_reals(self.engine.run(ported(self.engine, moved)))


def verify_engines(
    a: LoadedModel | Runnable,
    b: LoadedModel | Runnable,
    *,
    example_inputs: Sequence[Any] = (),
    input_shapes: Shapes | None = None,
    trials: int = 8,
    seed: int = 0,
    adversarial: bool = True,
    progress: Progress | None = None,
) -> Verdict:
    """Compares two models of which at least one is an engine. Raises InputError like `verify`.

    example_inputs: with which the other is captured; without them, inputs of the engine's dtypes are drawn.
    """
    if trials < 1:
        raise InputError(f"{trials} random inputs prove nothing; ask for at least one")
    swapped = isinstance(a, Runnable) and not isinstance(b, Runnable)
    first, second = (b, a) if swapped else (a, b)
    assert isinstance(second, Runnable)
    if isinstance(first, Runnable):
        reference: _Reference = _EngineReference(first, input_shapes, seed)
    else:
        shapes = input_shapes or _fixed_shapes(second, first)
        reference = _ProgramReference(program_of(first, _with_integers(shapes, second), example_inputs))
    job = _Comparison(reference, second, seed, progress, input_shapes)
    verdict = job.run(trials, adversarial)
    runtimes = [m.runtime if isinstance(m, Runnable) else "the captured program" for m in (a, b)]
    rows = [replace(o, error_a=o.error_b, error_b=o.error_a) for o in verdict.outputs] if swapped else verdict.outputs
    quantised = any(isinstance(m, Runnable) and m.precision == "int8" for m in (a, b))
    return replace(
        verdict,
        equivalent=verdict.equivalent and not quantised,
        outputs=tuple(rows),
        runtimes=tuple(runtimes),
        quantised=quantised,
    )


class _Comparison:
    """A reference and an engine on common inputs.

    dtype: the coarser of the two. least: the smallest batch of both. drawn: the inputs, with integers that both take.
    """

    least = 1

    def __init__(
        self,
        reference: _Reference,
        engine: Runnable,
        seed: int,
        progress: Progress | None,
        input_shapes: Shapes | None = None,
    ) -> None:
        self.reference, self.engine, self.seed = reference, engine, seed
        self.tell = progress or (lambda stage, done, total: None)
        self.generator = torch.Generator().manual_seed(seed)
        both = (reference.dtype, dtype_of(engine))
        self.dtype = max(both, key=lambda d: torch.finfo(d).eps)
        self.sizes, self.batch = common_sizes(reference.inputs, specs_of(engine.inputs), input_shapes)
        self.drawn = reference.inputs
        self.moved: dict[str, int] = {}  # other sizes of free axes, while these are tried
        self.sums: list[ErrorSums] = []
        self.point: list[Tensor] = []

    def run(self, trials: int, adversarial: bool) -> Verdict:
        batches = self.batches(trials)
        self.drawn = drawn_for_both(
            self.reference.inputs,
            self.reference.drawn,
            self.reference.truth,
            lambda v: self.engine.run(ported(self.engine, v)),
            lambda: self.draw(self.least),
        )
        feeds = [self.draw(n) for n in batches]
        reason = ""
        for i, values in enumerate(feeds):
            self.tell("verify", i, len(feeds) + 1)
            self.point = values if not reason else self.point
            reason = reason or self.measure(values)
        reason = reason or self.elsewhere(feeds)
        floor = max(4.0 * torch.finfo(self.dtype).eps, self.reference.floor)
        outputs = () if reason else tuple(s.result(i, floor) for i, s in enumerate(self.sums))
        reason = reason or self.complaint(outputs)
        found: dict[str, float] = {}
        if not reason and adversarial:
            worst, tried = self.search()
            found = {"worst": worst, "inputs": float(tried)}
            if not worst <= 1.0:
                reason = f"an input was found on which they differ {worst:.3g} times more than is allowed"
        where = self.reference.where(self.engine, self.point, self.dtype) if reason else None
        self.tell("verify", len(feeds) + 1, len(feeds) + 1)
        shapes = tuple(tuple(values[0].shape) for values in feeds)
        return Verdict(not reason, outputs, reason, where, found, shapes, trials, self.seed)

    def elsewhere(self, feeds: list[list[Tensor]]) -> str:
        """A reason where the two differ at other sizes of axes that both leave free, as far as both run there.

        feeds: those that were compared, to which these are added.
        """
        pairs = zip(self.reference.inputs, specs_of(self.engine.inputs), strict=True)
        sizes = [st for p, q in pairs for st in zip(p.shape[1:], q.shape[1:], strict=True)]
        free = dict.fromkeys(s for s, t in sizes if isinstance(s, str) and isinstance(t, str) and s not in self.batch)
        reason = ""
        for side in SIDES if free else ():
            self.moved = dict.fromkeys(free, side)
            if not reason and self.taken(2):
                values = self.draw(2)
                try:
                    truth = self.reference.truth(values)
                    if not all(bool(torch.isfinite(v).all()) for v in floats(truth)):
                        continue
                    reason = self.measure(values, truth)
                except Exception:  # of any kind: one of the two does not run there
                    continue
                feeds.append(values)
                self.point = values if reason else self.point
        self.moved = {}
        return reason

    def batches(self, trials: int) -> list[int]:
        """The sizes of the batch to compare on, which together hold `trials` samples where both models take them.

        Raises InputError when there is no small batch that both take.
        """
        if not self.batch:
            return [1] * trials
        taken = [n for n in range(1, MOST_SAMPLES + 1) if self.taken(n)]
        if not taken:
            raise InputError(f"the engine takes none of the batches from 1 to {MOST_SAMPLES} at these sizes")
        self.least = taken[0]
        largest = max((n for n in taken if n < trials), default=self.least)
        rest = max(1, -(-(trials - self.least) // largest)) if trials > self.least else 0
        return [self.least, *[largest] * rest]

    def taken(self, batch: int) -> bool:
        """Whether both models were built for this batch."""
        shapes = [tuple(s) for s in self.shapes(batch)]
        return all(engine.takes(shapes) for engine in (self.engine, self.reference.engine) if engine is not None)

    def shapes(self, batch: int) -> list[list[int]]:
        """The shape of each input. Raises InputError naming a free size that nothing tells."""
        known = self.reference.hints | self.sizes | dict.fromkeys(self.batch, batch) | self.moved
        for spec in self.reference.inputs:
            unknown = next((s for s in spec.shape if isinstance(s, str) and s not in known), None)
            if unknown is not None:
                raise InputError(f"the size '{unknown}' of the input '{spec.name}' is free; pass it with --input-shape")
        return [[s if isinstance(s, int) else known[s] for s in spec.shape] for spec in self.reference.inputs]

    def draw(self, batch: int) -> list[Tensor]:
        """Random inputs in the numbers of the coarser dtype, `batch` of them where the batch is free."""
        values: list[Tensor] = []
        for spec, shape in zip(self.drawn, self.shapes(batch), strict=True):
            value = random_input(spec, shape, self.generator)
            values.append(value.to(self.dtype).double() if value.is_floating_point() else value)
        return values

    def measure(self, values: Sequence[Tensor], truth: list[Any] | None = None) -> str:
        """Adds one feed to the sums; a reason when the outputs cannot be compared. truth: the reference's, if known.

        Raises InputError like `verify`.
        """
        truth = self.reference.truth(values) if truth is None else truth
        got = EngineOutputs(as_reals(self.engine.run(ported(self.engine, values))))
        if not got.fits(truth):
            tensors = EngineOutputs([t for t in truth if isinstance(t, Tensor)])
            return f"one gives outputs of shape {tensors.describe()}, the other {got.describe()}"
        own = self.reference.own(values, self.dtype)
        different, total = got.other_integers(truth, own)
        if different:
            return f"{different:,} of {total:,} integers of the outputs differ"
        rows = list(zip(floats(truth), got.floats, floats(own), strict=True))
        self.sums = self.sums or [ErrorSums() for _ in rows]
        for s, (t, o, p) in zip(self.sums, rows, strict=True):
            if not bool(torch.isfinite(t).all() or torch.isfinite(o).all()):
                raise InputError("the outputs of neither model are finite on random inputs, so nothing can be compared")
            if not bool(torch.isfinite(t).all()):
                return "one gives outputs that are not finite where the other's are"
            if not bool(torch.isfinite(o).all()):
                return "one gives outputs that are not finite where the other's are"
            s.add(t, o.double(), p.double(), o.double())
        return ""

    def complaint(self, outputs: Sequence[OutputError]) -> str:
        """What is wrong with the first output that is not ok, with its name."""
        bad = next((o for o in outputs if not o.ok), None)
        if bad is None:
            return ""
        names = [p.name for p in self.engine.outputs]
        text = bad.complaint.replace(f"output {bad.index}", f"output {bad.index} ('{names[bad.index]}')")
        if self.engine.precision != "int8":
            return text
        return (
            f"{text}; it is quantised to int8, and random inputs need not lie within what it was calibrated on: "
            "bench --data compares on samples"
        )

    def search(self) -> tuple[float, int]:
        """The largest difference on inputs of many sizes, as a share of what is allowed, and the number of inputs."""
        worst = 0.0
        for scale in SCALES:
            values = [v * scale if v.is_floating_point() else v for v in self.draw(self.least)]
            truth = floats(self.reference.truth(values))
            got, own = as_reals(self.engine.run(ported(self.engine, values))), self.reference.own(values, self.dtype)
            allowed = relative_gap(truth, [v.double() for v in floats(own)])
            gap = relative_gap(truth, [v.double() for v in floats(got)])
            if math.isnan(gap) or not math.isfinite(allowed):
                continue  # the reference itself overflows there
            share = gap / (SEARCH_SLACK * max(allowed, FLOOR * rounding(self.dtype)))
            if share > worst:
                worst, self.point = share, values
        return worst, len(SCALES)


# ---- ports -------------------------------------------------------------------------------------------------------


def specs_of(ports: Sequence[Port]) -> tuple[InputSpec, ...]:
    """An engine's inputs as those of a program."""
    return tuple(InputSpec(p.name, p.shape, getattr(torch, p.dtype)) for p in ports)


def dtype_of(engine: Runnable) -> torch.dtype:
    """The dtype that an engine's losses are those of; a quantised one is held to float32, which it will not keep."""
    dtype = torch.float32 if engine.precision == "int8" else getattr(torch, engine.precision)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _fixed_shapes(engine: Runnable, model: LoadedModel) -> Shapes | None:
    """Shapes without the batch that both take: the engine's, where they are fixed, else the model's own."""
    shapes = [p.shape[1:] for p in engine.inputs]
    if all(isinstance(n, int) for s in shapes for n in s):
        return [[int(n) for n in s] for s in shapes]
    return model.input_shapes


def _with_integers(shapes: Shapes | None, engine: Runnable) -> Shapes | None:
    """The shapes, those of the engine's integer inputs with their dtype where none was told."""
    if shapes is None or len(shapes) != len(engine.inputs):
        return shapes
    told = [isinstance(s, Shape) and s.dtype is not None for s in shapes]
    floating = [getattr(torch, p.dtype).is_floating_point for p in engine.inputs]
    return [
        s if t or f else Shape(s, p.dtype) for s, t, f, p in zip(shapes, told, floating, engine.inputs, strict=True)
    ]
