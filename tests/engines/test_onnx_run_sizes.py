"""ONNX files whose values grow until they fill the memory are not run: sizes are told before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from reparam.engines.onnx.runtime import OnnxRunnable
from reparam.errors import InputError
from reparam.onnx_input import RunSizes

WAYS = ("Concat", "Tile", "Expand", "Reshape and Concat", "function")


def doubling(times: int, way: str) -> onnx.ModelProto:
    """Sums the elements of its input, (n, 4), after it has doubled it so many times along the first axis."""
    nodes: list[Any] = []
    last = "x"
    for i in range(times):
        value = f"v{i}"
        if way == "Tile":
            nodes.append(helper.make_node("Tile", [last, "two"], [value]))
        elif way == "Expand":
            nodes += [
                helper.make_node("Unsqueeze", [last, "zero"], [f"u{i}"]),
                helper.make_node("Expand", [f"u{i}", "pair"], [f"e{i}"]),
                helper.make_node("Reshape", [f"e{i}", "rows"], [value]),
            ]
        elif way == "Reshape and Concat":
            nodes.append(helper.make_node("Concat", [last, last], [f"c{i}"], axis=1))
            nodes.append(helper.make_node("Reshape", [f"c{i}", "rows"], [value]))
        elif way == "function":
            nodes.append(helper.make_node("Twice", [last], [value], domain="own"))
        else:
            nodes.append(helper.make_node("Concat", [last, last], [value], axis=0))
        last = value
    nodes.append(helper.make_node("ReduceSum", [last], ["y"], keepdims=0))
    numbers = {"two": [2, 1], "zero": [0], "pair": [2, 1, 1], "rows": [-1, 4]}
    graph = helper.make_graph(
        nodes,
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [helper.make_tensor(name, TensorProto.INT64, [len(v)], v) for name, v in numbers.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inner = [helper.make_node("Concat", ["a", "a"], ["b"], axis=0)]
    function = helper.make_function("own", "Twice", ["a"], ["b"], inner, opsets[:1])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])


def runnable(folder: Path, times: int, way: str) -> OnnxRunnable:
    onnx.save(doubling(times, way), folder / "grows.onnx")
    return OnnxRunnable(folder / "grows.onnx")


@pytest.mark.parametrize("way", WAYS)
def test_what_would_fill_the_memory_is_not_run(way: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"grows.onnx is not run: on inputs of these sizes, making '.*' would take [\d,]+ bytes"
    ):
        runnable(tmp_path, 40, way).run([torch.ones(2, 4)])


@pytest.mark.parametrize("way", WAYS)
def test_what_fits_is_run(way: str, tmp_path: Path) -> None:
    net = runnable(tmp_path, 5, way)
    for rows in (2, 3):
        assert net.run([torch.ones(rows, 4)])[0].item() == rows * 4 * 32


@given(times=st.integers(0, 12), rows=st.integers(1, 9), way=st.sampled_from(WAYS), share=st.floats(0.3, 3.0))
def test_sizes_are_those_of_the_values(times: int, rows: int, way: str, share: float) -> None:
    """The last value and the one that it is made of have to fit into what is left."""
    largest = 3 * rows * 4 * 2**times * 4 // 2 if times else rows * 4 * 4 + 4
    sizes, left = RunSizes(doubling(times, way)), int(largest * share)
    if share >= 1.5:
        assert sizes._total({"x": torch.ones(rows, 4)}, "a file", left) >= rows * 4 * 4 * 2**times
    elif share < 0.6:
        with pytest.raises(InputError, match="a file is not run"):
            sizes._total({"x": torch.ones(rows, 4)}, "a file", left)


def test_each_shape_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, seen = RunSizes(doubling(3, "Concat")), []
    real = sizes._total
    monkeypatch.setattr(sizes, "_total", lambda *words: (seen.append(words), real(*words))[1])
    for rows in (2, 2, 3, 2, 3):
        assert not sizes.check({"x": torch.ones(rows, 4)}, "a file")
    assert len(seen) == 2


def test_a_run_whose_values_together_are_too_many_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """They need not all live at once. The last one and that in front of it take 24,576 bytes, all together 32,740."""
    for left, watched in ((40_000, False), (30_000, True)):
        monkeypatch.setattr("reparam.onnx_input.run_sizes.memory_available", lambda left=left: left)
        assert RunSizes(doubling(9, "Concat")).check({"x": torch.ones(2, 4)}, "a file") is watched
