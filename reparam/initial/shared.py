"""Weights that several calls read: one scale serves them all, and what each of them gives is told.

The scale is that of the first layer that reads such a weight. Where the weight also makes what this layer reads, as the
table of an embedding does that is tied to the last layer, a change of scale changes both, and it is found in rounds:

    w <- w * v^(-1/s)    v: what the layer gives over what it should give; s: d log v/d log w, of the last two rounds
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from reparam.ir import aten, is_call, op_name, place_of, upstream

from .weights import Part, Weights

ROUNDS = 24
MOST_LISTED = 6
CLOSE = 1e-3  # of what a layer gives to what it should give
PREDICTED, ON_RANDOM_INPUTS = "the predicted power", "the power on random inputs"
TABLES = frozenset({aten.embedding.default})

Measure = Callable[[Part, Sequence[Any]], float]
Run = Callable[[Callable[[Part, Sequence[Any]], None]], Any]


@dataclass(frozen=True)
class Shared:
    """A weight that several calls read. part: the layer whose scale it has. others: the other calls that read it.

    returns: how many of these make what the layer reads.
    """

    part: Part
    others: tuple[fx.Node, ...]
    returns: int


def shared_weights(weights: Weights) -> dict[str, Shared]:
    """By the name in the program, in execution order."""
    order = {node: i for i, node in enumerate(weights.program.graph.nodes)}
    readers: dict[str, set[fx.Node]] = {}
    for node in order:
        if node.op == "get_attr":
            readers.setdefault(str(node.target), set()).update(_readers(node))
    found = {}
    for part in weights.first_parts():
        twice = {n for n in readers[part.weight] if n.all_input_nodes == part.node.all_input_nodes}  # the same call
        calls = sorted(readers[part.weight] - twice, key=order.__getitem__)
        if calls:
            above = set(upstream([part.x]))
            found[part.weight] = Shared(part, tuple(calls), sum(n in above for n in calls))
    return found


def _readers(node: fx.Node) -> set[fx.Node]:
    """The calls that depend on the inputs and read a weight, as it is or, for example, transposed."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        for user in stack.pop().users:
            if user.op == "call_function" and user not in found:
                if user.meta["data"]:
                    found.add(user)
                else:
                    stack.append(user)
    return found


def is_table(weights: Weights, name: str) -> bool:
    """Whether some call looks rows of this weight up."""
    shared = shared_weights(weights).get(name)
    return shared is not None and any(is_call(n, TABLES) for n in shared.others)


def balance(weights: Weights, run: Run, measure: Measure) -> tuple[Any, dict[fx.Node, float]]:
    """Gives every layer the scale at which it gives what it should, where some weight makes what its own layer reads.

    run: runs the network with a step before each layer; every time alike. measure: of a layer and what it reads, what
    it gives over what it should give; it grows as the square of the weight. Returns the results of the last run, None
    where no weight is read twice, and what each call of a layer gives.
    """
    shared = shared_weights(weights)
    if not shared:
        return None, {}
    last: dict[str, tuple[float, float]] = {}  # log of the scale, since the first round, and of what came of it
    scales: dict[str, float] = {}

    def adjust(part: Part, inputs: Sequence[Any]) -> None:
        name = part.weight
        if name in done:
            return
        done[name] = value = measure(part, inputs)
        if not 0 < value < math.inf:
            return
        returns = shared[name].returns if name in shared else 0
        at, logarithm = scales.get(name, 0.0), math.log(value)
        slope = 2.0 * (1 + returns)
        if returns and name in last and abs(at - last[name][0]) > 1e-9:
            slope = min(slope, max(1.0, (logarithm - last[name][1]) / (at - last[name][0])))
        last[name], scales[name] = (at, logarithm), at - logarithm / slope
        weights.put(name, weights.value(name) * math.exp(-logarithm / slope), weights.changed[name])

    done: dict[str, float] = {}
    for _ in range(ROUNDS if any(s.returns for s in shared.values()) else 0):
        done.clear()
        run(adjust)
        if all(abs(v - 1) < CLOSE for v in done.values()):
            break
    for name, scale in scales.items():
        if abs(scale) > CLOSE:
            weights.changed[name] += f"; times {math.exp(scale):.4g}, since a tensor with several readers was scaled"
    seen: dict[fx.Node, float] = {}
    results = run(lambda part, inputs: seen.update({part.node: measure(part, inputs)}))
    return results, seen


def told(
    weights: Weights, seen: Mapping[fx.Node, float], what: str, how: str, others: Mapping[fx.Node, float]
) -> tuple[str, ...]:
    """For each weight that was set and that several calls read, one sentence.

    seen: what calls give, as it was measured, in words `what`. others: the powers of all, known as `how` says.
    """
    notes = []
    for name, shared in shared_weights(weights).items():
        if name not in weights.changed:
            continue
        part = shared.part.node
        readers = [f"'{place_of(part)}'", *(f"'{place_of(n)}' ({op_name(n)})" for n in shared.others)]
        table = float(weights.value(name).square().mean())
        powers = dict(others) | {n: table for n in shared.others if is_call(n, TABLES)}
        values = ""
        rest = {n: v for n, v in powers.items() if n not in seen}
        for words, given in ((what, {**seen, **rest}),) if what == how else ((what, seen), (how, rest)):
            figures = [f"'{place_of(n)}' {given[n]:.3g}" for n in (part, *shared.others) if n in given]
            values += f"; {words} is {_listed(figures)}" if figures else ""
        notes.append(
            f"'{weights.name(name)}' is one tensor, read by {_listed(readers)}: one scale serves them all, that of "
            f"'{place_of(part)}'{values}"
        )
    more = f"{len(notes) - MOST_LISTED + 1} more tensors are read by several calls each"
    return tuple(notes) if len(notes) <= MOST_LISTED else (*notes[: MOST_LISTED - 1], more)


def _listed(texts: Sequence[str]) -> str:
    if len(texts) > MOST_LISTED:
        texts = [*texts[: MOST_LISTED - 1], f"{len(texts) - MOST_LISTED + 1} more"]
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last
