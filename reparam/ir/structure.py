"""Is a program well formed? What every rule and every step of the capture must leave behind; nothing about values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode

from .aten import is_inplace
from .free_sizes import as_traced, unnoted

OPERATIONS = ("placeholder", "get_attr", "call_function", "output")


@contextmanager
def shapes_alone(mode: FakeTensorMode) -> Iterator[None]:
    """Calls of operators inside give shapes and dtypes, as torch.export infers them, through Python.

    In C++ some operators ask for plain numbers (conv2d "same" with an even kernel), which would fix a size that is
    free, in the whole program. What an operator asks about a size (whether a batch is below 16) is not noted of it.
    """
    with mode, torch.no_grad(), enable_python_dispatcher(), unnoted(mode), as_traced(mode):
        yield


@dataclass(frozen=True)
class Structure:
    """What of a program can be ill formed. weights: their shapes by name. inputs: shape and dtype by name."""

    graph: fx.Graph
    weights: Mapping[str, torch.Size]
    inputs: Mapping[str, tuple[tuple[int | str, ...], torch.dtype]]
    fake_mode: FakeTensorMode

    def problem(self, nodes: Iterable[fx.Node] | None = None) -> str:
        """What is wrong, and at which node; "" when nothing is. nodes: looked at alone, see `Program.verify`."""
        for node in self.graph.nodes if nodes is None else nodes:
            if found := self._of_node(node):
                return f"at '{node.name}': {found}"
        return self._of_whole(list(self.graph.nodes)) if nodes is None else ""

    def _of_node(self, node: fx.Node) -> str:
        if node.op not in OPERATIONS:
            return f"{node.op} is no operation of a program"
        late = next((i for i in node.all_input_nodes if i.graph is not self.graph or not i < node), None)
        if late is not None:
            return f"it reads '{late.name}', which does not come before it"
        if node.op == "output":
            return ""
        if "val" not in node.meta or "data" not in node.meta:
            return "it has no value, or does not say whether it depends on the inputs"
        if node.op == "get_attr":
            return self._of_weight(node)
        return self._of_call(node) if node.op == "call_function" else ""

    def _of_weight(self, node: fx.Node) -> str:
        shape = self.weights.get(str(node.target))
        if shape is None:
            return f"there is no weight '{node.target}'"
        if tuple(shape) != tuple(node.meta["val"].shape):
            return f"its weight has the shape {tuple(shape)}, not {tuple(node.meta['val'].shape)}"
        return "a weight does not depend on the inputs" if node.meta["data"] else ""

    def _of_call(self, node: fx.Node) -> str:
        if not callable(node.target):
            return f"{node.target} cannot be called"
        if is_inplace(node):
            return f"{node.target} writes to its operand"
        if not node.users:
            return "nobody reads it"
        if bool(node.meta["data"]) != any(i.meta["data"] for i in node.all_input_nodes):
            return "it does not say rightly whether it depends on the inputs"
        args: Any = fx.node.map_arg(node.args, lambda n: n.meta["val"])
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: n.meta["val"])
        try:
            with shapes_alone(self.fake_mode):
                made = node.target(*args, **kwargs)
        except Exception as error:
            return f"its operands do not fit {node.target}: {error}"
        return _unlike(made, node.meta["val"])

    def _of_whole(self, order: list[fx.Node]) -> str:
        outputs = [n for n in order if n.op == "output"]
        if len(outputs) != 1 or order[-1] is not outputs[0]:
            return "it does not end with its one output"
        read = {str(n.target) for n in order if n.op == "get_attr" and n.users}
        if unread := sorted(set(self.weights) - read):
            return f"nobody reads the weight '{unread[0]}'"
        values = {str(n.target): n.meta["val"] for n in order if n.op == "placeholder"}
        for name, (shape, dtype) in self.inputs.items():
            if name not in values:
                return f"the input '{name}' has no placeholder"
            value = values[name]
            fixed = [n for n in zip(shape, value.shape, strict=False) if isinstance(n[0], int)]
            if value.dtype != dtype or value.dim() != len(shape) or any(_unequal(*n) for n in fixed):
                return f"the input '{name}' is {dtype} {shape}, and its placeholder {value.dtype} {tuple(value.shape)}"
        return ""


def _unlike(made: Any, told: Any) -> str:
    """How the value that an operator gives differs from the one that is told of it; "" when it does not."""
    if isinstance(made, (list, tuple)) and isinstance(told, (list, tuple)):
        if len(made) != len(told):
            return f"its operator gives {len(made)} values, not {len(told)}"
        return next((p for m, t in zip(made, told, strict=True) if (p := _unlike(m, t))), "")
    if not isinstance(made, Tensor) or not isinstance(told, Tensor):
        return "" if isinstance(made, Tensor) == isinstance(told, Tensor) else "it is no tensor, or should be none"
    if made.dim() != told.dim() or made.dtype != told.dtype:
        return f"its operator gives {made.dtype} of rank {made.dim()}, not {told.dtype} of rank {told.dim()}"
    if any(_unequal(m, t) for m, t in zip(made.shape, told.shape, strict=True)):
        return f"its operator gives the shape {tuple(made.shape)}, not {tuple(told.shape)}"
    return ""


def _unequal(made: Any, told: Any) -> bool:
    """Whether two sizes differ as they were traced. Of a size that depends on values, nothing is known."""
    known = [n if isinstance(n, int) else n.node.hint for n in (made, told)]
    return None not in known and known[0] != known[1]
