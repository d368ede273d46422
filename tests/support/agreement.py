"""Feeds of random networks, and whether two programs agree on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import Program, evaluate, shape_of
from support.specs import Spec

BOUND = 1e-11  # relative to the largest magnitude along the graph


PARTS = 8


def inputs_of(spec: Spec, batch: int, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Inputs within the promised range, of several orders of magnitude where it is open."""
    g = torch.Generator().manual_seed(batch)
    out = []
    for _ in range(spec.inputs):
        x = torch.randn(batch, *shape, generator=g, dtype=torch.float64)
        x = x.clamp(spec.low, spec.high) * (1.0 if spec.high < 2.0 else 3.0)
        out.append(x.to(getattr(torch, spec.dtype)))
    return tuple(out)


def feeds(spec: Spec, program: Program) -> Iterator[tuple[Tensor, ...]]:
    """The traced size, other batches, and other maps, as far as the program leaves them free."""
    yield inputs_of(spec, 2, spec.shape)
    free = [not isinstance(s, int) for s in program.inputs[0].shape]
    if free[0]:
        yield inputs_of(spec, 3, spec.shape)
        yield inputs_of(spec, 1, spec.shape)
    for more in (1, 4) if any(free[1:]) else ():
        shape = [s + more * (k + 1) * f for k, (s, f) in enumerate(zip(spec.shape, free[1:], strict=True))]
        feed = inputs_of(spec, 2, shape)
        if _runs(program, feed):
            yield feed


def _runs(program: Program, feed: Sequence[Tensor]) -> bool:
    """Whether the network itself takes this size: what agrees at the traced one, by chance, need not agree here."""
    try:
        evaluate(program, feed)
    except RuntimeError:
        return False
    return True


def agree(program: Program, fused: Program, feed: Sequence[Tensor]) -> None:
    before = evaluate(program, feed)
    top = max(magnitude(program, feed), magnitude(fused, feed))
    near(before, evaluate(fused, feed), top)


def magnitude(program: Program, feed: Sequence[Tensor]) -> float:
    """The largest magnitude along the graph; shapes are compared with those of the fake values on the way."""
    tops = [1.0]
    sizes = [zip(i.shape, v.shape, strict=True) for i, v in zip(program.inputs, feed, strict=True)]
    free = {name: size for pairs in sizes for name, size in pairs if isinstance(name, str)}
    traced = all(tuple(v.shape[1:]) == shape_of(n)[1:] for v, n in zip(feed, program.placeholders, strict=True))

    def observe(node: fx.Node, value: Any) -> None:
        if not isinstance(value, Tensor):
            return
        assert not traced or tuple(value.shape) == shape_of(node, free), (
            f"{node.name} has another shape than its fake value"
        )
        if value.numel():
            tops.append(float(value.abs().max()))

    evaluate(program, feed, observe=observe)
    return max(tops)


def near(a: Sequence[Any], b: Sequence[Any], top: float, bound: float = BOUND) -> None:
    assert len(a) == len(b)
    for p, q in zip(a, b, strict=True):
        assert p.shape == q.shape
        assert bool(torch.isfinite(p).all() and torch.isfinite(q).all())
        gap = float((p - q).abs().max()) if p.numel() else 0.0
        assert gap <= bound * top, f"outputs differ by {gap:.3g} where the largest magnitude is {top:.3g}"
