"""Ways to carry channels, by the names that the option `carry` has for them; the choice between two by the clock."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reparam.ir.cost import batch_one
from reparam.ir.program import Program, shape_of
from reparam.options import slices_of

from .group_packing import Packer
from .grouped_layer import Wire
from .lowering import Chain
from .partial_sums import Splitter
from .register_value import Network
from .schedule import Planner
from .schedule_search import search
from .stage import Broken, Layers, Stage

ROUNDS = 7
_MEASURED = ("auto", "dense")
SavedLevels = tuple[tuple[int, float | None], ...]


def plan_chain(
    program: Program, network: Network, carry: str, signed: str, known: dict[object, SavedLevels]
) -> Chain | Broken:
    """The chain of a network, or why there is none. known: schedules found for equal networks; gets new ones."""
    if carry != "measured":
        return _plan(network, carry, signed, known)
    found = [_plan(network, way, signed, known) for way in _MEASURED]
    chains = [c for c in found if isinstance(c, Chain)]
    if len(chains) < len(found):
        return found[0]
    if chains[0].layout.macs == chains[1].layout.macs:
        return chains[0]
    key = ("measured", signed, network.signature)
    seconds = program.cache.setdefault("carry seconds", {})
    if key not in seconds:
        seconds[key] = _measure(program, chains)
    best = chains[0] if seconds[key][0] <= seconds[key][1] else chains[1]
    return replace(best, seconds=tuple(zip(_MEASURED, seconds[key], strict=True)))


def _plan(network: Network, carry: str, signed: str, known: dict[object, SavedLevels]) -> Chain | Broken:
    slices = slices_of(carry)
    if not network.ndim:
        carry, slices = "dense", None  # linear layers have no groups
    layouts = Packer(carry) if slices is None else Splitter(slices)
    planner = Planner(network, signed)
    key = (carry, signed, network.signature)
    layers: Layers | Broken = planner.lay_out(dict(known[key])) if key in known else search(planner, layouts.price)
    if isinstance(layers, Broken):
        return layers
    known[key] = layers.levels
    return Chain(network, layers, layouts.lay(layers))


# ---- by the clock ----------------------------------------------------------------------------------------------------


def _measure(program: Program, chains: Sequence[Chain]) -> tuple[float, ...]:
    """Seconds that layers of the shapes of each chain take for one sample, with other numbers.

    Medians of rounds in which the chains take turns. Gates are left out, since every way has the same ones.
    """
    runs = [_imitation(program, c) for c in chains]
    taken: list[list[float]] = [[] for _ in chains]
    with torch.inference_mode():
        for turn in range(ROUNDS + 1):
            for run, found in zip(runs, taken, strict=True):
                start = _now(program.device)
                run()
                if turn:  # the first round warms up
                    found.append(_now(program.device) - start)
    return tuple(statistics.median(found) for found in taken)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _imitation(program: Program, chain: Chain) -> Callable[[], Tensor]:
    """Runs layers like those of a chain, with ReLU for their activations, on one sample."""
    like: dict[str, Any] = {"dtype": program.dtype, "device": program.device}
    entry = torch.rand(shape_of(chain.network.span.entry, batch_one(program)), **like)
    stages = chain.layers.stages
    wires = chain.layout.wires(stages)
    steps = [_step(s, w, like) for s, w in zip(stages, wires, strict=True) if s.kind != "gate"]

    def run() -> Tensor:
        x = entry
        for step in steps:
            x = step(x)
        return x

    return run


def _step(stage: Stage, wire: Wire | None, like: dict[str, Any]) -> Callable[[Tensor], Tensor]:
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
