"""onnx's own cases of its operators: each is read as its authors computed it, or refused in one sentence."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from reparam.errors import InputError
from reparam.onnx_input import import_onnx
from reparam.onnx_input.graph import NEWEST, OLDEST
from reparam.onnx_input.operators import all_operators

OTHERWISE = {  # where onnxruntime, which judges files, computes something else than the case says, for each the reason
    "test_spacetodepth_crd_mode_example": "of an opset that is not read, with an attribute of that",
    "test_resize_downsample_scales_linear_align_corners": "its scale, where the case rounds the size",
    "test_resize_downsample_scales_cubic_align_corners": "its scale, where the case rounds the size",
}
ELSEWHERE = {"If", "GRU", "Scatter", "GlobalLpPool"}  # no case of theirs is read; other tests are about them
NUMPY_ALONE = ("bfloat16", "float8", "float4", "int4", "int2", "e8m0", "bf16")


def cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        return list(collect_testcases(None))


def readable(case: Any) -> bool:
    graph = case.model.graph if case.model is not None else None
    if graph is None or any(word in case.name.lower() for word in NUMPY_ALONE):
        return False
    ports = [*graph.input, *graph.output]
    known = {n.op_type for n in graph.node} <= {*all_operators(), "Constant"}
    opset = next((o.version for o in case.model.opset_import if o.domain == ""), 0)
    kinds = {p.type.tensor_type.elem_type for p in ports}
    tensors = all(p.type.WhichOneof("value") == "tensor_type" for p in ports)
    return known and tensors and opset >= OLDEST and onnx.TensorProto.STRING not in kinds


def arrays(values: Sequence[Any]) -> list[np.ndarray]:
    return [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else np.asarray(v) for v in values]


def forms(case: Any, given: Sequence[np.ndarray]) -> Iterator[tuple[onnx.ModelProto, list[torch.Tensor]]]:
    """The case as it is, and with constants: whole numbers behind the first input, all behind it, all whole numbers."""
    for kinds, first in (("", 1), ("iub", 1), ("iubf", 1), ("iub", 0)):
        proto = onnx.ModelProto()
        proto.CopyFrom(case.model)
        for opset in proto.opset_import:  # of its newest operators, which are those of the newest opset that is read
            opset.version = min(opset.version, NEWEST) if opset.domain == "" else opset.version
        names = [p.name for p in proto.graph.input]
        fixed = {n for k, (n, v) in enumerate(zip(names, given, strict=True)) if k >= first and v.dtype.kind in kinds}
        proto.graph.initializer.extend(
            numpy_helper.from_array(v, n) for n, v in zip(names, given, strict=True) if n in fixed
        )
        kept = [p for p in proto.graph.input if p.name not in fixed]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        yield proto, [torch.from_numpy(v.copy()) for n, v in zip(names, given, strict=True) if n not in fixed]


def outcome(case: Any, path: Path) -> str:
    """ "" for what was expected, a sentence for what was refused, else what differs behind an exclamation mark."""
    given, wanted = (arrays(v) for v in case.data_sets[0])
    refused = "!it has no form"
    for proto, values in forms(case, given):
        path.write_bytes(proto.SerializeToString())
        try:
            with torch.no_grad():
                found = list(import_onnx(path)(*values).values())
        except InputError as error:
            refused = str(error)
            continue
        for value, theirs in zip(found, wanted, strict=True):
            mine = value.detach().numpy()
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                return f"!{mine.dtype}{mine.shape} for {theirs.dtype}{theirs.shape}"
            if not np.allclose(mine, theirs, rtol=1e-3, atol=1e-4, equal_nan=True):
                return "!other values"
        return ""
    return refused


def test_cases_of_onnx_are_read_as_written_or_refused(tmp_path: Path) -> None:
    wrong: dict[str, str] = {}
    right: set[str] = set()
    for case in filter(readable, cases()):
        if case.name in OTHERWISE:
            continue
        found = outcome(case, tmp_path / "case.onnx")
        if found.startswith("!") or "\n" in found:
            wrong[case.name] = found
        elif not found:
            right |= {n.op_type for n in case.model.graph.node}
    assert wrong == {}
    assert all_operators().keys() - right <= ELSEWHERE
