"""Weights that a model assigns to itself in every run (`conv.weight.data = f(others)`), always with the same values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from reparam.errors import EndedError, MachineError

SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


class AssignsWeights(Exception):
    """The model assigns to the data of a parameter while it runs."""


class NoneAssigned(TorchFunctionMode):
    """Raises AssignsWeights at an assignment to the data of a parameter."""

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == SET_DATA and isinstance(args[0], nn.Parameter):
            raise AssignsWeights
        return func(*args, **(kwargs or {}))


class WeightsStay(TorchFunctionMode):
    """Assignments to the data of parameters do nothing inside. changed: whether one of them would have done something.

    compare: whether they are looked at; while a model is traced there are no values.
    """

    def __init__(self, *, compare: bool = False) -> None:
        super().__init__()
        self.changed, self._compare = False, compare

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func != SET_DATA or not isinstance(args[0], nn.Parameter):
            return func(*args, **(kwargs or {}))
        self.changed |= self._compare and not _same(args[0], args[1])
        return None


def with_weights_assigned(
    module: nn.Module, args: Sequence[Any], run: Callable[[nn.Module, Sequence[Any]], Any]
) -> nn.Module | None:
    """`module`, a copy that may be written to, as it is after a run.

    None where other inputs assign other values, or where it does not run on them, so that nothing is known of these.
    run: calls a module on its arguments.
    """
    try:
        with torch.no_grad():
            run(module, args)
            for seed in range(2):
                with WeightsStay(compare=True) as stay:
                    run(module, _others(args, seed))
                if stay.changed:
                    return None
    except (EndedError, MachineError):
        raise
    except Exception:  # of any kind: it is the model's own
        return None
    return module


def _others(args: Sequence[Any], seed: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator).to(value)

    return tuple(pytree.tree_map(other, tuple(args)))


def _same(weight: Tensor, assigned: Tensor) -> bool:
    alike = weight.shape == assigned.shape and weight.dtype == assigned.dtype and weight.device == assigned.device
    return alike and torch.equal(weight, assigned)
