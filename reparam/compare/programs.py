"""Two programs compared: are they the same function, as far as finite arithmetic can tell?

Both are captured and run in float64 on random inputs of several sizes and batches, then in their own dtypes, and last
on inputs that are searched for (see `adversarial`). The weights of an emitted model are rounded to its dtype, so two
equal functions differ by about what the first itself loses in that dtype; a few times that measured loss is the bar.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reparam.capture import capture, from_exported
from reparam.check import ErrorSums, depth_limit
from reparam.errors import CaptureError, EndedError, InputError, ReparamError
from reparam.ir import (
    MIDDLE_SIZE,
    SMALL_SIZE,
    Feed,
    InputSpec,
    Program,
    draw_examples,
    drawn_inputs,
    evaluate,
    evaluate_where_it_runs,
    feed,
    filled,
    is_floating,
    tensors_of,
    typed,
)
from reparam.loading import LoadedModel
from reparam.rewrite import Progress
from reparam.utils import axis_name, dtype_name, first_line

from .adversarial import first_divergence, relative_gap, rounding, search
from .integer_inputs import drawn_for_both
from .verdict import Verdict


def program_of(
    model: LoadedModel, input_shapes: Sequence[Sequence[int]] | None, example_inputs: Sequence[Any] = ()
) -> Program:
    """The captured program of a loaded model, from its example inputs or else from random ones.

    input_shapes: of one sample, without the batch (a `Shape` for integers); needed when the model does not tell.
    Raises InputError, CaptureError among them.
    """
    if model.exported is not None:
        return from_exported(model.exported).program
    examples = tuple(example_inputs) or draw_examples(model.module, input_shapes or model.input_shapes, batch=2)
    try:
        return capture(model.module, examples).program
    except EndedError:
        raise
    except CaptureError as e:
        shapes = [tuple(x.shape[1:]) for x in examples if isinstance(x, Tensor)]
        raise CaptureError(f"{e} (input shapes {shapes})") from e


def verify_programs(
    a: Program,
    b: Program,
    *,
    input_shapes: Sequence[Sequence[int]] | None = None,
    trials: int = 8,
    seed: int = 0,
    adversarial: bool = True,
    progress: Progress | None = None,
) -> Verdict:
    """`verify` for programs that are already captured.

    input_shapes: without the batch, at which they are compared where their sizes are free; default as they were
        captured. trials: random inputs.

    Raises InputError like `verify`, and for shapes that the programs do not take.
    """
    if trials < 1:
        raise InputError(f"{trials} random inputs prove nothing; ask for at least one")
    job = _Comparison(a, b, torch.Generator().manual_seed(seed), input_shapes)
    feeds = job.feeds(trials)
    tell = progress or (lambda stage, done, total: None)
    reason = ""
    for i, values in enumerate(feeds):
        tell("verify", i, len(feeds) + 1)
        reason = reason or job.measure(values)
    outputs = () if reason else tuple(s.result(i, job.floor) for i, s in enumerate(job.sums))
    bad = next((o for o in outputs if not o.ok), None)
    reason = reason or (bad.complaint if bad is not None else "")
    found: dict[str, float] = {}
    point = feeds[0] if not job.gaps else feeds[job.gaps.index(max(job.gaps))]
    if not reason and adversarial:
        tell("verify", len(feeds), len(feeds) + 1)
        result = search(job.a, b, lambda: job.draw(1), rounding(job.dtype), seed)
        found = {"worst": result.worst, "inputs": float(result.inputs)}
        if not result.worst <= 1.0:
            point = result.point
            reason = f"an input was found on which they differ {result.worst:.3g} times more than is allowed"
    tell("verify", len(feeds) + 1, len(feeds) + 1)
    where = first_divergence(a, b, point, rounding(job.dtype)) if reason else None
    shapes = tuple(tuple(next(v.shape for v in values if isinstance(v, Tensor))) for values in feeds)
    return Verdict(not reason, outputs, reason, where, found, shapes, trials, seed)


class _Comparison:
    """Two programs on common inputs, and what was measured so far.

    dtype: the coarser of the two programs' dtypes, which decides what may be lost. sizes: values of the first one's
    free axes that fit both; batch: the names of those that are free in both. small: what large images shrink to. gaps:
    the relative difference of each feed.
    """

    def __init__(
        self,
        a: Program,
        b: Program,
        generator: torch.Generator,
        input_shapes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.a, self.b, self.generator = a, b, generator
        self.dtype = max((a.dtype, b.dtype), key=lambda d: torch.finfo(d).eps)
        self.sizes, self.batch = common_sizes(a.inputs, b.inputs, input_shapes)
        self.small: int | None = None
        self.a = self._on_common_integers()
        self.small = SMALL_SIZE
        self.sums: list[ErrorSums] = []
        self.gaps: list[float] = []

    def _on_common_integers(self) -> Program:
        """The first program, with the integers declared that both run on."""
        a, b = self.a, self.b
        drawn = drawn_for_both(
            a.inputs,
            drawn_inputs(a),
            lambda v: evaluate(a, filled(a, v)),
            lambda v: evaluate(b, filled(b, v)),
            lambda: tensors_of(a, self.draw(1)),
        )
        return a if drawn == a.inputs else replace(a, inputs=drawn)

    @property
    def floor(self) -> float:
        """What may always be lost, relative: a few roundings of the dtype, or of a whole network in float64."""
        return max(4.0 * torch.finfo(self.dtype).eps, depth_limit(self.a))

    def draw(self, batch: int, small: bool = True) -> Feed:
        """Random inputs in the coarser dtype's numbers: `batch` of them where the batch is free."""
        sizes = self.sizes | dict.fromkeys(self.batch, batch)
        values = feed(self.a, sizes, self.generator, self.small if small else None)
        return [v.to(self.dtype).to(v.dtype) if is_floating(v) else v for v in values]

    def feeds(self, trials: int) -> list[Feed]:
        """One input of the traced size, then the rest at a smaller odd size if both models run there."""
        if not self.batch:
            self.small = None
            return [self.draw(1) for _ in range(trials)]
        whole = self.draw(1, small=False)
        if trials == 1:
            self.small = None
            return [whole]
        rest: Feed = []
        for self.small in (SMALL_SIZE, MIDDLE_SIZE, None):
            rest = self.draw(trials - 1)
            if self.small is None or not any(evaluate_where_it_runs(p, rest) is None for p in (self.a, self.b)):
                break
        return [whole, rest]

    def measure(self, values: Feed) -> str:
        """Adds one feed to the sums; returns a reason when the outputs cannot be compared or integers differ."""
        try:
            truth, other = evaluate(self.a, values), evaluate(self.b, values)
        except ReparamError:
            raise
        except Exception as e:  # of any kind: operators may be those of others
            text = f"the models do not run in float64, in which they are compared: {first_line(e)}"
            raise InputError(text) from e
        if len(truth) != len(other):
            return f"they return {len(truth)} and {len(other)} values"
        shape = next(("x".join(map(str, v.shape)) for v in values if isinstance(v, Tensor)), "()")
        problem = next((p for t, o in zip(truth, other, strict=True) if (p := _problem(t, o, shape))), "")
        if problem:
            return problem
        try:
            own_a, own_b = _own(self.a, values, self.dtype), _own(self.b, values, None)
        except RuntimeError as e:
            raise InputError(f"this machine cannot run the models in {dtype_name(self.dtype)}: {e}") from e
        rows = [r for r in zip(truth, other, own_a, own_b, strict=True) if is_floating(r[0])]
        self.sums = self.sums or [ErrorSums() for _ in rows]
        for s, (t, o, p, q) in zip(self.sums, rows, strict=True):
            s.add(t, o, p.double(), q.double())
        self.gaps.append(relative_gap([r[0] for r in rows], [r[1] for r in rows]))
        return ""


# ---- inputs and outputs ------------------------------------------------------------------------------------------


def common_sizes(
    a: Sequence[InputSpec], b: Sequence[InputSpec], asked: Sequence[Sequence[int]] | None = None
) -> tuple[dict[str, int], list[str]]:
    """Sizes of a's free axes that b fixes or that were asked for, and the batch axes that are free in both.

    asked: the shape of each input, without the batch.

    Raises InputError where the two take no such inputs.
    """
    if len(a) != len(b):
        raise InputError(f"the models take {len(a)} and {len(b)} tensor inputs")
    sizes: dict[str, int] = {}
    for p, q, shape in zip(a, b, asked or (), strict=False):
        for spec in (p, q):
            own = spec.shape[1:]
            if len(own) != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(own, shape, strict=True)):
                wanted = ",".join(str(n) if isinstance(n, int) else "any" for n in own)
                given = ",".join(map(str, shape))
                raise InputError(f"the input '{spec.name}' has the shape {wanted} without its batch, not {given}")
        for s, n in zip(p.shape[1:], shape, strict=True):
            if isinstance(s, str) and sizes.setdefault(s, n) != n:
                raise InputError(f"two sizes were given for one free size of the input '{p.name}'")
    for p, q in zip(a, b, strict=True):
        if len(p.shape) != len(q.shape) or p.dtype.is_floating_point != q.dtype.is_floating_point:
            raise InputError(_unlike(p, q))
        for s, t in zip(p.shape, q.shape, strict=True):
            if isinstance(s, int) and isinstance(t, int) and s != t:
                raise InputError(_unlike(p, q))
            if isinstance(s, str) and isinstance(t, int) and sizes.setdefault(s, t) != t:
                raise InputError(_unlike(p, q))
    free = dict.fromkeys(
        p.shape[0] for p, q in zip(a, b, strict=True) if p.shape and isinstance(q.shape[0], str)
    )  # a free axis of b beside a fixed one of a takes the fixed size
    return sizes, [s for s in free if isinstance(s, str) and s not in sizes]


def _unlike(p: InputSpec, q: InputSpec) -> str:
    shown = [f"{[_named(n, i, len(s.shape)) for i, n in enumerate(s.shape)]} ({dtype_name(s.dtype)})" for s in (p, q)]
    return f"the models' input '{p.name}' is {shown[0]} in one and {shown[1]} in the other"


def _named(size: int | str, axis: int, rank: int) -> int | str:
    """A size for people: a free one that has no name but that of its symbol is called by its axis."""
    if isinstance(size, int) or not re.search(r"\b[su]\d+\b", size):
        return size
    name = axis_name(axis, rank)
    return f"axis {name}" if name.isdigit() else name


def _problem(t: Any, o: Any, shape: str) -> str:
    """Why two outputs cannot be compared, or how they differ when they are not floating tensors.

    shape: of the random inputs that they are of.

    Raises InputError where both are not finite.
    """
    if not isinstance(t, Tensor) or not isinstance(o, Tensor):
        return "" if type(t) is type(o) and t == o else f"an output is {_short(t)} in one and {_short(o)} in the other"
    if t.shape != o.shape:
        return f"an output has shape {list(t.shape)} in one and {list(o.shape)} in the other"
    if t.is_floating_point() != o.is_floating_point():
        return f"an output is of {t.dtype} in one and of {o.dtype} in the other"
    if not t.is_floating_point():
        return "" if torch.equal(t, o) else "an integer output differs"
    if not bool(torch.isfinite(t).all() or torch.isfinite(o).all()):
        raise InputError(
            f"the outputs of neither model are finite on random inputs of shape {shape}, so nothing can be compared"
        )
    if not bool(torch.isfinite(t).all()):
        return f"the first model's outputs are not finite on random inputs of shape {shape}, so nothing can be compared"
    if not bool(torch.isfinite(o).all()):
        return "the second model's outputs are not finite where the first one's are"
    return ""


def _short(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _own(program: Program, values: Feed, dtype: torch.dtype | None) -> list[Any]:
    """The outputs in the program's own dtype, or all in `dtype` when that is a coarser one."""
    wanted = dtype if dtype != program.dtype else None
    return evaluate(program, typed(program, values, wanted), wanted)
