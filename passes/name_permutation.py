"""x[:, i] = index_select(x, 1, i), and view(transpose(view(x))) = channel_shuffle(x): channels that change places.

Turns indexing by constant channels, and channel shuffles that are spelled out into one call each, a permutation that
is known wherever channels are followed.

Fires on indexing with one constant vector of whole numbers or booleans along one axis of fixed size; and on a reshape
of the second axis into (g, C/g), a swap of those two, and a reshape back, when nothing else reads what is in between.

Refuses nothing.

Source: the definitions of indexing and of the shuffle (Zhang et al., "ShuffleNet", 2018).

    x.view(n, g, c, h, w).transpose(1, 2).reshape(n, g*c, h, w)        becomes        channel_shuffle(x, g)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from reparam.ir import Program, arguments, aten, fixed_size, is_call, op_name, place_of
from reparam.rewrite import Match, Pattern, Rewrite, op

_INDEXINGS = frozenset({aten.index.Tensor})
_RESHAPES = frozenset({aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int})
_COPIES = frozenset({aten.contiguous.default, aten.clone.default})
_SWAPS = frozenset({aten.transpose.int, aten.permute.default})


@dataclass(frozen=True)
class Plan:
    """The last call, the value that it reorders, and what to call on it: groups, or an index along an axis."""

    node: fx.Node
    x: fx.Node
    groups: int = 0
    axis: int = 0
    index: Tensor | None = None


@dataclass(frozen=True)
class NamePermutation:
    """Calls reorderings of channels by their names."""

    name: ClassVar[str] = "name-permutation"
    pattern: ClassVar[Pattern] = op(_INDEXINGS | _RESHAPES)

    def check(self, program: Program, match: Match) -> Plan | None:
        """The reordering that ends in this call."""
        return _indexing(program, match.root) if is_call(match.root, _INDEXINGS) else _shuffle(match.root)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """One call."""
        if plan.index is None:
            made = program.call(aten.channel_shuffle.default, (plan.x, plan.groups), like=plan.node)
        else:
            index = program.weight(plan.index, f"{place_of(plan.node)}.channels", like=plan.node)
            made = program.call(aten.index_select.default, (plan.x, plan.axis, index), like=plan.node)
        return Rewrite({plan.node: made}, f"{op_name(plan.node)} became {op_name(made)}")


def _indexing(program: Program, node: fx.Node) -> Plan | None:
    args = arguments(node)
    axes = [a for a, i in enumerate(args["indices"]) if i is not None]
    if len(axes) != 1:
        return None
    axis, index = axes[0], program.tensor(args["indices"][axes[0]])
    size = fixed_size(args["self"].meta["val"].shape[axis])
    if index is None or index.dim() != 1 or size is None:
        return None
    if index.dtype is torch.bool:
        index = index.nonzero().reshape(-1)
    if index.dtype not in (torch.int64, torch.int32) or not index.numel():
        return None
    whole = index.to(torch.int64)
    return Plan(node, args["self"], axis=axis, index=torch.where(whole < 0, whole + size, whole))


def _only_reader(node: Any, targets: frozenset[Any]) -> fx.Node | None:
    while is_call(node, _COPIES) and len(node.users) == 1:
        node = node.args[0]
    return node if is_call(node, targets) and len(node.users) == 1 else None


def _shuffle(node: fx.Node) -> Plan | None:
    swap = _only_reader(node.args[0], _SWAPS)
    split = _only_reader(swap.args[0], _RESHAPES) if swap is not None else None
    if swap is None or split is None:
        return None
    x = split.all_input_nodes[0]
    before, inner, after = (list(map(str, n.meta["val"].shape)) for n in (x, split, node))
    sizes = [fixed_size(s) for s in split.meta["val"].shape[1:3]]
    if len(before) < 3 or None in sizes or 1 in sizes or before != after or len(inner) != len(before) + 1:
        return None
    order = list(range(len(inner)))
    if swap.target is aten.permute.default:
        order = [d % len(inner) for d in arguments(swap)["dims"]]
    else:
        a, b = (arguments(swap)[k] % len(inner) for k in ("dim0", "dim1"))
        order[a], order[b] = order[b], order[a]
    if order != [0, 2, 1, *range(3, len(inner))] or inner != [before[0], *map(str, sizes), *before[2:]]:
        return None
    assert sizes[0] is not None
    return Plan(node, x, groups=sizes[0])


PASS = NamePermutation
PHASE = "clean"
AFTER = "scatter_as_cat"
