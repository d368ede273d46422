"""ONNX files that ask for endless time or memory, or whose names are not plain, are one clear sentence, soon."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from reparam.compare import open_engine
from reparam.errors import InputError, UnsafeFileError
from reparam.onnx_input import limits, session
from support.payloads import PAYLOADS

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
X, Y = (helper.make_tensor_value_info(n, FLOAT, [2]) for n in "xy")
OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]


@pytest.fixture(autouse=True)
def soon_and_small() -> Iterator[None]:
    """Every refusal takes less than ten seconds and less than 512 MiB more than there was."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.perf_counter() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10


def whole(value: int | Sequence[int], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, np.int64), name)


def write(path: Path, nodes: Sequence[Any], weights: Sequence[Any] = (), functions: Sequence[Any] = ()) -> Path:
    graph = helper.make_graph(list(nodes), "g", [X], [Y], list(weights))
    model = helper.make_model(graph, opset_imports=OPSETS, functions=list(functions))
    model.ir_version = 10
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine = open_engine(path)
        assert engine is not None
        engine.run([torch.zeros(2)])


def relu(name: str = "r", given: str = "x", result: str = "y") -> onnx.NodeProto:
    return helper.make_node("Relu", [given], [result], name=name)


def body(operator: str, level: int = 0, inner: onnx.GraphProto | None = None) -> onnx.GraphProto:
    """Of a loop, which goes on as long as it may: its value goes through an operator, or through another loop."""
    turn, go, on, given, result = (f"{n}{level}" for n in ("i", "go", "on", "v", "w"))
    infos = [
        helper.make_tensor_value_info(n, t, s) for n, t, s in ((turn, INT64, []), (go, BOOL, []), (given, FLOAT, [2]))
    ]
    outputs = [helper.make_tensor_value_info(on, BOOL, []), helper.make_tensor_value_info(result, FLOAT, [2])]
    count = 2 if operator == "Add" else 1
    work = helper.make_node(operator, [given] * count, [result])
    if inner is not None:
        work = helper.make_node("Loop", ["n", "", given], [result], body=inner)
    return helper.make_graph([helper.make_node("Identity", [go], [on]), work], f"body{level}", infos, outputs)


def nested(levels: int) -> onnx.GraphProto:
    inner = body("Relu", levels)
    for level in reversed(range(levels)):
        inner = body("", level, inner)
    return inner


def loop(turns: str, inner: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("Loop", [turns, "", "x"], ["y"], name="turning", body=inner)


def test_a_genuine_graph_passes(tmp_path: Path) -> None:
    engine = open_engine(write(tmp_path / "a.onnx", [relu()]))
    assert engine is not None and engine.run([torch.tensor([-1.0, 2.0])])[0].tolist() == [0.0, 2.0]


@pytest.mark.parametrize("turns, weights", [("", []), ("n", [whole(2**62, "n")]), ("i", [])])
def test_loops_without_an_end_are_refused(turns: str, weights: list[Any], tmp_path: Path) -> None:
    nodes = [loop(turns, body("Relu"))]
    if turns == "i":  # as many as the input says
        total = helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0)
        nodes = [total, helper.make_node("Cast", ["s"], ["i"], to=INT64), *nodes]
    refused(write(tmp_path / "a.onnx", nodes, weights), "the loop 'turning' has .* turns")


def test_a_loop_with_a_known_end_runs(tmp_path: Path) -> None:
    engine = open_engine(write(tmp_path / "a.onnx", [loop("n", body("Add"))], [whole(3, "n")]))
    assert engine is not None and engine.run([torch.ones(2)])[0].tolist() == [8.0, 8.0]


def test_loops_in_loops_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LONGEST", 1)
    path = write(tmp_path / "a.onnx", [loop("n", nested(3))], [whole(10_000, "n")])
    refused(path, r"has a loop that does not end within 1 seconds")


def test_graphs_within_graphs_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", [loop("n", nested(limits.DEEPEST + 1))], [whole(1, "n")])
    refused(path, r"nest deeper|is damaged")


def function(name: str, calls: Sequence[str]) -> onnx.FunctionProto:
    nodes, last = [], "a"
    for i, call in enumerate(calls):
        domain = "" if call == "Relu" else "own"
        nodes.append(helper.make_node(call, [last], [f"t{i}"], domain=domain))
        last = f"t{i}"
    return helper.make_function("own", name, ["a"], [last], nodes, OPSETS)


def test_functions_that_call_themselves_are_refused(tmp_path: Path) -> None:
    call = helper.make_node("f", ["x"], ["y"], domain="own")
    path = write(tmp_path / "a.onnx", [call], functions=[function("f", ["g"]), function("g", ["f"])])
    refused(path, "its function f calls itself")


def test_functions_that_write_out_to_endless_nodes_are_refused(tmp_path: Path) -> None:
    levels = [function(f"f{i}", [f"f{i + 1}" if i < 9 else "Relu"] * 10) for i in range(10)]
    call = helper.make_node("f0", ["x"], ["y"], domain="own")
    refused(write(tmp_path / "a.onnx", [call], functions=levels), "more than 1000000 nodes")


LARGE = 1 << 17


@pytest.mark.parametrize(
    "nodes, weights",
    [
        ([helper.make_node("ConstantOfShape", ["s"], ["c"])], [whole([LARGE, LARGE], "s")]),
        ([helper.make_node("Expand", ["w", "s"], ["c"])], [whole([LARGE, LARGE], "s")]),
        ([helper.make_node("Tile", ["w", "s"], ["c"])], [whole([1 << 34], "s")]),
        ([helper.make_node("Range", ["a", "b", "d"], ["c"])], [whole(0, "a"), whole(2**40, "b"), whole(1, "d")]),
        ([helper.make_node("RandomNormal", [], ["c"], shape=[LARGE, LARGE])], []),
        ([helper.make_node("EyeLike", ["m"], ["c"])], [whole(0, "s")]),
        (
            [
                helper.make_node("Exp", ["w"], ["e"]),
                helper.make_node("Cast", ["e"], ["s"], to=INT64),
                helper.make_node("ConstantOfShape", ["s"], ["c"]),
            ],
            [],
        ),
        (
            [
                helper.make_node("Concat", ["s", "s"], ["s2"], axis=0),
                helper.make_node("ConstantOfShape", ["s2"], ["c"]),
            ],
            [whole([LARGE], "s")],
        ),
        (  # a vector whose inference would list its elements
            [helper.make_node("Range", ["a", "b", "d"], ["v"]), helper.make_node("Cast", ["v"], ["c"], to=INT64)],
            [whole(0, "a"), whole(2**40, "b"), whole(1, "d")],
        ),
        (
            [helper.make_node("Concat", [f"c{i}" if i else "s"] * 9, [f"c{i + 1}"], axis=0) for i in range(20)]
            + [helper.make_node("Identity", ["c20"], ["c"])],
            [whole([1] * 9, "s")],
        ),
        (
            [helper.make_node("Mul", ["s", "s"], ["s2"]), helper.make_node("ConstantOfShape", ["s2"], ["c"])],
            [whole([1 << 20], "s")],
        ),
    ],
    ids=["fill", "expand", "tile", "range", "random", "eye", "computed", "joined", "vector", "doubled", "product"],
)
def test_constants_that_grow_while_a_file_is_opened_are_refused(
    nodes: list[Any], weights: list[Any], tmp_path: Path
) -> None:
    weight = numpy_helper.from_array(np.full(1, 30.0, np.float32), "w")
    nodes = [*nodes, helper.make_node("ReduceSum", ["c"], ["r"], keepdims=0)]
    if nodes[0].op_type == "EyeLike":
        nodes = [helper.make_node("ConstantOfShape", ["s3"], ["m"]), *nodes]
        weights = [whole([LARGE, LARGE], "s3")]
    nodes += [helper.make_node("Cast", ["r"], ["k"], to=FLOAT), helper.make_node("Add", ["x", "k"], ["y"])]
    refused(write(tmp_path / "a.onnx", nodes, [weight, *weights]), "would become|becomes is not known")


def fill(shape: str, result: str, size: Sequence[int] = (LARGE, LARGE)) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Constant", [], [shape], value_ints=list(size)),
        helper.make_node("ConstantOfShape", [shape], [result]),
    ]


def test_functions_and_inner_graphs_are_looked_into(tmp_path: Path) -> None:
    adds = [*fill("s", "c"), helper.make_node("ReduceSum", ["c"], ["r"], keepdims=0)]
    inside = helper.make_function("own", "f", ["a"], ["b"], [*adds, helper.make_node("Add", ["a", "r"], ["b"])], OPSETS)
    call = helper.make_node("f", ["x"], ["y"], domain="own")
    refused(write(tmp_path / "a.onnx", [call], functions=[inside]), "would become")
    passed = helper.make_function(
        "own", "f", ["a", "s"], ["b"], [helper.make_node("Expand", ["a", "s"], ["b"])], OPSETS
    )
    nodes = [
        helper.make_node("f", ["w", "s"], ["h"], domain="own"),
        helper.make_node("ReduceSum", ["h"], ["k"], keepdims=0),
    ]
    weights = [numpy_helper.from_array(np.ones(1, np.float32), "w"), whole([LARGE, LARGE], "s")]
    path = write(tmp_path / "b.onnx", [*nodes, helper.make_node("Add", ["x", "k"], ["y"])], weights, [passed])
    refused(path, "would become")
    branch = helper.make_graph(adds, "then", [], [helper.make_tensor_value_info("r", FLOAT, [])])
    other = helper.make_graph(fill("s", "c", [2]), "else", [], [helper.make_tensor_value_info("c", FLOAT, [2])])
    asks = [
        helper.make_node("ReduceSum", ["x"], ["t"], keepdims=0),
        helper.make_node("Cast", ["t"], ["q"], to=BOOL),
        helper.make_node("If", ["q"], ["y"], then_branch=branch, else_branch=other),
    ]
    refused(write(tmp_path / "c.onnx", asks), "would become")


def test_a_choice_by_a_constant_is_no_constant_where_the_graphs_chosen_from_are_none(tmp_path: Path) -> None:
    one = helper.make_graph([relu("p", "x", "r")], "then", [], [helper.make_tensor_value_info("r", FLOAT, ["n"])])
    other = helper.make_graph([relu("p", "x", "c")], "else", [], [helper.make_tensor_value_info("c", FLOAT, ["n"])])
    choice = helper.make_node("If", ["q"], ["y"], then_branch=one, else_branch=other)
    path = write(tmp_path / "a.onnx", [choice], [numpy_helper.from_array(np.array(True), "q")])
    model = onnx.load(str(path))
    for info in (model.graph.input[0], model.graph.output[0]):
        info.type.CopyFrom(helper.make_tensor_type_proto(FLOAT, ["n"]))
    path.write_bytes(model.SerializeToString())
    engine = open_engine(path)
    assert engine is not None and engine.run([torch.tensor([-1.0, 2.0])])[0].tolist() == [0.0, 2.0]


def test_shapes_of_what_is_given_are_constants(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", [helper.make_node("Shape", ["x"], ["s"]), *relu_of_fill()])
    assert open_engine(path) is not None
    model = onnx.load(str(path))
    for info in (model.graph.input[0], model.graph.output[0]):
        info.type.CopyFrom(helper.make_tensor_type_proto(FLOAT, [LARGE, LARGE]))
    path.write_bytes(model.SerializeToString())
    refused(path, "would become")


def relu_of_fill() -> list[onnx.NodeProto]:
    return [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]


def test_small_constants_are_computed_and_pass(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zeros"], ["n1"]),
        helper.make_node("Range", ["zero", "n", "one"], ["i"]),
        helper.make_node("Expand", ["i", "n1"], ["e"]),
        helper.make_node("Cast", ["e"], ["f"], to=FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    path = write(tmp_path / "a.onnx", nodes, [whole(0, "zero"), whole(1, "one"), whole([0], "zeros")])
    engine = open_engine(path)
    assert engine is not None and engine.run([torch.zeros(2)])[0].tolist() == [0.0, 1.0]


def test_sparse_weights_are_not_spread_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", [relu()])
    model = onnx.load(str(path))
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, whole([0], "i"), [1 << 40]))
    path.write_bytes(model.SerializeToString())
    refused(path, "would become")


def tensor(**fields: Any) -> onnx.TensorProto:
    made = TensorProto(name="w", data_type=FLOAT)
    for key, value in fields.items():
        if isinstance(value, list):
            getattr(made, key).extend(value)
        else:
            setattr(made, key, value)
    return made


@pytest.mark.parametrize(
    "weight, message",
    [
        (tensor(dims=[1 << 60], raw_data=b"abcd"), "'w' holds 4 of"),
        (tensor(dims=[2], raw_data=b"abcd"), "'w' holds 4 of 8 values"),
        (tensor(dims=[1 << 40]), "'w' holds 0 of 1099511627776 values"),
        (tensor(dims=[-2], raw_data=b"abcd"), "'w' has an impossible shape"),
        (tensor(dims=[3], float_data=[1.0]), "'w' holds 1 of 3 values"),
        (tensor(dims=[1] * 100, float_data=[1.0]), "'w' has an impossible shape"),
        (tensor(dims=[1], data_type=99, raw_data=b"abcd"), "'w' is of an unknown type"),
    ],
)
def test_weights_hold_what_their_shape_says(weight: onnx.TensorProto, message: str, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    path = tmp_path / "a.onnx"
    graph = helper.make_graph(nodes, "g", [X], [Y], [])
    graph.initializer.append(weight)
    path.write_bytes(helper.make_model(graph, opset_imports=OPSETS).SerializeToString())
    refused(path, message)


@pytest.mark.parametrize("details", [{"offset": "-1"}, {"offset": "999"}, {"length": "4"}, {"offset": "x"}, {}])
def test_weights_beside_the_file_are_whole(details: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(12))
    weight = TensorProto(name="w", data_type=FLOAT, dims=[2])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w", **details}.items():
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [X], [Y], [])
    graph.initializer.append(weight)
    (tmp_path / "a.onnx").write_bytes(helper.make_model(graph, opset_imports=OPSETS).SerializeToString())
    refused(tmp_path / "a.onnx", "is damaged: ")


@pytest.mark.parametrize("change", [(b"location", b"locatiom"), (b"wwww", b"w\xff\x9bw")])
def test_where_weights_lie_is_said_and_a_text(change: tuple[bytes, bytes], tmp_path: Path) -> None:
    (tmp_path / "wwww").write_bytes(bytes(8))
    weights = [TensorProto(name=n, data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL) for n in "ab"]
    for weight in weights:
        weight.external_data.add(key="location", value="wwww")
    nodes = [helper.make_node("Add", ["x", "a"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    graph = helper.make_graph(nodes, "g", [X], [Y], [])
    graph.initializer.extend(weights)
    content = helper.make_model(graph, opset_imports=OPSETS).SerializeToString()
    (tmp_path / "a.onnx").write_bytes(content.replace(*change, 1))
    refused(tmp_path / "a.onnx", "is damaged: ")


@pytest.mark.parametrize("payload", [p for p in PAYLOADS if p.strip() and "\ud800" not in p])
def test_names_are_plain_or_refused(payload: str, tmp_path: Path) -> None:
    node = relu(name=payload)
    inner = relu("inner", "x", payload)
    for i, nodes in enumerate(([node], [inner, relu("r", payload, "y")])):
        path = write(tmp_path / f"{i}.onnx", nodes)
        try:
            engine = open_engine(path)
        except InputError as error:
            assert str(error).isprintable()
            continue
        assert engine is not None and engine.calls() is not None
        assert all(c not in payload for c in "\"'\\\n\x1b\u202e")


def test_a_file_that_is_exchanged_after_it_was_looked_at_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked is what runs: the session is made of the bytes that were read."""
    path = write(tmp_path / "a.onnx", [relu()])
    check = limits.check_limits

    def exchange(model: onnx.ModelProto, name: str) -> None:
        check(model, name)
        write(path, [helper.make_node("Neg", ["x"], ["y"])])

    monkeypatch.setattr("reparam.onnx_input.reading.check_limits", exchange)
    engine = open_engine(path)
    assert engine is not None and engine.run([torch.tensor([-1.0, 2.0])])[0].tolist() == [0.0, 2.0]


def test_weights_that_become_a_link_after_they_were_looked_at_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(8))
    (folder / "w").write_bytes(bytes(8))
    weight = TensorProto(name="w", data_type=FLOAT, dims=[2])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [X], [Y], [])
    graph.initializer.append(weight)
    (folder / "a.onnx").write_bytes(helper.make_model(graph, opset_imports=OPSETS).SerializeToString())
    from reparam.onnx_input import reading

    check = reading._check_places

    def exchange(model: onnx.ModelProto, path: Path) -> None:
        check(model, path)
        (folder / "w").unlink()
        (folder / "w").symlink_to(tmp_path / "secret")

    monkeypatch.setattr(reading, "_check_places", exchange)
    with pytest.raises(UnsafeFileError, match="outside of its own folder"):
        reading.read_model(folder / "a.onnx")


def test_parts_of_tensors_are_refused(tmp_path: Path) -> None:
    part = whole([1, 2], "n")
    part.segment.begin, part.segment.end = 0, 2
    refused(write(tmp_path / "a.onnx", [relu()], [part]), "'n' is a part of a tensor, which nothing reads")
