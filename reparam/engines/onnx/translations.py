"""What torch's exporter does anew for each graph, done where it is needed.

It reads its table of how operators are written in ONNX, and traces the graph once more to take apart the operators that
the table lacks. Either takes longer than to write a small graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_tables: dict[Any, Any] = {}


@contextmanager
def only_what_is_needed() -> Iterator[None]:
    """Within the block torch's exporter takes the table that it read for the last graph of the same opset, and traces
    no graph again in which every operator is in that table."""
    from torch.onnx._internal.exporter import _fx_passes
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read, decompose = vars(ONNXRegistry)["from_torchlib"], _fx_passes.decompose_with_registry

    def table(*args: Any, **options: Any) -> Any:
        key = (args, tuple(options.items()))
        if key not in _tables:
            _tables[key] = read.__func__(ONNXRegistry, *args, **options)
        return _tables[key]

    ONNXRegistry.from_torchlib = staticmethod(table)  # type: ignore[method-assign]
    _fx_passes.decompose_with_registry = lambda exported_program, registry: _decomposed(
        exported_program, registry, decompose
    )
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = read  # type: ignore[method-assign]
        _fx_passes.decompose_with_registry = decompose


def _decomposed(
    exported: torch.export.ExportedProgram, table: Any, decompose: Callable[..., Any]
) -> torch.export.ExportedProgram:
    known = {meta.fx_target for metas in table.functions.values() for meta in metas} | {operator.getitem}
    calls = [n.target for n in exported.graph.nodes if n.op not in ("placeholder", "output")]
    if all(target in known for target in calls):
        return exported
    found: torch.export.ExportedProgram = decompose(exported, table)
    return found
