"""Makes a captured graph functional: in-place calls become their pure forms, aliasing is resolved.

What a call writes is a new value, and calls behind it read that; views of it are made again of the new value. Anything
harder (what may be a view or a copy) is left to torch.export's own functionalisation.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _pytree as pytree

from reparam.errors import CaptureError
from reparam.ir import NOWHERE, aten, functional_form, is_inplace, may_alias, op_name, shared_operands, size_hint

from .statefulness import written
from .view_writes import above, chain_of, is_view, operand, picks, put_back, view_again


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


def functionalize_locally(graph: fx.Graph) -> int | None:
    """Replaces in-place calls by pure ones, and gives how many of them wrote to what views share.

    Returns None, with the graph possibly half done, when some write needs real alias analysis; the caller
    then throws the graph away. Raises CaptureError for a write to a weight or buffer: such a model has state.
    """
    writes = _Writes(graph)
    return writes.shared if all(map(writes.take, list(graph.nodes))) else None


class _Writes:
    """Goes through a graph, call by call; what a call reads becomes what it is after the writes before it.

    A value that owns its storage is known by the node that made it. After a write, it is another node, and each view of
    it is made again for the first call that reads it.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._aliases = _Aliases()
        self._owner: dict[fx.Node, fx.Node] = {}  # of views
        self._now: dict[fx.Node, fx.Node] = {}  # an owner as it is after all writes to it
        self._after: set[fx.Node] = set()  # owners as they are after a write
        self._again: dict[fx.Node, dict[fx.Node, fx.Node]] = {}  # by owner: its views after all writes to it
        self._writes: dict[fx.Node, int] = {}  # to an owner
        self._seen: dict[fx.Node, int] = {}  # how many of them a view was made behind
        self._dtypes: dict[Any, torch.dtype] = {}
        self.shared = 0

    def take(self, node: fx.Node) -> bool:
        """One call; False where it writes to what may or may not be a view of something else."""
        if node.op == "output":
            self._refresh(node)
        if node.op != "call_function":
            return True
        if node.target in _MARKS:
            node.replace_all_uses_with(above(node))
            self._graph.erase_node(node)
            return True
        if is_inplace(node):
            return self._write(node)
        if may_alias(node) and _has_storage(node):
            for read in filter(_has_storage, shared_operands(node)):
                self._aliases.join(read, node)
        if is_view(node):
            owner = self._owner_of(above(node))
            self._owner[node], self._seen[node] = owner, self._writes.get(owner, 0)
        self._refresh(node)
        return True

    def _owner_of(self, node: fx.Node) -> fx.Node:
        return self._owner.get(node, node)

    def _refresh(self, reader: fx.Node) -> None:
        """The call reads its operands as they are now."""
        for read in reader.all_input_nodes:
            owner = self._owner_of(read)
            if self._writes.get(owner, 0) > self._seen.get(read, 0):
                with self._graph.inserting_before(reader):
                    reader.replace_input_with(read, self._current(owner, read))

    def _current(self, owner: fx.Node, view: fx.Node) -> fx.Node:
        again = self._again[owner]
        if view not in again:
            if view in self._after:  # the owner as it was then
                return self._now[owner]
            again[view] = view_again(self._graph, view, self._current(owner, operand(view)))
        return again[view]

    def _write(self, node: fx.Node) -> bool:
        told, pure = node.args[0] if node.args else None, functional_form(node.target)
        if not isinstance(told, fx.Node) or pure is None or _looks_alone(node.target):
            return False
        group = self._aliases.group(told)
        for member in group:
            if member.op == "get_attr":
                raise CaptureError(written(str(member.target), op_name(node)))
        result, old = node.meta.get("val"), told.meta.get("val")
        if not isinstance(result, Tensor) or not isinstance(old, Tensor):
            return False  # a call that failed while it was traced, and whose error the model caught
        if result.dtype != old.dtype or result.shape != old.shape:
            return False
        here, owner = self._order[node], self._owner_of(told)
        others = [m for m in group if m is not told and any(self._order.get(u, -1) > here for u in m.users)]
        if any(self._owner_of(m) is not owner for m in others):
            return False
        self._refresh(node)
        first = node.args[0]
        assert isinstance(first, fx.Node)
        with self._graph.inserting_before(node):
            chain = chain_of(first, self._after) if others else [first]
            value = _copied(node) if any(map(picks, chain[:-1])) else None
            if value is None:
                value = self._pure(node, pure)
            new = None if value is None else put_back(self._graph, chain, value, node.meta)
        if new is None:
            return False
        if not others:  # nobody can tell that it was a view
            self._owner.pop(told, None)
            owner = told
        self._now[owner] = new
        self._after.add(new)
        self._again[owner] = {owner: new}
        self._writes[owner] = self._writes.get(owner, 0) + 1
        self._seen[owner] = 0
        node.replace_all_uses_with(told)
        self._graph.erase_node(node)
        self.shared += bool(others)
        return True

    def _pure(self, node: fx.Node, pure: Any) -> fx.Node | None:
        """The call without the write, with the cast that writing into a tensor of another dtype is."""
        made = self._graph.call_function(pure, node.args, node.kwargs)
        made.meta = dict(node.meta)
        try:
            dtype = self._dtype_of(made)
        except Exception:  # of any kind: the operator may be that of others
            return None
        if dtype == node.meta["val"].dtype:
            return made
        made.meta["val"] = node.meta["val"].to(dtype)
        cast = self._graph.call_function(aten.to.dtype, (made, node.meta["val"].dtype))
        cast.meta = dict(node.meta)
        return cast

    def _dtype_of(self, call: fx.Node) -> torch.dtype:
        """The dtype of what a call gives, which depends on the dtypes of what it reads, and on which are numbers."""

        def small(node: fx.Node) -> Any:
            value = node.meta["val"]
            if not isinstance(value, Tensor):
                return size_hint(value)
            return torch.empty([1] * value.dim(), dtype=value.dtype, device="meta")

        args, kwargs = fx.node.map_arg((call.args, call.kwargs), small)
        leaves = pytree.tree_leaves((args, kwargs))
        kinds = tuple((v.dtype, v.dim()) if isinstance(v, Tensor) else type(v) for v in leaves)
        if (call.target, kinds) not in self._dtypes:
            assert callable(call.target)
            self._dtypes[call.target, kinds] = call.target(*args, **kwargs).dtype
        return self._dtypes[call.target, kinds]


def _looks_alone(target: Any) -> bool:
    """Whether the call changes how a tensor looks (`t_`, `squeeze_`), and not what is stored."""
    return torch.Tag.inplace_view in target.tags


def _has_storage(node: fx.Node) -> bool:
    """True for a tensor or a list of them; a size has no storage to share."""
    return isinstance(node.meta.get("val"), (Tensor, list, tuple))


def _copied(node: fx.Node) -> fx.Node | None:
    """The tensor that y.copy_(z) makes of y, where this is z as it is."""
    source = node.args[1] if node.target is aten.copy_.default else None
    if not isinstance(source, fx.Node):
        return None
    new, old = source.meta.get("val"), node.meta["val"]
    if not isinstance(new, Tensor) or new.dtype != old.dtype or new.device != old.device or new.dim() != old.dim():
        return None
    same = all(statically_known_true(a == b) for a, b in zip(new.shape, old.shape, strict=True))
    return source if same else None


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
