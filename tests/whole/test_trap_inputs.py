"""Traps around the layers: dtypes, layouts, signatures, what evaluation drops, and what cannot be captured."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.capture import capture
from reparam.errors import CaptureError
from support.helpers import EXACT, Lambda, conv_bn, doubles, fuse, fuse_exactly, healthy, module_rel

# ---- dtypes and layouts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_is_folded_in_float64_and_cast_once(dtype: torch.dtype) -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())).to(dtype)
    x = doubles(2, 4, 5, 6).to(dtype)
    fused = fuse(model, x)
    assert fused.text == "relu(conv3x3(x))"
    assert all(c.value.dtype == torch.float64 and c.dtype == dtype for c in fused.program.constants.values())
    result = reparam.convert(model, x)
    assert {v.dtype for v in result.module.state_dict().values()} == {dtype}
    assert result.module(x).dtype == dtype
    conv, norm = model[0], model[1]
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    exact = (conv.weight.double() * scale[:, None, None, None]).to(dtype)
    [weight] = [v for v in result.module.state_dict().values() if v.dim() == 4]
    assert torch.equal(weight, exact)


def test_a_running_variance_beyond_float16_is_folded_before_the_cast() -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))).float()
    with torch.no_grad():
        model[0].weight.mul_(1e4)
        model[1].running_var.mul_(1e8)
        model[1].running_mean.mul_(1e2)
    x = doubles(2, 4, 5, 6).float()
    result = reparam.convert(model, x, dtype=torch.float16)
    assert {v.dtype for v in result.module.state_dict().values()} == {torch.float16}
    truth, half = model.double()(x.double()), result.module(x.half()).double()
    assert float((truth - half).detach().abs().max() / truth.detach().abs().max()) < 4e-3
    with torch.no_grad():
        overflowing = copy.deepcopy(model).half()
        assert bool(torch.isinf(overflowing[1].running_var).any())  # the trap: casting first loses the statistics


def test_channels_last_models_and_inputs() -> None:
    model = healthy(
        Lambda(
            lambda m, x: m.head(F.relu(m.block(x)).flatten(1)),
            block=conv_bn(4, 4, padding=1),
            head=nn.Linear(4 * 5 * 6, 3),
        )
    ).to(memory_format=torch.channels_last)
    x = doubles(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    assert fuse_exactly(model, x, bound=EXACT).text.startswith("linear(")
    module = reparam.convert(model, x).module
    for layout in (torch.channels_last, torch.contiguous_format):
        y = module(x.contiguous(memory_format=layout))
        assert float((y - model(x)).detach().abs().max()) <= 1e-12


def test_a_view_captured_on_one_layout_runs_on_another() -> None:
    """`.view` on a channels_last tensor raises in eager mode; the converted model must take both."""
    model = healthy(Lambda(lambda m, x: m.head((x * 2).view(x.shape[0], -1)), head=nn.Linear(24, 3)))
    x = doubles(2, 4, 2, 3)
    module = reparam.convert(model, x).module
    turned = x.contiguous(memory_format=torch.channels_last)
    assert float((module(turned) - model(x)).detach().abs().max()) <= 1e-12


def test_an_empty_batch_gives_an_empty_result() -> None:
    model = healthy(
        nn.Sequential(conv_bn(4, 4, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    )
    module = reparam.convert(model, doubles(2, 4, 5, 6)).module
    assert module(torch.zeros(0, 4, 5, 6, dtype=torch.float64)).shape == (0, 3)


# ---- inputs and outputs ------------------------------------------------------------------------------------------


def test_scalar_tensor_inputs_and_python_numbers() -> None:
    model = healthy(Lambda(lambda m, x, t, k: m.block(x) * t + k, block=conv_bn(4, 4, padding=1)))
    x, t = doubles(2, 4, 5, 6), torch.tensor(1.5, dtype=torch.float64)
    fused = fuse_exactly(model, x, t, 2, bound=EXACT)
    assert "batch_norm" not in fused.text


def test_integer_inputs() -> None:
    model = healthy(nn.Sequential(nn.Embedding(11, 4), nn.LayerNorm(4), nn.Linear(4, 3)))
    fused = fuse_exactly(model, torch.randint(0, 11, (2, 5)), bound=EXACT)
    assert fused.text.startswith("linear(layer_norm(embedding(")


@dataclasses.dataclass
class Detection:
    boxes: Tensor
    scores: Tensor


def test_several_inputs_and_outputs_in_a_dict_and_a_dataclass() -> None:
    model = healthy(
        Lambda(
            lambda m, a, b: {"sum": m.p(a) + m.q(b), "found": Detection(m.p(a), torch.sigmoid(m.q(b))), "same": a},
            p=conv_bn(4, 4, padding=1),
            q=conv_bn(4, 4, 1),
        )
    )
    a, b = doubles(2, 4, 5, 6), doubles(2, 4, 5, 6, seed=8)
    fused = fuse(model, a, b)
    assert "batch_norm" not in fused.text
    truth = model(a, b)
    module = reparam.convert(model, a, b).module
    result = module(a, b)
    assert isinstance(result["found"], Detection)
    assert torch.equal(result["same"], a)
    for one, two in ((truth["sum"], result["sum"]), (truth["found"].scores, result["found"].scores)):
        assert float((one - two).detach().abs().max()) <= 1e-12


def test_the_same_tensor_given_for_two_inputs_makes_two_inputs() -> None:
    model = healthy(Lambda(lambda m, a, b: m.conv(a) - b, conv=nn.Conv2d(4, 4, 3, padding=1)))
    x = doubles(2, 4, 5, 6)
    fused = fuse(model, x, x)
    assert fused.text == "sub(conv3x3(x0), x1)"
    assert module_rel(model, fused.program, [x, doubles(2, 4, 5, 6, seed=8)]) <= EXACT


def test_an_output_used_twice() -> None:
    model = healthy(Lambda(lambda m, x: (y := m.block(x), y, F.relu(y)), block=conv_bn(4, 4, padding=1)))
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == "a = conv3x3(x); a, a, relu(a)"


def test_a_model_that_returns_its_input() -> None:
    model = healthy(nn.Sequential(nn.Dropout(), nn.Identity()))
    x = doubles(2, 4)
    assert fuse_exactly(model, x, bound=0.0).text == "x"
    assert torch.equal(reparam.convert(model, x).module(x), x)


# ---- dead weight -------------------------------------------------------------------------------------------------


class DropPath(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate) / (1 - self.rate)


def test_dead_weight_in_evaluation_mode_disappears() -> None:
    model = healthy(
        Lambda(
            lambda m, x: (
                m.drop(m.path(m.conv(x).contiguous().to(torch.float64)[:, :, :, :].clone().detach())) * 1.0 + 0
            ),
            conv=nn.Sequential(nn.Identity(), nn.Conv2d(4, 4, 3, padding=1), nn.Dropout2d(0.3), nn.BatchNorm2d(4)),
            path=DropPath(0.5),
            drop=nn.Sequential(nn.Dropout(0.1), nn.AlphaDropout(0.1), nn.FeatureAlphaDropout(0.1)),
        )
    )
    assert fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT).text == "conv3x3(x)"


def test_stochastic_depth_of_torchvision_disappears() -> None:
    ops = pytest.importorskip("torchvision.ops")
    model = healthy(
        Lambda(
            lambda m, x: x + m.path(m.block(x)), block=conv_bn(4, 4, padding=1), path=ops.StochasticDepth(0.5, "row")
        )
    )
    assert fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT).text == "conv3x3(x)"


def test_dropout_that_stays_on_in_evaluation_mode_is_refused() -> None:
    """Monte-Carlo dropout draws random numbers: it must not be taken for the identity."""
    model = healthy(Lambda(lambda m, x: F.dropout(m.conv(x), 0.5, training=True), conv=nn.Conv2d(4, 4, 1)))
    with pytest.raises(CaptureError, match="draws random numbers while it runs, by dropout"):
        fuse(model, doubles(2, 4, 5, 6))


# ---- control flow ------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # this line is in the message
            return x
        return -x


def test_data_dependent_control_flow_names_the_line() -> None:
    with pytest.raises(CaptureError) as error:
        capture(Branching(), (doubles(2, 4),))
    text = str(error.value)
    assert "Branching cannot be captured as one graph" in text
    assert "if x.sum() > 0:" in text and "test_trap_inputs.py:" in text
    assert "depends on the data" in text
