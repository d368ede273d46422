"""Regions of whole networks, and what the check says of them."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from reparam.check import Evidence, Region, check_region, find_region
from reparam.ir import Program, ranges_of
from support.helpers import program_of


def region_of(model: nn.Module, *inputs: Any, dynamic: tuple[str, ...] = (), **wrong: Any) -> tuple[Program, Region]:
    """The region of writing all calls once more, the last one with some arguments of its own."""
    program = program_of(model.double(), *inputs, dynamic=dynamic)
    calls = list(program.calls())
    made: dict[fx.Node, fx.Node] = {}
    with program.recording() as created:
        for node in calls:
            made[node] = program.clone(node, made, like=calls[-1])
        for name, value in wrong.items():
            made[calls[-1]].args = tuple(value if i == int(name[1:]) else a for i, a in enumerate(made[calls[-1]].args))
    return program, find_region({calls[-1]: made[calls[-1]]}, created)


def check(model: nn.Module, *inputs: Any, **options: Any) -> Evidence:
    program, region = region_of(model, *inputs, **options)
    return check_region(program, region, ranges_of(program), seed=1)
