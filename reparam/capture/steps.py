"""From torch.export's program to ours: a list of steps, each of which takes a draft of the graph and returns one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.errors import CaptureError
from reparam.ir import (
    CPU,
    DROPOUTS,
    FILLS,
    Program,
    arguments,
    aten,
    device_of,
    fixed_size,
    move_graph,
    on_device,
    op_name,
    with_attribute_names,
)
from reparam.utils import first_line, name_complaint

from .assemble import assemble, attributes_read
from .explain import explain_derivative, explain_writes
from .functionalize import functionalize_locally, module_path, normalize_batch_norm
from .guards import probes
from .layouts import lay_out
from .movement_names import name_movements
from .places import line_of
from .randomness import describe_call, refuse_random_calls

_REGIONS = ("wrap_with_autocast", "wrap_with_set_grad_enabled", "_vmap_increment_nesting")
_DERIVATIVES = ("_unwrap_for_grad", "_make_dual")  # torch.func.grad and jvp, whose levels a graph does not have
_VIEWS_WRITTEN = "in-place writes through views were made functional"
_ASSERTS = ("_assert", "sym_constrain", "_set_grad_enabled")


@dataclass(frozen=True)
class Captured:
    """A program and what its capture had to say (plain sentences, for remarks)."""

    program: Program
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """A captured graph on its way to a program.

    exported: with names of weights that torch can make a module of. names: the model's own name for each. weights:
    those that the graph reads, by the model's names. notes: for remarks. home: the device that the model lies on.
    """

    exported: torch.export.ExportedProgram
    names: Mapping[str, str]
    graph: fx.Graph
    weights: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    home: torch.device = CPU


def from_exported(exported: torch.export.ExportedProgram) -> Captured:
    """The Program of an ExportedProgram. The weights are shared with it, not copied.

    Raises CaptureError for names that are not plain, which torch would paste into code.
    """
    check_names([*exported.state_dict, *exported.constants])
    plain, names = with_attribute_names(_without_regions(exported))
    draft = Draft(plain, names, *_lift(plain, names))
    for step in STEPS:
        draft = step(draft)
    program = replace(assemble(draft.graph, draft.weights), probes=probes(exported), home=draft.home)
    return Captured(program, draft.notes)


def _without_regions(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without regions that autocast or vmap covers: their calls, with the casts and the batch axes that they stand for.

    Raises CaptureError where torch cannot spell them out, for derivatives, and for other operators that hold graphs of
    their own.
    """
    graphs = [m.graph for m in exported.graph_module.modules() if isinstance(m, fx.GraphModule)]
    derivative = next((n for g in graphs for n in g.nodes if op_name(n) in _DERIVATIVES), None)
    if derivative is not None:
        raise CaptureError(explain_derivative(derivative))
    if any(op_name(n) in _REGIONS for n in _calls(exported)):
        try:
            exported = _without_dropouts(exported).run_decompositions({})
        except Exception as error:
            reason = first_line(error)
            raise CaptureError(f"torch cannot spell out what autocast or vmap does in the model: {reason}") from error
    held = next((n for n in _calls(exported) if isinstance(n.target, torch._ops.HigherOrderOperator)), None)
    if held is not None:
        raise CaptureError(
            f"the model calls {describe_call(held)}, which holds graphs of its own; these are not rewritten"
        )
    return exported


def _calls(exported: torch.export.ExportedProgram) -> list[fx.Node]:
    return [n for n in exported.graph.nodes if n.op == "call_function"]


def check_names(names: Iterable[str]) -> None:
    """Raises CaptureError for a name of a weight or layer that is not fit for reports."""
    for name in names:
        if complaint := name_complaint(name):
            raise CaptureError(f"the name of a layer {complaint}: {name[:60]!r}; give it another one")


def _lift(exported: torch.export.ExportedProgram, names: Mapping[str, str]) -> tuple[fx.Graph, Mapping[str, Any]]:
    """The graph without guards, which reads its weights by the model's names, and what it reads by these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module: Any = exported.module(check_guards=False)
        except Exception as error:
            raise CaptureError(f"torch cannot make a module of the captured model: {first_line(error)}") from error
    values = attributes_read(module)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            node.target = names.get(str(node.target), node.target)
    module.graph.owning_module = None  # which has no attributes of these names
    return module.graph, {names.get(name, name): value for name, value in values.items()}


# ---- steps -------------------------------------------------------------------------------------------------------


def refuse_random(draft: Draft) -> Draft:
    """What draws random numbers is no function of its inputs."""
    refuse_random_calls(draft.graph)
    return draft


def refuse_without_values(draft: Draft) -> Draft:
    """A result on the device meta has a shape and no values that could be compared."""
    for node in next(n for n in draft.graph.nodes if n.op == "output").all_input_nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.device.type == "meta":
            line = line_of(node)
            raise CaptureError(
                f"a result of the model has no values, as it lies on the device meta{f', at {line}' if line else ''}; "
                "give it a device of its own"
            )
    return draft


def resolve_writes(draft: Draft) -> Draft:
    """Writes in place become values of their own; hard ones are left to torch's own functionalisation."""
    shared = functionalize_locally(draft.graph)
    if shared is not None:
        return replace(draft, notes=(*draft.notes, _VIEWS_WRITTEN)) if shared else draft
    try:
        graph, weights = _lift(_without_dropouts(draft.exported).run_decompositions({}), draft.names)
    except Exception as error:
        raise CaptureError(explain_writes(draft.exported.graph, error)) from error
    _leave_inputs(graph)
    if functionalize_locally(graph) is None:
        raise CaptureError(explain_writes(graph))
    return replace(draft, graph=graph, weights=weights, notes=(*draft.notes, _VIEWS_WRITTEN))


def _leave_inputs(graph: fx.Graph) -> None:
    """Without the copies at the end, by which torch gives an input the values that the model wrote to it."""
    for node in list(graph.nodes):
        if node.op == "call_function" and op_name(node) == "copy_" and "val" not in node.meta:
            node.replace_all_uses_with(node.args[1])
            graph.erase_node(node)


def _without_dropouts(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without dropouts that are off: they return their operand, where torch's own functionalisation makes a copy."""
    same = copy.copy(exported)
    same._graph_module = copy.deepcopy(exported.graph_module)
    for node in list(same.graph.nodes):
        if node.op == "call_function" and node.target in DROPOUTS and not arguments(node).get("train"):
            node.replace_all_uses_with(node.args[0])
            same.graph.erase_node(node)
    return same


def come_to_the_cpu(draft: Draft) -> Draft:
    """What lies on a GPU is computed with on the CPU from here on; the program knows where it came from."""
    home = device_of([*draft.weights.values(), *(n.meta.get("val") for n in draft.graph.nodes)])
    if home == CPU:
        return draft
    move_graph(draft.graph, CPU)
    moved: dict[int, Any] = {}
    for value in draft.weights.values():
        moved.setdefault(id(value), on_device(value, CPU))
    return replace(draft, weights={n: moved[id(v)] for n, v in draft.weights.items()}, home=home)


def restore_batch_norms(draft: Draft) -> Draft:
    """A batch norm that was taken apart is one call again."""
    normalize_batch_norm(draft.graph)
    return draft


def drop_asserts(draft: Draft) -> Draft:
    """What only raises, and guards, compute nothing."""
    for node in reversed(list(draft.graph.nodes)):
        name = str(getattr(node.target, "__name__", node.target))
        asserts = node.op == "call_function" and not node.users and any(a in name for a in _ASSERTS)
        if asserts or (node.op == "call_module" and "_guards_fn" in str(node.target)):
            draft.graph.erase_node(node)
    return draft


def keep_places(draft: Draft) -> Draft:
    """Of all that torch notes at a node, its value, the path of its module and the lines that made it are kept."""
    for node in draft.graph.nodes:
        node.meta = {"val": node.meta.get("val"), "module": module_path(node), "stack": node.meta.get("stack_trace")}
    return draft


def reshape_views(draft: Draft) -> Draft:
    """A view becomes a reshape, which is right for every memory layout."""
    for node in draft.graph.nodes:
        if node.op == "call_function" and node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    return draft


def spell_out_layouts(draft: Draft) -> Draft:
    """What a call reads of memory is the same whatever is in front of it."""
    lay_out(draft.graph)
    return draft


def spell_out_movements(draft: Draft) -> Draft:
    """Movements that have several names have one."""
    name_movements(draft.graph)
    return draft


def spell_out_shapes(draft: Draft) -> Draft:
    """x.reshape_as(y) reads y for its shape alone: it becomes a reshape to that shape, so that y is not used."""
    for node in draft.graph.nodes:
        if node.op != "call_function" or node.target not in (aten.reshape_as.default, aten.view_as.default):
            continue
        sizes = [s if isinstance(s, int) else -1 for s in node.meta["val"].shape]
        if sizes.count(-1) <= 1:
            node.target = aten.reshape.default
            node.args = (node.args[0], sizes)
    return draft


def spell_out_fills(draft: Draft) -> Draft:
    """x.new_zeros(3) and its kin read nothing of x: with a fixed shape they become a fill, which is a constant."""
    for node in draft.graph.nodes:
        value = node.meta["val"]
        if node.op != "call_function" or node.target not in FILLS or any(fixed_size(s) is None for s in value.shape):
            continue
        fill, args = FILLS[node.target], arguments(node)
        node.target = aten.full.default
        node.args = ([int(s) for s in value.shape], args["fill_value"] if fill is None else fill)
        node.kwargs = {"dtype": value.dtype, "device": value.device}
    return draft


def spell_out_types(draft: Draft) -> Draft:
    """x.type_as(y) and x.to(y) read y for its dtype alone, x.expand_as(y) for its shape: y is then not used."""
    for node in list(draft.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (aten.type_as.default, aten.to.other):
            node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], node.meta["val"].dtype), {}
        elif node.target is aten.expand_as.default:
            sizes = [_size_of(draft, node, axis) for axis in range(node.meta["val"].dim())]
            node.target, node.args = aten.expand.default, (node.args[0], sizes)
    return draft


def _size_of(draft: Draft, node: fx.Node, axis: int) -> Any:
    """The size of an axis of the call's second operand: a number where it is fixed, else a call that asks for it.

    It is -1 where the first operand has that size already.
    """
    size, x = node.meta["val"].shape[axis], node.args[0]
    assert isinstance(x, fx.Node)
    own = x.meta["val"].shape
    behind = len(own) - node.meta["val"].dim() + axis
    if behind >= 0 and str(own[behind]) == str(size):
        return -1
    if fixed_size(size) is not None:
        return fixed_size(size)
    with draft.graph.inserting_before(node):
        made = draft.graph.call_function(aten.sym_size.int, (node.args[1], axis))
    made.meta = {"val": size, "module": node.meta["module"]}
    return made


def fold_items(draft: Draft) -> Draft:
    """The number in a constant tensor (`float(self.stride[0])`) becomes a number of the graph."""
    for node in list(draft.graph.nodes):
        if (
            node.op == "call_function"
            and node.target in _ITEMS
            and (value := _constant(node.args[0], draft.weights)) is not None
        ):
            number = value.item()
            for user in list(node.users):
                _put(user, node, number)
            draft.graph.erase_node(node)
    return draft


def _put(user: fx.Node, node: fx.Node, number: float) -> None:
    """Reads the number in place of the node."""

    def swap(value: Any) -> Any:
        return number if value is node else value

    user.args = fx.node.map_aggregate(user.args, swap)
    user.kwargs = fx.node.map_aggregate(user.kwargs, swap)


def _constant(node: Any, constants: Mapping[str, Any]) -> Any:
    """The value of a chain of picks from a constant tensor, which reads nothing else; None for anything else."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        value = constants.get(str(node.target))
        return value if isinstance(value, Tensor) else None
    if node.op != "call_function" or len(node.all_input_nodes) != 1 or op_name(node) not in _PICKS:
        return None
    value = _constant(node.all_input_nodes[0], constants)
    if value is None:
        return None
    args: Any = fx.node.map_arg(node.args, lambda n: value)
    kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: value)
    made = node.target(*args, **kwargs)  # type: ignore[operator]
    return made if isinstance(made, Tensor) or op_name(node) == "unbind" else None


_ITEMS = frozenset({aten.item.default, aten._local_scalar_dense.default})
_PICKS = frozenset(
    {"select", "getitem", "unbind", "clone", "detach", "to", "_to_copy", "alias", "lift_fresh_copy", "slice"}
)

STEPS: tuple[Callable[[Draft], Draft], ...] = (
    refuse_random,
    refuse_without_values,
    resolve_writes,
    come_to_the_cpu,
    restore_batch_norms,
    drop_asserts,
    keep_places,
    fold_items,
    reshape_views,
    spell_out_layouts,
    spell_out_movements,
    spell_out_types,
    spell_out_shapes,
    spell_out_fills,
)
