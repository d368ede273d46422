"""How much a network would miss a channel: scores for every gate.

The Fisher score of a channel is E[(dL/dm)^2], with m the factor of its gate and L the cross-entropy against labels that
are drawn from the network's own predictions, for each sample by itself (Theis et al., Faster gaze prediction with dense
networks and Fisher pruning, 2018). With outputs that are no class scores, L is the output in a random direction, which
gives the diagonal of the Gauss-Newton matrix. Neither needs labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.errors import InputError
from reparam.ir import call_node, evaluate, last_uses, weight_value

from .gated import Gated
from .gates import Gate, dense_layer, users_of
from .running import DTYPE, feed_of

SCORES = ("fisher", "taylor", "activation", "magnitude", "fpgm", "scale", "random")


def scores(kind: str, gated: Gated, batches: Iterable[Sequence[Tensor]], seed: int = 0) -> dict[Gate, Tensor]:
    """(count,), float64, for each gate: how much each channel would be missed, by one of `SCORES`.

    fisher: E[g^2], with g the gradient for the factor of a channel. taylor: E[g]^2 (Molchanov et al., Importance
    estimation for neural network pruning, 2019). activation: E[v^2] of the channel's values v. scale: the standard
    deviation of the values in front of the activation, which is |gamma| behind a batch norm (Liu et al., Learning
    efficient convolutional networks through network slimming, 2017). magnitude: the sum of squares of the rows that
    make a channel and the columns that read it. fpgm: the distances of these from those of all other channels (He et
    al., Filter pruning via geometric median, 2019). random: the control.
    """
    if kind in ("fisher", "taylor"):
        return _by_gradients(gated, batches, seed, squared=kind == "fisher")
    if kind in ("activation", "scale"):
        return _by_values(gated, batches, spread=kind == "scale")
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return {g: torch.rand(g.count, generator=generator, dtype=torch.float64) for g in gated.gates}
    found = {}
    for gate in gated.gates:
        rows = gate_rows(gated, gate)
        found[gate] = rows.square().sum(1) if kind == "magnitude" else torch.cdist(rows, rows).sum(1)
    return found


def _by_gradients(gated: Gated, batches: Iterable[Sequence[Tensor]], seed: int, *, squared: bool) -> dict[Gate, Tensor]:
    total = {g: torch.zeros(g.count, dtype=torch.float64) for g in gated.gates}
    seen = 0
    generator = torch.Generator().manual_seed(seed)
    for inputs in batches if gated.apart else _one_by_one(gated, batches):
        found = gradients(gated, inputs, generator)
        seen += len(inputs[0])
        for gate, g in found.items():
            total[gate] += (g.double().square() if squared else g.double()).sum(0)
    return {g: t / max(1, seen) if squared else (t / max(1, seen)).square() for g, t in total.items()}


def _one_by_one(gated: Gated, batches: Iterable[Sequence[Tensor]]) -> Iterator[Sequence[Tensor]]:
    """Samples by themselves, where the batch is free."""
    free = any(isinstance(n, str) for s in gated.program.inputs for n in s.shape[:1])
    for inputs in batches:
        size = 1 if free else len(inputs[0])
        yield from (tuple(v[i : i + size] for v in inputs) for i in range(0, len(inputs[0]), size))


def _by_values(gated: Gated, batches: Iterable[Sequence[Tensor]], *, spread: bool) -> dict[Gate, Tensor]:
    """E[v^2] at the gates, or Var[v] where the channels are made."""
    at: dict[fx.Node, list[tuple[Gate, int]]] = {}
    for gate in gated.gates:
        for spot in (gated.spots[name] for name in gate.masks):
            at.setdefault(spot.root if spread else spot.product, []).append((gate, spot.axis))
    moments = {g: torch.zeros(3, g.count, dtype=torch.float64) for g in gated.gates}

    def observe(node: fx.Node, value: Any) -> None:
        for gate, axis in at.get(node, ()):
            rows = value.movedim(axis, -1).reshape(-1, gate.count).double()
            moments[gate] += torch.stack([torch.full((gate.count,), len(rows)), rows.sum(0), rows.square().sum(0)])

    for inputs in batches:
        evaluate(gated.program, feed_of(gated.program, inputs), DTYPE, observe=observe)
    found = {}
    for gate, (count, first, second) in moments.items():
        mean = first / count.clamp_min(1)
        found[gate] = second / count.clamp_min(1) - (mean.square() if spread else 0.0)
    return found


def gate_rows(gated: Gated, gate: Gate) -> Tensor:
    """(count, entries): the weights that make each channel of a gate, through sums, and those that read it."""
    parts = [rows for name in gate.masks for rows in _rows(gated, gated.spots[name].product, gate.count)]
    return torch.cat(parts, 1) if parts else torch.zeros(gate.count, 1, dtype=torch.float64)


def _rows(gated: Gated, product: fx.Node, count: int) -> Iterator[Tensor]:
    program, products = gated.program, {s.product for s in gated.spots.values()}
    for forwards in (False, True):
        stack, seen = [product], {product}
        while stack:
            node = stack.pop()
            following = users_of(node) if forwards else [n for n in node.all_input_nodes if n.meta["data"]]
            for n in following:
                if n in seen or n in products:
                    continue
                seen.add(n)
                layer = dense_layer(program, n) if n.op == "call_function" else None
                weight = program.tensor(layer.weight) if layer is not None else None
                if layer is None or weight is None:
                    stack += [n] if n.op == "call_function" else []
                    continue
                turned = forwards != (layer.kind == "transposed")
                rows = (weight.transpose(0, 1) if turned else weight).flatten(1)
                if len(rows) == count:
                    yield rows


def gradients(gated: Gated, inputs: Sequence[Tensor], generator: torch.Generator) -> dict[Gate, Tensor]:
    """(N, count) for each gate: of the loss of each sample, with respect to the factors.

    Where samples do not lie apart at every gate, (1, count): of the loss of all of them together.
    """
    program, apart = gated.program, gated.apart
    masks = {name: gate for gate in gated.gates for name in gate.masks}
    leaves: dict[str, Tensor] = {}
    env: dict[fx.Node, Any] = {}
    feed = iter(feed_of(program, inputs))
    frees = last_uses(program.graph.nodes)
    count = len(inputs[0])
    outputs: Any = None
    with torch.enable_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(feed)
            elif node.op == "get_attr":
                env[node] = weight_value(program, node, DTYPE)
                name = str(node.target)
                if name in masks:
                    leaf = env[node].expand(count if apart else 1, *env[node].shape[1:]).clone().requires_grad_()
                    leaves[name] = env[node] = leaf
            elif node.op == "call_function":
                env[node] = call_node(node, env, DTYPE)
            else:
                outputs = fx.node.map_arg(node.args[0], lambda n: env[n])
            for dead in frees.get(node, ()):
                if dead.op != "output":
                    env.pop(dead, None)
        loss = _loss(outputs, generator)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    result: dict[Gate, Tensor] = {}
    for (name, leaf), g in zip(leaves.items(), found, strict=True):
        gate = masks[name]
        own = torch.zeros_like(leaf) if g is None else g
        own = own.reshape(len(own), -1)
        result[gate] = result[gate] + own if gate in result else own
    return result


def _loss(outputs: Any, generator: torch.Generator) -> Tensor:
    flat = [o for o in (outputs if isinstance(outputs, (list, tuple)) else [outputs]) if isinstance(o, Tensor)]
    flat = [o for o in flat if o.is_floating_point() and o.requires_grad]
    if len(flat) == 1 and flat[0].dim() == 2 and flat[0].shape[1] > 1:
        logits = flat[0]
        drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator).flatten()
        return torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
    loss = torch.zeros(())
    for o in flat:
        direction = torch.randn(o.shape, generator=generator) / o.detach().square().mean().sqrt().clamp_min(1e-12)
        loss = loss + (o * direction).sum() / (o.numel() / (len(o) if o.dim() else 1)) ** 0.5
    if not loss.requires_grad:
        raise InputError("the outputs have no gradients; choose channels by score='activation' or score='magnitude'")
    return loss
