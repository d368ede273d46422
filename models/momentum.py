"""Momentum residual layers, trained with or without stored activations (Sander et al. 2021, arXiv 2102.07870).

    v_{n+1} = g*v_n + (1 - g)*f_n(x_n),    x_{n+1} = x_n + v_{n+1},    v_0 = 0

The recurrence can be run backwards, x_n = x_{n+1} - v_{n+1} and v_n = (v_{n+1} - (1 - g)*f_n(x_n))/g, so that training
needs no activation but the last. In floating point that division loses digits at every step. Here both streams are
integers, a fixed-point number each, and the reversal is exact. A product by g = p/q of an integer loses log2(q/p) bits;
they go into a second integer (Maclaurin, Duvenaud and Adams 2015, arXiv 1502.03492, algorithm 3), from which the
reversal takes them back:

    B <- q*B + v mod q,    v <- p*floor(v/q) + B mod p,    B <- floor(B/p)

For g = 0.9 that is 0.152 bits a step, so one 64-bit integer for each element serves some 370 steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

__all__ = ["MomentumResidual", "exact_fraction", "momentum_reversible", "momentum_stored", "saved_bytes"]

_LARGEST_DENOMINATOR = 100  # a product in fixed point is off by up to this many units
_INT64 = 2**63


def exact_fraction(gamma: float) -> Fraction:
    """`gamma` as p/q with q <= 100. Raises ValueError when it is none, or does not lie between 0 and 1."""
    fraction = Fraction(gamma).limit_denominator(_LARGEST_DENOMINATOR)
    if not 0 < gamma < 1 or abs(float(fraction) - gamma) > 1e-15:
        raise ValueError(f"gamma is {gamma}; it must lie between 0 and 1 and be a fraction of at most hundredths")
    return fraction


def momentum_stored(functions: Iterable[nn.Module], x: Tensor, gamma: float, restart: int | None = None) -> Tensor:
    """x_N of the recurrence, in floating point, by ordinary autograd: every activation is stored for training.

    x: any shape, which every function keeps. restart: the velocity is zero again after that many functions.
    """
    velocity: Tensor | None = None
    for n, function in enumerate(functions):
        step = (1 - gamma) * function(x)
        fresh = velocity is None or (restart is not None and n % restart == 0)
        velocity = step if fresh or velocity is None else gamma * velocity + step
        x = x + velocity
    return x


def momentum_reversible(
    functions: Sequence[nn.Module], x: Tensor, gamma: float, restart: int | None = None, bits: int = 48
) -> Tensor:
    """x_N of the recurrence in fixed point; the backward pass reconstructs every x_n, bit for bit, from the last one.

    functions: deterministic modules that keep the shape of x and read no other tensor that needs a gradient but their
    own parameters, which may be shared. Each runs once forward and once more backward. bits: of the fraction; values
    lie within 2**(62 - bits), 16384 by default, with a resolution of 2**-bits.

    What stays in memory is x_N, v_N and B, 24 bytes an element, and with `restart` 8 bytes more at every restart, since
    a velocity that is thrown away cannot be computed from anything that is kept.

    Raises ValueError for a gamma that is no fraction of hundredths, a function that changes the shape, values that are
    not finite or too large; RuntimeError in the backward pass when a function does not repeat its result. There are no
    second derivatives.
    """
    tables = tuple(dict(function.named_parameters()) for function in functions)
    parameters = list({id(p): p for table in tables for p in table.values()}.values())
    place = {id(p): i for i, p in enumerate(parameters)}
    slots = tuple({name: place[id(p)] for name, p in table.items()} for table in tables)
    plan = _Plan(tuple(functions), slots, exact_fraction(gamma), restart, bits)
    result: Tensor = _Reversible.apply(plan, x, *parameters)  # type: ignore[no-untyped-call]
    return result


class MomentumResidual(nn.Module):
    """The recurrence over `functions`; `reversible` chooses how it is trained, not what it computes.

    restart: the velocity is zero again after that many functions (a block); None for one velocity through all.
    forward: x of any shape -> the same shape. Without gradients, and when captured, it is the plain recurrence.
    Raises ValueError for a gamma that is no fraction of hundredths.
    """

    def __init__(
        self, functions: Iterable[nn.Module], gamma: float = 0.9, restart: int | None = None, reversible: bool = True
    ) -> None:
        super().__init__()
        exact_fraction(gamma)
        self.functions = nn.ModuleList(functions)
        self.gamma, self.restart, self.reversible = gamma, restart, reversible

    def forward(self, x: Tensor) -> Tensor:
        functions = list(self.functions)
        if self.reversible and functions and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return momentum_reversible(functions, x, self.gamma, self.restart)
        return momentum_stored(functions, x, self.gamma, self.restart)


def saved_bytes(forward: Callable[[], Any], weights: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that autograd keeps after `forward()`, as long as its result is held.

    weights: are not counted, nor is what a reversible layer needs only while it runs.
    """
    own = {w.untyped_storage().data_ptr() for w in weights}
    kept: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        kept.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        result = forward()
    storages = {s.data_ptr(): s.nbytes() for s in (saved.tensor.untyped_storage() for saved in kept)}
    del result
    return sum(size for place, size in storages.items() if place not in own)


class _Saved:
    """A tensor that autograd keeps: gone when the graph that keeps it is gone."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # a result that its own node keeps would keep the node: a cycle


# ---- fixed point -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What does not change between the passes. slots: for each function, where its parameters are in the list."""

    functions: tuple[nn.Module, ...]
    slots: tuple[dict[str, int], ...]
    gamma: Fraction
    restart: int | None
    bits: int

    def restarts(self, n: int) -> bool:
        """True when the velocity before function n is zero."""
        return n == 0 or (self.restart is not None and n % self.restart == 0)

    def full_before(self) -> list[bool]:
        """For each function, whether B may not hold one more product, and a new one is begun."""
        full, bound = [], 0
        p, q = self.gamma.numerator, self.gamma.denominator
        for n in range(len(self.functions)):
            if self.restarts(n):
                full.append(False)
                continue
            full.append(bound * q + q > _INT64 - 1)
            bound = ((0 if full[-1] else bound) * q + q - 1) // p
        return full

    def run(self, n: int, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """f_n(x) with a graph of its own: x as a leaf, the parameters as leaves, the result.

        Both passes come here, since some kernels are chosen by whether a gradient is needed.
        """
        leaf = x.detach().requires_grad_()
        own = [parameters[i].detach().requires_grad_(parameters[i].requires_grad) for i in self.slots[n].values()]
        with torch.enable_grad():
            y = functional_call(self.functions[n], dict(zip(self.slots[n], own, strict=True)), (leaf,))
        if y.shape != x.shape:
            raise ValueError(f"function {n} turned shape {tuple(x.shape)} into {tuple(y.shape)}; it must keep it")
        return leaf, own, y

    def to_fixed(self, value: Tensor) -> Tensor:
        """Integers of 2**-bits. Raises ValueError for what is not finite or too large."""
        scaled = value.detach().double() * 2.0**self.bits
        self.require_range(scaled)
        return scaled.round().long()

    def require_range(self, scaled: Tensor) -> None:
        """With x, v and steps inside 2**61, neither v nor x can wrap around in the next step."""
        if not bool((scaled.abs() < 2**61).all()):
            raise ValueError(
                f"a value of the momentum stream is not finite or exceeds {2 ** (61 - self.bits)}, the range of its "
                "fixed point; train it stored (reversible=False), or with fewer bits"
            )

    def to_float(self, fixed: Tensor, dtype: torch.dtype) -> Tensor:
        return (fixed.double() * 2.0**-self.bits).to(dtype)

    def step(self, y: Tensor) -> Tensor:
        """(1 - g)*f in fixed point."""
        return self.to_fixed(y.detach().double() * float(1 - self.gamma))

    def times_gamma(self, v: Tensor, lost: Tensor) -> tuple[Tensor, Tensor]:
        p, q = self.gamma.numerator, self.gamma.denominator
        lost = lost * q + v.remainder(q)
        v = v.div(q, rounding_mode="floor") * p + lost.remainder(p)
        return v, lost.div(p, rounding_mode="floor")

    def over_gamma(self, v: Tensor, lost: Tensor) -> tuple[Tensor, Tensor]:
        p, q = self.gamma.numerator, self.gamma.denominator
        lost = lost * p + v.remainder(p)
        v = v.div(p, rounding_mode="floor") * q + lost.remainder(q)
        return v, lost.div(q, rounding_mode="floor")


class _Reversible(torch.autograd.Function):
    """The recurrence with a backward pass that runs it in reverse. Arguments: the plan, x, all parameters."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, start: Tensor, *parameters: Tensor) -> Tensor:
        x = plan.to_fixed(start)
        v = torch.zeros_like(x)
        lost, kept = torch.zeros_like(x), []
        full = plan.full_before()
        for n in range(len(plan.functions)):
            if plan.restarts(n):
                kept.append(v)
            else:
                if full[n]:
                    kept.append(lost)
                    lost = torch.zeros_like(x)
                v, lost = plan.times_gamma(v, lost)
            step = plan.step(plan.run(n, plan.to_float(x, start.dtype), parameters)[2])
            v = step if plan.restarts(n) else v + step
            x = x + v
            plan.require_range(v)
            plan.require_range(x)
        ctx.plan, ctx.dtype, ctx.kept = plan, start.dtype, len(kept) - 1
        ctx.save_for_backward(x, v, lost, *kept[1:], *parameters)  # kept[0] is the velocity that it starts with: zero
        return plan.to_float(x, start.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        x, v, lost, *rest = ctx.saved_tensors
        kept, parameters = rest[: ctx.kept], rest[ctx.kept :]
        full = plan.full_before()
        of_x, of_v = gradient, torch.zeros_like(gradient)
        of_parameters: list[Tensor | None] = [None] * len(parameters)
        gamma = float(plan.gamma)
        for n in reversed(range(len(plan.functions))):
            x = x - v
            leaf, own, y = plan.run(n, plan.to_float(x, ctx.dtype), parameters)
            v = v - plan.step(y)
            of_v = of_v + of_x
            through_x = _accumulate(y, (1 - gamma) * of_v, leaf, own, list(plan.slots[n].values()), of_parameters)
            of_x = of_x if through_x is None else of_x + through_x
            of_v = gamma * of_v
            if plan.restarts(n):
                _require_zero(v)
                of_v = torch.zeros_like(of_v)
                v = kept.pop() if n else v
            else:
                v, lost = plan.over_gamma(v, lost)
                if full[n]:
                    _require_zero(lost)
                    lost = kept.pop()
        _require_zero(lost)
        return (None, of_x, *of_parameters)


def _accumulate(
    y: Tensor, gradient: Tensor, leaf: Tensor, own: list[Tensor], places: list[int], totals: list[Tensor | None]
) -> Tensor | None:
    """Adds the parameters' gradients to `totals` at their places; returns that of the leaf."""
    if not y.requires_grad:
        return None
    wanted = [(leaf, -1), *((p, i) for p, i in zip(own, places, strict=True) if p.requires_grad)]
    found = torch.autograd.grad(y, [tensor for tensor, _ in wanted], gradient, allow_unused=True)
    for (_, place), value in zip(wanted[1:], found[1:], strict=True):
        before = totals[place]
        totals[place] = value if before is None else before if value is None else before + value
    return found[0]


def _require_zero(value: Tensor) -> None:
    if bool(value.any()):
        raise RuntimeError(
            "the momentum stream did not return to where it began: a function gave another result when it was run "
            "again; reversal needs deterministic functions (no dropout), and the same precision in both passes"
        )
