"""`verify`: are two models the same function, as far as finite arithmetic can tell?

Both are captured and run in float64 on random inputs of several sizes and batches, then in their own dtypes, and last
on inputs found by gradient ascent on their difference. The weights of an emitted model are rounded to its dtype, so two
equal functions differ by about what the original itself loses in that dtype; that measured loss is the bar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from .capture import capture, from_exported
from .errors import CaptureError, InputError
from .evaluate import evaluate
from .load import LoadedModel
from .network import SMALL_SIZE, Feed, feed, random_input
from .pipeline import Progress
from .program import Program, is_float, shape_of

ASCENT_STEPS = 12
ASCENT_SCALES = (1.0, 4.0, 16.0)
# Rounded weights move a network by about as much as its own arithmetic does; worst inputs by several times that.
WORST_CASE = 16.0


@dataclass(frozen=True)
class OutputError:
    """One output over all random inputs. Errors are RMS against the first model in float64; `bar` is the most allowed.

    difference: of the second model in float64. error_a, error_b: of each model in its own dtype.
    """

    index: int
    difference: float
    error_a: float
    error_b: float
    size: float
    bar: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.bar and self.error_b <= self.bar


@dataclass(frozen=True)
class Verdict:
    """What `verify` found. first_divergence: the first layer of the first model whose value the second never has."""

    equivalent: bool
    outputs: tuple[OutputError, ...]
    reason: str = ""
    first_divergence: str | None = None
    adversarial: dict[str, float] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ()
    trials: int = 0
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        row = asdict(self)
        row["outputs"] = [asdict(o) | {"ok": o.ok} for o in self.outputs]
        row["shapes"] = [list(s) for s in self.shapes]
        return row

    def sentences(self) -> list[str]:
        """The result in plain lines."""
        head = "equivalent" if self.equivalent else f"NOT equivalent: {self.reason}"
        lines = [head]
        for o in self.outputs:
            lines.append(
                f"output {o.index}: float64 difference {o.difference:.3g}, own errors {o.error_a:.3g}, {o.error_b:.3g} "
                f"(RMS; bar {o.bar:.3g}, size {o.size:.3g})"
            )
        if self.adversarial:
            a = self.adversarial
            lines.append(f"adversarial search, {int(a['inputs'])} inputs: at most {a['worst']:.3g} of what is allowed")
        if self.first_divergence:
            lines.append(f"they part at: {self.first_divergence}")
        lines.append(
            f"{self.trials} random inputs, shapes {', '.join(str(list(s)) for s in self.shapes)}, seed {self.seed}"
        )
        return lines


def program_of(model: LoadedModel, input_shapes: Sequence[Sequence[int]] | None) -> Program:
    """The captured program of a loaded model; image axes stay free where the model lets them.

    input_shapes: of one sample, without the batch; needed when the model does not tell. Raises InputError.
    """
    if model.exported is not None:
        return from_exported(model.exported)
    shapes = input_shapes or model.input_shapes
    if shapes is None:
        raise InputError("the input's shape is not known; pass it with --input-shape, for example 3,224,224")
    parameter = next((p for p in model.module.parameters() if p.is_floating_point()), None)
    dtype = parameter.dtype if parameter is not None else torch.float32
    device = parameter.device if parameter is not None else torch.device("cpu")
    examples = [torch.zeros(2, *shape, dtype=dtype, device=device) for shape in shapes]
    try:
        return capture(model.module, examples).program
    except CaptureError as e:
        raise InputError(f"{e} (input shapes {[tuple(s) for s in shapes]})") from e


def verify(
    a: LoadedModel,
    b: LoadedModel,
    *,
    input_shapes: Sequence[Sequence[int]] | None = None,
    trials: int = 8,
    seed: int = 0,
    adversarial: bool = True,
    progress: Progress | None = None,
) -> Verdict:
    """Compares two loaded models. Raises InputError when they do not take the same inputs."""
    first = program_of(a, input_shapes or b.input_shapes)
    second = program_of(b, input_shapes or a.input_shapes)
    return verify_programs(first, second, trials=trials, seed=seed, adversarial=adversarial, progress=progress)


def verify_programs(
    a: Program,
    b: Program,
    *,
    trials: int = 8,
    seed: int = 0,
    adversarial: bool = True,
    progress: Progress | None = None,
) -> Verdict:
    """`verify` for programs that are already captured."""
    _same_inputs(a, b)
    generator = torch.Generator().manual_seed(seed)
    feeds = _feeds(a, b, trials, generator)
    sums: list[_Sums] = []
    for i, values in enumerate(feeds):
        if progress is not None:
            progress("verify", i, len(feeds) + 1)
        reason = _measure(a, b, values, sums)
        if reason:
            return Verdict(False, (), reason, None, {}, _shapes(feeds), trials, seed)
    eps = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    outputs = tuple(s.result(i, eps) for i, s in enumerate(sums))
    search = _ascend(a, b, feeds[-1], eps, generator) if adversarial else {}
    bad = next((o for o in outputs if not o.ok), None)
    reason = ""
    if bad is not None:
        reason = f"output {bad.index} differs by {max(bad.difference, bad.error_b):.3g}, where {bad.bar:.3g} is allowed"
    elif search and not search["worst"] <= 1.0:
        reason = f"an input was found on which they differ {search['worst']:.3g} times more than is allowed"
    where = first_divergence(a, b, feeds[0]) if reason else None
    return Verdict(not reason, outputs, reason, where, search, _shapes(feeds), trials, seed)


def _same_inputs(a: Program, b: Program) -> None:
    if len(a.inputs) != len(b.inputs):
        raise InputError(f"the models take {len(a.inputs)} and {len(b.inputs)} tensor inputs")
    for p, q in zip(a.inputs, b.inputs, strict=True):
        fits = len(p.shape) == len(q.shape) and all(
            s == t or isinstance(s, str) or isinstance(t, str) for s, t in zip(p.shape, q.shape, strict=True)
        )
        if not fits:
            raise InputError(f"the models' input '{p.name}' has shapes {list(p.shape)} and {list(q.shape)}")


def _feeds(a: Program, b: Program, trials: int, generator: torch.Generator) -> list[Feed]:
    """Batch one at the traced size, then a batch at a smaller odd size if both models run there."""
    batch = [s for spec in a.inputs for s in spec.shape[:1] if isinstance(s, str)]
    free = bool(batch) and all(isinstance(s.shape[0], str) for s in b.inputs if s.shape)
    if not free:
        fixed = {s: int(q) for p, q in zip(a.inputs, (s.shape[0] for s in b.inputs), strict=True) for s in p.shape[:1]
                 if isinstance(s, str) and isinstance(q, int)}  # fmt: skip
        return [feed(a, fixed, generator) for _ in range(trials)]
    whole = feed(a, dict.fromkeys(batch, 1), generator)
    rest = dict.fromkeys(batch, trials - 1)
    small = feed(a, rest, generator, SMALL_SIZE)
    for program in (a, b):
        try:
            evaluate(program, small)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return [whole, feed(a, rest, generator)]
    return [whole, small]


def _shapes(feeds: Sequence[Feed]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(next(v.shape for v in values if isinstance(v, Tensor))) for values in feeds)


@dataclass
class _Sums:
    difference: float = 0.0
    error_a: float = 0.0
    error_b: float = 0.0
    size: float = 0.0
    count: int = 0

    def result(self, index: int, eps: float) -> OutputError:
        n = max(self.count, 1)
        difference, error_a, error_b, size = (
            math.sqrt(v / n) for v in (self.difference, self.error_a, self.error_b, self.size)
        )
        return OutputError(index, difference, error_a, error_b, size, bar=2.0 * error_a + 4.0 * eps * size)


def _own(program: Program, values: Feed) -> list[Any]:
    specs = {s.name: s for s in program.inputs}
    typed = [
        v.to(specs[str(n.target)].dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
        for n, v in zip(program.placeholders, values, strict=True)
    ]
    return evaluate(program, typed, None)


def _measure(a: Program, b: Program, values: Feed, sums: list[_Sums]) -> str:
    """Adds one round to `sums`; returns a reason when the outputs cannot even be compared or are not equal integers."""
    truth, other = evaluate(a, values), evaluate(b, values)
    if len(truth) != len(other):
        return f"they return {len(truth)} and {len(other)} values"
    own_a, own_b = _own(a, values), _own(b, values)
    index = 0
    for t, o, p, q in zip(truth, other, own_a, own_b, strict=True):
        if not isinstance(t, Tensor) or not isinstance(o, Tensor):
            if t != o:
                return f"a constant output is {t!r} in one and {o!r} in the other"
            continue
        if t.shape != o.shape:
            return f"an output has shape {list(t.shape)} in one and {list(o.shape)} in the other"
        if not t.is_floating_point():
            if not torch.equal(t, o):
                return "an integer output differs"
            continue
        if not bool(torch.isfinite(t).all()):
            return "the first model's outputs are not finite on random inputs, so nothing can be compared"
        if len(sums) <= index:
            sums.append(_Sums())
        s = sums[index]
        index += 1
        s.difference += float((o - t).square().sum())
        s.error_a += float((p.double() - t).square().sum())
        s.error_b += float((q.double() - t).square().sum())
        s.size += float(t.square().sum())
        s.count += t.numel()
    return ""


# ---- adversarial search ------------------------------------------------------------------------------------------


def _ascend(a: Program, b: Program, values: Feed, eps: float, generator: torch.Generator) -> dict[str, float]:
    """Gradient ascent on the difference from several starts; the worst difference as a share of what is allowed."""
    specs = {s.name: s for s in a.inputs}
    names = [str(n.target) for n in a.placeholders]
    worst, count = 0.0, 0
    for scale in ASCENT_SCALES:
        point: Feed = []
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                point.append(value)
                continue
            spec = specs[name]
            start = random_input(spec, [1, *value.shape[1:]], generator).to(value.device)
            bounded = math.isfinite(spec.low) or math.isfinite(spec.high)
            point.append(start if bounded else start * scale)
        if not _same_batch(values, point):
            point = [v.clone() if isinstance(v, Tensor) else v for v in values]
        for _ in range(ASCENT_STEPS // len(ASCENT_SCALES)):
            share, point = _step(a, b, point, eps)
            worst, count = max(worst, share), count + 1
    return {"worst": worst, "inputs": float(count)}


def _same_batch(values: Feed, point: Feed) -> bool:
    """Integer inputs keep their batch, so a point of batch one only fits when there are none."""
    return all(not isinstance(v, Tensor) or v.is_floating_point() for v in values) and len(point) == len(values)


def _step(a: Program, b: Program, point: Feed, eps: float) -> tuple[float, Feed]:
    """The difference at `point` as a share of what is allowed there, and the next point."""
    leaves = [p.detach().requires_grad_(True) if isinstance(p, Tensor) and p.is_floating_point() else p for p in point]
    truth = [t for t in evaluate(a, leaves, gradients=True) if isinstance(t, Tensor) and t.is_floating_point()]
    other = [t for t in evaluate(b, leaves, gradients=True) if isinstance(t, Tensor) and t.is_floating_point()]
    own = [t for t in _own(a, [p.detach() if isinstance(p, Tensor) else p for p in leaves]) if isinstance(t, Tensor)]
    own = [t.double() for t in own if t.is_floating_point()]
    share = 0.0
    total = torch.zeros((), dtype=torch.float64)
    for t, o, p in zip(truth, other, own, strict=True):
        gap = (o - t).square().mean()
        allowed = 2.0 * float((p - t.detach()).square().mean().sqrt()) + 4.0 * eps * float(
            t.detach().square().mean().sqrt()
        )
        value = math.sqrt(float(gap.detach()))
        share = max(share, 0.0 if value == 0.0 else value / (WORST_CASE * allowed) if allowed else math.inf)
        total = total.to(gap.device) + gap / max(float(t.detach().square().mean()), 1e-300)
    inputs = [p for p in leaves if isinstance(p, Tensor) and p.requires_grad]
    if not total.requires_grad:
        return share, [p.detach() if isinstance(p, Tensor) else p for p in leaves]
    grads = iter(torch.autograd.grad(total, inputs, allow_unused=True))
    moved: Feed = []
    for p, spec in zip(leaves, _specs(a), strict=True):
        if not isinstance(p, Tensor) or not p.requires_grad:
            moved.append(p)
            continue
        grad = next(grads)
        rms = 0.25 * float(p.detach().square().mean().sqrt()) + 1e-3
        step = torch.zeros_like(p) if grad is None else rms * grad / (grad.square().mean().sqrt() + 1e-300)
        moved.append((p.detach() + step.detach()).clamp(spec[0], spec[1]))
    return share, moved


def _specs(program: Program) -> list[tuple[float, float]]:
    specs = {s.name: (s.low, s.high) for s in program.inputs}
    return [specs.get(str(n.target), (-math.inf, math.inf)) for n in program.placeholders]


# ---- where they part ---------------------------------------------------------------------------------------------


def first_divergence(a: Program, b: Program, values: Feed) -> str | None:
    """The first layer of `a`, after the last one whose value `b` also has, as "module (operator)".

    Values are recognised by their shape and a few random projections, so that fused layers, whose inner values do not
    exist in `b`, are passed over.
    """
    known: dict[tuple[int, ...], list[Tensor]] = {}

    def remember(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            known.setdefault(tuple(value.shape), []).append(_signature(value))

    trail: list[tuple[fx.Node, bool]] = []

    def compare(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and is_float(node):
            mine = _signature(value)
            same = any(
                bool((mine - s).abs().max() <= 1e-4 * mine.abs().max()) for s in known.get(tuple(value.shape), ())
            )
            trail.append((node, same))

    evaluate(b, values, observe=remember)
    evaluate(a, values, observe=compare)
    last = max((i for i, (_, same) in enumerate(trail) if same), default=-1)
    if last + 1 >= len(trail):
        return None
    node = trail[last + 1][0]
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    before = trail[last][0].meta.get("module") if last >= 0 else "the input"
    return f"'{node.meta.get('module') or node.name}' ({name}, shape {list(shape_of(node))}), after '{before}'"


def _signature(value: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    flat = value.reshape(-1)
    probes = torch.randn(4, min(flat.numel(), 4096), generator=generator, dtype=torch.float64).to(flat.device)
    stride = max(1, flat.numel() // probes.shape[1])
    return torch.cat([probes @ flat[: probes.shape[1]], flat[::stride][:16], flat.abs().mean()[None]])
