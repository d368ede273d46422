"""Makes a captured graph functional: in-place calls become their pure forms, aliasing is resolved.

An in-place call on a value that shares storage with nothing that is read later is replaced on the spot. Where views of
it are read later, or it is a view itself, these are made again of the new value. Anything harder (what may be a view or
a copy, results of split) is left to torch.export's own functionalisation.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from reparam.errors import CaptureError
from reparam.ir import NOWHERE, aten, functional_form, is_inplace, may_alias, op_name

from .statefulness import written
from .view_writes import chain_of, is_view_of, picks, put_back, views_again


class _Aliases:
    """Union-find over nodes that may share storage."""

    def __init__(self) -> None:
        self._parent: dict[fx.Node, fx.Node] = {}
        self._members: dict[fx.Node, list[fx.Node]] = {}

    def find(self, node: fx.Node) -> fx.Node:
        while self._parent.get(node, node) is not node:
            node = self._parent[node]
        return node

    def join(self, a: fx.Node, b: fx.Node) -> None:
        a, b = self.find(a), self.find(b)
        if a is b:
            return
        self._parent[b] = a
        self._members.setdefault(a, [a]).extend(self._members.pop(b, [b]))

    def group(self, node: fx.Node) -> list[fx.Node]:
        return self._members.get(self.find(node), [node])


_MARKS = frozenset({aten.detach.default, aten.detach_.default})  # for autograd, which no captured graph has


def _written(node: fx.Node) -> fx.Node | None:
    target = node.args[0] if node.args else None
    return target if isinstance(target, fx.Node) else None


def functionalize_locally(graph: fx.Graph) -> int | None:
    """Replaces in-place calls by pure ones, and gives how many of them wrote to what views share.

    Returns None, with the graph possibly half done, when some write needs real alias analysis; the caller
    then throws the graph away. Raises CaptureError for a write to a weight or buffer: such a model has state.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    aliases = _Aliases()
    shared = 0
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _MARKS:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        if not (isinstance(node.target, torch._ops.OpOverload) and is_inplace(node)):
            if may_alias(node) and _has_storage(node):
                for operand in filter(_has_storage, node.all_input_nodes):
                    aliases.join(operand, node)
            continue
        through = _replace_write(graph, node, order, aliases)
        if through is None:
            return None
        shared += through
    return shared


def _has_storage(node: fx.Node) -> bool:
    """True for a tensor or a list of them; a size has no storage to share."""
    return isinstance(node.meta.get("val"), (torch.Tensor, list, tuple))


def _replace_write(graph: fx.Graph, node: fx.Node, order: dict[fx.Node, int], aliases: _Aliases) -> bool | None:
    """Makes one write a value; whether views had a part in it, and None where that is too hard."""
    written = _written(node)
    pure = functional_form(node.target)
    if written is None or pure is None:
        return None
    group = aliases.group(written)
    _refuse_state(node, group)
    result, operand = node.meta.get("val"), written.meta.get("val")
    if not isinstance(result, torch.Tensor) or not isinstance(operand, torch.Tensor):
        return None  # a call that failed while it was traced, and whose error the model caught
    if result.dtype != operand.dtype or result.shape != operand.shape:
        return None
    here = order[node]
    later = [member for member in group if any(order[u] > here for u in member.users)]
    through = any(member is not written for member in later)
    chain = chain_of(written) if through else [written]
    owner = chain[-1]
    if through and not all(is_view_of(member, owner) for member in later):
        return None
    before = node.prev
    with graph.inserting_before(node):
        value = _copied(node) if any(map(picks, chain[:-1])) else None
        if value is None:
            value = graph.call_function(pure, node.args, node.kwargs)
            value.meta = dict(node.meta)
        new = put_back(graph, chain, value, node.meta)
        if new is None:
            return None
        again = views_again(graph, owner, new, [*later, written] if node.users else later)
    while before.next is not node:
        before = before.next
        order[before] = here
    if node.users:
        node.replace_all_uses_with(again[written])
    for old in again:
        for user in list(old.users):
            if order[user] > here:
                user.replace_input_with(old, again[old])
    graph.erase_node(node)
    for old, made in again.items():
        if old is not owner:
            aliases.join(new, made)
    return through


def _copied(node: fx.Node) -> fx.Node | None:
    """The tensor that y.copy_(z) makes of y, where this is z as it is."""
    source = node.args[1] if node.target is aten.copy_.default else None
    if not isinstance(source, fx.Node):
        return None
    new, old = source.meta["val"], node.meta["val"]
    if new.dtype != old.dtype or new.device != old.device or new.dim() != old.dim():
        return None
    same = all(statically_known_true(a == b) for a, b in zip(new.shape, old.shape, strict=True))
    return source if same else None


def _refuse_state(node: fx.Node, group: list[fx.Node]) -> None:
    for member in group:
        if member.op == "get_attr":
            raise CaptureError(written(str(member.target), op_name(node)))


def normalize_batch_norm(graph: fx.Graph) -> None:
    """Turns the decomposed evaluation-mode batch norm (a tuple) back into aten.batch_norm (a tensor)."""
    names = ("_native_batch_norm_legit_no_training", "_native_batch_norm_legit")
    for node in list(graph.nodes):
        if node.op != "call_function" or op_name(node) != names[0]:
            continue
        x, weight, bias, mean, var, momentum, eps = node.args
        for user in list(node.users):
            if user.target is not operator.getitem or user.args[1] != 0:
                continue
            with graph.inserting_before(user):
                new = graph.call_function(
                    aten.batch_norm.default, (x, weight, bias, mean, var, False, momentum, eps, False)
                )
            new.meta = dict(user.meta)
            new.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
            user.replace_all_uses_with(new)
            graph.erase_node(user)
        if not node.users:
            graph.erase_node(node)


def module_path(node: fx.Node) -> str:
    """The qualified name of the innermost module whose forward made this node, '' for the root."""
    stack: Any = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(next(reversed(stack.values()))[0]).split("@", maxsplit=1)[0]
    return "" if path == NOWHERE else path
