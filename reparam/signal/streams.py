"""Analyses of streams: rank (how alike tokens become, and what reaches queries and keys), depth (what blocks move)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.errors import InputError
from reparam.ir import WEIGHTED, Program, arguments, aten, is_call, is_float, own_generator, place_of, shape_of

from .axes import channel_axes
from .branches import Block, blocks, ends_of
from .functions import STACKED_PRODUCTS, depending
from .places import names_of
from .power import scaled
from .running import Sampled, differentiable
from .table import Table, ratio

# ---- rank --------------------------------------------------------------------------------------------------------


def rank(sampled: Sampled) -> Table:
    """How alike tokens (of a sample) or features (of the samples of a batch) are, and the effective rank, by depth.

    The effective rank is the exponential of the entropy of the squared singular values. Of attention, also the norms of
    the gradients of the weights that make queries and keys.

    Source: Noci et al. 2022, "Signal propagation in transformers", arXiv 2206.03126; Roy & Vetterli 2007.
    """
    program = sampled.program
    nodes = [b.add for b in blocks(program)] or [n for n in program.calls() if is_call(n, WEIGHTED) and n.meta["data"]]
    nodes = [n for n in nodes if len(shape_of(n)) > 1]
    if not nodes:
        raise InputError("the network has neither residual blocks nor layers")
    sources = [b.source for b in blocks(program) if b.source is not None and b.source.op == "call_function"]
    first = next((s for s in sources if is_float(s)), None)
    nodes = [first, *nodes] if first is not None and first not in nodes else nodes
    found: dict[fx.Node, list[tuple[float, float, int]]] = {n: [] for n in nodes}
    axes = channel_axes(program)

    def observe(node: fx.Node, value: Any) -> None:
        if node in found:
            found[node].append(_alike(value, None if _of_tokens(node, axes[node]) else axes[node]))

    sampled.run(observe)
    _refuse_alone([v for seen in found.values() for v in seen], tokens=all(_of_tokens(n, axes[n]) for n in nodes))
    attention = _attention_gradients(sampled)
    rows = []
    for node, name in zip(nodes, names_of(nodes), strict=True):
        seen = found[node]
        cosine, effective = (sum(v[i] for v in seen) / len(seen) for i in range(2))
        rows.append((name, "tokens" if _of_tokens(node, axes[node]) else "samples", cosine, effective))
    detail = {"attention": [dict(zip(("place", "queries", "keys"), a, strict=True)) for a in attention]}
    series = {"cosine": tuple(r[2] for r in rows), "effective rank": tuple(r[3] for r in rows)}
    if attention:
        series |= {"gradient of queries": tuple(a[1] for a in attention)}
        series |= {"gradient of keys": tuple(a[2] for a in attention)}
    return Table(
        "rank",
        "how alike tokens or samples are, and the effective rank, by depth",
        ("place", "of", "cosine", "effective rank"),
        tuple(rows),
        series,
        facts={"last cosine": rows[-1][2], "last effective rank": rows[-1][3]},
        detail=detail,
    )


def _refuse_alone(seen: Sequence[tuple[float, float, int]], *, tokens: bool) -> None:
    """Raises InputError where no cosine was found. seen: of each value in each batch, see `_alike`."""
    if any(math.isfinite(cosine) for cosine, _, _ in seen):
        return
    if max((count for _, _, count in seen), default=0) > 1:
        raise InputError("the values of the network are zero on these inputs, so that there is nothing to compare")
    what = "tokens of a sample" if tokens else "samples of a batch"
    raise InputError(f"rank compares the {what} with each other, and here there is one alone; give two or more")


def _of_tokens(node: fx.Node, channels: int) -> bool:
    return len(shape_of(node)) == 3 and channels == 2


def _alike(value: Tensor, axis: int | None) -> tuple[float, float, int]:
    """The mean cosine over pairs, the effective rank, and of how many they are: of tokens (N, T, C), or of samples,
    averaged over places.

    axis: of the channels of samples; None for tokens.
    """
    x = value.detach()
    if axis is not None and x.dim() > 2:
        x = x.movedim(axis, 1).flatten(2).mean(2)
    groups = x if axis is None else x.flatten(1).unsqueeze(0)
    cosines, ranks = zip(*map(_alike_rows, groups), strict=True)
    return sum(cosines) / len(cosines), sum(ranks) / len(ranks), groups.shape[1]


def _alike_rows(rows: Tensor) -> tuple[float, float]:
    """The mean cosine over pairs of rows that are not zero, and the effective rank; NaN where there are none."""
    size = rows.abs().amax(1, keepdim=True)
    y = rows[size.flatten() > 0] / size[size > 0].unsqueeze(1)
    n = len(y)
    if not n:
        return math.nan, math.nan
    gram = torch.nn.functional.normalize(y, dim=1)
    gram = gram @ gram.t()
    energy = torch.linalg.svdvals(scaled(rows)).square()
    share = energy / energy.sum()
    cosine = float((gram.sum() - gram.trace()) / (n * (n - 1))) if n > 1 else math.nan
    return cosine, float(torch.exp(-(share * share.clamp(min=1e-300).log()).sum()))


def _attention_gradients(sampled: Sampled) -> list[tuple[str, float, float]]:
    """Norms of the gradients of the weights that make queries and keys, in the first batch, for each attention."""
    program = sampled.program
    found = list(_attentions(program))
    if not found:
        return []
    wanted = {n for _, q, k in found for n in (q, k)}
    weights = {n: w for n in wanted for w in [_weight_of(n)] if w is not None}
    keep = frozenset(wanted) | frozenset(weights.values())
    made = differentiable(program, sampled.batches[0], keep, training=sampled.training, weights=True)
    values = [made.values[n] for n in wanted]
    cotangents = made.cotangents(own_generator("rank", sampled.seed))
    flows = dict(zip(wanted, made.gradients(values, cotangents), strict=True))
    rows = []
    for node, *pair in found:
        sizes = []
        for operand in pair:
            weight = weights.get(operand)
            if weight is None:
                sizes.append(math.nan)
                continue
            value = made.values[operand]
            (g,) = torch.autograd.grad(value, made.values[weight], flows[operand], retain_graph=True, allow_unused=True)
            sizes.append(0.0 if g is None else float(g.norm()))
        rows.append((place_of(node), sizes[0], sizes[1]))
    return rows


def _attentions(program: Program) -> Any:
    """Each attention as its call, the values of its queries and those of its keys."""
    for node in program.calls():
        if is_call(node, {aten.scaled_dot_product_attention.default}):
            args = arguments(node)
            yield node, args["query"], args["key"]
        elif is_call(node, {aten.softmax.int}):
            product = node
            while not is_call(product, STACKED_PRODUCTS):
                held = depending(product)
                if len(held) != 1 or is_call(product, WEIGHTED):
                    break
                product = held[0]
            held = depending(product)
            if is_call(product, STACKED_PRODUCTS) and len(held) == 2 and all(is_float(n) for n in held):
                yield node, held[0], held[1]


def _weight_of(node: fx.Node) -> fx.Node | None:
    """The weight of the layer that makes a value, through movement and constants."""
    last = ends_of(node)
    if len(last) != 1:
        return None
    weight = arguments(last[0])["weight"]
    return weight if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


# ---- depth -------------------------------------------------------------------------------------------------------


def depth(sampled: Sampled) -> Table:
    """How much each block moves the stream, |f|/|h|, and the exponent of depth that this amounts to.

    With branches h + L^-beta*V relu(W h) of independent weights, E|f|^2/|h|^2 = L^(-2 beta)/2. The exponent is that of
    the mean of |f|^2/|h|^2 over the blocks: beta = -log(2*mean)/(2 log L).

    Source: Marion et al. 2022, "Scaling ResNets in the large-depth regime", arXiv 2206.06929.
    """
    found = list(blocks(sampled.program))
    if not found:
        raise InputError("the network has no residual block: no sum of a value and of layers that read it")
    held: dict[fx.Node, Tensor] = {}
    wanted = {n for b in found for n in (b.skip, b.branch)}
    sums: dict[fx.Node, list[tuple[float, float]]] = {b.add: [] for b in found}
    by_add: dict[fx.Node, Block] = {b.add: b for b in found}
    _run_blocks(sampled, wanted, held, by_add, sums)
    rows = []
    for block, name in zip(found, names_of([b.add for b in found]), strict=True):
        seen = sums[block.add]
        moved = sum(v[0] for v in seen) / len(seen)
        rows.append(
            (name, math.sqrt(moved), sum(v[1] for v in seen) / len(seen), "identity" if block.identity else "layer")
        )
    mean = sum(row[1] * row[1] for row in rows) / len(rows)
    alone = len(rows) == 1
    beta = None if alone else math.nan
    if not alone and 0 < mean < math.inf:
        beta = -math.log(2 * mean) / (2 * math.log(len(rows)))
    return Table(
        "depth",
        "how much each block moves the stream",
        ("place", "|f|/|h|", "cosine of f and h", "skip"),
        tuple(rows),
        {"|f|/|h|": tuple(row[1] for row in rows)},
        facts={"blocks": len(rows), "beta": beta},
        notes=("an exponent of depth takes two blocks, and there is one",) if alone else (),
    )


def _run_blocks(
    sampled: Sampled,
    wanted: set[fx.Node],
    held: dict[fx.Node, Tensor],
    by_add: dict[fx.Node, Block],
    sums: dict[fx.Node, list[tuple[float, float]]],
) -> None:
    placeholders = {n: i for i, n in enumerate(sampled.program.placeholders)}
    for batch in sampled.batches:
        held.clear()
        for node, index in placeholders.items():
            if node in wanted and index < len(batch):
                held[node] = batch[index].to(torch.float64)

        def observe(node: fx.Node, value: Any) -> None:
            if node in wanted:
                held[node] = value
            block = by_add.get(node)
            if block is not None and block.skip in held and block.branch in held:
                h, f = held[block.skip].flatten(), held[block.branch].flatten()
                sizes = [float(v.abs().max()) if v.numel() else 0.0 for v in (h, f)]
                h, f = scaled(h), scaled(f)
                cosine = ratio(float(h @ f), float(h.norm() * f.norm()))
                moved = ratio(float(f.norm()), float(h.norm())) * ratio(sizes[1], sizes[0])
                sums[node].append((moved * moved, cosine))

        one = Sampled(sampled.program, [batch], sampled.training, sampled.random, sampled.seed)
        one.run(observe)
