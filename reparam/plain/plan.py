"""Ways to carry channels, by the names that the option `carry` has for them; the choice between two by the clock."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reparam.ir import Program, Refusal, batch_one, shape_of
from reparam.options import PlainOptions

from .group_packing import Packer
from .grouped_layer import GroupedLayer
from .lowering import PlainChain
from .partial_sums import Splitter
from .register_value import SpanValues
from .schedule import Planner
from .schedule_search import search
from .stage import Infeasible, Schedule, Stage

ROUNDS = 7
_MEASURED = ("auto", "dense")
SavedLevels = tuple[tuple[int, float | None], ...]


@dataclass
class PlansMade:
    """What was found for equal spans: the levels of their schedules, and the seconds that ways to carry took."""

    levels: dict[object, SavedLevels] = field(default_factory=dict)
    seconds: dict[object, tuple[float, ...]] = field(default_factory=dict)


def plan_chain(program: Program, span_values: SpanValues, options: PlainOptions) -> PlainChain | Refusal:
    """The chain of a network, or why there is none. Equal networks get equal chains, searched for once."""
    made = program.notes.get(PlansMade, PlansMade)
    if options.carry != "measured":
        return _plan(span_values, options, made)
    found = [_plan(span_values, replace(options, carry=way), made) for way in _MEASURED]
    chains = [c for c in found if isinstance(c, PlainChain)]
    if len(chains) < len(found):
        return found[0]
    if chains[0].layout.macs == chains[1].layout.macs:
        return chains[0]
    key = (options.signed, span_values.signature)
    seconds = made.seconds
    if key not in seconds:
        seconds[key] = _measure(program, chains)
    best = chains[0] if seconds[key][0] <= seconds[key][1] else chains[1]
    return replace(best, seconds=tuple(zip(_MEASURED, seconds[key], strict=True)))


def plan_layer(span_values: SpanValues) -> PlainChain | Refusal:
    """A span without activations, pools and gates as one layer, whose channels keep their order; or why it is none."""
    result = span_values.result
    others = [v for v in span_values.values if v.kind != "input" and v is not result]
    held = next((v for v in others if not v.optional), None)
    if held is not None or result.act.family != "linear":
        return Refusal("something in it is not linear", (held or result).node)
    levels: dict[int, float | None] = dict.fromkeys((v.index for v in others), None)
    levels |= {v.index: 0.0 for v in span_values.inputs} | {result.index: 1.0}
    schedule = Planner(span_values).lay_out(levels)
    if isinstance(schedule, Infeasible):
        return schedule.refusal
    for carry in ("auto", "dense") if span_values.ndim else ("dense",):
        chain = PlainChain(span_values, schedule, Packer(carry).lay(schedule))
        if not chain.selects:
            break
    return chain


def _plan(span_values: SpanValues, options: PlainOptions, made: PlansMade) -> PlainChain | Refusal:
    carry, slices, known = options.carry, options.slices, made.levels
    if not span_values.ndim:
        carry, slices = "dense", None  # linear layers have no groups
    layouts = Packer(carry) if slices is None else Splitter(slices)
    planner = Planner(span_values, options.signed)
    key = (carry, options.signed, span_values.signature)
    schedule: Schedule | Infeasible = (
        planner.lay_out(dict(known[key])) if key in known else search(planner, layouts.price)
    )
    if isinstance(schedule, Infeasible):
        return schedule.refusal
    known[key] = schedule.levels
    return PlainChain(span_values, schedule, layouts.lay(schedule))


# ---- by the clock ----------------------------------------------------------------------------------------------------


def _measure(program: Program, chains: Sequence[PlainChain]) -> tuple[float, ...]:
    """Seconds that layers of the shapes of each chain take for one sample, with other numbers.

    Medians of rounds in which the chains take turns. Gates are left out, since every way has the same ones.
    """
    runs = [_imitation(program, c) for c in chains]
    taken: list[list[float]] = [[] for _ in chains]
    with torch.inference_mode():
        for turn in range(ROUNDS + 1):
            for run, found in zip(runs, taken, strict=True):
                start = time.perf_counter()
                run()
                if turn:  # the first round warms up
                    found.append(time.perf_counter() - start)
    return tuple(statistics.median(found) for found in taken)


def _imitation(program: Program, chain: PlainChain) -> Callable[[], Tensor]:
    """Runs layers like those of a chain, with ReLU for their activations, on one sample."""
    like: dict[str, Any] = {"dtype": program.dtype}
    entry = torch.rand(shape_of(chain.span_values.span.entry, batch_one(program)), **like)
    stages = chain.schedule.stages
    wires = chain.layout.wires(stages)
    steps = [_step(s, w, like) for s, w in zip(stages, wires, strict=True) if s.kind != "gate"]

    def run() -> Tensor:
        x = entry
        for step in steps:
            x = step(x)
        return x

    return run


def _step(stage: Stage, wire: GroupedLayer | None, like: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    if wire is None:
        call = stage.forms[0][0].node
        return lambda x: call.target(x, *call.args[1:], **call.kwargs)  # type: ignore[operator]
    size = (wire.outputs.size, wire.inputs.shape[1], *stage.window.size)
    weight = torch.rand(size, **like) / math.prod(size[1:])  # sums stay as small as what they are of
    if len(size) == 2:
        return lambda x: functional.linear(x, weight).relu_()
    conv = (functional.conv1d, functional.conv2d, functional.conv3d)[len(size) - 3]
    geometry = stage.window.geometry(wire.groups)
    even = all(low == high for low, high in geometry.padding)
    around = [n for pair in reversed(geometry.padding) for n in pair]
    options: dict[str, Any] = {"stride": geometry.stride, "dilation": geometry.dilation, "groups": wire.groups}
    if even:
        return lambda x: conv(x, weight, padding=[low for low, _ in geometry.padding], **options).relu_()
    return lambda x: conv(functional.pad(x, around), weight, **options).relu_()
