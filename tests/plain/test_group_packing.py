"""Layouts: what a chain is said to cost is what its layers cost, and every channel has its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn

from reparam.ir import Program, batch_one, shape_of
from reparam.options import PlainOptions
from reparam.passes import fused_phases, plain_phases
from reparam.plain import PlainChain, lower, plan_chain, price
from reparam.plain.channel_order import width
from reparam.plain.group_packing import Layout, Packer
from reparam.plain.schedule import Planner
from reparam.plain.schedule_search import search
from reparam.plain.stage import Schedule
from support.direct import build
from support.helpers import EXACT, doubles, max_rel, program_of, run_phases
from support.networks import Net
from support.plain_blocks import bottleneck, net, pooled, squeezed
from support.plain_helpers import networks_of
from support.plain_specs import Drawn, specs

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
DRAWN: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": QUIET, "phases": [Phase.generate]}


def chains(program: Program, carry: str) -> list[tuple[Program, PlainChain]]:
    """Every chain of the network, each planned in a copy of its own."""
    found = []
    for k in range(len(networks_of(program))):
        copy = program.copy()
        span_values = networks_of(copy)[k]
        chain = plan_chain(copy, span_values, PlainOptions(carry))
        if isinstance(chain, PlainChain):
            found.append((copy, chain))
    return found


def assert_priced_right(program: Program, carry: str) -> int:
    tried = 0
    for copy, chain in chains(program, carry):
        if any(s.kind == "gate" for s in chain.schedule.stages):
            continue
        block = price(copy, chain, lower(copy, chain))
        batch = shape_of(chain.span_values.span.entry, batch_one(copy))[0]
        assert block.macs_after == batch * chain.layout.macs, (carry, block)
        tried += 1
    return tried


@pytest.mark.parametrize("carry", ["auto", "dense", "split=2", "split=3"])
def test_a_chain_costs_what_its_layout_says(carry: str) -> None:
    tried = []

    @seed(3)
    @settings(max_examples=20, **DRAWN)
    @given(drawn=specs())
    def run(drawn: Drawn) -> None:
        program = run_phases(build(drawn.spec, Net(drawn.spec)), fused_phases()).program
        tried.append(assert_priced_right(program, carry))

    run()
    assert sum(tried) > 10


def test_every_channel_has_one_place_in_every_register() -> None:
    @seed(4)
    @settings(max_examples=20, **DRAWN)
    @given(drawn=specs(), grouped=st.booleans())
    def run(drawn: Drawn, grouped: bool) -> None:
        program = run_phases(build(drawn.spec, Net(drawn.spec)), fused_phases()).program
        for span_values in networks_of(program):
            packer = Packer("auto" if grouped else "dense")
            schedule = search(Planner(span_values), packer.price)
            if isinstance(schedule, Schedule):
                _assert_complete(schedule, packer.lay(schedule), grouped)

    run()


def _assert_complete(schedule: Schedule, layout: Layout, grouped: bool) -> None:
    widths = [width(s.before) for s in schedule.stages] + [width(schedule.stages[-1].after)]
    for order, n in zip(layout.orders, widths, strict=True):
        used = order[order >= 0]
        assert sorted(used) == list(range(n))
        assert grouped or len(order) == n
    for k in (0, -1):
        assert np.array_equal(layout.orders[k], np.arange(widths[k])), "the ends keep their natural order"
    for groups, before, after in zip(layout.groups, layout.orders, layout.orders[1:], strict=False):
        assert len(before) % groups == 0 and len(after) % groups == 0


@pytest.mark.parametrize(("c", "middle"), [(8, 4), (9, 4), (8, 3), (16, 2)])
def test_the_middle_of_a_bottleneck_runs_in_groups(c: int, middle: int) -> None:
    """[W 0; 0 I] with c carried channels beside `middle`: ceil((c + middle)/middle) groups of that width."""
    program = run_phases(
        program_of(net(bottleneck(c, middle), c=c).double(), doubles(2, 3, 6, 6)), fused_phases()
    ).program
    [span_values] = networks_of(program)
    schedule = search(Planner(span_values), Packer("auto").price)
    assert isinstance(schedule, Schedule)
    layout = Packer("auto").lay(schedule)
    groups = -(-(c + middle) // middle)
    assert layout.groups == (1, groups, 1)
    assert [len(o) for o in layout.orders] == [c, groups * middle, groups * middle, c]
    assert layout.macs < Packer("dense").price(schedule)


def test_a_pool_keeps_the_order_that_it_finds() -> None:
    program = run_phases(program_of(net(pooled(4, 8), c=4).double(), doubles(2, 3, 8, 8)), fused_phases()).program
    for span_values in networks_of(program):
        schedule = search(Planner(span_values), Packer("auto").price)
        assert isinstance(schedule, Schedule)
        layout = Packer("auto").lay(schedule)
        for k, stage in enumerate(schedule.stages):
            if stage.kind == "pool":
                assert np.array_equal(layout.orders[k], layout.orders[k + 1])


def test_a_sum_behind_a_gate_runs_in_groups() -> None:
    """relu(x + y * g(y)) adds two channels for each result: the gate takes them in the order that c groups ask for."""
    c = 8
    x = doubles(2, 3, 6, 6)
    block = squeezed(c)
    block.a, block.b = nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)  # wider, b would itself run in groups
    found = run_phases(program_of(net(block, c=c).double(), x), fused_phases())
    [span_values] = networks_of(found.program)
    schedule = search(Planner(span_values), Packer("auto").price)
    assert isinstance(schedule, Schedule)
    layout = Packer("auto").lay(schedule)
    [k] = [i for i, s in enumerate(schedule.stages) if s.kind == "gate"]
    assert layout.groups[k + 1] == c
    assert np.array_equal(layout.orders[k], layout.orders[k + 1])
    assert not np.array_equal(layout.orders[k], np.arange(2 * c))
    plain = run_phases(found.program, plain_phases())
    assert max_rel(found.original, plain.program, [x]) <= EXACT
