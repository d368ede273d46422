"""Operators that move, cut, join and resize against onnxruntime, over attributes and opsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx
import pytest
import torch

from support.onnx_graphs import F32, I64, check, differs, draw, imported, ints, model, node, theirs, values

# ---- movement ----------------------------------------------------------------------------------------------------


def test_shapes(tmp_path):
    for sizes in ([2, 12], [0, -1], [-1, 6], [4, 0, -1]):
        check(tmp_path, "Reshape", (2, 3, 4), {"s": ints(*sizes)})
    for axis in (0, 1, 2, 3, -1):
        check(tmp_path, "Flatten", (2, 3, 4), axis=axis)
    for opset in (11, 13):
        for axes in ([0], [-1], [1, -1]):
            more = {"axes": axes} if opset < 13 else {}
            constants = {"a": ints(*axes)} if opset >= 13 else None
            check(tmp_path, "Unsqueeze", (2, 3), constants, opset=opset, **more)
            if axes != [0]:
                check(tmp_path, "Squeeze", (2, 1, 3, 1), constants, opset=opset, **more)
        check(tmp_path, "Squeeze", (2, 1, 3, 1), opset=opset)
    check(tmp_path, "Transpose", (2, 3, 4))
    check(tmp_path, "Transpose", (2, 3, 4), perm=[1, 0, 2])
    for sizes in ([2, 3, 4], [5, 1, 3, 1], [1, 1], [3, 4]):
        check(tmp_path, "Expand", (3, 1), {"s": ints(*sizes)})
    check(tmp_path, "Tile", (2, 3), {"r": ints(2, 3)})
    check(tmp_path, "Shape", (2, 3, 4))
    check(tmp_path, "Shape", (2, 3, 4), opset=15, start=1, end=-1)
    check(tmp_path, "Size", (2, 3, 4))
    for mode, op, shape in (("DCR", "DepthToSpace", (2, 12, 3, 4)), ("CRD", "DepthToSpace", (2, 12, 3, 4))):
        check(tmp_path, op, shape, blocksize=2, mode=mode)
    check(tmp_path, "SpaceToDepth", (2, 3, 4, 6), blocksize=2)


SLICES = [
    ([1], [3], [1], [1]),
    ([0, 1], [2, 9], [0, 2], [1, 2]),
    ([-3], [-1], [2], [1]),
    ([-100], [2**31 - 1], [1], [1]),
    ([-1], [-100], [2], [-1]),
    ([4], [0], [1], [-2]),
    ([3], [1], [1], [1]),
    ([5], [-(2**63)], [2], [-1]),
]


@pytest.mark.parametrize("starts, ends, axes, steps", SLICES)
def test_slices(tmp_path, starts, ends, axes, steps):
    constants = {"s": ints(*starts), "e": ints(*ends), "a": ints(*axes), "t": ints(*steps)}
    check(tmp_path, "Slice", (2, 5, 6), constants)


def test_parts(tmp_path):
    for axis, index in ((0, ints(1)), (1, np.array(-1, I64)), (2, np.array([[0, 3], [-2, 1]], I64))):
        check(tmp_path, "Gather", (2, 3, 4), {"i": index}, axis=axis)
    ids = torch.tensor([[0, 3], [2, 1]])
    proto = model([node("Gather", ["w", "x"])], {"x": (onnx.TensorProto.INT64, (2, 2))}, constants={"w": values(5, 3)})
    assert differs(proto, tmp_path, [ids]) == ""
    check(tmp_path, "GatherElements", (2, 3), {"i": np.array([[0, -1], [2, 1]], I64)}, axis=1)
    check(tmp_path, "GatherND", (2, 3, 4), {"i": np.array([[0, 1], [1, -1]], I64)})
    check(tmp_path, "ScatterND", (4, 3), {"i": np.array([[0], [2]], I64), "u": values(2, 3)}, opset=16)
    check(tmp_path, "ScatterElements", (4, 3), {"i": np.array([[0, -1, 2]], I64), "u": values(1, 3)}, axis=0)
    for opset in (11, 13, 18):
        names = ["a", "b", "c"]
        nodes = [
            node(
                "Split",
                ["x"] + (["s"] if opset >= 13 else []),
                names,
                axis=1,
                **({"split": [1, 2, 3]} if opset < 13 else {}),
            )
        ]
        proto = model(nodes, {"x": (2, 6)}, names, {"s": ints(1, 2, 3)} if opset >= 13 else {}, opset=opset)
        assert differs(proto, tmp_path, draw([(2, 6)])) == ""
        more = {"num_outputs": 3} if opset >= 18 else {}
        proto = model([node("Split", ["x"], names, axis=-1, **more)], {"x": (2, 6)}, names, opset=opset)
        assert differs(proto, tmp_path, draw([(2, 6)])) == ""
    proto = model([node("Split", ["x"], ["a", "b", "c"], num_outputs=3)], {"x": (7, 2)}, ("a", "b", "c"), opset=18)
    assert differs(proto, tmp_path, draw([(7, 2)])) == ""
    check(tmp_path, "Concat", (2, 3), {"c": values(2, 1)}, axis=-1)


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_what_falls_on_a_place_that_is_written_already(tmp_path, reduction):
    [x] = draw([(2, 3, 4, 5)])
    points = {"i": ints(0, 2, -2, -1, 0, 2, 1, 1).reshape(2, 2, 2), "u": values(2, 2, 4, 5)}
    proto = model([node("ScatterND", ["x", "i", "u"], reduction=reduction)], {"x": x.shape}, constants=points, opset=18)
    assert differs(proto, tmp_path, [x]) == ""
    places = {"i": np.random.default_rng(0).integers(-3, 3, (2, 4, 4, 5)), "u": values(2, 4, 4, 5)}
    operator = node("ScatterElements", ["x", "i", "u"], axis=1, reduction=reduction)
    assert differs(model([operator], {"x": x.shape}, constants=places, opset=18), tmp_path, [x]) == ""


def test_patches_that_overlap(tmp_path):
    check(
        tmp_path, "Col2Im", (2, 12, 20), {"s": ints(7, 5), "k": ints(2, 2)}, opset=18, strides=[2, 1], pads=[1, 0, 0, 1]
    )
    check(tmp_path, "Col2Im", (2, 12, 18), {"s": ints(7, 5), "k": ints(2, 2)}, opset=18, dilations=[1, 2])


def test_borders(tmp_path):
    for mode, opset in itertools.product(("constant", "reflect", "edge"), (11, 13, 18)):
        check(tmp_path, "Pad", (2, 3, 5, 6), {"p": ints(0, 0, 1, 2, 0, 0, 3, 1)}, opset=opset, mode=mode)
    check(tmp_path, "Pad", (2, 3, 5, 6), {"p": ints(0, 0, 1, 2, 0, 0, 3, 1)}, opset=19, mode="wrap")
    check(tmp_path, "Pad", (2, 3, 5), {"p": ints(1, 2, 0, 0, 1, -1), "v": np.array(0.5, F32)})
    check(tmp_path, "Pad", (2, 3, 5), {"p": ints(1, 2), "_v": 0, "a": ints(-1)}, opset=18, mode="edge")
    check(tmp_path, "Pad", (2, 3, 4, 5), {"p": ints(0, 1, 0, 0, 0, 1, 0, 2)}, mode="edge")
    check(tmp_path, "Pad", (3, 5), {"p": ints(0, 1, 0, 2)}, mode="reflect")


def test_made_of_sizes(tmp_path):
    check(tmp_path, "Trilu", (2, 4, 5), opset=14)
    check(tmp_path, "Trilu", (4, 5), {"k": np.array(1, I64)}, opset=14, upper=0)
    for exclusive, reverse in itertools.product((0, 1), (0, 1)):
        check(tmp_path, "CumSum", (3, 4), {"a": np.array(1, I64)}, exclusive=exclusive, reverse=reverse)
        nodes = [node("CumSum", ["x", "a"], exclusive=exclusive, reverse=reverse)]
        proto = model(nodes, {"x": (1, 5)}, constants={"a": np.array(1, I64)})
        large = torch.tensor([[1.0, 3e38, 2.0, float("inf"), 1.0]])
        large = large.flip(1) if reverse else large
        with torch.no_grad():
            found = imported(proto, tmp_path)(large)["y"].numpy()
        np.testing.assert_array_equal(found, theirs(proto, [large])[0])  # nothing is subtracted again
    for axis in (-1, 0, 1):
        nodes = [node("OneHot", ["x", "d", "v"], axis=axis)]
        constants = {"d": ints(4), "v": np.array([0.5, 2.0], F32)}
        proto = model(nodes, {"x": (onnx.TensorProto.INT64, (2, 3))}, constants=constants)
        assert differs(proto, tmp_path, [torch.tensor([[0, 3, -1], [5, -6, 2]])]) == ""
    nodes = [node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["z"]), node("Add", ["x", "z"])]
    assert differs(model(nodes, {"x": (2, 3)}), tmp_path, draw([(2, 3)])) == ""
    nodes = [node("Range", ["a", "b", "c"], ["r"]), node("Mul", ["x", "r"])]
    constants = {"a": np.array(1, F32), "b": np.array(7, F32), "c": np.array(2, F32)}
    assert differs(model(nodes, {"x": (2, 3)}, constants=constants), tmp_path, draw([(2, 3)])) == ""


# ---- resizing ----------------------------------------------------------------------------------------------------

COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


@pytest.mark.parametrize("where", COORDINATES)
@pytest.mark.parametrize("scales", [(2.0, 2.0), (3.0, 2.0), (0.5, 0.5), (1.6, 0.75)])
def test_resizing(tmp_path, where, scales):
    shape = (1, 2, 6, 8)
    constants = {"_r": 0, "s": np.array([1.0, 1.0, *scales], F32)}
    for rounding in ROUNDINGS:
        check(
            tmp_path,
            "Resize",
            shape,
            constants,
            mode="nearest",
            coordinate_transformation_mode=where,
            nearest_mode=rounding,
        )
    sizes = {"_r": 0, "_s": 0, "t": ints(1, 2, *(math.floor(n * s) for n, s in zip((6, 8), scales, strict=True)))}
    for given in (constants, sizes):
        check(tmp_path, "Resize", shape, given, mode="linear", coordinate_transformation_mode=where)
        if where != "asymmetric":
            check(tmp_path, "Resize", shape, given, mode="cubic", coordinate_transformation_mode=where)


@pytest.mark.parametrize("scale", [0.7, 1.3, 2.3, 1 / 3])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_as_many_positions_as_the_scale_gives_in_float32(tmp_path, mode, scale):
    """10 * 0.7 is 7 there, and 10 * float32(0.7) is 6.99 in float64."""
    for size in (10, 20, 30, 90):
        constants = {"_r": 0, "s": np.array([1.0, 1.0, scale, 1.0], F32)}
        more = {} if mode != "nearest" else {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        proto = model(
            [node("Resize", ["x", "", "s"], mode=mode, **more)], {"x": (1, 1, size, 3)}, constants={"s": constants["s"]}
        )
        assert differs(proto, tmp_path, draw([(1, 1, size, 3)]), 2e-5) == ""


def test_resizing_in_other_forms(tmp_path):
    empty = {"r": np.array([], F32), "s": np.array([1, 1, 2, 2], F32)}
    check(
        tmp_path, "Resize", (1, 2, 3, 4), empty, opset=11, mode="linear", coordinate_transformation_mode="align_corners"
    )
    both = {"r": np.array([], F32), "s": np.array([], F32), "t": ints(1, 2, 6, 8)}
    check(
        tmp_path,
        "Resize",
        (1, 2, 3, 4),
        both,
        opset=11,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    named = {"_r": 0, "s": np.array([2, 3], F32)}
    check(tmp_path, "Resize", (1, 2, 3, 4), named, opset=18, mode="nearest", axes=[2, 3])
    check(tmp_path, "Resize", (1, 2, 5), {"_r": 0, "s": np.array([1, 1, 2], F32)}, mode="linear")
    check(tmp_path, "Resize", (1, 2, 5), {"_r": 0, "s": np.array([1, 2, 1], F32)}, mode="nearest")
    check(
        tmp_path,
        "Resize",
        (1, 2, 5, 5),
        {"_r": 0, "s": np.array([1, 1, 1.5, 1.5], F32)},
        opset=19,
        mode="linear",
        coordinate_transformation_mode="half_pixel_symmetric",
    )


def test_grids_of_affine_maps(tmp_path):
    check(tmp_path, "AffineGrid", (2, 2, 3), {"s": ints(2, 3, 4, 5)}, opset=20, align_corners=1)
    check(tmp_path, "AffineGrid", (2, 3, 4), {"s": ints(2, 3, 4, 5, 6)}, opset=20)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_sampling_on_a_grid(tmp_path, mode):
    for border, aligned in itertools.product(("zeros", "border", "reflection"), (0, 1)):
        proto = model(
            [node("GridSample", ["x", "g"], mode=mode, padding_mode=border, align_corners=aligned)],
            {"x": (2, 3, 5, 6), "g": (2, 4, 4, 2)},
            opset=20,
        )
        assert differs(proto, tmp_path, draw([(2, 3, 5, 6), (2, 4, 4, 2)]), 1e-5) == ""


@pytest.mark.parametrize("mode, coefficient", [("linear", -0.75), ("cubic", -0.5)])
@pytest.mark.parametrize("sizes", [(2, 3, 5, 4), (2, 3, 20, 7), (2, 3, 11, 30)])
def test_resizing_without_aliasing(tmp_path, mode, coefficient, sizes):
    more = {"antialias": 1, "exclude_outside": 1, "cubic_coeff_a": coefficient, "mode": mode}
    check(tmp_path, "Resize", (2, 3, 11, 16), {"_roi": None, "_scales": None, "n": ints(*sizes)}, opset=18, **more)
