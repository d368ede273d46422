"""Schedules: what `lay_out` calls valid is a chain of registers, and `search` finds the cheapest one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from reparam.passes import fused_phases
from reparam.plain.channel_order import width
from reparam.plain.group_packing import Packer
from reparam.plain.register_value import SpanValues
from reparam.plain.schedule import Planner
from reparam.plain.schedule_search import search
from reparam.plain.stage import Infeasible, Schedule, Stage
from support.choice import mostly_in_sweeps
from support.direct import build
from support.helpers import doubles, program_of, run_phases
from support.networks import Net
from support.plain_blocks import basic, bottleneck, cross_stage, dense, inception, momentum, net, reversible
from support.plain_helpers import networks_of
from support.plain_specs import Drawn, specs

Levels = dict[int, float | None]
MOST = 5  # values whose every schedule is tried
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
# What this search must agree with itself on, whatever is drawn: no shrinking, which takes minutes.
DRAWN: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": QUIET, "phases": [Phase.generate]}


def networks(drawn: Drawn) -> list[SpanValues]:
    return networks_of(run_phases(build(drawn.spec, Net(drawn.spec)), fused_phases()).program)


def example(model: Any, *shape: int) -> SpanValues:
    """The widest span of a module."""
    program = run_phases(program_of(model, doubles(*(shape or (1, 3, 6, 6)))), fused_phases()).program
    return max(networks_of(program), key=lambda n: len(n.values))


# ---- every schedule there is -----------------------------------------------------------------------------------------


def weak_orders(n: int) -> Iterator[tuple[int, ...]]:
    """Every way to put n things on levels 1, 2, ... without an empty one."""
    for levels in itertools.product(range(1, n + 1), repeat=n):
        if set(levels) == set(range(1, max(levels, default=0) + 1)):
            yield levels


def schedules(span_values: SpanValues) -> Iterator[Levels]:
    """Every optional value held or not, and every order of what is held."""
    optional = [v.index for v in span_values.values if v.optional]
    needed = [v.index for v in span_values.values if v.kind != "input" and not v.optional]
    none: Levels = {v.index: 0.0 for v in span_values.values if v.kind == "input"} | dict.fromkeys(optional)
    for n in range(len(optional) + 1):
        for held in itertools.combinations(optional, n):
            free = [*needed, *held]
            for levels in weak_orders(len(free)):
                yield none | {i: float(t) for i, t in zip(free, levels, strict=True)}


def dense_price(schedule: Schedule) -> float:
    """Multiply-accumulates without groups, written apart from the packer."""
    return float(sum(_dense(stage) for stage in schedule.stages))


def _dense(stage: Stage) -> int:
    if stage.kind == "pool":
        return 0
    n_in = sum(v.channels for v in stage.before)
    if stage.kind == "gate":
        return 2 * n_in * stage.forms[0][0].gate_width
    return stage.positions * math.prod(stage.window.size) * n_in * sum(v.channels for v in stage.after)


def cheapest(planner: Planner, price: Any) -> float:
    """Of all schedules; inf when none is valid."""
    found = [planner.lay_out(levels) for levels in schedules(planner.span_values)]
    return min((price(f) for f in found if isinstance(f, Schedule)), default=math.inf)


def assert_exact(span_values: SpanValues, seen: set[Any]) -> int:
    """The search against all schedules, dense and grouped; 1 when it was tried."""
    if span_values.signature in seen or sum(v.kind != "input" for v in span_values.values) > MOST:
        return 0
    seen.add(span_values.signature)
    for carry in ("dense", "auto"):
        planner, packer = Planner(span_values), Packer(carry)
        found = search(planner, packer.price)
        least = cheapest(planner, dense_price if carry == "dense" else packer.price)
        if isinstance(found, Infeasible):
            assert math.isinf(least), f"there is a schedule, but none was found: {found.refusal.reason}"
        else:
            assert packer.price(found) == least, (carry, found.levels)
            assert carry == "auto" or dense_price(found) == least
    return 1


@pytest.mark.parametrize("count", mostly_in_sweeps([20, 40], 20))
def test_the_search_finds_the_cheapest_of_all_schedules(count: int) -> None:
    seen: set[Any] = set()
    tried = []

    @seed(1)
    @settings(max_examples=count, **DRAWN)
    @given(drawn=specs())
    def run(drawn: Drawn) -> None:
        tried.extend(assert_exact(span_values, seen) for span_values in networks(drawn))

    run()
    assert sum(tried) > 10


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(10))
def test_the_search_finds_the_cheapest_of_all_schedules_of_many(part: int) -> None:
    seen: set[Any] = set()

    @seed(100 + part)
    @settings(max_examples=500, **DRAWN)
    @given(drawn=specs())
    def run(drawn: Drawn) -> None:
        for span_values in networks(drawn):
            assert_exact(span_values, seen)

    run()


# ---- what a valid schedule is ----------------------------------------------------------------------------------------


def assert_valid(span_values: SpanValues, schedule: Schedule) -> None:
    """Registers follow each other, every layer reads its register alone, and all that is needed is made once."""
    stages = schedule.stages
    assert stages[0].before == span_values.inputs
    assert stages[-1].after == (span_values.result,)
    for stage, following in itertools.pairwise(stages):
        assert stage.after == following.before
    for stage in stages:
        created = {v for v, _ in stage.forms}
        assert created and created <= set(stage.after)
        assert set(stage.after) - created <= set(stage.before), "something is carried that was not there"
        assert {u for _, form in stage.forms for u, _ in form.maps} <= set(stage.before)
        assert len({v.space for v in stage.before}) == len({v.space for v in stage.after}) == 1
        assert {v for v, _, _ in stage.blocks()} <= set(stage.after)
        used = {u for _, u, _ in stage.blocks()}
        assert stage is stages[0] or used == set(stage.before), "something is held that nobody reads"
        for v, u, m in stage.blocks():
            assert m.rows + m.n_out <= v.channels and m.cols + m.n_in <= u.channels
    made = [v for stage in stages for v, _ in stage.forms]
    assert len(made) == len(set(made))
    needed = {v for v in span_values.values if v.kind != "input" and not v.optional}
    assert needed & set(_read(span_values)) <= set(made)


def _read(span_values: SpanValues) -> list[Any]:
    """What the result needs, found by walking back."""
    found, stack = [], [span_values.result]
    while stack:
        v = stack.pop()
        if v not in found:
            found.append(v)
            stack.extend(v.operands)
    return found


@pytest.mark.parametrize("count", mostly_in_sweeps([15, 40], 15))
def test_any_levels_are_laid_out_validly_or_refused_with_a_reason(count: int) -> None:
    valid = []

    @seed(2)
    @settings(max_examples=count, **DRAWN)
    @given(drawn=specs(), data=st.data())
    def run(drawn: Drawn, data: st.DataObject) -> None:
        for span_values in networks(drawn)[:2]:
            planner = Planner(span_values)
            for _ in range(8):
                levels: Levels = {}
                for v in span_values.values:
                    behind = max((levels[u.index] or 0.0 for u in v.operands if u.index in levels), default=0.0)
                    level = behind + data.draw(st.sampled_from([1.0, 1.0, 2.0, 0.5, 0.0]))
                    none = v.optional and data.draw(st.booleans())
                    levels[v.index] = 0.0 if v.kind == "input" else None if none else level
                found = planner.lay_out(levels)
                valid.append(isinstance(found, Schedule))
                if isinstance(found, Infeasible):
                    assert found.faults > 0 and found.refusal.reason
                else:
                    assert_valid(span_values, found)

    run()
    assert 0 < sum(valid) < len(valid)


@pytest.mark.parametrize(
    ("model", "depth"),
    [
        (net(basic()), 2),
        (net(bottleneck(8, 2), c=8), 3),
        (net(inception()), 3),
        (net(cross_stage()), 3),
        (net(reversible()), 4),
    ],
    ids=["basic", "bottleneck", "inception", "cross stage", "reversible"],
)
def test_known_networks_have_the_depth_of_their_longest_path(model: Any, depth: int) -> None:
    span_values = example(model)
    found = search(Planner(span_values), Packer("dense").price)
    assert isinstance(found, Schedule)
    assert_valid(span_values, found)
    assert len(found.stages) == depth


@pytest.mark.parametrize("model", [net(dense()), net(momentum())], ids=["dense", "momentum"])
def test_larger_networks_have_valid_schedules(model: Any) -> None:
    span_values = example(model)
    found = search(Planner(span_values), Packer("auto").price)
    assert isinstance(found, Schedule)
    assert_valid(span_values, found)


def test_the_search_gives_the_same_schedule_again_and_from_its_levels() -> None:
    for model in (net(momentum()), net(dense()), net(inception())):
        span_values = example(model)
        first, again = (search(Planner(span_values), Packer("auto").price) for _ in range(2))
        assert isinstance(first, Schedule) and isinstance(again, Schedule)
        assert first.levels == again.levels
        once_more = Planner(span_values).lay_out(dict(first.levels))
        assert isinstance(once_more, Schedule)
        assert [s.after for s in once_more.stages] == [s.after for s in first.stages]
        assert [s.window for s in once_more.stages] == [s.window for s in first.stages]


def test_a_value_that_is_read_before_it_exists_is_a_fault() -> None:
    span_values = example(net(basic()))
    found = Planner(span_values).lay_out({v.index: 1.0 if v.kind != "input" else 0.0 for v in span_values.values})
    assert isinstance(found, Infeasible) and found.faults >= 1
    assert "earlier" in found.refusal.reason


def test_a_register_is_as_wide_as_what_is_alive() -> None:
    """relu(b(relu(a(x))) + x): [x], [x, a], [y]."""
    span_values = example(net(basic()))
    found = search(Planner(span_values), Packer("dense").price)
    assert isinstance(found, Schedule)
    assert [width(s.before) for s in found.stages] == [4, 8] and width(found.stages[-1].after) == 4
