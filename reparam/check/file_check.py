"""A network that was read from a file, against the file itself as another runtime runs it.

The truth is the network in float64. The file is run in the dtypes that it was written in, so it can only be near the
truth: its RMS error may be `output_error.SLACK` times that of the network that was read, in the same dtypes, plus a few
roundings; where that is too little, what that network loses with the numbers of every sum and norm added in order. What
is compared are the file and what was read from it, before any rewrite; that the rewrites change nothing is compared in
float64 elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from reparam.errors import InputError, NotEquivalentError
from reparam.ir import Feed, Program, batch_one, evaluate, evaluate_where_it_runs, feed, tensors_of, typed

from .evidence import FileEvidence
from .output_error import ErrorSums, OutputError
from .own_dtype import in_own_dtype
from .rounds import Round, depth_limit
from .sums_in_order import IN_ORDER
from .values import all_finite

BATCHES = (1, 2, 5)
SIDES = (1, 10, 30)  # of free axes: decimal fractions of these are whole numbers, which a file may round otherwise


class File(Protocol):
    """A file that another runtime runs."""

    @property
    def runtime(self) -> str:
        """What runs it, with its version."""

    def run(self, values: Sequence[Tensor]) -> Sequence[Tensor] | None:
        """Its outputs on one tensor for each input; None for sizes that it does not take."""


def check_file(program: Program, file: File, rounds: Sequence[Round] = (), seed: int = 0) -> FileEvidence:
    """Compares the captured program of a file with the file.

    rounds: inputs whose truth is known. Sizes at which one of the two stops are left out, but for the first, which is
        what was traced.

    Raises NotEquivalentError naming the first output that differs by more than is allowed, and what the file raises.
    """
    sums: list[ErrorSums] = []
    compared: list[tuple[Feed, list[Any] | None]] = []
    trials = 0
    for values, truth in (*((r.values, r.truth) for r in rounds), *_more(program, seed)):
        inputs = typed(program, values)
        try:
            found = file.run(tensors_of(program, inputs))
        except InputError:
            if not trials:
                raise
            continue  # other sizes, which it does not take
        if found is None:
            continue
        wanted = evaluate_where_it_runs(program, values) if truth is None else truth
        if wanted is None:
            if not trials:
                evaluate(program, values)
            continue  # so that nothing wrong comes of it
        if trials and not all_finite(wanted):
            continue  # a variance of one number
        own = in_own_dtype(program, values, program)
        if own is None or [v.shape for v in own] != [v.shape for v in wanted]:
            continue  # smaller images than it was captured for
        kept = list(found) if program.kept is None else [found[i] for i in program.kept]
        _add(sums, wanted, own, kept)
        compared.append((values, truth))
        first = next(v for v in values if isinstance(v, Tensor))
        trials += int(first.shape[0]) if first.dim() and batch_one(program) else 1
    if not trials:
        raise NotEquivalentError(f"{file.runtime} takes the file at none of the sizes that it would be compared at")
    floor = max(4.0 * torch.finfo(program.dtype).eps, depth_limit(program))
    errors = [s.result(i, floor) for i, s in enumerate(sums)]
    if not all(e.ok for e in errors):
        for values, truth in compared:
            _add_in_order(sums, program, values, truth)
        errors = [s.result(i, floor) for i, s in enumerate(sums)]
    bad = next((e for e in errors if not e.ok), None)
    if bad is not None:
        raise NotEquivalentError(f"what was read from the file is not what {file.runtime} computes: {bad.complaint}")
    worst = max(errors, key=_share, default=None)
    return FileEvidence(file.runtime, worst.error_b if worst else 0.0, worst.error_a if worst else 0.0, trials)


def _share(error: OutputError) -> float:
    return error.error_b / error.bar if error.bar else 0.0


def _more(program: Program, seed: int) -> Iterator[tuple[Feed, list[Any] | None]]:
    """Inputs that were not compared before: of the traced size, each in another batch where the batch is free; and of
    other sizes of free axes.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    batch, traced = batch_one(program), program.traced_sizes
    for count in BATCHES:
        yield feed(program, traced | dict.fromkeys(batch, count), generator), None
    others = sorted(s for s in traced if s not in batch)
    for side in SIDES if others else ():
        sizes = {s: side * (j + 1) for j, s in enumerate(others)}
        yield feed(program, traced | dict.fromkeys(batch, 2) | sizes, generator), None


def _add(sums: list[ErrorSums], truth: Sequence[Any], own: Sequence[Any], found: Sequence[Tensor]) -> None:
    if [tuple(t.shape) for t in truth] != [tuple(f.shape) for f in found]:
        raise NotEquivalentError(f"the file gives {_shapes(found)}, and what was read from it {_shapes(truth)}")
    floats = [(t, f, o) for t, f, o in zip(truth, found, own, strict=True) if t.is_floating_point()]
    others = [(t, f, o) for t, f, o in zip(truth, found, own, strict=True) if not t.is_floating_point()]
    if not all(torch.equal(f, t) or torch.equal(f, o) for t, f, o in others):
        raise NotEquivalentError("what was read from the file gives other whole numbers than the file does")
    while len(sums) < len(floats):
        sums.append(ErrorSums())
    for total, (t, f, o) in zip(sums, floats, strict=True):
        if not bool(torch.isfinite(f).all()):
            raise NotEquivalentError("the file's outputs are not finite where those of what was read from it are")
        total.add(t.double(), f.double(), o.double(), f.double())


def _add_in_order(sums: Sequence[ErrorSums], program: Program, values: Feed, truth: Sequence[Any] | None) -> None:
    """Takes the errors of the network with its sums added in order, as the other runtime may."""
    wanted = evaluate(program, values) if truth is None else truth
    found = evaluate(program, typed(program, values), None, by=IN_ORDER)
    floats = [(t, f) for t, f in zip(wanted, found, strict=True) if t.is_floating_point()]
    for total, (t, f) in zip(sums, floats, strict=True):
        total.widen(t.double(), f.double(), "in order")


def _shapes(values: Sequence[Tensor]) -> str:
    return ", ".join("x".join(map(str, v.shape)) or "a number" for v in values)
