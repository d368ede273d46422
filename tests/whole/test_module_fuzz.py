"""Random Python modules through both targets: what is accepted is what the module itself computes, at five sizes.

The models branch on sizes, keep state, and compute with bool and integer values (`support.python_modules`). The judge
is the module itself, a fresh copy for every run, in its own dtype, and not the project's own evaluator. A model may be
refused; what is converted may raise at a size that it was not converted for, but never give another result.

The default suite tries 20 models; `make sweep` 20,000.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import reparam
from support.choice import mostly_in_sweeps
from support.python_modules import Drawn, modules

SWEEPS = 100
ROOM = 1e-3  # of the largest element of an output
NUDGE = 1e-5  # of the inputs, to see whether an output jumps there

REFUSALS = (reparam.InputError, reparam.CaptureError, reparam.NotEquivalentError)


def check(drawn: Drawn) -> Counter[str]:
    """Converts one model to both targets and compares; what happened, counted."""
    happened: Counter[str] = Counter()
    for target in ("fused", "plain"):
        net = drawn.module()
        memory = copy.deepcopy(vars(net))
        example = drawn.inputs(drawn.sizes()[0])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = reparam.convert(net, example, to=target, dynamic=drawn.dynamic)
        except REFUSALS as error:
            happened[f"refused: {type(error).__name__}"] += 1
            continue
        assert (net.seen, net.calls, net.cache) == (memory["seen"], memory["calls"], memory["cache"]), drawn.source
        happened["converted"] += 1
        for sizes in drawn.sizes():
            happened[_compare(drawn, result.module, sizes, target)] += 1
    return happened


def _compare(drawn: Drawn, converted: nn.Module, sizes: tuple[int, int, int], target: str) -> str:
    x = drawn.inputs(sizes)
    try:
        truth = _run(drawn, x)
    except Exception:
        return "the original does not run"
    where = f"{target}, {sizes} of {drawn}:\n{drawn.source}"
    try:
        with torch.no_grad():
            found = pytree.tree_leaves(converted(x.clone()))
    except Exception as error:
        assert sizes != drawn.sizes()[0], f"does not run at the traced size ({error}): {where}"
        return "raised at another size"
    if _largest(truth, found) <= ROOM:
        return "the same"
    nudged = _run(drawn, x * (1 + NUDGE))
    assert 2 * _largest(truth, nudged) >= _largest(truth, found), f"{_largest(truth, found):.3g} off: {where}"
    return "the original jumps"


def _run(drawn: Drawn, x: Tensor) -> list[Any]:
    with torch.no_grad():
        return pytree.tree_leaves(drawn.module()(x.clone()))


def _largest(truth: list[Any], found: list[Any]) -> float:
    """The largest difference of any output, relative to its largest element; infinite when anything else differs."""
    if len(truth) != len(found):
        return float("inf")
    worst = 0.0
    for t, f in zip(truth, found, strict=True):
        if not isinstance(t, Tensor) or not isinstance(f, Tensor):
            worst = max(worst, 0.0 if type(t) is type(f) and t == f else float("inf"))
        elif t.shape != f.shape or t.dtype != f.dtype:
            return float("inf")
        elif t.numel():
            worst = max(worst, _gap(t.to(torch.float64), f.to(torch.float64)))
    return worst


def _gap(truth: Tensor, found: Tensor) -> float:
    same = (truth == found) | (truth.isnan() & found.isnan())
    gap = torch.where(same, 0.0, (truth - found).abs()).max()
    finite = truth[truth.isfinite()].abs()
    scale = max(float(finite.max()) if finite.numel() else 1.0, 1e-3)
    return float(gap) / scale if gap.isfinite() else float("inf")


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def _cases(count: int, part: int) -> Counter[str]:
    total: Counter[str] = Counter()
    options = settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=QUIET, phases=[Phase.generate]
    )

    @seed(part)
    @options
    @given(drawn=modules())
    def run(drawn: Drawn) -> None:
        total.update(check(drawn))

    run()
    return total


@pytest.mark.parametrize("part", mostly_in_sweeps(range(2), 1))
def test_random_modules(part: int) -> None:
    total = _cases(20, part)
    assert total["converted"] > 10
    assert total["the same"] > 2 * total["the original jumps"]


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(SWEEPS))
def test_sweep(part: int) -> None:
    print(dict(_cases(200, 1000 + part)))
