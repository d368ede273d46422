"""Finds what a module assigns to itself while it runs, which torch.export forgets without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from reparam.errors import CaptureError


@contextmanager
def watched(module: nn.Module) -> Iterator[set[str]]:
    """Yields the paths of the tensors that `module` and its parts assign anew when it runs, as they are found.

    The paths include the other names of a tensor that is tied.
    """
    names: dict[int, set[str]] = {}
    for path, tensor in _tensors(module).items():
        names.setdefault(id(tensor), set()).add(path)
    tied = {path: group for group in names.values() for path in group}
    found: set[str] = set()
    before: list[dict[str, Tensor]] = []

    def enter(module: nn.Module, args: Any) -> None:
        before.append(_tensors(module))

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        after = _tensors(module)
        for path, tensor in before.pop().items():
            if after.get(path) is not tensor:
                found.update(tied.get(path, {path}))

    hooks = [module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter, buffer and plain attribute that is a tensor, by its path."""
    found: dict[str, Tensor] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, value in (*part.__dict__.items(), *part._buffers.items(), *part._parameters.items()):
            if isinstance(value, Tensor):
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


def refuse_state(exported: torch.export.ExportedProgram, assigned: set[str]) -> None:
    """Raises CaptureError when the program reads the old value of a tensor that the model assigns anew.

    One that is assigned and only read afterwards is a memo, not state.
    """
    read = {n.name for n in exported.graph.nodes if n.op == "placeholder" and n.users}
    for spec in exported.graph_signature.input_specs:
        stored = spec.kind in (InputKind.BUFFER, InputKind.PARAMETER, InputKind.CONSTANT_TENSOR)
        if stored and spec.target in assigned and spec.arg.name in read:
            raise CaptureError(written(str(spec.target), "an assignment"))


def written(name: str, how: str) -> str:
    """The sentence for a model that has state."""
    return (
        f"the model writes to its own tensor '{name}' ({how}) while it runs, so it is not a function of its inputs; "
        "remove the write from its evaluation path"
    )
