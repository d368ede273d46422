"""Evidence for the whole network in the dtype that is emitted, behind the check in float64.

The figure that counts is the converted model's error against the float64 truth, beside the original's own error against
it, input by input (`exactness`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from reparam.errors import InputError, NotEquivalentError, ReparamError
from reparam.ir import Program, evaluate, evaluate_where_it_runs, feed, typed
from reparam.utils import dtype_name, first_line

from .evidence import NetworkEvidence
from .exactness import LostDigitsError, OutputSpread, add_spreads, spread_further
from .path_error import captured_stops, does_not_run
from .rounds import Round


def check_runs(program: Program, seed: int = 0) -> None:
    """Raises CaptureError for a program that runs neither in its own dtypes nor in float64 at its traced size.

    What traces a network computes shapes alone, and takes kernels without elements and the like.
    """
    values = feed(program, program.traced_sizes, torch.Generator().manual_seed(seed))
    try:
        evaluate(program, typed(program, values), None)
    except ReparamError:
        raise
    except Exception:
        try:
            evaluate(program, values)
        except Exception as error:  # whose words are plainer than those of kernels for one dtype
            raise does_not_run(error) from error


def not_finite_in(dtype: str) -> InputError:
    """What to raise for an original that overflows in its own dtype, although it does not in float64."""
    return InputError(
        f"the original's own outputs are not finite in {dtype} on random inputs, so nothing can be compared; they are "
        "in float64"
    )


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _refuse_other_dtypes(original: Program, results: Sequence[Any]) -> None:
    """Raises NotEquivalentError where a result is not of the dtype that it had when the model was traced."""
    traced = [n.meta.get("val") if isinstance(n, fx.Node) else n for n in pytree.tree_leaves(original.output.args)]
    for i, (was, now) in enumerate(zip(traced, results, strict=True)):
        if isinstance(was, Tensor) and isinstance(now, Tensor) and was.dtype != now.dtype:
            raise NotEquivalentError(
                f"output {i} of the converted network is {dtype_name(now.dtype)}, the original's is "
                f"{dtype_name(was.dtype)}"
            )


def check_emitted(
    original: Program, emitted: Program, rounds: Sequence[Round], evidence: NetworkEvidence, dtype: torch.dtype | None
) -> NetworkEvidence:
    """Measures both models' errors against the float64 truth in the dtype that is emitted.

    dtype: the dtype that both run in when it differs from the original's own, else None. In float64, where the truth is
    the original's own result, the bar is that of the check before. Raises NotEquivalentError for a result in another
    dtype than the model's, LostDigitsError when the converted model is less exact than the original, PathError when the
    captured original does not run at sizes that are said to be free, CaptureError when it runs in float64 alone,
    InputError when this machine cannot compute in that dtype, or the original overflows.
    """
    name = dtype_name(dtype or original.dtype)
    floor = max(4.0 * torch.finfo(dtype or original.dtype).eps, *(r.limit for r in rounds))
    outputs: list[OutputSpread] = []
    measured: list[Round] = []
    for r in rounds:
        try:
            known = r.own if dtype is None else None
            old = evaluate(original, typed(original, r.values), dtype) if known is None else known
            new = evaluate(emitted, typed(emitted, r.values), None)
        except RuntimeError as e:
            if (r.unclaimed or r.plan.sizes) and evaluate_where_it_runs(original, r.values) is None:
                if r.unclaimed:  # the rewrites made it run there, and nothing is said of that size
                    continue
                raise captured_stops(original, r.values, r.plan.sizes) from e
            if dtype is None and "not implemented" not in str(e):
                raise does_not_run(e) from e
            raise InputError(f"this machine cannot run the network in {name}: {first_line(e)}") from e
        if r.unclaimed and [_shape(v) for v in old] != [_shape(v) for v in r.truth]:
            continue  # what was captured is not the model there
        if dtype is None:
            _refuse_other_dtypes(original, new)
        measured.append(r)
        add_spreads(outputs, r.truth, old, new, r.inputs)
    worst = max(outputs, key=lambda o: o.ratio(floor), default=None)
    if worst is None:
        return replace(evidence, dtype=name)
    if not all(math.isfinite(o.old_rms) for o in outputs):
        raise not_finite_in(name)
    if not all(o.fair(floor) for o in outputs):
        outputs = spread_further(original, emitted, measured, dtype, outputs)
        bad = next((o for o in outputs if not o.fair_against_spread(floor)), None)
        if bad is not None:
            raise LostDigitsError(
                f"the converted network is less exact than the original in {name}: its error against the float64 truth "
                f"is {bad.median_ratio(floor):.3g} times the original's in the median input, where 2 is allowed (RMS "
                f"{bad.new_rms:.3g}, the original's own {bad.old_rms:.3g})"
            )
    return replace(evidence, error=worst.new_rms, original_error=worst.old_rms, dtype=name)
