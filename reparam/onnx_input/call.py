"""One node of an ONNX graph as its operator sees it: attributes, inputs, and the one way to say no."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.utils import one_line

from .graph import dtype_of
from .known import Known, Results, Value, known_tensor


@dataclass(frozen=True)
class Node:
    """A node of the graph.

    op: its operator. name: its own, or that of its first result. version: of the operators of the file (the opset).
    attributes: by name. results: how many it has. read: which of them are read. constant: which inputs are constants of
    the file. branches: of an If, what it computes of its inputs behind the condition where that holds, and where not.
    """

    op: str
    name: str
    version: int
    attributes: Mapping[str, Any]
    results: int = 1
    read: tuple[bool, ...] = (True,)
    constant: tuple[bool, ...] = ()
    branches: tuple[Callable[[Sequence[Value | None]], Results], ...] = ()

    def refused(self, reason: str) -> InputError:
        """An error that names the node, its operator and the reason."""
        return InputError(f"the node '{one_line(self.name)[:80]}' ({self.op}) cannot be read: {reason}")

    def broken(self, reason: str) -> InputError:
        """An error that names the node, its operator and why it does not run on what it is given."""
        return InputError(f"the node '{one_line(self.name)[:80]}' ({self.op}) does not run: {reason}")


@dataclass(frozen=True)
class Call:
    """A node with the values of its inputs; None for one that is left out."""

    node: Node
    inputs: Sequence[Value | None]

    # ---- inputs --------------------------------------------------------------------------------------------------

    def given(self, index: int) -> bool:
        """Whether an input is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def is_read(self, index: int) -> bool:
        """Whether a result is read by another node, or is one of the network's."""
        return index < len(self.node.read) and self.node.read[index]

    def value(self, index: int) -> Value:
        """An input, as it is. Raises InputError where it is left out."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise self.node.refused(f"it has no input {index}")
        return found

    def tensor(self, index: int) -> Tensor:
        """An input as a tensor."""
        value = self.value(index)
        return value.tensor() if isinstance(value, Known) else value

    def is_weight(self, index: int) -> bool:
        """Whether an input is a constant of the file, of which no axis is free."""
        return index < len(self.node.constant) and self.node.constant[index]

    def optional(self, index: int) -> Tensor | None:
        """An input as a tensor, None where it is left out."""
        return self.tensor(index) if self.given(index) else None

    def tensors(self) -> list[Tensor]:
        """All inputs as tensors."""
        return [self.tensor(i) for i in range(len(self.inputs))]

    def known(self, index: int, what: str) -> Known:
        """An input whose numbers have to be known. what: its name, for the error."""
        value = self.value(index)
        if not isinstance(value, Known):
            raise self.node.refused(f"its {what} is computed by the network, where a constant or a size is needed")
        return value

    def integers(self, index: int, what: str) -> list[Any]:
        """The whole numbers of an input, some of which may be sizes of free axes."""
        return self.known(index, what).list()

    def number(self, index: int, what: str) -> Any:
        """The only number of an input."""
        found = self.known(index, what).list()
        if len(found) != 1:
            raise self.node.refused(f"its {what} is no single number")
        return found[0]

    def rank(self, index: int = 0) -> int:
        """How many axes an input has."""
        value = self.value(index)
        return int(value.values.ndim) if isinstance(value, Known) else value.dim()

    # ---- attributes ----------------------------------------------------------------------------------------------

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute, or its default; it has to be of the default's kind."""
        found = self.node.attributes.get(name, default)
        kinds = {int: int, float: float | int, str: str, tuple: tuple}
        kind = next((k for d, k in kinds.items() if isinstance(default, d)), None)
        if found is not default and kind is not None and not isinstance(found, kind):
            raise self.node.refused(f"its attribute {name} is of another kind than the operator's")
        return found

    def required(self, name: str) -> Any:
        """An attribute that has no default."""
        if name not in self.node.attributes:
            raise self.node.refused(f"it has no attribute {name}")
        return self.node.attributes[name]

    def dtype(self, name: str, default: int | None = None) -> torch.dtype:
        """The dtype that an attribute names by ONNX's number for it."""
        found = dtype_of(self.required(name) if default is None else self.attribute(name, default))
        if found is None:
            raise self.node.refused("it casts to a type that networks are not computed in")
        return found

    def axis(self, value: Any, rank: int) -> int:
        """An axis, counted from the first one. Raises InputError for one that is none."""
        if not isinstance(value, int) or not -rank <= value < rank:
            raise self.node.refused(f"it is about axis {value} of a value with {rank} axes")
        return value % rank

    def axes(self, name: str, index: int, since: int) -> list[int] | None:
        """Axes, which are an attribute before the opset `since` and an input from it on; None where none are given."""
        rank = self.rank()
        if self.node.version < since:
            found = self.node.attributes.get(name)
        else:
            found = self.integers(index, name) if self.given(index) else None
        return None if found is None else [self.axis(a, rank) for a in found]


def number_of(value: Value) -> float | int | bool | None:
    """The number that a value is, where it is one that is known."""
    if isinstance(value, Known) and value.values.size == 1 and not value.symbolic:
        number: float | int | bool = value.list()[0]
        return number
    return None


def fold(operator: Callable[[Call], Results], call: Call) -> list[Value]:
    """The results of a call on constants alone, as what is known where that is small."""
    with torch.no_grad():
        found = operator(call)
    values = list(found) if isinstance(found, tuple) else [found]
    return [v if isinstance(v, Known) else (known_tensor(v) or v) for v in values]
