"""Predicted moments against those of random tensors: operator by operator, and of whole networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.capture import capture
from reparam.signal import Power, predict
from support.moments import IMAGE, PARTS, Of, agreed, image


def scaled(x: Tensor) -> Tensor:
    return x * torch.linspace(0.5, 2, IMAGE[1]).view(-1, 1, 1) + 0.3


def gated(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True).roll(1, 1))


UNARY: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "silu, spelled": Of(lambda x: x * torch.sigmoid(x)),
    "tanh": nn.Tanh(),
    "elu": nn.ELU(),
    "leaky": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(IMAGE[1]),
    "hardswish": nn.Hardswish(),
    "relu6 of twice": Of(lambda x: F.relu6(2 * x - 0.5)),
    "square": Of(lambda x: x**2),
    "softplus": nn.Softplus(),
    "channel scale": Of(scaled),
    "layer norm": Of(lambda norm, x: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(IMAGE[1])),
    "group norm": nn.GroupNorm(32, IMAGE[1]),
    "one group": nn.GroupNorm(1, IMAGE[1]),
    "instance norm": nn.InstanceNorm2d(IMAGE[1]),
    "global pool": nn.AdaptiveAvgPool2d(1),
    "average pool": nn.AvgPool2d(2),
    "max-pool": nn.MaxPool2d(2),
    "mean": Of(lambda x: x.mean((2, 3))),
    "sum": Of(lambda x: x.sum((2, 3))),
    "pad": nn.ZeroPad2d(1),
    "pad channels": Of(lambda x: F.pad(x, (0, 0, 0, 0, 0, 512))),
    "flatten": nn.Flatten(),
    "shuffle": nn.PixelShuffle(2),
    "split": Of(lambda x: torch.chunk(x, 2, 1)[0]),
    "upsample": nn.Upsample(scale_factor=2),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "gate": Of(gated),
    "softmax over places": Of(lambda x: x.flatten(2).softmax(-1)),
}
BINARY = {
    "sum": Of(lambda x, y: x + y),
    "difference": Of(lambda x, y: 2 * x - y),
    "sum with nothing": Of(lambda x, y: torch.add(x, y, alpha=0)),
    "product": Of(lambda x, y: x * y),
    "side by side": Of(lambda x, y: torch.cat((x, 2 * y), 1)),
    "one above the other": Of(lambda x, y: torch.cat((x, 2 * y), 2)),
    "quotient": Of(lambda x, y: x / (1 + y.abs())),
}


@pytest.mark.parametrize("name", UNARY)
def test_an_operator_on_one_value(name: str) -> None:
    """A split is measured on half of the channels, which are few."""
    predicted, seen = agreed(UNARY[name].double(), image(0), within=0.02 if name == "split" else 0.01)
    if name in ("flatten", "shuffle", "instance norm"):  # no axis counts places alone; places are not independent
        return
    for part in ("channel", "sample", "place"):
        assert getattr(predicted, part) == pytest.approx(getattr(seen, part), abs=0.03 * seen.second), part


@pytest.mark.parametrize("name", BINARY)
def test_an_operator_on_two_values(name: str) -> None:
    agreed(BINARY[name].double(), image(0), image(1))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "padded": lambda: nn.Conv2d(768, 1500, 3, padding=1, bias=False),
    "strided": lambda: nn.Conv2d(768, 1500, 3, 2, 1),
    "dilated": lambda: nn.Conv2d(768, 1500, 3, dilation=2, padding=2, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(768, 1500, 3, 2, 1, output_padding=1),
    "linear": lambda: Of(lambda layer, x: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.Linear(768, 4000)),
    "flat": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(768, 4000)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name: str) -> None:
    torch.manual_seed(1)
    within = 0.02 if name == "dilated" else 0.01  # of groups the weights are few: 1,500 results of one input
    agreed(LAYERS[name]().double(), image(0), within=within)


@pytest.mark.parametrize("name", ["padded", "strided", "cut off"])
def test_the_mean_of_its_input_meets_fewer_taps_at_the_border(name: str) -> None:
    """Sums of weights are those of the taps inside of the image, and are large where most weights have one sign."""
    torch.manual_seed(0)
    layer = {
        "padded": nn.Conv2d(256, 256, 3, padding=1, groups=256, bias=False),
        "strided": nn.Conv2d(256, 256, 5, 2, 2, groups=256, bias=False),
        "cut off": nn.Conv2d(256, 256, (3, 1), padding=(2, 1), dilation=2, groups=256, bias=False),
    }[name].double()
    with torch.no_grad():
        layer.weight.uniform_(-0.2, 1)
    program = capture(layer, (image(0)[:2, :256, :4, :4],)).program
    found = predict(program, inputs={s.name: Power(1.0, 0.0, 0.0, 1e-4) for s in program.inputs})
    (last,) = program.output.all_input_nodes
    power, seen = found.power(last), layer(torch.ones(1, 256, 4, 4, dtype=torch.float64)).detach()
    assert power is not None
    assert power.mean == pytest.approx(float(seen.mean()), rel=1e-9)
    assert power.second == pytest.approx(float(seen.square().mean()), rel=1e-3)
    assert power.channel == pytest.approx(float(seen.mean((2, 3)).var(correction=0)), rel=1e-3)


def test_batch_norms_and_dropouts_in_training_and_in_evaluation() -> None:
    norm, drop = nn.BatchNorm2d(IMAGE[1]), nn.Dropout(0.25)
    with torch.no_grad():
        norm.running_mean += 0.2
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
    model = nn.Sequential(norm, drop).double()
    agreed(model, image(0))
    program = capture(model.eval(), (image(0)[:2],)).program
    found = predict(program, training=True, inputs={s.name: PARTS for s in program.inputs})
    (last,) = program.output.all_input_nodes
    power = found.power(last)
    assert power is not None
    seen = model.train()(image(0)).square().mean()
    assert power.second == pytest.approx(float(seen), rel=0.01)
    assert power.share_of_means == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("spelled", [False, True])
def test_attention(spelled: bool) -> None:
    """Softmax attention of normal tokens: what is alike in all tokens passes, the rest is averaged."""

    def attend(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        q, k, v = (t.flatten(2).transpose(1, 2) for t in (x, y, z))
        if not spelled:
            return F.scaled_dot_product_attention(q, k, v)
        return torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v

    parts = [image(i, Power(0, 0.0, 0.2, 0.8)) for i in range(3)]
    agreed(Of(attend), *parts, within=0.02 if spelled else 0.01)


def test_what_has_no_moments_is_unknown_until_a_norm() -> None:
    model = Of(lambda norm, x: norm(x.log()), nn.LayerNorm(4)).double()  # of negative numbers, too
    program = capture(model, (image(0)[:2],)).program
    found = predict(program)
    (last,) = program.output.all_input_nodes
    power = found.power(last)
    assert found.power(last.all_input_nodes[0]) is None
    assert power is not None and power.second == pytest.approx(1)


def test_a_branch_at_zero_leaves_the_law_of_the_skip() -> None:
    """relu(relu(x) + 0) is relu(x), which two normal values in its place would not be."""
    zero = nn.Linear(IMAGE[1], IMAGE[1])
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)

    def twice(layer: nn.Module, x: Tensor) -> Tensor:
        y = torch.relu(x.mean((2, 3)))
        for _ in range(5):
            y = torch.relu(y + layer(y))
        return y

    agreed(Of(twice, zero).double(), image(0))


def test_a_token_that_is_repeated_for_each_sample_is_a_constant() -> None:
    token = nn.Linear(IMAGE[1], 1, bias=False)

    def beside(layer: nn.Linear, x: Tensor) -> Tensor:
        return torch.cat((layer.weight.unsqueeze(-1).expand(x.shape[0], -1, -1, 4).transpose(1, 2), x), 2)

    agreed(Of(beside, token).double(), image(0))


def test_a_network_whose_channels_have_means() -> None:
    """Average pools leave the means of channels: a mean and a variance alone would not tell how large the result is."""
    ratios = []
    for seed in range(2):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Conv2d(3, 256, 3, padding=1, bias=False)]
        for _ in range(3):
            layers += [nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1, bias=False)]
            nn.init.kaiming_normal_(layers[-1].weight)
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        program = capture(model, (torch.randn(2, 3, 16, 16),)).program
        (last,) = program.output.all_input_nodes
        power = predict(program).power(last)
        assert power is not None
        ratios.append(power.second / float(model(torch.randn(16, 3, 16, 16)).square().mean()))
    assert sum(ratios) / 2 == pytest.approx(1, rel=0.3)


def test_what_is_so_large_that_it_is_drawn_once_has_no_known_error_and_is_named() -> None:
    model = Of(lambda x: torch.softmax(x, 1)).double()
    program = capture(model, (torch.zeros(2, 600, 1000, dtype=torch.float64),)).program
    found = predict(program)
    assert [math.isnan(e) for e in found.drawn.values()] == [True]
    assert found.remarks == (
        "'softmax' (softmax): so many numbers were drawn once alone, and how far off they are is not known",
    )
