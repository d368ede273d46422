"""Recurrent layers, whose number of steps torch fixes when it traces them: which free sizes reach which layer."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from reparam.onnx_input import Layer

Sizes = frozenset[Any]  # symbols of free sizes


@dataclass(frozen=True)
class RecurrentLayers:
    """The free sizes that were seen: at the axes of the inputs, and as numbers of steps, by the layers' names."""

    axes: dict[tuple[int, int], Sizes] = field(default_factory=dict)  # by a tensor's place among the arguments
    steps: dict[str, Sizes] = field(default_factory=dict)
    watched: bool = False  # whether there are any layers

    def watch(self, module: nn.Module) -> None:
        """Has the module tell the sizes of its inputs when it is called."""
        if not self.watched:
            return

        def enter(*values: Any) -> None:
            tensors = [v for v in pytree.tree_leaves(values) if isinstance(v, Tensor)]
            for place, value in enumerate(tensors):
                for axis, size in enumerate(value.shape):
                    self.axes[place, axis] = self.axes.get((place, axis), frozenset()) | _symbols(size)

        if isinstance(module, fx.GraphModule):  # which torch.export reads node by node
            inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
            with module.graph.inserting_after(inputs[-1]):
                module.graph.call_function(enter, tuple(inputs))
            module.recompile()
        else:
            module.register_forward_pre_hook(lambda _, args: enter(*args), prepend=True)

    def fixing(self, place: int, axis: int) -> str | None:
        """The first layer whose number of steps hangs on the size of this axis, if any does."""
        sizes = self.axes.get((place, axis), frozenset())
        return next((name for name, steps in self.steps.items() if steps & sizes), None)


@contextmanager
def recurrent_layers(module: nn.Module) -> Iterator[RecurrentLayers]:
    """Yields what is seen of the recurrent layers of `module` and of its copies while these are traced.

    Those of an ONNX file are called what their nodes are.
    """
    parts = [(name or type(part).__name__, part) for name, part in module.named_modules()]
    layers = [(name, part) for name, part in parts if isinstance(part, nn.RNNBase)]
    nodes = [part for _, part in parts if isinstance(part, Layer) and part.has_steps]
    found = RecurrentLayers(watched=bool(layers or nodes))

    def count(name: str, size: Any) -> None:
        found.steps[name] = found.steps.get(name, frozenset()) | _symbols(size)

    def step(name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else kwargs.get("input")
        if isinstance(value, Tensor):  # (L, C), (N, L, C) or (L, N, C)
            count(name, value.shape[1 if layer.batch_first and value.dim() == 3 else 0])

    def node(layer: Any, args: tuple[Any, ...]) -> None:
        if (told := layer.steps_of(*args)) is not None:
            count(*told)

    hooks = [part.register_forward_pre_hook(functools.partial(step, name), with_kwargs=True) for name, part in layers]
    hooks += [part.register_forward_pre_hook(node) for part in nodes]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _symbols(size: Any) -> Sizes:
    return frozenset(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else frozenset()
