"""On which sizes a whole network is compared."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from reparam.check.input_plan import Plan, plans_of
from reparam.ir import SMALL_SIZE, Program, batch_one
from support.helpers import doubles, program_of


def network(*dynamic: str) -> Program:
    return program_of(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()).double(), doubles(2, 2, 9, 11), dynamic=dynamic)


def test_fixed_sizes_are_tried_on_eight_inputs_one_at_a_time() -> None:
    assert list(plans_of(network())) == [Plan({}, 1), *[Plan({}, 1, SMALL_SIZE)] * 7]


def test_a_free_batch_is_tried_at_one_and_at_that_of_the_example() -> None:
    """Two samples were traced, so seven are five and two."""
    program = network("batch")
    [batch] = batch_one(program)
    assert list(plans_of(program)) == [
        Plan({batch: 1}, 1),
        Plan({batch: 5}, 5, SMALL_SIZE),
        Plan({batch: 2}, 2, SMALL_SIZE),
    ]


@pytest.mark.parametrize(
    "own, counts", [(1, [5, 2]), (2, [5, 2]), (5, [2, 5]), (6, [7]), (7, [7]), (8, [7, 8]), (32, [7, 32]), (33, [7])]
)
def test_the_batch_of_the_example_is_among_seven_samples_or_beside_them(own: int, counts: list[int]) -> None:
    program = program_of(nn.ReLU(), doubles(own, 3), dynamic=("batch",))
    assert [plan.inputs for plan in plans_of(program)] == [1, *counts]


def test_of_volumes_there_are_five_beside_the_traced_one() -> None:
    net, x = nn.Conv3d(2, 3, 3).double(), doubles(2, 2, 9, 9, 9)
    assert list(plans_of(program_of(net, x, dynamic=()))) == [Plan({}, 1), *[Plan({}, 1, SMALL_SIZE)] * 5]
    for own, counts in ((1, [3, 2]), (2, [3, 2]), (3, [2, 3]), (4, [5]), (6, [5, 6])):
        program = program_of(net, doubles(own, 2, 9, 9, 9), dynamic=("batch",))
        assert [plan.inputs for plan in plans_of(program)] == [1, *counts]


def test_free_axes_are_tried_at_every_kind_of_size() -> None:
    program = replace(network("batch", "height", "width"), probes=())
    [batch] = batch_one(program)
    height, width = sorted({s for s in program.inputs[0].shape if isinstance(s, str)} - {batch})
    traced = program.traced_sizes
    assert sorted(traced[s] for s in (height, width)) == [9, 11]
    assert list(plans_of(program))[3:] == [
        Plan({batch: 2, height: 48, width: 64}, 2),
        Plan({batch: 2, height: 53, width: 69}, 2, far=True),
        Plan({batch: 1, height: 97, width: 113}, 1, far=True),
        Plan(
            {batch: 2, height: 3, width: 4},
            2,
            instead=tuple({batch: 2, height: n, width: n + 1} for n in (5, 9, 17)),
        ),
        Plan({batch: 1, height: traced[height] + 32, width: traced[width] + 34}, 1, far=True),
        Plan({batch: 2, height: 1, width: traced[width]}, 2, single=True),
        Plan({batch: 2, height: traced[height], width: 1}, 2, single=True),
        Plan({batch: 2, height: 1, width: 1}, 2, single=True),
    ]


def test_the_one_free_axis_beside_the_batch_is_one_in_one_plan() -> None:
    program = replace(network("width"), probes=())
    [width] = {s for s in program.inputs[0].shape if isinstance(s, str)}
    assert [p for p in plans_of(program) if p.single] == [Plan({width: 1}, 2, single=True)]


def test_sizes_that_break_what_torch_took_for_granted_are_tried_as_they_are() -> None:
    program = network("batch", "height")
    [batch] = batch_one(program)
    [height] = {s for s in program.inputs[0].shape if isinstance(s, str)} - {batch}
    probes = ({height: 5}, {height: 6, batch: 4, "elsewhere": 7})
    assert list(plans_of(replace(program, probes=probes)))[-2:] == [
        Plan({batch: 2, height: 5}, 2, far=True),
        Plan({batch: 4, height: 6}, 4, far=True),
    ]
    alone = network("height")
    [height] = {s for s in alone.inputs[0].shape if isinstance(s, str)}
    assert list(plans_of(replace(alone, probes=({height: 5},))))[-1] == Plan({height: 5}, 1, far=True)
