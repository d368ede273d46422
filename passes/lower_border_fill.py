"""y = pad(x), y[border] = v is y = pad(x - v) + v: a pad with a constant per channel is arithmetic and a zero pad.

Turns a pad whose border is filled with a constant per channel into arithmetic that folds.

Fires on a pad of the last axes, whatever it pads with, followed by slice assignments (as functional scatters) that
together fill exactly the padded border with one constant vector over the channels. In this form the affine before it
folds: when v is the shift of a batch norm, x - v has no shift left, and what follows sees a plain padded convolution.

Refuses in silence anything whose border is not filled completely and uniformly, at the traced size and at a larger one
where sizes are free, or whose fills end at a number that the traced sizes do not reach: it is not this shape.

Source: Ding et al. 2021 (Diverse Branch Block), where a batch norm pads with its own value of zero.

    pad(bn(conv(x))); y[border] = bn(0)        becomes        pad(bn(conv(x)) - v) + v
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from reparam.algebra import Pair, compress, write_affine
from reparam.ir import (
    IDENTITIES,
    MOVEMENTS,
    PADS,
    Program,
    arguments,
    aten,
    evaluate_region,
    is_all_so_far,
    is_call,
    place_of,
    shape_of,
    size_hint,
    upstream,
)
from reparam.rewrite import Match, Pattern, Rewrite, op

SCATTERS = frozenset({aten.slice_scatter.default, aten.select_scatter.default})
_COPIES = frozenset({aten.copy.default, aten.fill.Tensor, aten.fill.Scalar})


@dataclass(frozen=True)
class Plan:
    """The last scatter, the pad that it started from, and the value on the border (rank of the result)."""

    root: fx.Node
    pad: fx.Node
    border: Tensor


@dataclass(frozen=True)
class LowerBorderFill:
    """Spells a pad with a constant per channel as arithmetic around a zero pad."""

    name: ClassVar[str] = "lower-border-fill"
    pattern: ClassVar[Pattern] = op(SCATTERS)

    def check(self, program: Program, match: Match) -> Plan | None:
        """Runs the scatters on different inputs and looks at which elements are the input's and which constant."""
        root = match.root
        if any(is_call(u, SCATTERS | {aten.slice.Tensor}) for u in root.users):
            return None
        found = _scatters(root)
        if found is None:
            return None
        pad, region = found
        border = _border(program, root, pad, region)
        return None if border is None else Plan(root, pad, border)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """pad(x - v) + v."""
        args = arguments(plan.pad)
        origin = place_of(plan.root)
        lowered = write_affine(program, args["self"], Pair(shift=-plan.border), origin, like=plan.root)
        padded = program.call(aten.pad.default, (lowered, args["pad"]), like=plan.root)
        raised = write_affine(program, padded, Pair(shift=plan.border), origin, like=plan.root)
        return Rewrite({plan.root: raised}, "the filled border became a zero pad between two shifts")


def _scatters(root: fx.Node) -> tuple[fx.Node, list[fx.Node]] | None:
    """The one pad behind a chain of scatters, and the nodes from there to `root`, operands first."""
    region = upstream([root], lambda n: is_call(n, PADS) or not _is_tensor(n))
    allowed = SCATTERS | _COPIES | MOVEMENTS | IDENTITIES
    if any(n.meta["data"] and (not is_call(n, allowed) or is_all_so_far(n)) for n in region):
        return None
    pads = {i for n in region for i in n.all_input_nodes if is_call(i, PADS)}
    return (pads.pop(), region) if len(pads) == 1 else None


def _border(program: Program, root: fx.Node, pad: fx.Node, region: list[fx.Node]) -> Tensor | None:
    """The value on the border: the same one whatever is inside, at the traced size and at a larger one."""
    if shape_of(root) != shape_of(pad):
        return None
    larger = _larger_sizes(program)
    border: Tensor | None = None
    for sizes, sign in ((None, 1.0), (None, -1.0), *([(larger, 1.0)] if larger else [])):
        shape, args = shape_of(pad, sizes), arguments(pad)
        counted = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(shape)
        probe = sign * counted + 0.25  # no two elements are the same, in each and between those of the two signs
        known = {n: size_hint(n.meta["val"], sizes) for r in region for n in r.all_input_nodes if not _is_tensor(n)}
        filled = evaluate_region(program, region, {**known, pad: probe})[root]
        inside = _inside(shape_of(args["self"], sizes), list(args["pad"]))
        if border is None and not bool(inside.all()):
            border = _level(filled, inside)
        if border is None or not torch.equal(filled, torch.where(inside, probe, border)):
            return None
    return border


def _inside(shape: tuple[int, ...], pad: list[int]) -> Tensor:
    """Where a padded value of this shape is the operand's, with size 1 along the axes that have no pad."""
    padded = len(pad) // 2
    sizes = [1] * (len(shape) - padded) + list(shape[len(shape) - padded :])
    return torch.nn.functional.pad(torch.ones(sizes), pad) == 1


def _level(filled: Tensor, inside: Tensor) -> Tensor:
    """Of each channel, the value on the border that is largest in size."""
    value = torch.where(inside, filled.new_zeros(()), filled)
    axes = (0, *range(2, value.dim()))
    high, low = value.amax(dim=axes, keepdim=True), value.amin(dim=axes, keepdim=True)
    return compress(torch.where(high.abs() > low.abs(), high, low))


def _larger_sizes(program: Program) -> dict[str, int]:
    """Other sizes for the free axes: a slice by numbers may meet the border at the traced size only."""
    sizes: dict[str, int] = {}
    for node in program.placeholders:
        value = node.meta["val"]
        for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if not isinstance(size, int):
                sizes[str(size.node.expr)] = size_hint(size) + (3 if axis else 1)
    return sizes


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


PASS = LowerBorderFill
PHASE = "clean"
AFTER = "drop_identity"
