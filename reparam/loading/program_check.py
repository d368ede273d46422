"""Whether the graph of a `.pt2` fits together, before anything else reads it.

torch loads a graph whose weights have other shapes than it says, whose calls get arguments of other kinds than their
operators take, or whose values are said to have sizes that they do not have. Here the weights are compared with the
graph, and the graph is run once on tensors without values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from reparam.errors import InputError
from reparam.utils import FAKE_TENSORS, first_line, one_line, quiet

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def check_program(program: torch.export.ExportedProgram, name: str) -> None:
    """Raises InputError, naming the value, for a program whose weights, calls and sizes do not fit together."""
    graph = program.graph
    placeholders = {n.name: n for n in graph.nodes if n.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        node = placeholders.get(spec.arg.name)
        if node is None and not isinstance(spec.arg, ConstantArgument):
            raise _misfit(name, spec.arg.name, "it is no input of the graph")
        if node is not None and spec.kind in _WEIGHTS:
            _check_weight(program, str(spec.target), node, name)
    if len(placeholders) != len(program.graph_signature.input_specs):
        raise _misfit(name, "its inputs", "they are not those of its signature")
    _check_parameters(program, name)
    _check_results(program, name)
    _check_calls(program, placeholders, name)


def _misfit(name: str, value: str, what: str) -> InputError:
    return InputError(f"{name} does not fit together at '{one_line(value)[:80]}': {what}; export the program again")


def _check_weight(program: torch.export.ExportedProgram, key: str, node: fx.Node, name: str) -> None:
    value = program.state_dict.get(key, program.constants.get(key))
    stated = node.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(stated, Tensor):
        raise _misfit(name, key, "it is no tensor")
    if tuple(value.shape) != tuple(stated.shape) or value.dtype != stated.dtype:
        raise _misfit(
            name, key, f"it is {value.dtype} {tuple(value.shape)}, the graph takes {stated.dtype} {tuple(stated.shape)}"
        )


def _check_parameters(program: torch.export.ExportedProgram, name: str) -> None:
    """The parameters of `forward` are as many as the structure of its arguments has, each of a name of its own."""
    signature = next((c.signature for c in program.module_call_graph if not c.fqn), None)
    names = signature.forward_arg_names if signature is not None else None
    if names:
        positional, keywords = program.call_spec.in_spec.children()
        if len(set(names)) != len(names) or len(names) != positional.num_children + keywords.num_children:
            raise _misfit(name, ", ".join(names), "these are not the parameters of its arguments")


def _check_results(program: torch.export.ExportedProgram, name: str) -> None:
    """The results of the graph are as many as the structure that is made of them takes."""
    outputs = [n for n in program.graph.nodes if n.op == "output"]
    returned = outputs[0].args[0] if len(outputs) == 1 and outputs[0].args else None
    wanted = program.call_spec.out_spec.num_leaves if program.call_spec.out_spec is not None else None
    specs = [s for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]
    if not isinstance(returned, list | tuple) or (wanted is not None and wanted != len(specs)):
        raise _misfit(name, "its outputs", "they are not those of its signature")


def _check_calls(program: torch.export.ExportedProgram, placeholders: Mapping[str, fx.Node], name: str) -> None:
    values = [n.meta.get("val") for n in placeholders.values()]
    mode = detect_fake_mode([v for v in values if v is not None])
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    if mode is None or any(isinstance(n.target, torch._ops.HigherOrderOperator) for n in calls):
        return  # graphs within the graph are run by torch's own capture
    # Without the dispatcher, some composite operators fail on free sizes, and others fix them at the traced ones.
    with mode, torch.no_grad(), enable_python_dispatcher(), quiet(FAKE_TENSORS):
        _Run(program.graph_module, name).run(*values)


class _Run(fx.Interpreter):
    """Runs the graph on its own stand-ins, and compares what each call gives with what the graph says of it."""

    def __init__(self, module: fx.GraphModule, name: str) -> None:
        super().__init__(module)
        self.file = name
        self.extra_traceback = False  # it would put texts of the file behind our sentence

    def run_node(self, n: fx.Node) -> Any:
        """The value of one node. Raises InputError for a call that fails, or that gives something else."""
        try:
            value = super().run_node(n)
        except InputError:
            raise
        except Exception as error:
            raise _misfit(self.file, n.name, one_line(first_line(error))[:200]) from error
        if n.op == "call_function" and "val" in n.meta:
            ours, theirs = pytree.tree_leaves(value), pytree.tree_leaves(n.meta["val"])
            if len(ours) != len(theirs) or not all(map(_alike, ours, theirs)):
                raise _misfit(self.file, n.name, "its value is not what the graph says of it")
        return value


def _alike(ours: Any, theirs: Any) -> bool:
    """Whether two stand-ins are of one kind: tensors of one dtype and one shape, as far as sizes are fixed."""
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return isinstance(ours, Tensor) == isinstance(theirs, Tensor)
    sizes = zip(ours.shape, theirs.shape, strict=False)
    same = all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))
    return same and ours.dim() == theirs.dim() and ours.dtype == theirs.dtype
