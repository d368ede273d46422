"""Evidence for the whole network: float64 end to end, then once more in the dtype that is emitted.

The figure that counts is the converted model's error against the float64 truth, beside the original's own error
against it: RMS over at least eight inputs, at most twice the original's plus 4*eps*RMS(y).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reparam.errors import InputError, NotEquivalentError
from reparam.ir import (
    EVEN_SIZE,
    SMALL_SIZE,
    WEIGHTED,
    Feed,
    Program,
    batch_one,
    evaluate,
    evaluate_where_it_runs,
    feed,
    is_call,
    typed,
)
from reparam.utils import dtype_name

TRIALS = 8
ROUNDINGS = 256


@dataclass(frozen=True)
class NetworkEvidence:
    """What the end-to-end check measured. Errors are RMS over all inputs and elements, of the worst output."""

    float64_max_rel: float = 0.0
    error: float = 0.0
    original_error: float = 0.0
    trials: int = 0
    seed: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    dtype: str = "float32"


@dataclass
class _Output:
    """Sums over all inputs for one output: squared errors of both models, squared truth, elements."""

    new: float = 0.0
    old: float = 0.0
    truth: float = 0.0
    count: int = 0


def _plans(program: Program) -> Iterator[tuple[dict[str, int], int, int | None]]:
    """(symbol sizes, inputs, small size or None) of each round: traced size alone, then a batch at another size."""
    symbols = sorted({s for spec in program.inputs for s in spec.shape if isinstance(s, str)})
    batch = sorted(batch_one(program))
    spatial = [s for s in symbols if s not in batch]
    yield {s: 1 for s in batch}, 1, None
    if not batch:
        for _ in range(TRIALS - 1):
            yield {}, 1, SMALL_SIZE
        return
    yield {s: TRIALS - 1 for s in batch}, TRIALS - 1, SMALL_SIZE
    for i, size in enumerate((48, 81) if spatial else ()):
        yield {s: 2 for s in batch} | {s: size + 16 * (i + j) for j, s in enumerate(spatial)}, 2, None


def depth_limit(program: Program) -> float:
    """The float64 bar: 1e-10 up to fifty weighted layers, growing with depth to 1e-9 at most."""
    depth = sum(is_call(n, WEIGHTED) for n in program.calls())
    return min(1e-9, 1e-10 * max(1.0, depth / 50))


def _limit(original: Program, values: Feed, truth: Sequence[Any], floor: float) -> float:
    """The bar for these inputs: `floor`, or more for an ill-conditioned network.

    What the original itself loses in its own dtype (float32, when that is float64) tells how much it amplifies
    rounding; the same amplification of float64 rounding, times the number of roundings that a fold moves, is what two
    equal programs may differ by.
    """
    dtype = torch.float32 if original.dtype == torch.float64 else None
    own = evaluate(original, typed(original, values, dtype), dtype)
    loss = _max_rel(truth, [o.double() if isinstance(o, Tensor) and o.is_floating_point() else o for o in own])
    eps = torch.finfo(torch.float64).eps / torch.finfo(dtype or original.dtype).eps
    return max(floor, ROUNDINGS * loss * eps) if math.isfinite(loss) else floor


def _max_rel(truth: Sequence[Any], other: Sequence[Any]) -> float:
    """The largest difference of any output, relative to that output's largest magnitude. Others must be equal."""
    worst = 0.0
    for a, b in zip(truth, other, strict=True):
        if not isinstance(a, Tensor):
            worst = worst if a == b else math.inf
            continue
        if a.shape != b.shape:
            return math.inf
        if not a.numel():
            continue
        if not a.is_floating_point():
            worst = worst if torch.equal(a, b) else math.inf
            continue
        gap = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-300)
        worst = max(worst, gap if math.isfinite(gap) else math.inf)
    return worst


@dataclass(frozen=True)
class Round:
    """Inputs that were run, the float64 truth (the original's outputs), and the relative float64 bar that applied."""

    values: Feed
    truth: list[Any]
    inputs: int
    limit: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first tensor among the inputs."""
        return tuple(int(n) for n in next(v.shape for v in self.values if isinstance(v, Tensor)))


def _finite(outputs: Sequence[Any]) -> bool:
    return all(bool(torch.isfinite(o).all()) for o in outputs if isinstance(o, Tensor) and o.is_floating_point())


def check_float64(original: Program, converted: Program, seed: int = 0) -> tuple[NetworkEvidence, list[Round]]:
    """Compares both programs in float64 on random inputs of several sizes and batches.

    Returns the evidence so far and the rounds, whose truth the check in the emitted dtype uses again. Raises
    NotEquivalentError when the programs differ, InputError when the original gives no finite output to compare with.
    """
    generator = torch.Generator().manual_seed(seed)
    largest = 0.0
    floor = depth_limit(original)
    rounds: list[Round] = []
    for sizes, inputs, small in _plans(original):
        values = feed(original, sizes, generator, small)
        truth = evaluate_where_it_runs(original, values)
        other = evaluate_where_it_runs(converted, values) if truth is not None else None
        fits = truth is not None and other is not None and _finite(truth) and _max_rel(truth, other) <= floor
        others = () if small is None or fits else (None,) if truth is None else (EVEN_SIZE, None)
        for again in others:
            values = feed(original, sizes, generator, again)
            truth, other = evaluate_where_it_runs(original, values), evaluate_where_it_runs(converted, values)
            if truth is not None and other is not None and _finite(truth) and _max_rel(truth, other) <= floor:
                break
        if truth is None:
            if rounds:
                continue
            evaluate(original, values)
        if other is None:
            evaluate(converted, values)
        assert truth is not None and other is not None
        if not _finite(truth):
            raise InputError("the original's own outputs are not finite on random inputs, so nothing can be compared")
        worst = _max_rel(truth, other)
        largest = max(largest, worst)
        limit = floor if worst <= floor else _limit(original, values, truth, floor)
        if not worst <= limit:
            raise NotEquivalentError(
                f"the converted network differs from the original: float64 error {worst:.3g} exceeds {limit:.3g}"
            )
        rounds.append(Round(values, truth, inputs, limit))
    trials, shapes = sum(r.inputs for r in rounds), tuple(r.shape for r in rounds)
    return NetworkEvidence(float64_max_rel=largest, trials=trials, seed=seed, shapes=shapes), rounds


def check_emitted(
    original: Program, emitted: Program, rounds: Sequence[Round], evidence: NetworkEvidence, dtype: torch.dtype | None
) -> NetworkEvidence:
    """Measures both models' errors against the float64 truth in the dtype that is emitted.

    dtype: the dtype that both run in when it differs from the original's own, else None. In float64, where the truth is
    the original's own result, the bar is that of the check before. Raises NotEquivalentError when the converted model's
    error exceeds the bar, InputError when this machine cannot compute in that dtype, or the original overflows in it.
    """
    eps = torch.finfo(dtype or original.dtype).eps
    name = dtype_name(dtype or original.dtype)
    sums: list[_Output] = []
    for r in rounds:
        try:
            old = evaluate(original, typed(original, r.values, dtype), dtype)
            new = evaluate(emitted, typed(emitted, r.values, dtype), None)
        except RuntimeError as e:
            raise InputError(f"this machine cannot run the network in {name}: {e}") from e
        _accumulate(sums, r.truth, old, new)
    worst = error = original_error = 0.0
    for s in sums:
        if not s.count:
            continue
        new_rms, old_rms, size = (math.sqrt(v / s.count) for v in (s.new, s.old, s.truth))
        if not math.isfinite(old_rms):
            raise InputError(
                f"the original's own outputs are not finite in {name} on random inputs, so nothing can be "
                "compared; they are in float64"
            )
        bar = 2.0 * old_rms + max(4.0 * eps, *(r.limit for r in rounds)) * size
        ratio = new_rms / bar if bar else (0.0 if new_rms == 0.0 else math.inf)
        if ratio >= worst:
            worst, error, original_error = ratio, new_rms, old_rms
        if not ratio <= 1.0:
            raise NotEquivalentError(
                f"the converted network is less exact than the original in {name}: RMS error {new_rms:.3g} "
                f"against the float64 truth, where the original's own is {old_rms:.3g} (the bar is {bar:.3g})"
            )
    return replace(evidence, error=error, original_error=original_error, dtype=name)


def _accumulate(sums: list[_Output], truth: Sequence[Any], old: Sequence[Any], new: Sequence[Any]) -> None:
    floats = [
        (t, o.double(), n.double())
        for t, o, n in zip(truth, old, new, strict=True)
        if isinstance(t, Tensor) and t.is_floating_point()
    ]
    while len(sums) < len(floats):
        sums.append(_Output())
    for s, (t, o, n) in zip(sums, floats, strict=True):
        s.new += float((n - t).square().sum())
        s.old += float((o - t).square().sum())
        s.truth += float(t.square().sum())
        s.count += t.numel()
