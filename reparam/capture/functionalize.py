"""Makes a captured graph functional: in-place calls become their pure forms, aliasing is resolved.

An in-place call on a value that shares storage with nothing that is read later is replaced on the spot. Anything
harder (writes through views, slice assignment) is left to torch.export's own functionalisation.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from reparam.errors import CaptureError
from reparam.ir import NOWHERE, aten, functional_form, is_inplace, may_alias, op_name

from .statefulness import written


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


def _written(node: fx.Node) -> fx.Node | None:
    target = node.args[0] if node.args else None
    return target if isinstance(target, fx.Node) else None


def functionalize_locally(graph: fx.Graph) -> bool:
    """Replaces in-place calls by pure ones where no alias can tell the difference.

    Returns False, with the graph possibly half done, when some write needs real alias analysis; the caller
    then throws the graph away. Raises CaptureError for a write to a weight or buffer: such a model has state.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    aliases = _Aliases()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.detach_.default:  # it marks the tensor for autograd and writes nothing
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        if not (isinstance(node.target, torch._ops.OpOverload) and is_inplace(node)):
            if may_alias(node) and _has_storage(node):
                for operand in filter(_has_storage, node.all_input_nodes):
                    aliases.join(operand, node)
            continue
        if not _replace_write(graph, node, order, aliases):
            return False
    return True


def _has_storage(node: fx.Node) -> bool:
    """True for a tensor or a list of them; a size has no storage to share."""
    return isinstance(node.meta.get("val"), (torch.Tensor, list, tuple))


def _replace_write(graph: fx.Graph, node: fx.Node, order: dict[fx.Node, int], aliases: _Aliases) -> bool:
    written = _written(node)
    pure = functional_form(node.target)
    if written is None or pure is None:
        return False
    group = aliases.group(written)
    _refuse_state(node, group)
    here = order[node]
    if any(order[u] > here for member in group if member is not written for u in member.users if u in order):
        return False
    if node.meta["val"].dtype != written.meta["val"].dtype or node.meta["val"].shape != written.meta["val"].shape:
        return False
    with graph.inserting_before(node):
        new = graph.call_function(pure, node.args, node.kwargs)
    new.meta = dict(node.meta)
    order[new] = here
    node.replace_all_uses_with(new)
    for user in list(written.users):
        if order[user] > here:
            user.replace_input_with(written, new)
    graph.erase_node(node)
    return True


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
