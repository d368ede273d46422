"""Layouts: what a chain is said to cost is what its layers cost, and every channel has its place."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn

from reparam.errors import RuleError
from reparam.ir import Program, batch_one, shape_of
from reparam.options import PlainOptions
from reparam.passes import fused_phases, plain_phases
from reparam.plain import PlainChain, lower, plan_chain, price
from reparam.plain.channel_order import width
from reparam.plain.group_packing import Packer, Packing, _spread
from reparam.plain.schedule import Planner
from reparam.plain.schedule_search import search
from reparam.plain.stage import Schedule
from support.choice import mostly_in_sweeps
from support.direct import build
from support.helpers import EXACT, Lambda, conv_bn, doubles, max_rel, program_of, run_phases
from support.networks import Net
from support.plain_blocks import bottleneck, net, squeezed
from support.plain_helpers import networks_of
from support.plain_specs import Drawn, specs
from support.specs import Spec

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
DRAWN: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": QUIET, "phases": [Phase.generate]}


@cache
def fused_program(spec: Spec) -> Program:
    """The network after the rules of `fused`; every way to carry is tried on the same."""
    return run_phases(build(spec, Net(spec)), fused_phases()).program


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


@pytest.mark.parametrize("carry", mostly_in_sweeps(["auto", "dense", "split=2", "split=3"], "split=2"))
def test_a_chain_costs_what_its_layout_says(carry: str) -> None:
    tried = []

    @seed(3)
    @settings(max_examples=20, **DRAWN)
    @given(drawn=specs())
    def run(drawn: Drawn) -> None:
        tried.append(assert_priced_right(fused_program(drawn.spec), carry))

    run()
    assert sum(tried) > 10


def test_every_channel_has_one_place_in_every_register() -> None:
    seen: list[tuple[bool, bool, bool]] = []

    @seed(4)
    @settings(max_examples=20, **DRAWN)
    @given(drawn=specs(), grouped=st.booleans())
    def run(drawn: Drawn, grouped: bool) -> None:
        for span_values in networks_of(fused_program(drawn.spec)):
            packer = Packer("auto" if grouped else "dense")
            schedule = search(Planner(span_values), packer.price)
            if isinstance(schedule, Schedule):
                layout = packer.lay(schedule)
                _assert_complete(schedule, layout)
                natural = all(np.array_equal(order, np.arange(len(order))) for order in layout.orders)
                padded = any(bool((order < 0).any()) for order in layout.orders)
                assert grouped or (natural and set(layout.groups) == {1})
                seen.append((grouped, natural, padded))

    run()
    assert sum(not grouped for grouped, _, _ in seen) > 3
    assert sum(not natural for _, natural, _ in seen) > 3
    assert any(padded for _, _, padded in seen)


def _assert_complete(schedule: Schedule, layout: Packing) -> None:
    widths = [width(s.before) for s in schedule.stages] + [width(schedule.stages[-1].after)]
    assert len(layout.groups) == len(schedule.stages)
    for order, n in zip(layout.orders, widths, strict=True):
        assert sorted(order[order >= 0]) == list(range(n))
    for k in (0, -1):
        assert np.array_equal(layout.orders[k], np.arange(widths[k])), "the ends keep their natural order"
    for groups, before, after in zip(layout.groups, layout.orders[:-1], layout.orders[1:], strict=True):
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
    """The sum behind it adds two channels for each result, so the pool finds another order than the natural one."""
    c = 8
    block = Lambda(lambda m, x: F.max_pool2d(F.relu(m.a(x)), 2) + F.max_pool2d(x, 2), a=conv_bn(c, c, padding=1))
    program = run_phases(program_of(net(block, c=c).double(), doubles(2, 3, 8, 8)), fused_phases()).program
    [span_values] = networks_of(program)
    schedule = search(Planner(span_values), Packer("auto").price)
    assert isinstance(schedule, Schedule)
    assert [s.kind for s in schedule.stages] == ["layer", "pool", "layer"]
    layout = Packer("auto").lay(schedule)
    assert layout.groups == (1, 1, c)
    assert np.array_equal(layout.orders[1], layout.orders[2])
    assert not np.array_equal(layout.orders[1], np.arange(2 * c))


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


# ---- components --------------------------------------------------------------------------------------------------

Edge = tuple[int, slice, slice, int]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[int], list[Edge]]:
    """The widths of some registers, and edges between neighbours."""
    widths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    edges = []
    for _ in range(draw(st.integers(0, 8))):
        i = draw(st.integers(0, len(widths) - 2))
        groups = draw(st.integers(1, min(widths[i], widths[i + 1])))
        ends = []
        for n in widths[i : i + 2]:
            size = groups * draw(st.integers(1, n // groups))
            start = draw(st.integers(0, n - size))
            ends.append(slice(start, start + size))
        edges.append((i, ends[0], ends[1], groups))
    return widths, edges


def numbered(widths: list[int]) -> list[np.ndarray]:
    return np.split(np.arange(sum(widths)), np.cumsum(widths)[:-1])


def components(widths: list[int], edges: list[Edge]) -> list[int]:
    """The least channel that each channel can be reached from: one connection after the other."""
    label = list(range(sum(widths)))
    starts = np.cumsum([0, *widths])
    for i, cols, rows, groups in edges:
        before = np.arange(starts[i], starts[i + 1])[cols].reshape(groups, -1)
        behind = np.arange(starts[i + 1], starts[i + 2])[rows].reshape(groups, -1)
        for members in np.concatenate([before, behind], 1):
            met = {label[m] for m in members}
            label = [min(met) if v in met else v for v in label]
    return label


@given(graph=graphs())
def test_the_smallest_label_spreads_over_each_component(graph: tuple[list[int], list[Edge]]) -> None:
    widths, edges = graph
    labels = numbered(widths)
    _spread(labels, edges)
    assert np.concatenate(labels).tolist() == components(widths, edges)


@pytest.mark.parametrize("n", [2, 3, 40])
def test_a_label_reaches_the_far_end_of_a_chain_that_is_walked_backwards(n: int) -> None:
    """It gets one register further in each sweep: the most sweeps that any graph needs."""
    one = slice(0, 1)
    labels = numbered([1] * n)
    _spread(labels, [(i, one, one, 1) for i in reversed(range(n - 1))])
    assert np.concatenate(labels).tolist() == [0] * n


@pytest.mark.parametrize("bad", [math.nan, -math.nan])
def test_labels_that_never_settle_are_an_error_and_no_endless_loop(bad: float) -> None:
    labels = [np.array([0.0, bad]), np.array([2.0, 3.0])]
    with pytest.raises(RuleError, match="do not settle"):
        _spread(labels, [(0, slice(0, 2), slice(0, 2), 1)])


class Adrift(np.ndarray):
    """An array whose slices are copies, so that nothing that is written to them arrives."""

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key].copy()


def test_labels_that_cannot_be_written_to_are_an_error_and_no_endless_loop() -> None:
    labels: Any = [np.arange(0, 2).view(Adrift), np.arange(2, 4).view(Adrift)]
    with pytest.raises(RuleError, match="do not settle"):
        _spread(labels, [(0, slice(0, 2), slice(0, 2), 2)])
