"""Every family of operators against onnxruntime, over attributes and the opsets in which they mean something else."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from support.onnx_graphs import F32, I64, check, differs, draw, ints, model, node, values

# ---- convolutions and pools --------------------------------------------------------------------------------------

CONVS = [
    ((2, 3, 9, 8), (4, 3, 3, 3), {}),
    ((2, 3, 9, 8), (4, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((2, 3, 9, 8), (4, 3, 3, 2), {"pads": [0, 1, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    ((2, 4, 9, 8), (6, 2, 3, 3), {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((2, 4, 9, 8), (6, 2, 4, 4), {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    ((2, 3, 9, 8), (4, 3, 3, 3), {"auto_pad": "VALID"}),
    ((2, 3, 11), (4, 3, 5), {"pads": [2, 2]}),
    ((1, 2, 5, 6, 7), (3, 2, 3, 3, 3), {"pads": [1, 1, 1, 1, 1, 1], "strides": [1, 2, 1]}),
]


@pytest.mark.parametrize("shape, weight, more", CONVS)
def test_convolutions(tmp_path, shape, weight, more):
    check(tmp_path, "Conv", shape, {"w": values(*weight), "b": values(weight[0], seed=2)}, **more)


TRANSPOSED = [
    ((2, 3, 5, 6), (3, 4, 3, 3), {}),
    ((2, 3, 5, 6), (3, 4, 2, 2), {"strides": [2, 2]}),
    ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((2, 4, 5, 6), (4, 3, 3, 3), {"group": 2, "strides": [2, 2], "pads": [0, 1, 1, 0]}),
    ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((2, 3, 5, 6), (3, 4, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "output_shape": [10, 12]}),
    ((2, 3, 5, 6), (3, 4, 3, 3), {"dilations": [2, 2], "pads": [1, 2, 1, 2]}),
    ((2, 3, 7), (3, 4, 3), {"strides": [3], "pads": [1, 0]}),
]


@pytest.mark.parametrize("shape, weight, more", TRANSPOSED)
def test_transposed_convolutions(tmp_path, shape, weight, more):
    channels = weight[1] * more.get("group", 1)
    check(tmp_path, "ConvTranspose", shape, {"w": values(*weight), "b": values(channels, seed=2)}, **more)


POOLS = [
    {"kernel_shape": [3, 3]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]},
    {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [0, 0, 2, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [1, 1, 0, 0]},
]


@pytest.mark.parametrize("more", POOLS)
@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (1, 2, 7, 11)])
def test_pools(tmp_path, more, shape):
    check(tmp_path, "MaxPool", shape, **more)
    for counted in (0, 1):
        check(tmp_path, "AveragePool", shape, count_include_pad=counted, **more)
        check(tmp_path, "AveragePool", shape, opset=22, count_include_pad=counted, **more)


def test_pools_of_other_kinds(tmp_path):
    check(tmp_path, "MaxPool", (2, 3, 12), kernel_shape=[3], dilations=[2], strides=[2])
    check(tmp_path, "MaxPool", (1, 2, 6, 6, 6), kernel_shape=[2, 2, 2], strides=[2, 2, 2])
    check(tmp_path, "AveragePool", (1, 2, 6, 6, 6), kernel_shape=[2, 2, 2])
    for op, shape in itertools.product(
        ("GlobalAveragePool", "GlobalMaxPool"), ((2, 3, 5, 4), (2, 3, 7), (1, 2, 3, 4, 5))
    ):
        check(tmp_path, op, shape)


PLACED = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 2, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 0, 0, 1]},
]


@pytest.mark.parametrize("more", PLACED)
def test_maxima_and_where_they_are(tmp_path, more):
    proto = model([node("MaxPool", ["x"], ["y", "i"], **more)], {"x": (2, 3, 9, 8)}, ("y", "i"))
    assert differs(proto, tmp_path, draw([(2, 3, 9, 8)])) == ""


@pytest.mark.parametrize("sizes", [(7,), (4, 5, 6)])
def test_maxima_and_where_they_are_along_other_axes(tmp_path, sizes):
    more = {"kernel_shape": [2] * len(sizes), "strides": [2] * len(sizes), "pads": [1] + [0] * (2 * len(sizes) - 1)}
    proto = model([node("MaxPool", ["x"], ["y", "i"], **more)], {"x": (2, 3, *sizes)}, ("y", "i"))
    assert differs(proto, tmp_path, draw([(2, 3, *sizes)])) == ""


@pytest.mark.parametrize("p", [1, 2, 3])
def test_pools_of_powers(tmp_path, p):
    check(tmp_path, "GlobalLpPool", (2, 3, 5, 4), p=p)
    check(tmp_path, "LpPool", (2, 3, 7, 8), kernel_shape=[2, 3], strides=[1, 2], pads=[0, 1, 1, 1], p=p)
    check(tmp_path, "LpPool", (2, 3, 7, 8), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER", p=p)
    check(tmp_path, "LpPool", (2, 3, 7, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, p=p, opset=18)


# ---- norms -------------------------------------------------------------------------------------------------------


def test_norms(tmp_path):
    c = 4
    numbers = {"s": values(c), "b": values(c, seed=2), "m": values(c, seed=3), "v": np.abs(values(c, seed=4)) + 0.5}
    affine = {"s": numbers["s"], "b": numbers["b"]}
    for opset in (11, 14, 15):
        check(tmp_path, "BatchNormalization", (2, c, 5, 4), numbers, opset=opset, epsilon=1e-3)
    check(tmp_path, "BatchNormalization", (2, c), numbers)
    check(tmp_path, "InstanceNormalization", (2, c, 5, 4), affine, epsilon=1e-3)
    check(tmp_path, "InstanceNormalization", (2, c, 7), affine)
    check(tmp_path, "LayerNormalization", (2, 3, c), affine)
    check(tmp_path, "LayerNormalization", (2, 3, c), {"s": values(c)}, axis=-1, epsilon=1e-3)
    check(tmp_path, "LayerNormalization", (2, 3, c), {"s": values(3, c), "b": values(3, c, seed=2)}, axis=1)
    check(
        tmp_path, "GroupNormalization", (2, c, 5, 4), {"s": values(2), "b": values(2, seed=2)}, opset=18, num_groups=2
    )
    check(tmp_path, "GroupNormalization", (2, c, 5, 4), affine, opset=21, num_groups=2, epsilon=1e-3)
    check(tmp_path, "LRN", (2, 6, 5, 4), size=5, alpha=0.02, beta=0.5, bias=2.0)
    check(tmp_path, "LpNormalization", (2, 6, 5), axis=1, p=2)
    check(tmp_path, "LpNormalization", (2, 6, 5), axis=-1, p=1)


def test_means_and_variances(tmp_path):
    check(tmp_path, "MeanVarianceNormalization", (2, 3, 7, 8))
    check(tmp_path, "MeanVarianceNormalization", (2, 3, 7, 8), axes=[-1, 1])


# ---- elementwise -------------------------------------------------------------------------------------------------

UNARY = [
    *("Abs", "Neg", "Exp", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos"),
    *("Tan", "Atan", "Sinh", "Cosh", "Asinh", "Erf", "Identity"),
]
ACTIVATIONS: list[tuple[str, dict[str, Any], int]] = [
    ("Relu", {}, 14),
    ("LeakyRelu", {"alpha": 0.2}, 16),
    ("Elu", {"alpha": 0.7}, 17),
    ("Celu", {"alpha": 0.7}, 12),
    ("Selu", {}, 17),
    ("Selu", {"alpha": 1.5, "gamma": 1.1}, 17),
    ("Sigmoid", {}, 17),
    ("HardSigmoid", {}, 17),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 17),
    ("HardSwish", {}, 14),
    ("Tanh", {}, 17),
    ("Gelu", {}, 20),
    ("Gelu", {"approximate": "tanh"}, 20),
    ("Mish", {}, 18),
    ("Softplus", {}, 17),
    ("Softsign", {}, 17),
    ("ThresholdedRelu", {"alpha": 0.4}, 17),
    ("Shrink", {"lambd": 0.4, "bias": 0.1}, 17),
    ("Softmax", {}, 13),
    ("Softmax", {"axis": 1}, 13),
    ("Softmax", {}, 11),
    ("Softmax", {"axis": 2}, 11),
    ("LogSoftmax", {"axis": 1}, 11),
    ("LogSoftmax", {"axis": 1}, 17),
    ("Dropout", {}, 17),
    ("Dropout", {"ratio": 0.5}, 11),
]


@pytest.mark.parametrize("op", UNARY)
def test_functions_of_one_number(tmp_path, op):
    check(tmp_path, op, (3, 5))


@pytest.mark.parametrize("op, more, opset", ACTIVATIONS)
def test_activations(tmp_path, op, more, opset):
    check(tmp_path, op, (2, 3, 4, 5), opset=opset, **more)


def test_functions_of_some_numbers_alone(tmp_path):
    for op in ("Sqrt", "Log", "Reciprocal", "Acosh"):
        proto = model(
            [node("Exp", ["x"], ["p"]), node("Add", ["p", "one"], ["q"]), node(op, ["q"])],
            {"x": (3, 4)},
            constants={"one": np.array(1.0, F32)},
        )
        assert differs(proto, tmp_path, draw([(3, 4)])) == ""
    for op in ("Asin", "Acos", "Atanh"):
        proto = model([node("Tanh", ["x"], ["p"]), node(op, ["p"])], {"x": (3, 4)})
        assert differs(proto, tmp_path, draw([(3, 4)]), 1e-5) == ""


@pytest.mark.parametrize("slope", [(1,), (3, 1, 1), (1, 3, 1, 1), (4, 5), (5,)])
def test_prelu(tmp_path, slope):
    check(tmp_path, "PRelu", (2, 3, 4, 5), {"s": values(*slope)})


def test_clip(tmp_path):
    low, high = np.array(-0.5, F32), np.array(0.7, F32)
    for constants in (
        {"a": low, "b": high},
        {"a": low},
        {"_": low, "b": high},
        {"a": np.array(0, F32), "b": np.array(6, F32)},
    ):
        for opset in (11, 13):
            check(tmp_path, "Clip", (3, 4), constants, opset=opset)
    proto = model([node("Clip", ["x", "low", ""])], {"x": (3, 4), "low": ()})
    assert differs(proto, tmp_path, draw([(3, 4), ()])) == ""


BINARY = ["Add", "Sub", "Mul", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Min", "Max"]


@pytest.mark.parametrize("op", BINARY)
def test_functions_of_two_numbers(tmp_path, op):
    for shapes in (((3, 4), (3, 4)), ((3, 1), (2, 1, 4)), ((2, 3), (1,)), ((), (2, 3))):
        proto = model([node(op, ["x", "z"])], {"x": shapes[0], "z": shapes[1]})
        assert differs(proto, tmp_path, draw(shapes)) == ""
    for constant in (values(4), np.array(0.25, F32), np.array([[[0.25]]], F32)):
        check(tmp_path, op, (3, 4), {"c": constant})
        proto = model([node(op, ["c", "x"])], {"x": (3, 4)}, constants={"c": constant})
        assert differs(proto, tmp_path, draw([(3, 4)])) == ""


def test_arithmetic_of_other_kinds(tmp_path):
    check(tmp_path, "Pow", (3, 4), {"p": np.array(2.0, F32)})
    check(tmp_path, "Pow", (3, 4), {"p": np.array(3, I64)})
    check(tmp_path, "Sum", (3, 4), {"a": values(4), "b": values(3, 1)})
    check(tmp_path, "Mean", (3, 4), {"a": values(4), "b": values(3, 1)})
    check(tmp_path, "Max", (3, 4), {"a": values(4), "b": values(3, 1)})
    check(tmp_path, "Mod", (3, 4), {"a": np.array(0.7, F32)}, fmod=1)
    whole = torch.tensor([[-7, 7, 5], [-5, 8, -9]])
    for op, more in (("Div", {}), ("Mod", {}), ("Mod", {"fmod": 1}), ("Mul", {}), ("Max", {})):
        proto = model(
            [node(op, ["x", "c"], **more)], {"x": (onnx.TensorProto.INT64, (2, 3))}, constants={"c": ints(2, -3, 4)}
        )
        assert differs(proto, tmp_path, [whole]) == ""
    nodes = [node("Greater", ["x", "z"], ["c"]), node("Not", ["c"], ["d"]), node("Where", ["d", "x", "z"])]
    assert differs(model(nodes, {"x": (3, 4), "z": (4,)}), tmp_path, draw([(3, 4), (4,)])) == ""
    nodes = [node("Greater", ["x", "z"], ["c"]), node("Less", ["x", "w"], ["d"]), node("Xor", ["c", "d"])]
    assert differs(model(nodes, {"x": (3, 4), "z": (4,), "w": (3, 1)}), tmp_path, draw([(3, 4), (4,), (3, 1)])) == ""


@pytest.mark.parametrize("to", ["FLOAT16", "DOUBLE", "INT64", "INT32", "UINT8", "BOOL"])
def test_casts(tmp_path, to):
    x = draw([(3, 4)])[0].abs() * 9
    assert differs(model([node("Cast", ["x"], to=getattr(onnx.TensorProto, to))], {"x": (3, 4)}), tmp_path, [x]) == ""


def test_bits(tmp_path):
    x = torch.randint(-100, 100, (2, 5))
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        proto = model(
            [node(op, ["x", "c"])],
            {"x": (onnx.TensorProto.INT64, [2, 5])},
            constants={"c": ints(1, 2, 3, -7, 90)},
            opset=18,
        )
        assert differs(proto, tmp_path, [x]) == ""
    assert (
        differs(model([node("BitwiseNot", ["x"])], {"x": (onnx.TensorProto.INT64, [2, 5])}, opset=18), tmp_path, [x])
        == ""
    )


# ---- linear ------------------------------------------------------------------------------------------------------


def test_products(tmp_path):
    for a, b in (((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (3, 4, 5)), ((4,), (4, 5)), ((3, 4), (4,))):
        check(tmp_path, "MatMul", a, {"w": values(*b)})
        assert differs(model([node("MatMul", ["x", "z"])], {"x": a, "z": b}), tmp_path, draw([a, b])) == ""
    for ta, tb, (alpha, beta) in itertools.product((0, 1), (0, 1), ((1.0, 1.0), (0.5, 2.0))):
        for bias in ({}, {"c": values(5)}, {"c": values(1, 5)}, {"c": values(3, 1)}, {"c": np.array(0.5, F32)}):
            constants = {"w": values(*((5, 4) if tb else (4, 5))), **bias}
            check(tmp_path, "Gemm", (4, 3) if ta else (3, 4), constants, transA=ta, transB=tb, alpha=alpha, beta=beta)
    check(tmp_path, "Einsum", (2, 3, 4), {"w": values(5, 4)}, equation="b i k, j k -> b i j")
    check(tmp_path, "Einsum", (2, 3, 4), {"w": values(2, 4, 5)}, equation="...ik,...kj->...ij")


def test_determinants(tmp_path):
    check(tmp_path, "Det", (2, 3, 4, 4))


# ---- reductions --------------------------------------------------------------------------------------------------

REDUCTIONS = [
    "ReduceSum",
    "ReduceMean",
    "ReduceProd",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
]


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions(tmp_path, op):
    for axes, keep in itertools.product(([1], [-1, 1], [0, 2]), (0, 1)):
        for opset in (11, 13, 18):
            as_input = opset >= (13 if op == "ReduceSum" else 18)
            more = {} if as_input else {"axes": axes}
            check(tmp_path, op, (2, 3, 4), {"a": ints(*axes)} if as_input else None, opset=opset, keepdims=keep, **more)
    check(tmp_path, op, (2, 3, 4), opset=18)
    check(tmp_path, op, (2, 3, 4), {"a": ints()}, opset=18, noop_with_empty_axes=1)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_positions(tmp_path, op):
    for axis, keep in itertools.product((0, -1, 1), (0, 1)):
        check(tmp_path, op, (2, 3, 4), axis=axis, keepdims=keep)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_positions_of_the_last_of_equal_ones(tmp_path, op):
    for axis, keep in itertools.product((0, -1), (0, 1)):
        proto = model([node(op, ["x"], axis=axis, keepdims=keep, select_last_index=1)], {"x": (6, 9)})
        assert differs(proto, tmp_path, [draw([(6, 9)])[0].round()]) == ""


def test_largest_ones(tmp_path):
    proto = model([node("TopK", ["x", "k"], ["y", "i"], axis=1)], {"x": (2, 6, 3)}, ("y", "i"), {"k": ints(4)})
    assert differs(proto, tmp_path, draw([(2, 6, 3)])) == ""
    for largest in (0, 1):  # of equal ones the first comes first
        top = node("TopK", ["x", "k"], ["y", "i"], axis=-1, largest=largest)
        proto = model([top], {"x": (4, 40)}, ("y", "i"), {"k": ints(30)})
        assert differs(proto, tmp_path, [draw([(4, 40)])[0].round()]) == ""
    proto = model([node("TopK", ["x", "k"], ["y", "i"], axis=1)], {"x": (2, 6, 3)}, ("y",), {"k": ints(4)})
    assert differs(proto, tmp_path, draw([(2, 6, 3)])) == ""


# ---- numbers that are known beforehand ---------------------------------------------------------------------------

NUMBERS: list[tuple[list[onnx.NodeProto], dict[str, Any]]] = [
    ([node("Sqrt", ["a"], ["b"]), node("Mul", ["b", "b"], ["c"])], {"a": F32(2)}),  # 1.9999999
    ([node("Add", ["a", "b"], ["d"]), node("Sub", ["d", "a"], ["c"])], {"a": F32(1e8), "b": F32(3)}),
    ([node("Div", ["a", "b"], ["d"]), node("Min", ["d", "a"], ["c"])], {"a": F32(1), "b": F32(0)}),
    ([node("Add", ["a", "a"], ["d"]), node("Cast", ["d"], ["c"], to=1)], {"a": np.int32(2**31 - 1)}),
    ([node("Mul", ["a", "b"], ["d"]), node("Floor", ["d"], ["c"])], {"a": F32(0.7), "b": F32(10)}),  # 7, not 6.99
    ([node("Div", ["a", "b"], ["d"]), node("Mul", ["d", "b"], ["c"])], {"a": F32(1), "b": F32(49)}),
]


@pytest.mark.parametrize("nodes, constants", NUMBERS)
def test_constants_are_computed_in_their_own_dtype(tmp_path, nodes, constants):
    proto = model([*nodes, node("Mul", ["x", "c"], ["e"]), node("Floor", ["e"])], {"x": (1, 4)}, constants=constants)
    assert differs(proto, tmp_path, [torch.tensor([[1.0, 2.0, -1.0, 3.0]])]) == ""


def test_the_root_of_a_negative_constant_is_no_number(tmp_path):
    nodes = [node("Sqrt", ["a"], ["c"]), node("IsNaN", ["c"], ["n"]), node("Where", ["n", "x", "c"])]
    proto = model(nodes, {"x": (1, 4)}, constants={"a": F32(-1)})
    assert differs(proto, tmp_path, draw([(1, 4)])) == ""
