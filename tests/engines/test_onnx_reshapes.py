"""Reshapes between linear layers: they fall away where they commute, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx.parser import parse_model
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.engines.onnx import model_of
from reparam.engines.onnx.reshapes import keep_rows
from reparam.loading import build_architecture
from support.onnx_models import HEADER, kinds, rewritten, run

ROWS = "int64[2] rows = {-1, 4}, int64[3] tokens = {-1, 5, 4}, int64[3] pairs = {-1, 2, 4}"
ORDER = np.random.default_rng(0)


def kept(body: str, output: str = "float[batch,5,4] y", more: str = "") -> list[str]:
    """The kinds of nodes after `keep_rows`, once the values are seen to be the same."""
    names = "float[n,4] a, float[batch,5,4] b, float[n,4] c, float[batch,5,4] d, float[n,4] e"
    model = parse_model(f"{HEADER} g (float[batch,5,4] x) => ({output}) <{ROWS}{more}, {names}> {{ {body} }}")
    x = ORDER.standard_normal((3, 5, 4), dtype=np.float32)
    before = run(model, x)
    model = rewritten(model, keep_rows)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, x), before)
    return kinds(model)


@pytest.mark.parametrize("kind", ["Relu", "Gelu", "HardSwish", "LeakyRelu<alpha=0.1>"])
def test_what_lies_between_two_reshapes_is_computed_on_rows(kind: str) -> None:
    body = f"a = Reshape(x, rows) b = Reshape(a, tokens) d = {kind}(b) e = Reshape(d, rows) y = Relu(e)"
    assert kept(body, "float[n,4] y") == ["Reshape", kind.partition("<")[0], "Relu"]


def test_a_sum_of_two_streams_of_rows() -> None:
    body = (
        "a = Reshape(x, rows) c = Relu(a) b = Reshape(c, tokens) d = Add(x, b) e = Reshape(d, rows) "
        "f = Sigmoid(e) y = Reshape(f, tokens)"
    )
    assert kept(body) == ["Reshape", "Relu", "Add", "Sigmoid", "Reshape"]


def test_a_norm_of_rows_moves_and_one_of_more_does_not() -> None:
    ones = ", float[4] g = {1, 2, 3, 4}"
    body = "a = Reshape(x, rows) b = Reshape(a, tokens) d = LayerNormalization<axis=-1>(b, g) y = Reshape(d, rows)"
    assert kept(body, "float[n,4] y", ones) == ["Reshape", "LayerNormalization", "Reshape"]
    wide = ", float[5,4] g = {" + ",".join(["2"] * 20) + "}"
    body = body.replace("axis=-1", "axis=1")
    assert kept(body, "float[n,4] y", wide) == ["Reshape", "Reshape", "LayerNormalization", "Reshape"]


def test_softmax_and_sums_of_another_shape_stay_where_they_are() -> None:
    body = "a = Reshape(x, rows) b = Reshape(a, tokens) d = Softmax<axis=1>(b) y = Reshape(d, rows)"
    assert kept(body, "float[n,4] y") == ["Reshape", "Reshape", "Softmax", "Reshape"]
    body = "a = Reshape(x, rows) b = Reshape(a, tokens) d = Add(b, one) y = Reshape(d, rows)"
    one = ", float[5,1] one = {1, 2, 3, 4, 5}"
    assert kept(body, "float[n,4] y", one) == ["Reshape", "Reshape", "Add", "Reshape"]


def test_other_shapes_of_the_same_rows_are_kept() -> None:
    body = "a = Reshape(x, rows) b = Reshape(a, tokens) d = Relu(b) f = Reshape(d, columns) y = Reshape(f, tokens)"
    columns = ", int64[2] columns = {-1, 2}"
    assert kept(body, more=columns) == ["Reshape", "Relu", "Reshape", "Reshape"]


def test_a_value_that_is_an_output_keeps_its_name() -> None:
    body = "a = Reshape(x, rows) b = Reshape(a, tokens) y = Relu(b)"
    assert kept(body) == ["Reshape", "Relu", "Reshape"]


def test_sizes_without_a_name_are_not_taken_as_equal() -> None:
    text = (
        f"{HEADER} g (float[batch,5,4] x, float[?,5,4] z) => (float[m,5,4] y) <{ROWS}, float[n,4] a, float[?,5,4] b>"
        "{ a = Reshape(x, rows) b = Reshape(a, tokens) y = Add(b, z) }"
    )
    model = parse_model(text)
    assert kinds(rewritten(model, keep_rows)) == ["Reshape", "Reshape", "Add"]


def test_a_graph_with_branches_stays() -> None:
    text = (
        f"{HEADER} g (float[batch,5,4] x, bool c) => (float[n,4] y) <{ROWS}, float[n,4] a, float[batch,5,4] b>"
        "{ a = Reshape(x, rows) b = Reshape(a, tokens) d = Relu(b) e = Reshape(d, rows) y = If (c) <"
        "then_branch = t () => (float[n,4] p) { p = Identity(e) },"
        "else_branch = f () => (float[n,4] q) { q = Reshape(b, rows) }> }"
    )
    model = parse_model(text)
    assert kinds(rewritten(model, keep_rows)) == kinds(model)


def test_a_perceptron_on_tokens_has_no_reshape_inside() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.first, self.second = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.second(nn.functional.gelu(self.first(self.norm(x))))
            return y

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), Block(), Block()).eval()
    x = torch.randn(3, 5, 8)
    model = model_of(convert(net, torch.randn(2, 5, 8)).program)
    assert kinds(model).count("Reshape") == 2
    assert kinds(model).count("Gemm") == 5
    with torch.no_grad():
        np.testing.assert_allclose(run(model, x.numpy()), net(x).numpy(), rtol=1e-5, atol=1e-5)


def test_a_network_of_attention_computes_the_same() -> None:
    built = build_architecture("reparam/transformer_small")
    assert built.input_shapes is not None
    x = torch.randn(2, *built.input_shapes[0])
    model = model_of(convert(built.module, x).program)
    with torch.no_grad():
        np.testing.assert_allclose(run(model, x.numpy()), built.module(x).numpy(), rtol=1e-4, atol=1e-5)
