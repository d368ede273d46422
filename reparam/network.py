"""Evidence for the whole network: float64 end to end, then once more in the dtype that is emitted.

The figure that counts is the converted model's error against the float64 truth, beside the original's own error
against it: RMS over at least eight inputs, at most twice the original's plus 4*eps*RMS(y).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from .cost import batch_one
from .errors import InputError, NotEquivalentError
from .evaluate import evaluate
from .ops import CASTS, IDENTITIES, MOVEMENTS, WEIGHTED, aten, is_call
from .program import InputSpec, Program, shape_of

TRIALS = 8
ROUNDINGS = 256
SMALL_SIZE = 65
EVEN_SIZE = 96  # for networks whose branches meet at even sizes only
Feed = list[Any]


@dataclass
class NetworkEvidence:
    """What the end-to-end check measured. Errors are RMS over all inputs and elements, of the worst output."""

    float64_max_rel: float = 0.0
    error: float = 0.0
    original_error: float = 0.0
    trials: int = 0
    seed: int = 0
    shapes: list[list[int]] = field(default_factory=list)
    dtype: str = "float32"


@dataclass
class _Output:
    """Sums over all inputs for one output: squared errors of both models, squared truth, elements."""

    new: float = 0.0
    old: float = 0.0
    truth: float = 0.0
    count: int = 0


def random_input(spec: InputSpec, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A random tensor for one input: normal, or uniform where the declared range is finite; float64 or integer."""
    if not spec.dtype.is_floating_point:
        high = 2 if spec.dtype == torch.bool else int(spec.high) + 1 if math.isfinite(spec.high) else 2
        low = int(spec.low) if math.isfinite(spec.low) else 0
        return torch.randint(low, high, tuple(shape), generator=generator).to(spec.dtype)
    if math.isfinite(spec.low) and math.isfinite(spec.high):
        return spec.low + (spec.high - spec.low) * torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    if math.isfinite(spec.low):
        return spec.low + x.abs()
    return spec.high - x.abs() if math.isfinite(spec.high) else x


def feed(program: Program, sizes: dict[str, int], generator: torch.Generator, small: int | None = None) -> Feed:
    """One entry for each placeholder, with the symbols of `sizes`.

    small: what large images shrink to; small ones go to three quarters of their size, see `_shrunk`.

    Floating values are rounded to the input's dtype, so that every dtype sees the same numbers.
    """
    specs = {s.name: s for s in program.inputs}
    values: Feed = []
    for node in program.placeholders:
        spec = specs.get(str(node.target))
        if spec is None:
            values.append(node.meta["val"])
            continue
        if not spec.dtype.is_floating_point and not math.isfinite(spec.high):
            spec = replace(spec, high=_largest_index(node))
        shape = list(shape_of(node, sizes))
        if small is not None and len(shape) >= 4:
            shape[-2:] = [_shrunk(s, small) for s in shape[-2:]]
        value = random_input(spec, shape, generator)
        if value.is_floating_point():
            value = value.to(spec.dtype).to(torch.float64)
        values.append(value.to(program.device))
    return values


def _shrunk(size: int, small: int) -> int:
    """The side of a smaller image: `small`, or three quarters; odd when `small` is, else a multiple of eight."""
    if size > small:
        return small
    return 3 * size // 4 | 1 if small % 2 else 3 * size // 4 // 8 * 8 or size


def _largest_index(node: fx.Node) -> float:
    """The largest entry of an integer input that is looked up in a table; infinite when it is used otherwise."""
    rows = [math.inf]
    stack = list(node.users)
    while stack:
        user = stack.pop()
        if user.target is aten.embedding.default:
            rows.append(shape_of(user.args[0])[0] - 1)  # type: ignore[arg-type]
        elif is_call(user, IDENTITIES | CASTS | MOVEMENTS):
            stack.extend(user.users)
    return min(rows)


def _runs(program: Program, values: Feed) -> list[Any] | None:
    try:
        return evaluate(program, values)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None


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
    own = evaluate(original, _typed(original, values, dtype), dtype)
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
class _Round:
    """Inputs that were run, the float64 truth (the original's outputs), and the relative float64 bar that applied."""

    values: Feed
    truth: list[Any]
    inputs: int
    limit: float


def _finite(outputs: Sequence[Any]) -> bool:
    return all(bool(torch.isfinite(o).all()) for o in outputs if isinstance(o, Tensor) and o.is_floating_point())


def check_float64(original: Program, converted: Program, seed: int = 0) -> tuple[NetworkEvidence, list[_Round]]:
    """Compares both programs in float64 on random inputs of several sizes and batches.

    Returns the evidence so far and the rounds, whose truth the check in the emitted dtype uses again. Raises
    NotEquivalentError when the programs differ, or when the original gives no finite output to compare with.
    """
    generator = torch.Generator().manual_seed(seed)
    evidence = NetworkEvidence(seed=seed)
    floor = depth_limit(original)
    rounds: list[_Round] = []
    for sizes, inputs, small in _plans(original):
        values = feed(original, sizes, generator, small)
        truth = _runs(original, values)
        other = _runs(converted, values) if truth is not None else None
        fits = truth is not None and other is not None and _finite(truth) and _max_rel(truth, other) <= floor
        others = () if small is None or fits else (None,) if truth is None else (EVEN_SIZE, None)
        for again in others:
            values = feed(original, sizes, generator, again)
            truth, other = _runs(original, values), _runs(converted, values)
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
            raise NotEquivalentError(
                "the original's outputs are not finite on random inputs, so nothing can be compared"
            )
        worst = _max_rel(truth, other)
        evidence.float64_max_rel = max(evidence.float64_max_rel, worst)
        limit = floor if worst <= floor else _limit(original, values, truth, floor)
        if not worst <= limit:
            raise NotEquivalentError(
                f"the converted network differs from the original: float64 error {worst:.3g} exceeds {limit:.3g}"
            )
        evidence.trials += inputs
        evidence.shapes.append([int(v) for v in next(x.shape for x in values if isinstance(x, Tensor))])
        rounds.append(_Round(values, truth, inputs, limit))
    return evidence, rounds


def _typed(program: Program, values: Feed, dtype: torch.dtype | None) -> Feed:
    specs = {s.name: s for s in program.inputs}
    result: Feed = []
    for node, value in zip(program.placeholders, values, strict=True):
        spec = specs.get(str(node.target))
        floating = isinstance(value, Tensor) and value.is_floating_point() and spec is not None
        result.append(value.to(dtype or spec.dtype) if floating and spec is not None else value)
    return result


def check_emitted(
    original: Program, emitted: Program, rounds: Sequence[_Round], evidence: NetworkEvidence, dtype: torch.dtype | None
) -> NetworkEvidence:
    """Measures both models' errors against the float64 truth in the dtype that is emitted.

    dtype: the dtype that both run in when it differs from the original's own, else None. In float64, where the truth is
    the original's own result, the bar is that of the check before. Raises NotEquivalentError when the converted model's
    error exceeds the bar, InputError when this machine cannot compute in that dtype, or the original overflows in it.
    """
    eps = torch.finfo(dtype or original.dtype).eps
    evidence.dtype = str(dtype or original.dtype).removeprefix("torch.")
    sums: list[_Output] = []
    for r in rounds:
        try:
            old = evaluate(original, _typed(original, r.values, dtype), dtype)
            new = evaluate(emitted, _typed(emitted, r.values, dtype), None)
        except RuntimeError as e:
            raise InputError(f"this machine cannot run the network in {evidence.dtype}: {e}") from e
        _accumulate(sums, r.truth, old, new)
    worst = 0.0
    for s in sums:
        if not s.count:
            continue
        new_rms, old_rms, size = (math.sqrt(v / s.count) for v in (s.new, s.old, s.truth))
        if not math.isfinite(old_rms):
            raise InputError(
                f"the original's own outputs are not finite in {evidence.dtype} on random inputs, so nothing can be "
                "compared; they are in float64"
            )
        bar = 2.0 * old_rms + max(4.0 * eps, *(r.limit for r in rounds)) * size
        ratio = new_rms / bar if bar else (0.0 if new_rms == 0.0 else math.inf)
        if ratio >= worst:
            worst, evidence.error, evidence.original_error = ratio, new_rms, old_rms
        if not ratio <= 1.0:
            raise NotEquivalentError(
                f"the converted network is less exact than the original in {evidence.dtype}: RMS error {new_rms:.3g} "
                f"against the float64 truth, where the original's own is {old_rms:.3g} (the bar is {bar:.3g})"
            )
    return evidence


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
