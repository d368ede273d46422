"""Emits a program as a torch module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.ir import CPU, Constant, Program, attribute_names, move_graph, on_device

from .input_check import InputCheck
from .names import parameter_names
from .pickled_graph import PickledGraph


def to_module(program: Program, device: torch.device = CPU) -> nn.Module:
    """A torch module that computes the program, with the original's call signature and nested outputs.

    Weights that were trainable are nn.Parameters. The weights are shared with the program, not copied. They keep their
    names, but for a name that a torch module has for itself (`graph`, `to`), which gets an underscore behind it.

    device: where it lies; the weights are copied to another than the CPU.
    """
    root, names = nn.Module(), attribute_names(program.constants, {*dir(_Converted), "input_check"})
    for name, constant in program.constants.items():
        _attach(root, names[name], replace(constant, value=on_device(constant.value, device)))
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    out = graph.graph_copy(program.graph, mapping)
    graph.output(out)
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = names[str(node.target)]
    if device != CPU:
        move_graph(graph, device)
    if program.in_spec is not None and program.out_spec is not None:
        info = fx.graph._PyTreeInfo(parameter_names(program), program.in_spec, program.out_spec)
        graph.set_codegen(fx.graph._PyTreeCodeGen(info))
    module = _Converted(root, graph, class_name="Converted")
    module.eval()
    module.refuse_other_inputs(InputCheck(program, parameter_names(program)))
    return module


class _Converted(fx.GraphModule):
    """A graph module whose copies refuse other inputs too; fx drops such hooks from a copy and from a pickle.

    What its calls make (the zeros that an LSTM starts from) follows the weights to another dtype or device.
    """

    def refuse_other_inputs(self, check: InputCheck) -> None:
        self.input_check = check
        self.register_forward_pre_hook(check, with_kwargs=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Converted:
        made: _Converted = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if _follow(self.graph, fn):
            self.recompile()
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> _Converted:
        made: _Converted = super().__deepcopy__(memo)  # type: ignore[assignment]
        made.refuse_other_inputs(self.input_check)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        parts = self._parameters, self._buffers, self._modules
        return _unpickled, (parts, PickledGraph.of(self.graph), self.training, self.input_check)


def _follow(graph: fx.Graph, fn: Callable[[Tensor], Tensor]) -> bool:
    """Changes the floating dtypes and the devices that calls name as `fn` changes tensors; whether there were any."""
    changed = False

    def swap(value: Any) -> Any:
        nonlocal changed
        if isinstance(value, torch.device):
            new: Any = fn(torch.empty(0, device=value)).device
        elif isinstance(value, torch.dtype) and (value.is_floating_point or value.is_complex):
            new = fn(torch.empty(0, dtype=value)).dtype
        else:
            return value
        changed = changed or new != value
        return new

    for node in graph.nodes:
        if node.op == "call_function":
            node.args = fx.node.map_aggregate(node.args, swap)
            node.kwargs = fx.node.map_aggregate(node.kwargs, swap)
    return changed


def _unpickled(
    parts: tuple[dict[str, Any], dict[str, Any], dict[str, Any]], graph: PickledGraph, training: bool, check: InputCheck
) -> nn.Module:
    root = nn.Module()
    root._parameters, root._buffers, root._modules = parts
    made = _Converted(root, graph.graph(), class_name="Converted")
    made.train(training)
    made.refuse_other_inputs(check)
    return made


def _attach(root: nn.Module, name: str, constant: Constant) -> None:
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        child = owner._modules[part]
        assert child is not None
        owner = child
    value = constant.value.detach()
    if constant.trainable:
        owner.register_parameter(leaf, nn.Parameter(value))
    else:
        owner.register_buffer(leaf, value)
