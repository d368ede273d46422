"""What an imported network is made of: layers, which are places with weights, and the steps that they take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from reparam.errors import ReparamError
from reparam.ir import size_hint
from reparam.utils import first_line, is_out_of_memory, memory_size, one_line

from .call import Call, Node
from .known import Known, Results, Value
from .operators import Operator

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})  # whose sequences are (L, N, C), or (N, L, C) in the layout 1


@dataclass(frozen=True)
class Step:
    """One node, ready to run. known: of its constants, what Python knows, by their places among the inputs."""

    node: Node
    operator: Operator
    known: Mapping[int, Known]

    def __call__(self, values: Sequence[Any]) -> Results:
        """The results. Raises InputError that names the node where it does not run, or would fill the memory."""
        inputs = [replace(self.known[i], held=v) if i in self.known else v for i, v in enumerate(values)]
        try:
            found = self.operator(Call(self.node, inputs))
        except (ReparamError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            if is_out_of_memory(error) or any(is_fake(v) for v in values):  # torch.export tells it in its own words
                raise
            raise self.node.broken(first_line(error)) from error
        if isinstance(found, tuple) and self.node.results == 1:  # the others have no names in the file
            found = found[0]
        for value in found if isinstance(found, tuple) else (found,):
            self._refuse_huge(value)
        return found

    def _refuse_huge(self, value: Value) -> None:
        """Raises InputError for a result that is larger than the memory, which a trace notices before it is made."""
        if not isinstance(value, Tensor):
            return
        size, have = math.prod(size_hint(n) for n in value.shape) * value.element_size(), memory_size()
        if have is not None and size > have:
            raise self.node.broken(f"its result would take {size >> 20} MiB, which is more than this machine has")


@dataclass(frozen=True)
class Inner:
    """A branch, ready to run. inputs, outputs: names. steps: each with the names of what it reads and gives."""

    inputs: tuple[str, ...]
    steps: tuple[tuple[Step, tuple[str, ...], tuple[str, ...]], ...]
    outputs: tuple[str, ...]

    def __call__(self, values: Sequence[Value | None]) -> Results:
        """What it gives for the values of its inputs. Raises what its steps raise."""
        made: dict[str, Any] = dict(zip(self.inputs, values, strict=True))
        for step, reads, gives in self.steps:
            found = step([made[i] if i else None for i in reads])
            made |= zip(gives, found if isinstance(found, tuple) else (found,), strict=False)
        return tuple(made[o] for o in self.outputs)


class Layer(nn.Module):
    """A place in the network: what it computes, and the weights that are called after it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    @property
    def has_steps(self) -> bool:
        """Whether one of its nodes is a recurrent layer."""
        return any(step.node.op in RECURRENT for step in self.steps)

    def steps_of(self, number: int, *values: Any) -> tuple[str, Any] | None:
        """The name of a node that is a recurrent layer and the length of what it reads; None for another node."""
        node = self.steps[number].node
        if node.op not in RECURRENT or not isinstance(values[0], Tensor):
            return None
        return one_line(node.name)[:80], values[0].shape[1 if node.attributes.get("layout", 0) else 0]

    def forward(self, number: int, *values: Value | None) -> Results:
        """The results of one of its nodes."""
        return self.steps[number](values)


def as_tensor(value: Value) -> Tensor:
    """A result of the network."""
    return value.tensor() if isinstance(value, Known) else value


def result_of(values: Any, number: int) -> Any:
    """One of several results; a node that has only one gives it as it is."""
    if not isinstance(values, tuple):
        values = (values,)
    return values[number]
