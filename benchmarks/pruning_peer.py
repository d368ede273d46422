"""The peer of `pruning.py`, Torch-Pruning: its choice of channels, and what is made of that."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from common import say
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.errors import ReparamError
from reparam.pruning import refit
from reparam.pruning.timing import times
from reparam.training import recalibrate
from reparam.utils import first_line

CRITERIA = ("group L2", "BN scale", "Taylor")


def torch_pruning() -> Any:
    """The package, None where it is not installed."""
    if importlib.util.find_spec("torch_pruning") is None:
        return None
    import torch_pruning

    return torch_pruning


def chosen(
    tp: Any, criterion: str, module: nn.Module, x: Tensor, labels: Tensor, share: float, *, latency: bool
) -> tuple[nn.Module, nn.Module] | None:
    """The least cut of the peer that reaches the share: a copy with zeros at the channels that go, and one without.

    For a share of the time widths are multiples of 8; of any size where none of those reaches it, as layers that the
    peer cannot round keep all their channels.
    """
    for multiple in (8, None) if latency else (None,):
        found = _least(tp, criterion, module, x, labels, share, latency=latency, multiple=multiple)
        if found is not None:
            return found
    return None


def _least(
    tp: Any,
    criterion: str,
    module: nn.Module,
    x: Tensor,
    labels: Tensor,
    share: float,
    *,
    latency: bool,
    multiple: int | None,
) -> tuple[nn.Module, nn.Module] | None:
    """A cut that leaves a network that does not run is none; None where no other reaches the share."""
    best, low, high = None, 0.0, 1.0
    for _ in range(9):
        ratio = (low + high) / 2
        pruned = copy.deepcopy(module)
        groups = list(_pruner(tp, criterion, pruned, x, labels, ratio, multiple).step(interactive=True))
        masked = _masked(module, pruned, groups)
        for group in groups:
            group.prune()
        try:
            left = time_of(pruned, module, x) if latency else macs_of(pruned, x) / macs_of(module, x)
        except (RuntimeError, ReparamError) as error:  # the layers that it left do not fit each other
            say(f"Torch-Pruning, {criterion}, a ratio of {ratio:g}: what is left does not run: {first_line(error)}")
            high = ratio
            continue
        if left <= share:
            best, high = (masked, pruned), ratio
        else:
            low = ratio
    return best


@torch.no_grad()
def macs_of(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers for one sample."""
    total = 0

    def count(layer: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, Tensor)
        total += layer.weight.numel() * math.prod(y.shape[2:])

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(count) for m in layers]
    module(x[:1])
    for hook in hooks:
        hook.remove()
    return total


def time_of(module: nn.Module, original: nn.Module, x: Tensor) -> float:
    """The share of the original's time that a network takes in onnxruntime, both in their fused form."""
    programs = {name: convert(m, x[:2]).program for name, m in (("original", original), ("pruned", module))}
    return times(programs, "onnxruntime", rounds=40)["pruned"].share


def _pruner(
    tp: Any, criterion: str, module: nn.Module, x: Tensor, labels: Tensor, ratio: float, multiple: int | None
) -> Any:
    importance = {
        "group L2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "BN scale": tp.importance.BNScaleImportance,
        "Taylor": tp.importance.GroupTaylorImportance,
    }[criterion]()
    heads = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if criterion == "Taylor":
        F.cross_entropy(module(x), labels).backward()
    return tp.pruner.MetaPruner(
        module,
        x[:1],
        importance,
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=heads,
        iterative_steps=1,
        round_to=multiple,
    )


def _masked(module: nn.Module, pruned: nn.Module, groups: Sequence[Any]) -> nn.Module:
    """A copy of `module` whose rows and norms are zero where the groups prune those of `pruned`."""
    names = {id(m): n for n, m in pruned.named_modules()}
    masked = copy.deepcopy(module)
    modules = dict(masked.named_modules())
    with torch.no_grad():
        for dependency, indices in (pair for group in groups for pair in group):
            target = modules.get(names.get(id(dependency.target.module), "?"))
            makes = dependency.handler.__name__ == "prune_out_channels"
            if makes and isinstance(target, nn.Conv2d | nn.BatchNorm2d):
                for value in (target.weight, target.bias):
                    if value is not None:
                        value[indices] = 0.0
    return masked


def peers(criterion: str, module: nn.Module, x: Tensor) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """What is made of the peer's choice, a masked copy of `module`: with new statistics, and with our refit."""
    return {
        f"Torch-Pruning, {criterion}, recalibrated": lambda masked: _recalibrated(masked, x),
        f"Torch-Pruning, {criterion}, refitted": lambda masked: refit(masked, module, x, example_inputs=x[:2]).module,
    }


def _recalibrated(masked: nn.Module, x: Tensor) -> nn.Module:
    """Norms of channels that are off stay off: their factors and shifts are zero."""
    return recalibrate(masked, x[:2], data=x).module
