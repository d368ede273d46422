"""Analyses layer by layer: moments, gradients, gaussianity, norm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from reparam.errors import InputError
from reparam.ir import NORMS, is_call, op_name, own_generator, place_of

from .functions import activations
from .moments import predict
from .norms import norms_of
from .places import names_of, stations
from .power import Batches, Power, scaled
from .roles import of_input, usual
from .running import Sampled, differentiable
from .table import Table, ratio
from .values import Value


def moments(sampled: Sampled) -> Table:
    """Mean, variance and share of power in channel means of each value, predicted from the weights and measured."""
    nodes = stations(sampled.program)
    if not nodes:
        raise InputError("the network has no layer whose values could be measured")
    given = _inputs(sampled)
    found = predict(sampled.program, training=sampled.training, inputs=given, seed=sampled.seed)
    seen: dict[fx.Node, Batches] = {n: Batches() for n in nodes}

    def observe(node: fx.Node, value: Any) -> None:
        if node in seen:
            seen[node].add(value, _roles(found.values, node, value))

    sampled.run(observe)
    rows = []
    for node, name in zip(nodes, names_of(nodes), strict=True):
        power, told = seen[node].power, found.power(node)
        guess = (None, None) if told is None else (told.variance, told.share_of_means)
        rows.append((name, op_name(node), power.mean, power.variance, guess[0], power.share_of_means, guess[1]))
    variances = tuple(seen[n].power.variance for n in nodes)
    return Table(
        "moments",
        "mean and variance of values, measured and predicted from the weights",
        ("place", "call", "mean", "variance", "predicted variance", "in channel means", "predicted in channel means"),
        tuple(rows),
        {"variance": variances, "in channel means": tuple(seen[n].power.share_of_means for n in nodes)},
        log=True,
        facts={"drawn": len(found.drawn), "unknown": sum(found.power(n) is None for n in nodes)},
        detail={"drawn": [_drawn(node, error) for node, error in found.drawn.items()]},
        notes=found.remarks,
    )


def _drawn(node: fx.Node, error: float) -> dict[str, Any]:
    return {"place": place_of(node), "call": op_name(node), "error": error if math.isfinite(error) else None}


def _inputs(sampled: Sampled) -> dict[str, Power]:
    given: dict[str, Power] = {}
    if sampled.random:
        return given
    nodes = {str(n.target): n for n in sampled.program.placeholders}
    for i, spec in enumerate(sampled.program.inputs):
        if spec.dtype.is_floating_point:
            seen = Batches()
            for batch in sampled.batches:
                value = batch[i].to(torch.float64)
                seen.add(value, of_input(nodes[spec.name], value.dim()))
            given[spec.name] = seen.power
    return given


def _roles(known: Any, node: fx.Node, value: Tensor) -> Any:
    at = known.get(node)
    fits = isinstance(at, Value) and len(at.roles) == value.dim()
    return at.roles if fits else usual(value.dim(), channels_last=value.dim() == 3)


def gradients(sampled: Sampled) -> Table:
    """The gradient of a random function of the result, by each value: how it grows or shrinks on its way back."""
    nodes = [n for n in stations(sampled.program) if not is_call(n, NORMS)]
    if not nodes:
        raise InputError("the network has no layer, activation or sum whose gradient could be measured")
    generator = own_generator("gradients", sampled.seed)
    sums = dict.fromkeys(nodes, 0.0)
    squares = dict.fromkeys(nodes, 0.0)
    outputs = 0.0
    for batch in sampled.batches:
        made = differentiable(sampled.program, batch, frozenset(nodes), training=sampled.training)
        if not made.outputs:
            raise InputError("no output of the network can be differentiated")
        known = [n for n in nodes if n in made.values]
        cotangents = made.cotangents(generator)
        outputs += sum(float(g.square().sum()) for g in cotangents)
        for node, g in zip(known, made.gradients([made.values[n] for n in known], cotangents), strict=True):
            sums[node] += float(g.square().sum())
            squares[node] += float(g.square().mean())
    count = len(sampled.batches)
    rows = []
    for node, name in zip(nodes, names_of(nodes), strict=True):
        rows.append((name, op_name(node), squares[node] / count, ratio(sums[node], outputs)))
    return Table(
        "gradients",
        "gradients of a random function of the result, by depth",
        ("place", "call", "variance", "backward gain"),
        tuple(rows),
        {"backward gain": tuple(row[3] for row in rows)},
        log=True,
        facts={"gain through the whole": rows[0][3]},
    )


def gaussianity(sampled: Sampled) -> Table:
    """Kolmogorov and Smirnov's distance between the distribution of each layer's pre-activations and the normal one of
    their mean and deviation."""
    roots = list(dict.fromkeys(f.root for f in activations(sampled.program)))
    if not roots:
        raise InputError("the network has no activation but gates, so that there are no pre-activations")
    held: dict[fx.Node, list[Tensor]] = {n: [] for n in roots}

    def observe(node: fx.Node, value: Any) -> None:
        if node in held:
            held[node].append(value.detach().flatten())

    sampled.run(observe)
    rows = []
    for node, name in zip(roots, names_of(roots), strict=True):
        values = torch.cat(held.pop(node))
        rows.append((name, normal_distance(values), len(values)))
    return Table(
        "gaussianity",
        "distance of pre-activations from a normal distribution (0: normal, 0.5: two values)",
        ("place", "distance", "values"),
        tuple(rows),
        {"distance": tuple(row[1] for row in rows)},
    )


def normal_distance(values: Tensor, *, most: int = 2_000_000) -> float:
    """Kolmogorov and Smirnov's distance of values (n,) from N(mean, variance); 1 for values that are all the same."""
    x = values[:: max(1, len(values) // most)].to(torch.float64)
    x = scaled(x - x.mean())
    deviation = float(x.std(correction=0))
    if not deviation > 0:
        return 1.0
    z = ((x - x.mean()) / deviation).sort().values
    below = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    steps = torch.arange(len(z) + 1, dtype=torch.float64) / len(z)
    return float(torch.maximum((below - steps[:-1]).abs(), (below - steps[1:]).abs()).max())


def norms(sampled: Sampled) -> Table:
    """What norms leave: the share of power that lies in the means of channels, and what tells samples apart."""
    found_norms = list(norms_of(sampled.program))
    nodes = [n.result for n in found_norms]
    if not nodes:
        raise InputError("the network has no norm, and no quotient of a value by a statistic of its own")
    found = predict(sampled.program, training=sampled.training, seed=sampled.seed).values
    before: dict[fx.Node, Batches] = {n: Batches() for n in nodes}
    after: dict[fx.Node, Batches] = {n: Batches() for n in nodes}
    readers: dict[fx.Node, list[fx.Node]] = {}
    for norm in found_norms:
        readers.setdefault(norm.x, []).append(norm.result)

    def observe(node: fx.Node, value: Any) -> None:
        for reader in readers.get(node, ()):
            before[reader].add(value, _roles(found, reader, value))
        if node in after:
            after[node].add(value, _roles(found, node, value))

    sampled.run(observe)
    rows = []
    for norm, name in zip(found_norms, names_of(nodes), strict=True):
        node, new = norm.result, after[norm.result].power
        old = before[node].power if before[node] else None
        samples = None if old is None else ratio(old.sample, old.second)
        rows.append((name, norm.kind, new.share_of_means, samples, ratio(new.sample, new.second)))
    return Table(
        "norm",
        "collapse behind norms: power in the means of channels, and power that tells samples apart",
        ("place", "norm", "in channel means", "of samples before", "of samples behind"),
        tuple(rows),
        {"in channel means": tuple(row[2] for row in rows)},
    )
