"""GradInit: a multiplier for each parameter, learned so that the first step of training lowers the loss most.

    W = alpha*W_0.  Where |g| > bound (L2 for SGD, L1 for Adam): a step on |g|.
    Else: a step on L(B_2; W - rate*A(g)),  A(g) = g/|g| or sign(g), held fixed,  B_2: half of the batch, half new ones

Steps are Adam's, with a first moment for each kind of step and one second moment; alpha >= 0.01 for weights and >= 0
for vectors.

Source: Zhu et al. 2021, "GradInit: learning to initialize neural networks for stable and efficient training",
arXiv 2102.08098, algorithm 1. In a process group of torch.distributed each process gives batches of its own, and all
get the same multipliers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from reparam.errors import InputError, ReparamError
from reparam.rewrite import Progress
from reparam.utils import first_line, foreign_code

Loss = Callable[[Any, Tensor], Tensor]
Batch = tuple[tuple[Any, ...], Tensor]  # arguments of the model, and labels
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
LEAST_WEIGHT, MOST = 0.01, 1.0  # of a multiplier; of its gradient


@dataclass
class Multipliers:
    """What is learned. alpha: of each parameter. norms, objectives: of each step; `kinds`: which kind it was."""

    alpha: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    seconds: dict[str, Tensor]
    counts: dict[str, int] = field(default_factory=lambda: {"norm": 0, "loss": 0})
    kinds: list[str] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    objectives: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Learning:
    """How multipliers are learned; see `InitOptions`."""

    optimizer: str
    rate: float
    bound: float
    steps: int
    step_size: float


def learn(
    module: nn.Module,
    names: Sequence[str],
    batches: Callable[[], Iterator[Batch]],
    how: Learning,
    loss: Loss,
    progress: Progress | None = None,
) -> Multipliers:
    """The multipliers of the parameters `names` of `module`, which is left as it is.

    batches: gives the batches from the start each time that it is called.
    """
    held = dict(module.named_parameters())
    start = {n: held[n].detach().clone() for n in names}
    fixed = {n: p.detach() for n, p in held.items() if n not in start}
    buffers = {n: b.detach().clone() for n, b in module.named_buffers()}
    one = {n: torch.ones((), dtype=p.dtype, device=p.device) for n, p in start.items()}
    zeros = {kind: {n: torch.zeros_like(v) for n, v in one.items()} for kind in ("norm", "loss")}
    made = Multipliers(one, zeros, {n: torch.zeros_like(v) for n, v in one.items()})

    def measure(parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        state = {**fixed, **parameters, **{n: b.clone() for n, b in buffers.items()}}
        try:
            with foreign_code("running the model"):
                value = loss(functional_call(module, state, batch[0]), batch[1])
        except ReparamError:
            raise
        except Exception as error:
            raise InputError(f"the loss cannot be computed: {first_line(error)}; pass another loss") from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise InputError("the loss is no tensor of one number that depends on the weights; pass another loss")
        return value.reshape(())

    # fused attention has no second derivative; the spelled-out form has
    with sdpa_kernel(SDPBackend.MATH):
        _learn(made, start, batches, measure, how, progress)
    return made


def _learn(
    made: Multipliers,
    start: Mapping[str, Tensor],
    batches: Callable[[], Iterator[Batch]],
    measure: Callable[[Mapping[str, Tensor], Batch], Tensor],
    how: Learning,
    progress: Progress | None,
) -> None:
    stream = itertools.chain.from_iterable(batches() for _ in itertools.count())
    before: Batch | None = None
    for step in range(how.steps):
        batch = before or next(stream)
        before = next(stream)
        _step(made, start, batch, _halves(batch, before), measure, how)
        if progress is not None:
            progress("learn", step + 1, how.steps)


def _step(
    made: Multipliers,
    start: Mapping[str, Tensor],
    batch: Batch,
    second: Batch,
    measure: Callable[[Mapping[str, Tensor], Batch], Tensor],
    how: Learning,
) -> None:
    weights = {n: (made.alpha[n] * w).requires_grad_() for n, w in start.items()}
    value = measure(weights, batch)
    gradients = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True)
    known = {n: torch.zeros_like(weights[n]) if g is None else g for n, g in zip(weights, gradients, strict=True)}
    adam = how.optimizer == "adam"
    norm = torch.stack([g.abs().sum() if adam else g.square().sum() for g in known.values()]).sum()
    norm = norm if adam else norm.sqrt()
    size = float(_mean_of_all(norm.detach()))
    if not torch.isfinite(norm):
        raise InputError("the gradient of the loss is not finite, so that no multiplier can be learned")
    kind = "norm" if size > how.bound else "loss"
    if kind == "norm":
        objective = norm
    else:
        length = norm.detach().clamp(min=1e-12)
        moved = {
            n: weights[n] - how.rate * (g.detach().sign() if adam else g.detach() / length) for n, g in known.items()
        }
        objective = measure(moved, second)
    try:
        slopes = torch.autograd.grad(objective, list(weights.values()), allow_unused=True)
    except RuntimeError as error:
        raise InputError(f"gradinit needs second derivatives of the network: {first_line(error)}") from error
    made.kinds.append(kind)
    made.norms.append(size)
    made.objectives.append(float(objective.detach()))
    made.counts[kind] += 1
    for (name, first), slope in zip(start.items(), slopes, strict=True):
        # d/d alpha of f(alpha*W_0)
        raw = torch.zeros_like(made.alpha[name]) if slope is None else (slope * first).sum()
        _adam(made, name, kind, _mean_of_all(raw.detach()).clamp(-MOST, MOST), how.step_size, vector=first.dim() < 2)


def _adam(made: Multipliers, name: str, kind: str, gradient: Tensor, size: float, *, vector: bool) -> None:
    moment = made.moments[kind][name].mul_(BETA1).add_(gradient, alpha=1 - BETA1)
    second = made.seconds[name].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    steps = sum(made.counts.values())
    first = moment / (1 - BETA1 ** made.counts[kind])
    root = (second / (1 - BETA2**steps)).sqrt() + EPS
    made.alpha[name] = (made.alpha[name] - size * first / root).clamp(min=0.0 if vector else LEAST_WEIGHT)


def _halves(batch: Batch, other: Batch) -> Batch:
    """Half of each batch; the whole other one where their sizes do not fit."""

    def half(a: Any, b: Any) -> Any:
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape[1:] != b.shape[1:]:
            return b
        return torch.cat([a[: max(1, len(a) // 2)], b[: max(1, len(b) // 2)]])

    arguments = tuple(half(a, b) for a, b in zip(batch[0], other[0], strict=True))
    return arguments, half(batch[1], other[1])


def _mean_of_all(value: Tensor) -> Tensor:
    """Over all processes."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
