"""Runs a program's graph on real tensors, in the dtype asked for.

In float64 every floating weight, input and dtype argument becomes float64, which gives the truth that both the
original and the rewritten program are measured against.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from reparam.errors import ReparamError
from reparam.utils import foreign_code, memory_told

from .aten import BIT_VIEWS, aten
from .mapped import give_back
from .program import FOLD_DTYPE, Program
from .small_maps import SMALL_MAPS
from .volumes import conv3d

Observer = Callable[[fx.Node, Any], None]
_BY: Mapping[Any, Callable[..., Any]] = {aten.conv3d.default: conv3d}


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """What torch makes without being told a dtype (a fill, a quotient of integers) is of `dtype` inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def retype(value: Any, dtype: torch.dtype | None) -> Any:
    """`value` with floating and complex tensors (or dtype arguments) moved to `dtype`; the rest as it is."""
    if dtype is None:
        return value
    if isinstance(value, Tensor):
        wanted = _like(value.dtype, dtype)
        return value if wanted is None else value.detach().to(wanted)
    return _like(value, dtype) or value if isinstance(value, torch.dtype) else value


def _like(own: torch.dtype, dtype: torch.dtype) -> torch.dtype | None:
    """`dtype` for a floating one, its complex counterpart for a complex one, None for integers."""
    if own.is_complex:
        return dtype.to_complex()
    return dtype if own.is_floating_point else None


def _arguments(tree: Any, env: Mapping[fx.Node, Any], dtype: torch.dtype | None) -> Any:
    return fx.node.map_aggregate(tree, lambda a: env[a] if isinstance(a, fx.Node) else retype(a, dtype))


def call_node(
    node: fx.Node, env: Mapping[fx.Node, Any], dtype: torch.dtype | None, by: Mapping[Any, Callable[..., Any]] = _BY
) -> Any:
    """The value of one call node, from its operands' values in `env`.

    by: functions that give what operators give, apart from rounding, and take less time.
    """
    assert callable(node.target)
    if node.target in BIT_VIEWS and dtype is not None:
        return _bits(node, env, dtype)
    function = by.get(node.target, node.target)
    return function(*_arguments(node.args, env, dtype), **_arguments(node.kwargs, env, dtype))


def weight_value(program: Program, node: fx.Node, dtype: torch.dtype | None) -> Any:
    """The tensor of a get_attr node as `dtype` (None: the dtype that it is emitted in)."""
    constant = program.constants[str(node.target)]
    value = constant.value.detach()
    if value.is_complex():
        return value.to(dtype.to_complex()) if dtype is not None else value
    return value.to(dtype or constant.dtype) if value.is_floating_point() else value


def _bits(node: fx.Node, env: Mapping[fx.Node, Any], dtype: torch.dtype) -> Tensor:
    """The bits of a value as another dtype: those of the dtype that the graph has it in, whatever it is computed in."""
    operand, kind = node.args
    assert isinstance(operand, fx.Node) and isinstance(kind, torch.dtype)
    own: torch.dtype = operand.meta["val"].dtype
    found: Tensor = retype(env[operand].to(own).view(kind), dtype)
    return found


class Values(dict[fx.Node, Any]):
    """Values of nodes. Weights are not kept: each is looked up in the program, and widened, whenever it is read."""

    def __init__(self, program: Program, dtype: torch.dtype | None, known: Mapping[fx.Node, Any] | None = None) -> None:
        super().__init__(known or {})
        self.program, self.dtype = program, dtype

    def __missing__(self, node: fx.Node) -> Any:
        if node.op != "get_attr":
            raise KeyError(node)
        return weight_value(self.program, node, self.dtype)

    def call(self, node: fx.Node, by: Mapping[Any, Callable[..., Any]] = _BY) -> Any:
        """The value of a call, whose weights are then given back to the files that they lie in."""
        value = call_node(node, self, self.dtype, by)
        self.program.give_back(node)
        return value


class _WidenedAgain(Values):
    """Values through which gradients go. What a call keeps of a weight for them is widened again when it is needed."""

    _lent: Tensor | None = None  # the weight that was widened last

    def call(self, node: fx.Node, by: Mapping[Any, Callable[..., Any]] = _BY) -> Any:
        weights = {n: self[n] for n in node.all_input_nodes if n.op == "get_attr"}
        places = {v.untyped_storage().data_ptr(): n for n, v in weights.items() if _has_storage(v)}

        def pack(kept: Tensor) -> Any:
            weight = places.get(kept.untyped_storage().data_ptr()) if _has_storage(kept) else None
            if weight is None:
                return kept.detach()  # a result that refers to what made it would be kept by that for ever
            return weight, kept.size(), kept.stride(), kept.storage_offset()

        self.update(weights)
        with torch.autograd.graph.saved_tensors_hooks(pack, self._unpacked):
            value = call_node(node, self, self.dtype, by)
        for weight in weights:
            del self[weight]
        self.program.give_back(node)
        return value

    def _unpacked(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        weight, *place = kept
        if self._lent is not None:
            give_back(self._lent)  # the gradient is past it
        self._lent = self.program.constants[str(weight.target)].value
        value: Tensor = self[weight].as_strided(*place)
        return value


def _has_storage(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.numel() > 0


def last_uses(nodes: Iterable[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each node, the values that nobody needs after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last[node] = node
        for operand in node.all_input_nodes:
            last[operand] = node
    frees: dict[fx.Node, list[fx.Node]] = {}
    for value, user in last.items():
        frees.setdefault(user, []).append(value)
    return frees


@foreign_code("running the network")  # whose operators may be those of others
def evaluate(
    program: Program,
    inputs: Sequence[Any],
    dtype: torch.dtype | None = torch.float64,
    *,
    observe: Observer | None = None,
    gradients: bool = False,
    by: Mapping[Any, Callable[..., Any]] | None = None,
) -> list[Any]:
    """The flat outputs of `program` on `inputs` (one entry for each placeholder).

    dtype: what all floating values are computed in; None runs each weight in the dtype that it is emitted in.
    observe: called with every call node and its value, in execution order.
    gradients: whether the outputs can be differentiated with respect to the inputs.
    by: functions in the place of operators, that give the same apart from rounding.
    """
    with torch.set_grad_enabled(gradients), default_dtype(dtype):
        env = _WidenedAgain(program, dtype) if gradients else Values(program, dtype)
        found = _evaluate(program, inputs, env, observe, {**_BY, **(by or {})})
        env.clear()  # what is kept for gradients refers to it
        return found


def evaluate_where_it_runs(program: Program, inputs: Sequence[Any]) -> list[Any] | None:
    """`evaluate` in float64; None for inputs of sizes that the program does not run on."""
    try:
        return evaluate(program, inputs)
    except ReparamError:
        raise
    except Exception:  # of any kind: operators may be those of others, and sizes are computed along the way
        return None


class _Shapes(Values):
    """Values that have a shape and a dtype and nothing more."""

    def __missing__(self, node: fx.Node) -> Any:
        if node.op != "get_attr":
            raise KeyError(node)
        value = self.program.constants[str(node.target)].value
        dtype = _like(value.dtype, FOLD_DTYPE) or value.dtype
        return torch.empty_like(value, device="meta", dtype=dtype, requires_grad=False)


@torch.no_grad()
def takes_shapes(program: Program, inputs: Sequence[Any]) -> bool:
    """Whether all calls take tensors of the shapes of these inputs in float64, without computing any of their values.

    False as well where torch cannot tell, as for calls whose shapes depend on values.
    """
    shapes = [i.to("meta") if isinstance(i, Tensor) else i for i in inputs]
    try:
        with default_dtype(FOLD_DTYPE):
            _evaluate(program, shapes, _Shapes(program, FOLD_DTYPE), None)
    except Exception:  # of any kind: operators may be those of others
        return False
    return True


def _evaluate(
    program: Program,
    inputs: Sequence[Any],
    env: Values,
    observe: Observer | None,
    by: Mapping[Any, Callable[..., Any]] = _BY,
) -> list[Any]:
    feed, dtype = iter(inputs), env.dtype
    frees = last_uses(program.graph.nodes)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            value = next(feed)
            moves = isinstance(value, Tensor) and value.dtype != dtype
            env[node] = retype(value, dtype) if moves else value
        elif node.op == "call_function":
            env[node] = env.call(node, by)
            if observe is not None:
                observe(node, env[node])
        elif node.op == "output":
            result = _arguments(node.args[0], env, None)
            return list(result) if isinstance(result, (list, tuple)) else [result]
        for dead in frees.get(node, ()):
            if dead.op != "output":
                env.pop(dead, None)
    raise AssertionError("a graph ends with its output node")


def _is_of_torch(node: fx.Node) -> bool:
    """Whether no code of others runs where the node is computed."""
    namespace = getattr(node.target, "namespace", None)
    return node.op != "call_function" or namespace == "aten" or node.target is operator.getitem


@torch.no_grad()
def evaluate_region(
    program: Program,
    region: Sequence[fx.Node],
    known: Mapping[fx.Node, Any],
    dtype: torch.dtype | None = torch.float64,
) -> Values:
    """Values of the nodes of `region` (in execution order), given the values that it reads in `known`.

    Convolutions of small maps in float64 are computed in a way of our own, see `small_maps`.
    """
    env = Values(program, dtype, known)
    doing = "running a part of the network"
    guarded = memory_told(doing) if all(map(_is_of_torch, region)) else foreign_code(doing)
    with guarded, default_dtype(dtype):
        for node in region:
            if node not in env and node.op != "get_attr":
                env[node] = env.call(node, SMALL_MAPS)
    return env
