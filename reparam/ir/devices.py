"""Moves a graph between devices. Programs live on the CPU, where float64 is exact to the same digits everywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

CPU = torch.device("cpu")


def device_of(values: Any) -> torch.device:
    """The device of the first tensor among values (a tree of them) that is not on the CPU; the CPU where none is."""
    tensors = (v for v in pytree.tree_leaves(values) if isinstance(v, Tensor))
    return next((v.device for v in tensors if v.device.type not in ("cpu", "meta")), CPU)


def move_graph(graph: fx.Graph, device: torch.device) -> None:
    """Makes every call of the graph that names a device name this one, and its fake values lie there."""

    def named(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in graph.nodes:
        if node.op == "call_function":
            node.args = fx.node.map_aggregate(node.args, named)
            node.kwargs = fx.node.map_aggregate(node.kwargs, named)
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map(lambda v: on_device(v, device), node.meta["val"])


def on_device(value: Any, device: torch.device) -> Any:
    """A tensor on the device; anything else as it is."""
    return value.to(device) if isinstance(value, Tensor) and value.device != device else value
