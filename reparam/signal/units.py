"""dead: units that never fire, that are constant, or that are saturated on the samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from reparam.errors import InputError
from reparam.ir import shape_of

from .axes import channel_axes
from .functions import Function, activations
from .places import names_of
from .running import Sampled
from .table import Table

SATURATED = 0.99  # of the values of a unit lie where the function is flat
FLAT = 1e-3  # of the steepest slope among values that are usual
USUAL = 4.0  # times the root of the mean square of the first values
STEPS = 6000
CONSTANT = 1e-12  # deviation, relative to the size
MOST_LISTED = 4096


class _Unit:
    """What was seen of the channels of one activation."""

    def __init__(self, function: Function, axis: int, channels: int) -> None:
        self.axis = axis
        self.low = torch.full((channels,), float("inf"), dtype=torch.float64)
        self.high = torch.full((channels,), float("-inf"), dtype=torch.float64)
        self.flat = torch.zeros(channels, dtype=torch.float64)
        self.count = 0
        self.function = function
        self.reach = 0.0  # of what is looked at
        self.level = torch.zeros(STEPS - 1, dtype=torch.bool)  # whether the function is flat, from -reach to reach

    def see_result(self, value: Tensor) -> None:
        rows = value.detach().movedim(self.axis, 0).flatten(1)
        self.low = torch.minimum(self.low, rows.amin(1))
        self.high = torch.maximum(self.high, rows.amax(1))

    def see_root(self, value: Tensor) -> None:
        rows = value.detach().movedim(self.axis, 0).flatten(1)
        if self.count == 0:
            self._look(float(rows.double().square().mean().sqrt()))
        at = ((rows / self.reach + 1) * (STEPS / 2) - 1).round().clamp(0, len(self.level) - 1).long()
        self.flat += self.level[at].sum(1)
        self.count += rows.shape[1]

    def _look(self, size: float) -> None:
        self.reach = USUAL * size if 0 < size < math.inf else 30.0
        x = torch.linspace(-self.reach, self.reach, STEPS + 1, dtype=torch.float64)
        y = self.function(x).reshape(-1, len(x)).mean(0)
        slope = (y[2:] - y[:-2]).abs() / (x[2:] - x[:-2])
        self.level = slope <= FLAT * slope.max()


def dead(sampled: Sampled) -> Table:
    """For each activation: channels whose results are zero on all samples, that never change, or that lie where the
    function is flat for 99 % of the values."""
    functions = list(activations(sampled.program))
    if not functions:
        raise InputError("the network has no activation: no function of one value but gates")
    axes = channel_axes(sampled.program)
    seen: dict[fx.Node, _Unit] = {}
    roots: dict[fx.Node, list[_Unit]] = {}
    for f in functions:
        axis = axes[f.result]
        seen[f.result] = unit = _Unit(f, axis, shape_of(f.result)[axis])
        roots.setdefault(f.root, []).append(unit)

    def observe(node: fx.Node, value: Any) -> None:
        if node in seen:
            seen[node].see_result(value)
        for unit in roots.get(node, ()):
            unit.see_root(value)

    sampled.run(observe)
    rows: list[tuple[str | int, ...]] = []
    shares: list[float] = []
    total = bad = 0
    listed: dict[str, dict[str, list[int]]] = {}
    nodes = [f.result for f in functions]
    for node, name in zip(nodes, names_of(nodes), strict=True):
        unit = seen[node]
        silent = (unit.low == 0) & (unit.high == 0)
        size = torch.maximum(unit.low.abs(), unit.high.abs())
        constant = ~silent & (unit.high - unit.low <= CONSTANT * size)
        saturated = ~silent & ~constant & (unit.flat >= SATURATED * max(1, unit.count))
        kinds = {"never fires": silent, "constant": constant, "saturated": saturated}
        listed[name] = {k: torch.nonzero(v).flatten().tolist()[:MOST_LISTED] for k, v in kinds.items()}
        rows.append((name, len(silent), *(int(v.sum()) for v in kinds.values())))
        shares.append(sum(int(v.sum()) for v in kinds.values()) / len(silent))
        total, bad = total + len(silent), bad + sum(int(v.sum()) for v in kinds.values())
    return Table(
        "dead",
        "units that never fire, never change, or are saturated",
        ("place", "units", "never fires", "constant", "saturated"),
        tuple(rows),
        {"share": tuple(shares)},
        facts={"units": total, "dead": bad},
        detail={"units": listed},
        notes=("on random inputs: give samples for figures of the network's own data",) if sampled.random else (),
    )
