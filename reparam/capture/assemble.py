"""The last step of a capture: weights by their names, each once, and the `Program` around graph and weights."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from reparam.errors import CaptureError
from reparam.ir import Constant, InputSpec, Program, aten, fixed_size, is_call
from reparam.utils import memory_size, name_complaint, unused_name

SHARE_OF_MEMORY = 1 / 4  # that one weight may need in float64
_READ_AS_NUMBER = frozenset({aten.item.default, aten._local_scalar_dense.default})
_SPOKEN = frozenset(fx.graph._custom_builtins)  # what torch writes into the code of graphs


def assemble(graph: fx.Graph, weights: Mapping[str, Any]) -> Program:
    """The program of a functional graph whose nodes have values and module paths.

    weights: what the graph reads, by its names; shared with the program, not copied.

    Raises CaptureError for an attribute that is no tensor, and for a graph without any tensor.
    """
    info = graph._codegen.pytree_info  # type: ignore[attr-defined]  # set on every graph that torch.export makes
    _rename_inputs(graph)
    fake_mode = _fake_mode(graph)
    constants = _intern_weights(graph, weights)
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))  # a dead dropout is dead
    for name in set(constants) - {str(n.target) for n in graph.nodes if n.op == "get_attr"}:
        del constants[name]
    for name, constant in constants.items():
        refuse_repeated(name, constant.value)
    plain = _plain_copy(graph)
    _refuse_constants(plain)
    _refuse_names(info.in_spec, "takes")
    _refuse_names(info.out_spec, "returns")
    return Program(
        graph=plain,
        constants=constants,
        inputs=_inputs(plain),
        in_spec=info.in_spec,
        out_spec=info.out_spec,
        fake_mode=fake_mode,
        dtype=_dtype(constants, plain),
    )


def _rename_inputs(graph: fx.Graph) -> None:
    """An input whose name the code of a graph has a meaning for (`inf`, `torch`) gets an underscore behind it."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    for node in inputs:
        if node.target in _SPOKEN:
            node.target = unused_name(f"{node.target}_", {str(n.target) for n in inputs})


def _fake_mode(graph: fx.Graph) -> FakeTensorMode:
    for node in graph.nodes:
        mode = getattr(node.meta["val"], "fake_mode", None)
        if isinstance(mode, FakeTensorMode):
            return mode
    raise CaptureError("the model has no tensor inputs or weights, so there is nothing to convert")


def _intern_weights(graph: fx.Graph, weights: Mapping[str, Any]) -> dict[str, Constant]:
    """Every weight that the graph reads; the second name of a tied tensor is replaced by the first."""
    constants: dict[str, Constant] = {}
    first: dict[int, fx.Node] = {}
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        name = str(node.target)
        value = weights[name]
        if not isinstance(value, Tensor):
            raise CaptureError(f"the graph reads '{name}', a {type(value).__name__}, which is not a tensor")
        if id(value) in first:
            node.replace_all_uses_with(first[id(value)])
            graph.erase_node(node)
            continue
        first[id(value)] = node
        constants[name] = Constant(value, value.dtype, name, isinstance(value, nn.Parameter))
    return constants


def refuse_repeated(name: str, value: Any) -> None:
    """Raises CaptureError for a weight that is stored once, repeated, and too large for the memory once written out."""
    memory = memory_size()
    needed = value.numel() * torch.float64.itemsize
    stored = value.untyped_storage().nbytes() // value.element_size()
    if memory is not None and stored < value.numel() and needed > memory * SHARE_OF_MEMORY:
        raise CaptureError(
            f"'{name}' has {value.numel():,} values and stores {stored:,} of them; computing with it needs "
            f"{needed / 1e9:,.0f} GB: keep what is stored, and expand it in the forward"
        )


def attributes_read(module: fx.GraphModule) -> dict[str, Any]:
    """What the graph of a module reads of it, by the names that it reads it by."""
    found: dict[str, Any] = {}
    for path in {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}:
        value: Any = module
        for part in path.split("."):
            value = getattr(value, part, None)
        found[path] = value
    return found


def _plain_copy(graph: fx.Graph) -> fx.Graph:
    """The graph without torch.export's own code generation, each value marked by whether it depends on the inputs."""
    plain = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    plain.output(plain.graph_copy(graph, mapping))
    for old, new in mapping.items():
        new.meta = old.meta
    for node in plain.nodes:
        node.meta["data"] = node.op == "placeholder" or any(i.meta["data"] for i in node.all_input_nodes)
    return plain


def _refuse_constants(graph: fx.Graph) -> None:
    """Raises CaptureError for a graph that takes no tensor or gives none."""
    output = next(n for n in graph.nodes if n.op == "output")
    if not any(n.op == "placeholder" and isinstance(n.meta.get("val"), Tensor) for n in graph.nodes):
        raise CaptureError("the model takes no tensors, so it is a constant and there is nothing to convert")
    if not any(isinstance(n.meta.get("val"), Tensor) for n in output.all_input_nodes):
        raise CaptureError("the model returns no tensors, so there is nothing to convert")


def _refuse_names(spec: pytree.TreeSpec | None, what: str) -> None:
    """Raises CaptureError for a key of a mapping that could not be the name of an input or output of a file."""
    if spec is None or spec.is_leaf():
        return
    for key in _keys(spec):
        if isinstance(key, str) and (complaint := name_complaint(key) if key else "is empty"):
            raise CaptureError(
                f"the model {what} a mapping with the key {key[:60]!r}, which {complaint}; give it another name"
            )
    for child in spec.children():
        _refuse_names(child, what)


def _keys(spec: pytree.TreeSpec) -> Sequence[Any]:
    """The keys of a mapping, none of anything else."""
    context: Any = spec.context
    if spec.type is defaultdict:
        context = context[1]
    return context if spec.type in (dict, OrderedDict, defaultdict) else ()


def _inputs(graph: fx.Graph) -> tuple[InputSpec, ...]:
    specs = []
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or not isinstance(value, Tensor):
            continue
        names = [str(s) if fixed_size(s) is None else int(s) for s in value.shape]
        specs.append(InputSpec(str(node.target), tuple(names), value.dtype, *_bounds(node)))
    return tuple(specs)


def _bounds(node: fx.Node) -> tuple[float, float]:
    """What the model says with `torch._check` of an input that it reads as one whole number."""
    low, high = -math.inf, math.inf
    if all(fixed_size(s) == 1 for s in node.meta["val"].shape):
        for user in node.users:
            number = user.meta.get("val") if is_call(user, _READ_AS_NUMBER) else None
            if isinstance(number, torch.SymInt):
                known = number.node.shape_env.var_to_range.get(number.node.expr)
                low = max(low, int(known.lower)) if known is not None and known.lower.is_Integer else low
                high = min(high, int(known.upper)) if known is not None and known.upper.is_Integer else high
    return low, high


def _dtype(constants: dict[str, Constant], graph: fx.Graph) -> torch.dtype:
    """The dtype that most of the floating weights have; without any that of the first floating input, else float32."""
    count: dict[torch.dtype, int] = {}
    for c in constants.values():
        if c.value.is_floating_point():
            count[c.dtype] = count.get(c.dtype, 0) + c.value.numel()
    values = (n.meta["val"] for n in graph.nodes if n.op == "placeholder")
    inputs = [v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    return max(count, key=lambda d: count[d]) if count else next(iter(inputs), torch.float32)
