"""Traces a model anew where a size that should be free happens to be one in the example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from reparam.errors import CaptureError
from reparam.ir import fixed_size, leave_ones_open, ones_left_open

from .guards import mode_of

Traced = tuple[torch.export.ExportedProgram, dict[str, str]]  # and the axes that it does not leave free


def without_ones(traced: Callable[[], Traced]) -> Traced:
    """What `traced` gives; where a free size is one, or was fixed, with ones left open, as far as torch can do so.

    Raises what `traced` raises.
    """
    first = traced()
    if first[1].keys() <= {"batch"} and not any(fixed_size(n) is None and n.node.hint == 1 for n in _sizes(first[0])):
        return first
    try:
        with ones_left_open():
            again = traced()
    except CaptureError:
        return first
    mode = mode_of(again[0])
    if mode is None or not again[1].keys() <= first[1].keys():
        return first
    leave_ones_open(mode)
    return again


def _sizes(exported: torch.export.ExportedProgram) -> Iterator[Any]:
    for node in exported.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor):
                yield from value.shape
