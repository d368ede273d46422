"""An engine on numbers away from those of the other checks: inputs of thirty times the size.

Operators may be spelled so that they are right near one alone, such as a logarithm of a sigmoid, which is -inf below
-17. What is looked for is another function: roundings may do more at that scale, and are not judged here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reparam.errors import InputError, NotEquivalentError
from reparam.ir import Feed, Program, evaluate, evaluate_where_it_runs, feed, typed

from .engine_check import as_reals, declared_sizes, floats, run_engine
from .format import Runnable

SCALE = 30.0
SANE = 1e-4  # the network's own relative error in its dtype; an output with a larger one is not looked at
GROSS = 1e-2  # the relative error of another function


def check_far(original: Program, emitted: Program, engine: Runnable, *, seed: int = 0) -> None:
    """Compares the engine with `original` where its inputs of real numbers without a range are large.

    Nothing is compared where there is no such input, in low precision, for an output that is not finite there, and for
    one whose own error in torch is large.

    Raises NotEquivalentError.
    """
    if emitted.dtype.itemsize < torch.float32.itemsize:
        return
    values = _far(original, torch.Generator().manual_seed(seed))
    found = evaluate_where_it_runs(original, values) if values is not None else None
    if values is None or found is None:
        return
    truth = as_reals(found)
    try:
        got = run_engine(engine, original, values)
    except InputError:
        return
    if not got.fits(truth):  # shapes that depend on values
        return
    own = floats(as_reals(evaluate(emitted, typed(emitted, values), None)))
    for t, o, p in zip(floats(truth), got.floats, own, strict=True):
        _compare(t.double(), o.double(), p.double())


def _compare(truth: Tensor, got: Tensor, own: Tensor) -> None:
    size, own_error = _rms(truth), _rms(own - truth)
    if not math.isfinite(size) or not own_error <= SANE * size:
        return
    where = f"on inputs of {SCALE:g} times the size"
    if not bool(torch.isfinite(got).all()):
        raise NotEquivalentError(f"the engine's outputs are not finite where the original's are, {where}")
    error = _rms(got - truth)
    if error > GROSS * size:
        raise NotEquivalentError(f"the engine is not the network {where}: its error is {error:.2g} of {size:.2g} (RMS)")


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0


def _far(program: Program, generator: torch.Generator) -> Feed | None:
    """Inputs of the smallest declared sizes; None where none has real numbers without a range."""
    values = feed(program, declared_sizes(program)[0], generator)
    free = {s.name for s in program.inputs if math.isinf(s.low) and math.isinf(s.high) and s.dtype.is_floating_point}
    names = [str(n.target) for n in program.placeholders]
    if not free & set(names):
        return None
    dtypes = {s.name: s.dtype for s in program.inputs}
    return [(v * SCALE).to(dtypes[n]).to(v.dtype) if n in free else v for n, v in zip(names, values, strict=True)]
