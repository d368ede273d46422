"""Random networks with masked weights through `shrink` alone, each fourth through all of `fused`: none wrong by 1e-12.

The default suite tries 500, two masks for each of 250 networks; `make sweep` 10,000. A failure prints the spec and the
seed of its mask.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from reparam.ir import Program, census, evaluate
from reparam.passes import fused_phases
from reparam.passes.shrink import Shrink
from reparam.rewrite import Phase as Rules
from support.agreement import feeds, magnitude, near
from support.direct import build
from support.helpers import run_phases
from support.masking import masked
from support.networks import Net
from support.specs import Spec
from support.strategies import specs

PARTS = 4
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def check(spec: Spec, *masks: int) -> None:
    network = build(spec, Net(spec))
    for mask in masks:
        assert_shrinks(spec, masked(network, mask), mask)


def assert_shrinks(spec: Spec, program: Program, mask: int) -> None:
    """The network that is left agrees with the masked one at every size, and costs no more."""
    for phases in ((Rules("shrink", (Shrink(pays=0),)),), *([fused_phases()] if mask % 4 == 0 else [])):
        done = run_phases(program, phases)
        assert done.outcome.rejected == 0, f"a rule was caught by its own check: {done.outcome.remarks}"
        assert census(done.program).macs <= census(program).macs
        for feed in feeds(spec, program):
            near(evaluate(program, feed), evaluate(done.program, feed), magnitude(program, feed), bound=1e-12)


def cases(count: int, part: int) -> Any:
    """`count` random networks and masks, the same for a part every time."""

    def decorate(test: Any) -> Any:
        options = settings(
            max_examples=count, deadline=None, database=None, suppress_health_check=QUIET, phases=[Phase.generate]
        )
        return seed(part)(options(given(spec=specs(), mask=st.integers(0, 2**16))(test)))

    return decorate


@pytest.mark.parametrize("part", range(PARTS))
def test_masked_networks(part: int) -> None:
    @cases(250 // PARTS + 1, part)
    def run(spec: Spec, mask: int) -> None:
        check(spec, mask, mask + 1)

    run()


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(20))
def test_sweep(part: int) -> None:
    @cases(500, 1000 + part)
    def run(spec: Spec, mask: int) -> None:
        check(spec, mask)

    run()
