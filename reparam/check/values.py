"""Outputs compared: floating and complex ones by how far they lie apart, all others by whether they are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.ir import Program, give_back


def is_number(value: Any) -> bool:
    """Whether a value is a floating or complex tensor, of which a difference tells something."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def widened(value: Tensor) -> Tensor:
    """A floating or complex tensor as float64, a complex one by its real and imaginary parts, on the CPU."""
    real = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    return real.detach().to(device="cpu", dtype=torch.float64)


def all_finite(outputs: Sequence[Any]) -> bool:
    """Whether no number among the outputs is infinite or NaN."""
    return all(bool(torch.isfinite(widened(o)).all()) for o in outputs if is_number(o))


def first_shape(values: Sequence[Any]) -> tuple[int, ...]:
    """The shape of the first tensor."""
    return tuple(int(n) for n in next(v.shape for v in values if isinstance(v, Tensor)))


def largest_difference(truth: Sequence[Any], other: Sequence[Any]) -> float:
    """The largest difference of any output, relative to its largest magnitude; infinite where other values differ."""
    if len(truth) != len(other):
        return math.inf
    return max((_difference(a, b) for a, b in zip(truth, other, strict=True)), default=0.0)


def _difference(a: Any, b: Any) -> float:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return 0.0 if not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b else math.inf
    if a.shape != b.shape or is_number(a) != is_number(b):
        return math.inf
    if not a.numel():
        return 0.0
    if not is_number(a):
        return 0.0 if torch.equal(a.cpu(), b.cpu()) else math.inf
    if a.is_complex() != b.is_complex():
        return math.inf
    p, q = widened(a), widened(b)
    gap = torch.where(p == q, 0.0, (p - q).abs()).max().item() / max(p.abs().max().item(), 1e-300)
    return gap if math.isfinite(gap) else math.inf


def refuse_broken_weights(program: Program) -> None:
    """Raises InputError for a weight that is not finite. Constants may hold infinities: a mask does."""
    for name, constant in program.constants.items():
        value = constant.value
        if not value.is_floating_point():
            continue
        weight = constant.trainable and value.requires_grad  # anything else may hold infinities, which are data
        broken = ~torch.isfinite(value) if weight else torch.isnan(value)
        give_back(value)
        if bool(broken.any()):
            raise InputError(f"weight '{name}' holds NaN or infinite values; the checkpoint is damaged or diverged")
