"""A loop of an ONNX file that takes too much memory is given up, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.warm_process import WarmProcess

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

PEAK = """
import pathlib, resource, sys, time, torch
from reparam.compare import open_engine
from reparam.errors import InputError
start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_engine(pathlib.Path(sys.argv[1])).run([torch.zeros(2)])
    print("taken")
except InputError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, int(time.monotonic() - start))
"""


def test_a_loop_whose_values_double_is_given_up_before_the_memory_is_full(tmp_path: Path, warm: WarmProcess) -> None:
    kinds = (("i", INT64, []), ("go", BOOL, []), ("v", FLOAT, None))
    infos = [helper.make_tensor_value_info(*kind) for kind in kinds]
    outputs = [helper.make_tensor_value_info("on", BOOL, []), helper.make_tensor_value_info("w", FLOAT, None)]
    nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Concat", ["v", "v"], ["w"], axis=0)]
    doubling = helper.make_graph(nodes, "body", infos, outputs)
    ports = [helper.make_tensor_value_info(n, FLOAT, [2]) for n in "xy"]
    call = helper.make_node("Loop", ["n", "", "x"], ["y"], body=doubling)
    turns = numpy_helper.from_array(np.asarray(60, np.int64), "n")
    graph = helper.make_graph([call], "g", ports[:1], ports[1:], [turns])
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    done = warm.run(PEAK, str(path))
    told, figures = done.stdout.splitlines()
    megabytes, seconds = map(int, figures.split())
    assert "has a loop that takes more than 512 MB" in told, (done.stdout, done.stderr)
    assert megabytes < 2048 and seconds < 8
