"""Depthwise convolutions with several results per channel: split where what reads them can take the new order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.engines.onnx import cleanup, model_of
from reparam.engines.onnx.depthwise import split_depthwise
from support.helpers import Lambda
from support.onnx_models import HEADER, kinds, rewritten, run

C = 8


def wide(times: int = 2, channels: int = C, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, times * channels, kernel, padding=kernel // 2, groups=channels)


def whole(module: nn.Module, monkeypatch: pytest.MonkeyPatch, channels: int = C) -> onnx.ModelProto:
    """The ONNX graph as it is before anything is split."""
    monkeypatch.setattr(cleanup, "split_depthwise", lambda model: None)
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p)
    return model_of(convert(module.eval(), torch.randn(2, channels, 6, 7), dynamic=()).program)


def assert_split(model: onnx.ModelProto, layers: int, channels: int = C) -> None:
    """`layers` more convolutions, the same values, and a graph that the checker takes."""
    x = np.random.default_rng(0).standard_normal((2, channels, 6, 7), dtype=np.float32)
    convs, before = Counter(kinds(model))["Conv"], run(model, x)
    model = rewritten(model, split_depthwise)
    onnx.checker.check_model(model, full_check=True)
    assert Counter(kinds(model))["Conv"] == convs + layers
    np.testing.assert_allclose(run(model, x), before, rtol=1e-4, atol=1e-5 * float(np.abs(before).max()))


@pytest.mark.parametrize("times", [2, 3, 5])
@pytest.mark.parametrize("channels", [8, 12])
def test_a_convolution_takes_its_columns_in_the_new_order(
    times: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(wide(times, channels), nn.GELU(), nn.Conv2d(times * channels, 3, 1))
    assert_split(whole(model, monkeypatch, channels), times - 1, channels)


def test_the_parts_are_named_after_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = whole(nn.Sequential(wide(), nn.ReLU(), nn.Conv2d(2 * C, 3, 1)), monkeypatch)
    model = rewritten(model, split_depthwise)
    assert [n.name for n in model.graph.node] == ["0/Conv_part0", "0/Conv_part1", "0/Conv_parts", "1/Relu", "2/Conv"]
    constants = {t.name: list(t.dims) for t in model.graph.initializer}
    assert constants["0.weight_part1"] == [C, 1, 3, 3]
    assert "0.weight" not in constants


def test_layers_in_a_row_and_a_linear_layer_behind_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    depthwise = nn.Conv2d(2 * C, 2 * C, 3, groups=2 * C)
    row = (wide(), nn.PReLU(2 * C), nn.MaxPool2d(2), depthwise, nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert_split(whole(nn.Sequential(*row, nn.Linear(2 * C, 4)), monkeypatch), 1)


def test_what_is_added_and_what_multiplies_come_in_the_new_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(m.wide(x))
        gate = torch.sigmoid(m.up(F.relu(m.down(y.mean((2, 3), keepdim=True)))))
        return m.last(F.relu(y * gate + m.side(x)) * m.scale)

    parts = {
        "wide": wide(),
        "down": nn.Conv2d(2 * C, 4, 1),
        "up": nn.Conv2d(4, 2 * C, 1),
        "side": nn.Conv2d(C, 2 * C, 1),
    }
    model = Lambda(forward, **parts, last=nn.Conv2d(2 * C, 3, 1))
    model.scale = nn.Parameter(torch.ones(2 * C, 1, 1))
    assert_split(whole(model, monkeypatch), 1)


def test_two_of_them_that_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would have to bring the other into its own order: both stay."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.last(F.relu(m.a(x)) * F.relu(m.b(x)))

    assert_split(whole(Lambda(forward, a=wide(), b=wide(), last=nn.Conv2d(2 * C, 3, 1)), monkeypatch), 0)


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        ("an output", nn.ReLU()),
        ("a softmax over the channels", nn.Sequential(nn.Softmax(1), nn.Conv2d(2 * C, 3, 1))),
        ("groups of channels", nn.Conv2d(2 * C, 2 * C, 3, groups=4)),
        ("a shuffle", nn.Sequential(nn.ChannelShuffle(4), nn.Conv2d(2 * C, 3, 1))),
        ("positions that go into the columns", nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(2 * C * 42, 3))),
        ("another of them", nn.Sequential(wide(2, 2 * C), nn.Softmax(1))),
    ],
)
def test_it_stays_whole_before(name: str, behind: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_split(whole(nn.Sequential(wide(), behind), monkeypatch), 0)


def test_the_second_of_a_row_is_split_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(wide(), nn.ReLU(), wide(2, 2 * C), nn.ReLU(), nn.Conv2d(4 * C, 3, 1))
    assert_split(whole(model, monkeypatch), 1)


def test_few_channels_and_one_input_channel_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for channels in (1, 7):
        model = nn.Sequential(wide(2, channels), nn.ReLU(), nn.Conv2d(2 * channels, 3, 1))
        assert_split(whole(model, monkeypatch, channels), 0, channels)


def test_a_weight_that_two_layers_read_is_not_turned() -> None:
    model = onnx.parser.parse_model(
        f"{HEADER} g (float[2,8,6,7] x) => (float[2,16,6,7] y, float[2,16,6,7] z) "
        f"<float[16,1,1,1] w = {{{','.join('1' * 16)}}}, float[16,16,1,1] v = {{{','.join(map(str, range(256)))}}}, "
        "float[2,16,6,7] a, float[2,16,6,7] b> "
        "{ a = Conv<group=8>(x, w) y = Conv(a, v) b = Concat<axis=1>(x, x) z = Conv(b, v) }"
    )
    assert_split(model, 0)


WEIGHTS = f"<float[16,1,1,1] w = {{{','.join(map(str, range(16)))}}}, float[3,16,1,1] v = {{{','.join(['1'] * 48)}}}>"


def test_a_weight_that_the_caller_can_replace_is_not_split() -> None:
    model = onnx.parser.parse_model(
        f"{HEADER} g (float[2,8,6,7] x) => (float[2,3,6,7] y) {WEIGHTS} {{ a = Conv<group=8>(x, w) y = Conv(a, v) }}"
    )
    assert_split(model, 1)
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [16, 1, 1, 1]))
    assert_split(model, 0)


def test_a_graph_with_branches_stays() -> None:
    model = onnx.parser.parse_model(
        f"{HEADER} g (float[2,8,6,7] x, bool c) => (float[2,3,6,7] y) {WEIGHTS} {{ a = Conv<group=8>(x, w) y = If (c) <"
        "then_branch = t () => (float[2,3,6,7] p) { p = Conv(a, v) },"
        "else_branch = e () => (float[2,3,6,7] q) { b = Neg(a) q = Conv(b, v) }> }"
    )
    assert kinds(rewritten(model, split_depthwise)) == ["Conv", "If"]
