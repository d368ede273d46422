"""Split sums: layers cut into partial sums over slices of what they read are the same function, at the stated price."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reparam.conversion import convert
from reparam.errors import InputError
from reparam.ir import CONVS, Program, arguments, aten, is_call, is_chain
from reparam.options import PlainOptions
from reparam.plain.group_packing import Packer
from reparam.plain.grouped_layer import PAD, is_link, rearranged, weight_of
from reparam.plain.partial_sums import Split, Splitter, _cut, _sums
from reparam.plain.schedule import Planner
from reparam.plain.schedule_search import search
from reparam.plain.stage import Schedule
from support.choice import crossed
from support.helpers import EXACT, Fused, doubles, module_rel, program_of
from support.plain_blocks import (
    basic,
    bottleneck,
    cross_stage,
    dense,
    inception,
    inverted,
    net,
    perceptron,
    pre_activation,
    projection,
)
from support.plain_helpers import assert_chain, counts, networks_of, plain, plain_of

X = (2, 8, 6, 6)
EXAMPLES: dict[str, Any] = {
    "basic": lambda: net(basic(8), c=8),
    "bottleneck": lambda: net(bottleneck(16, 4), bottleneck(16, 4), c=16),
    "projection": lambda: net(basic(8, 16, 2, projection(8, 16, 2)), c=8),
    "pre-activation": lambda: net(pre_activation(8), c=8),
    "inverted": lambda: net(inverted(8, 16), c=8),
    "dense": lambda: net(dense(8, 4), c=8),
    "inception": lambda: net(inception(8), c=8),
    "cross stage": lambda: net(cross_stage(8), c=8),
}


# ---- whole networks --------------------------------------------------------------------------------------------------


@cache
def captured(name: str) -> tuple[nn.Module, Program, Fused]:
    """An example, its capture, and the chain without slices."""
    torch.manual_seed(0)
    model = EXAMPLES[name]().double().eval()
    program = program_of(model, doubles(2, 3, 8, 8))
    return model, program, plain_of(program)


@pytest.mark.parametrize("name, carry", crossed(EXAMPLES, ["split=2", "split=3", "split=8"]))
def test_every_kind_of_block_is_a_chain_and_equal(name: str, carry: str) -> None:
    model, program, whole = captured(name)
    fused = plain_of(program, carry=carry)
    assert counts(fused)[1].merges == 0
    assert is_chain(fused.program)
    assert counts(fused)[1].macs <= counts(whole)[1].macs
    for feed in (doubles(2, 3, 8, 8), doubles(1, 3, 8, 8, seed=1), doubles(5, 3, 8, 8, seed=2)):
        assert module_rel(model, fused.program, [feed]) <= EXACT


def test_the_price_of_a_basic_block() -> None:
    """y = relu(B relu(A x) + x), c channels, k x k, in G slices: 1 + 1/G of its own cost and c*G sums of one product.

    A: G groups of c/G channels to c parts and c/G carried; sums: c groups of G parts and one carried channel, to two;
    B: G groups of c and c/G channels to c/G.
    """
    c, k, g = 64, 3, 8
    model = nn.Sequential(nn.Conv2d(3, c, 1), nn.ReLU(), basic(c), nn.Conv2d(c, 2, 1)).double().eval()
    fused = plain(model, doubles(2, 3, 6, 6), carry=f"split={g}")
    layers = [n for n in fused.program.calls() if is_call(n, CONVS)]
    groups = [arguments(n)["groups"] for n in layers]
    assert groups == [1, g, c, g, 1]
    own = [int(fused.program.constants[str(arguments(n)["weight"].target)].value.numel()) for n in layers[1:4]]
    assert own == [c * (c + c // g) * k * k, c * (g + 1) * 2, (c + c // g) * c * k * k]


def test_a_skip_that_is_off_is_noticed_by_the_check_and_in_the_outputs() -> None:
    """The negative controls of every chain, on one that adds up parts."""
    fused = assert_chain(net(basic(32), c=32), 2, 3, 6, 6, merges=1, carry="split=4")
    assert any(is_call(n, frozenset({aten.index_select.default})) for n in fused.program.calls())


def test_a_part_that_is_added_twice_or_left_out_is_noticed() -> None:
    model = net(basic(32), c=32).double().eval()
    x = doubles(2, 3, 6, 6)
    fused = plain(model, x, carry="split=4")
    [name] = [n for n in fused.program.constants if "_sums.weight" in n]
    weight = fused.program.constants[name].value
    assert set(weight.unique().tolist()) == {0.0, 1.0}
    for factor in (0.0, 2.0):
        wrong = _with(fused.program, name, weight, factor)
        assert module_rel(model, wrong, [x]) > 1e-3


def _with(program: Program, name: str, weight: torch.Tensor, factor: float) -> Program:
    copy = program.copy()
    spoiled = weight.clone()
    spoiled.view(-1)[int(weight.view(-1).nonzero()[0])] *= factor
    copy.constants[name] = replace(copy.constants[name], value=spoiled)
    return copy


def test_the_report_says_what_was_split() -> None:
    torch.manual_seed(0)
    report = convert(net(basic(32), c=32).float().eval(), torch.randn(2, 3, 6, 6), to="plain", carry="split=4").report
    [block] = report.blocks
    assert block["carry"] == "split"
    assert block["layers"] == len(block["groups"]) == 3
    assert block["macs_after"] == report.after.macs - (report.before.macs - block["macs_before"])
    assert report.plain


def test_linear_layers_are_not_split() -> None:
    """They have no groups, so the layout is the one of `auto`."""
    model = perceptron(8, 16).double().eval()
    x = doubles(4, 8)
    assert plain(model, x, carry="split=2").text == plain(model, x).text


@pytest.mark.parametrize(
    "carry", ["split=1", "split=0", "split=", "split=-2", "split=x", "split=99999", "split", "best"]
)
def test_what_is_no_way_to_carry_is_refused(carry: str) -> None:
    with pytest.raises(InputError, match="unknown carry"):
        PlainOptions(carry)


# ---- wires -----------------------------------------------------------------------------------------------------------


@cache
def stages_of(name: str) -> tuple[Any, ...]:
    """The layers of the cheapest dense schedules of an example."""
    found = []
    for span_values in networks_of(captured(name)[1]):
        schedule = search(Planner(span_values), Packer("dense").price)
        if isinstance(schedule, Schedule):
            found += [s for s in schedule.stages if s.kind == "layer"]
    return tuple(found)


@pytest.mark.parametrize("cut", [(1, 1), (2, 1), (1, 3), (2, 2), (5, 3)])
def test_a_wire_computes_what_its_stage_does(cut: tuple[int, int]) -> None:
    """The groups' blocks, added up at their channels, are the dense weight; every channel is carried or computed."""
    tried = 0
    for name in EXAMPLES:
        for stage in stages_of(name):
            whole, part = _cut(stage, 1, 1), _cut(stage, *cut)
            assert whole.groups == 1 and part.groups == cut[0] * cut[1]
            assert torch.allclose(_dense(part, stage), _dense(whole, stage), rtol=0, atol=1e-14)
            assert set(part.order.tolist()) - {PAD} == set(range(whole.outputs.size))
            tried += any(not is_link(m) for _, _, m in stage.blocks())
    assert tried > 10


def _dense(wire: Any, stage: Any) -> torch.Tensor:
    weight = weight_of(wire, stage).unflatten(0, wire.outputs.shape)
    total = torch.zeros(int(wire.outputs.max()) + 1, int(wire.inputs.max()) + 1, *weight.shape[3:], dtype=weight.dtype)
    for g in range(wire.groups):
        for a, row in enumerate(wire.outputs[g]):
            for b, col in enumerate(wire.inputs[g]):
                assert PAD not in (row, col) or not weight[g, a, b].any(), "padding takes part"
                if PAD not in (row, col):
                    total[row, col] += weight[g, a, b]
    return total


@pytest.mark.parametrize("seed", range(20))
def test_sums_add_up_every_part_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, groups = int(rng.integers(1, 12)), int(rng.integers(2, 6))
    rows = [np.unique(rng.integers(0, n, size=int(rng.integers(1, n + 1)))) for _ in range(groups - 1)]
    rows.append(np.arange(n))
    outputs = np.full((groups, n), PAD)
    for g, row in enumerate(rows):
        outputs[g, : len(row)] = row
    sums = _sums(outputs)
    assert sums is not None
    flat = outputs.reshape(-1)
    picked = sums.picks[sums.picks >= 0]
    assert sorted(picked) == np.flatnonzero(flat >= 0).tolist()
    assert sorted(sums.results[sums.results >= 0]) == list(range(n))
    for picks, results in zip(sums.picks, sums.results, strict=True):
        assert set(flat[picks[picks >= 0]]) == set(results[results >= 0])


def test_no_sums_without_parts() -> None:
    assert _sums(np.array([[0, 2], [1, PAD]])) is None


def test_rearranged() -> None:
    order = np.array([2, 0, PAD, 1])
    assert rearranged(order, order) is None
    assert rearranged(order, np.array([2, 0, 1])).tolist() == [0, 1, 3]  # type: ignore[union-attr]
    assert rearranged(order, np.array([1, 1, PAD, 0])).tolist() == [3, 3, 2, 1]  # type: ignore[union-attr]
    found = rearranged(np.array([1, 0]), np.array([0, PAD, 1]))  # no padding there: any channel will do
    assert found is not None and found[[0, 2]].tolist() == [1, 0] and found[1] in (0, 1)


def test_a_layout_without_gain_is_the_packed_one() -> None:
    fused = plain(net(basic(), c=4).double().eval(), doubles(2, 3, 8, 8))
    [span_values] = networks_of(fused.original)
    splitter = Splitter(2)
    schedule = search(Planner(span_values), splitter.price)
    assert isinstance(schedule, Schedule)
    layout = splitter.lay(schedule)
    assert layout.macs == splitter.price(schedule) <= Packer("auto").price(schedule)
    assert isinstance(layout, Split) == (layout.macs < Packer("auto").price(schedule))
