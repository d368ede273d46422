"""Captures an nn.Module as a functional ATen `Program`."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from reparam.errors import CaptureError, InputError
from reparam.ir import DROPOUTS, FILLS, Constant, InputSpec, Program, arguments, aten, fixed_size
from reparam.utils import AXES, first_line

from .functionalize import functionalize_locally, module_path, normalize_batch_norm
from .statefulness import refuse_state, watched

_OUR_CODE = tuple(os.path.dirname(f) + os.sep for f in (torch.__file__, os.path.dirname(__file__)))
_ASSERTS = ("_assert", "sym_constrain", "_set_grad_enabled")


@dataclass(frozen=True)
class Captured:
    """A program and what its capture had to say (plain sentences, for remarks)."""

    program: Program
    notes: tuple[str, ...]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[bool]:
    """Puts the module into evaluation mode and restores every submodule's own mode. Yields whether it changed."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield any(mode for _, mode in modes)
    finally:
        for m, mode in modes:
            m.training = mode


def capture(module: nn.Module, example_inputs: Sequence[Any], *, dynamic: Sequence[str] = ("batch",)) -> Captured:
    """Captures `module` as one functional graph of ATen calls.

    example_inputs: the positional arguments; tensors are (N, ...) when "batch" is dynamic.
    dynamic: axes whose size stays free: "batch" (axis 0), "height" and "width" (the last two of tensors with four or
    more axes). An axis that the model fixes by itself is kept fixed, with a note.

    Raises CaptureError when the model cannot become one graph, InputError for an unknown axis name.
    """
    unknown = [a for a in dynamic if a not in AXES]
    if unknown:
        raise InputError(f"unknown dynamic axis '{unknown[0]}'; choose from {', '.join(AXES)}")
    notes = list(_hook_notes(module))
    with evaluation_mode(module) as switched:
        if switched:
            notes.append("the model was in training mode; it was captured in evaluation mode")
        with watched(module) as assigned:
            exported = _export(module, _distinct(example_inputs), tuple(dynamic), notes)
        refuse_state(exported, assigned)
        program = from_exported(exported, notes)
    return Captured(program, tuple(notes))


def _hook_notes(module: nn.Module) -> Iterator[str]:
    for name, m in module.named_modules():
        if m._forward_hooks or m._forward_pre_hooks:
            yield f"module '{name or 'root'}' has hooks: what they compute is captured, their side effects are not"


def _distinct(args: Sequence[Any]) -> tuple[Any, ...]:
    """The same tensor given twice becomes two: torch.export would take both inputs for one."""
    seen: set[int] = set()

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        again = id(value) in seen
        seen.add(id(value))
        return value.clone() if again else value

    return tuple(pytree.tree_map(own, tuple(args)))


def _widen(value: Any) -> Any:
    """A batch of one becomes a batch of two, since a traced size of one would be taken as fixed."""
    if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


def _dynamic_shapes(args: tuple[Any, ...], dynamic: tuple[str, ...]) -> tuple[Any, ...]:
    def spec(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return None
        axes = {0: torch.export.Dim.AUTO} if "batch" in dynamic else {}
        if value.dim() >= 4:
            axes |= {value.dim() - 2: torch.export.Dim.AUTO} if "height" in dynamic else {}
            axes |= {value.dim() - 1: torch.export.Dim.AUTO} if "width" in dynamic else {}
        return axes or None

    return tuple(pytree.tree_map(spec, args))


def _by_parameter(module: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """One entry for each parameter of forward, as torch.export wants it: a `*args` takes the rest as a tuple."""
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    rest = kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else len(shapes)
    return (*shapes[:rest], shapes[rest:]) if rest < len(shapes) else shapes


def _export(
    module: nn.Module, args: tuple[Any, ...], dynamic: tuple[str, ...], notes: list[str]
) -> torch.export.ExportedProgram:
    if dynamic:
        wide = pytree.tree_map(_widen, args) if "batch" in dynamic else args
        try:
            return _export_once(module, wide, _by_parameter(module, _dynamic_shapes(wide, dynamic)))
        except CaptureError as error:
            first = str(error)
        exported = _export_once(module, args, None)
        notes.append(f"captured with fixed sizes, because free {', '.join(dynamic)} failed: {first}")
        return exported
    return _export_once(module, args, None)


def _export_once(module: nn.Module, args: tuple[Any, ...], shapes: Any) -> torch.export.ExportedProgram:
    for _ in range(8):
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                return torch.export.export(module, _unmarked(args), dynamic_shapes=shapes, strict=False)
        except Exception as error:
            if not _register_output_type(module, args, error):
                raise CaptureError(_explain(module, error)) from error
    raise CaptureError("the model's outputs nest more unregistered dataclasses than can be captured")


def _unmarked(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values in new tensors: torch.export marks free sizes on its arguments, and obeys the marks."""
    return tuple(pytree.tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, args))


def _register_output_type(module: nn.Module, args: tuple[Any, ...], error: Exception) -> bool:
    """Registers an output dataclass that torch.export does not know; True when it is worth another try."""
    text = str(error)
    if "dataclass" not in text and "pytree" not in text and "unsupported output" not in text.lower():
        return False
    with torch.no_grad():
        result = module(*args)
    found = False
    for leaf in pytree.tree_leaves(result):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(
                type(leaf), serialized_type_name=f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            )
            found = True
    return found


def _model_frame(error: Exception) -> traceback.FrameSummary | None:
    """The innermost line of the model: in the last forward that is not torch's own, or in what it calls directly."""
    found: traceback.FrameSummary | None = None
    inside = False
    for frame in traceback.extract_tb(error.__traceback__):
        theirs = not frame.filename.startswith(_OUR_CODE)
        inside = theirs and (inside or frame.name == "forward")
        found = frame if inside else found
    return found


def _explain(module: nn.Module, error: Exception) -> str:
    """One sentence: what stopped the capture and on which line of the model's code."""
    reason = first_line(error)
    frame = _model_frame(error)
    place = f" at {frame.filename}:{frame.lineno} `{frame.line}`" if frame is not None else ""
    if isinstance(error, torch._subclasses.fake_tensor.DataDependentOutputException) or "data-dependent" in str(error):
        reason = f"its control flow depends on the data ({reason})"
    return f"{type(module).__name__} cannot be captured as one graph{place}: {reason}"


def from_exported(exported: torch.export.ExportedProgram, notes: list[str] | None = None) -> Program:
    """The Program of an ExportedProgram. The weights are shared with it, not copied."""
    notes = notes if notes is not None else []
    module = _unlift(exported)
    if not functionalize_locally(module.graph):
        module = _unlift(_without_dropouts(exported).run_decompositions({}))
        if not functionalize_locally(module.graph):
            raise CaptureError("the model writes in place through a view in a way that cannot be made functional")
        notes.append("in-place writes through views were made functional")
    normalize_batch_norm(module.graph)
    _drop_asserts(module.graph)
    return _program(module)


def _unlift(exported: torch.export.ExportedProgram) -> fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def _without_dropouts(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without dropouts that are off: they return their operand, where torch's own functionalisation makes a copy."""
    same = copy.copy(exported)
    same._graph_module = copy.deepcopy(exported.graph_module)
    for node in list(same.graph.nodes):
        if node.op == "call_function" and node.target in DROPOUTS and not arguments(node).get("train"):
            node.replace_all_uses_with(node.args[0])
            same.graph.erase_node(node)
    return same


def _drop_asserts(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        name = str(getattr(node.target, "__name__", node.target))
        if (node.op == "call_function" and not node.users and any(a in name for a in _ASSERTS)) or (
            node.op == "call_module" and "_guards_fn" in str(node.target)
        ):
            graph.erase_node(node)


def _program(module: fx.GraphModule) -> Program:
    graph = module.graph
    info = graph._codegen.pytree_info  # type: ignore[attr-defined]  # set on every graph that torch.export makes
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    constants: dict[str, Constant] = {}
    first_name: dict[int, fx.Node] = {}
    fake_mode = None
    for node in list(graph.nodes):
        _clean(node)
        if fake_mode is None and isinstance(node.meta.get("val"), Tensor):
            fake_mode = getattr(node.meta["val"], "fake_mode", None)
        _spell_out_shape(node)
        _spell_out_fill(node)
        if node.op != "get_attr":
            continue
        value = tensors.get(str(node.target))
        if value is None:
            value = _attribute(module, str(node.target))
        if not isinstance(value, Tensor):
            raise CaptureError(f"the graph reads '{node.target}', a {type(value).__name__}, which is not a tensor")
        _intern(graph, node, value, constants, first_name)
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))  # a dead dropout is dead
    for name in set(constants) - {str(n.target) for n in graph.nodes if n.op == "get_attr"}:
        del constants[name]
    if fake_mode is None:
        raise CaptureError("the model has no tensor inputs or weights, so there is nothing to convert")
    plain = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    out = plain.graph_copy(graph, mapping)
    plain.output(out)
    for old, new in mapping.items():
        new.meta = old.meta
    for node in plain.nodes:
        node.meta["data"] = node.op == "placeholder" or any(i.meta["data"] for i in node.all_input_nodes)
    return Program(
        graph=plain,
        constants=constants,
        inputs=_inputs(plain),
        in_spec=info.in_spec,
        out_spec=info.out_spec,
        fake_mode=fake_mode,
        dtype=_dtype(constants),
        device=next((c.value.device for c in constants.values()), torch.device("cpu")),
    )


def _clean(node: fx.Node) -> None:
    """Keeps the shape and the module path; a view becomes a reshape, which is right for every memory layout."""
    node.meta = {"val": node.meta.get("val"), "module": module_path(node)}
    if node.op == "call_function" and node.target in (aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default


def _spell_out_shape(node: fx.Node) -> None:
    """x.reshape_as(y) reads y for its shape alone: it becomes a reshape to that shape, so that y is not used."""
    if node.op != "call_function" or node.target not in (aten.reshape_as.default, aten.view_as.default):
        return
    sizes = [s if isinstance(s, int) else -1 for s in node.meta["val"].shape]
    if sizes.count(-1) <= 1:
        node.target = aten.reshape.default
        node.args = (node.args[0], sizes)


def _spell_out_fill(node: fx.Node) -> None:
    """x.new_zeros(3) and its kin read nothing of x: with a fixed shape they become a fill, which is a constant."""
    value = node.meta["val"]
    if node.op != "call_function" or node.target not in FILLS or any(fixed_size(s) is None for s in value.shape):
        return
    fill = FILLS[node.target]
    args = arguments(node)
    node.target = aten.full.default
    node.args = ([int(s) for s in value.shape], args["fill_value"] if fill is None else fill)
    node.kwargs = {"dtype": value.dtype, "device": value.device}


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part, None)
    return value


def _intern(
    graph: fx.Graph, node: fx.Node, value: Tensor, constants: dict[str, Constant], first: dict[int, fx.Node]
) -> None:
    """Registers a weight; the second name of a tied tensor is replaced by the first."""
    if id(value) in first:
        node.replace_all_uses_with(first[id(value)])
        graph.erase_node(node)
        return
    first[id(value)] = node
    name = str(node.target)
    constants[name] = Constant(value, value.dtype, name, isinstance(value, nn.Parameter))


def _inputs(graph: fx.Graph) -> tuple[InputSpec, ...]:
    specs = []
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or not isinstance(value, Tensor):
            continue
        names = [str(s) if fixed_size(s) is None else int(s) for s in value.shape]
        specs.append(InputSpec(str(node.target), tuple(names), value.dtype))
    return tuple(specs)


def _dtype(constants: dict[str, Constant]) -> torch.dtype:
    """The dtype that most of the floating weights have; float32 for a model without any."""
    count: dict[torch.dtype, int] = {}
    for c in constants.values():
        if c.value.is_floating_point():
            count[c.dtype] = count.get(c.dtype, 0) + c.value.numel()
    return max(count, key=lambda d: count[d]) if count else torch.float32
