"""`init`: what every method does and refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam import CaptureError, InputError, init
from reparam.initial import METHODS, REWRITING, USED, WITH_DATA
from reparam.initial.weights import draw
from reparam.loading import build_architecture
from support.choice import crossed
from support.initial_nets import plain, second_moment


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- all methods -----------------------------------------------------------------------------------------------------


def images(count: int = 24) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, 16, 16), torch.arange(count) % 5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_the_model_and_names_every_weight(method: str) -> None:
    model = build_architecture("reparam/resnet_small", seed=3).module
    before = {n: v.clone() for n, v in model.state_dict().items()}
    data = {"data": [images()], "batch": 8} if method in WITH_DATA else {}
    few = {"gradinit": {"steps": 4}, "autoinit": {"samples": 8}}.get(method, {})
    made = init(model, torch.randn(2, 3, 16, 16), method=method, seed=1, **data, **few)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    named = [w.name for w in made.weights] + [w.name for w in made.left]
    assert sorted(named) == sorted(n for n, _ in model.named_parameters())
    assert made.rewritten == (method in REWRITING) == bool(made.inserted)
    assert all(w.why for w in made.left) and all(w.what for w in made.weights)
    held = dict(made.module.named_parameters())
    for w in made.weights:
        assert math.sqrt(second_moment(held[w.name])) == pytest.approx(w.deviation, rel=1e-5, abs=1e-12)
    x, _ = images()
    assert torch.isfinite(made.module(x)).all()
    if method in ("he", "gaussian"):  # the seed decides
        again = init(model, torch.randn(2, 3, 16, 16), method=method, seed=1)
        assert torch.equal(again.module(x), made.module(x))
    assert isinstance(made.as_dict()["weights"], list)


@pytest.mark.parametrize("method", ["he", "autoinit", "lsuv", "gradinit"])
def test_every_part_keeps_its_mode(method: str) -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4)).train()
    net[1].eval()
    data = {"data": [(torch.randn(16, 6), torch.arange(16) % 4)]} if method in WITH_DATA else {}
    steps = {"steps": 3} if method == "gradinit" else {}
    made = init(net, torch.randn(2, 6), method=method, **data, **steps).module
    wanted = [("", True), ("0", True), ("1", False), ("2", True), ("3", True), ("4", True)]
    assert [(n, m.training) for n, m in made.named_modules()] == wanted
    assert [(n, m.training) for n, m in net.named_modules()] == wanted
    settled = init(net.eval(), torch.randn(2, 6), method=method, **data, **steps).module
    assert not any(m.training for m in settled.modules())


@pytest.mark.parametrize("method", ["he", "autoinit", "zero", "lsuv", "gaussian", "gradinit"])
def test_tied_weights_stay_tied(method: str) -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    data = {"data": [(torch.randn(16, 6), torch.arange(16) % 6)]} if method in WITH_DATA else {}
    steps = {"steps": 3} if method == "gradinit" else {}
    made = init(net, torch.randn(2, 6), method=method, **data, **steps)
    names = [w.name for w in made.weights if w.name.endswith("weight")]
    assert len(names) == 2
    if not made.rewritten:
        assert isinstance(made.module, nn.Sequential)
        assert made.module[2].weight is made.module[0].weight and made.module[4].weight is not made.module[0].weight


def test_what_cannot_be_done_is_one_sentence() -> None:
    net, x = plain(2, 4, nn.ReLU), torch.randn(2, 4)
    for words, options in (
        ("unknown method 'she'", {"method": "she"}),
        ("does not read the option 'beta'; it reads mode, distribution, seed", {"method": "he", "beta": 1.0}),
        ("takes no option 'colour'", {"method": "he", "colour": 1}),
        ("unknown mode 'fan'", {"method": "he", "mode": "fan"}),
        ("samples is .-1.", {"method": "autoinit", "samples": -1}),
        ("give a whole number up to 1,048,576", {"method": "autoinit", "samples": 2**40}),
        ("beta is None; give a number", {"method": "depth-scale", "beta": None}),
        ("looks at samples", {"method": "lsuv"}),
        ("looks at no samples", {"method": "he", "data": [x]}),
        ("no residual block", {"method": "residual-scale"}),
        ("no residual block", {"method": "depth-scale"}),
        ("no batch norm", {"method": "bn-scale"}),
        ("theta is 1.5", {"method": "gaussian", "theta": 1.5}),
        ("needs labels", {"method": "gradinit", "data": [x]}),
        ("zero or not finite", {"method": "lsuv", "data": [torch.zeros(8, 4)]}),
    ):
        with pytest.raises(InputError, match=words):
            init(net, x, **options)
    with pytest.raises(InputError, match="no weight to set"):
        init(nn.Sequential(nn.LayerNorm(4), nn.ReLU()), x, method="he")
    with pytest.raises(InputError, match="no activation"):
        init(nn.Linear(4, 4), x, method="normalised-act")
    with pytest.raises(InputError, match="weights are those"):
        init(torch.relu, x, method="he")  # type: ignore[arg-type]
    with pytest.raises(CaptureError):
        init(net, torch.randn(2, 5), method="he")
    assert set(USED) == set(METHODS)


def test_weights_that_are_computed_are_left_with_the_reason() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 4))
    made = init(net, torch.randn(2, 4), method="he")
    left = {w.name: w.why for w in made.left}
    assert all("computed" in left[f"0.parametrizations.weight.original{i}"] for i in (0, 1))
    assert [w.name for w in made.weights if w.name.endswith("weight")] == ["2.weight"]


class Mixed(nn.Module):
    """A fixed filter, a frozen layer, a norm that is spelled out, and one weight in two layers, each with its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("filter", torch.ones(8, 1, 3, 3) / 9, persistent=False)
        self.frozen = nn.Conv2d(8, 4, 3).requires_grad_(False)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.conv(x).relu(), self.filter, padding=1, groups=8)
        y = self.first(self.frozen(y).relu().mean((2, 3)))
        y = y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        z: Tensor = self.second(y)
        return z


@pytest.mark.parametrize("method", ["he", "autoinit", "zero", "normalised-act", "gaussian", "lsuv", "point-variance"])
def test_fixed_filters_and_frozen_layers_stay_and_norms_are_no_activations(method: str) -> None:
    x = torch.randn(4, 3, 12, 12)
    model = Mixed()
    data = {"data": [x]} if method in WITH_DATA else {}
    few = {"samples": 8} if method == "autoinit" else {}
    made = init(model, x, method=method, **data, **few)
    assert [w.name for w in made.weights] == [
        "conv.weight",
        "conv.bias",
        "first.weight",
        "first.bias",
        "second.bias",
    ]
    left = {w.name: w.why for w in made.left}
    assert left["filter"].startswith("it is a buffer") and left["frozen.weight"].startswith("it is frozen")
    state = made.program.constants
    kept = {c.origin: c.value for c in state.values() if c.origin in ("filter", "frozen.weight")}
    assert torch.equal(kept["filter"], model.filter) and torch.equal(kept["frozen.weight"], model.frozen.weight)
    if method in REWRITING:
        assert len(made.inserted) == 2 and all("relu" in text for text in made.inserted)


def test_a_factor_that_batch_norms_take_away_is_told() -> None:
    found = build_architecture("reparam/resnet_small", seed=3).module
    made = init(found, torch.randn(2, 3, 16, 16), method="depth-scale")
    assert "4 of 4 branches end in a batch norm, which takes the factor away in training" in made.notes


def test_a_model_in_which_nothing_takes_a_gradient_is_set_nevertheless() -> None:
    made = init(nn.Linear(4, 3).requires_grad_(False), torch.randn(2, 4), method="he")
    assert [w.name for w in made.weights] == ["weight", "bias"]


def test_products_with_a_matrix_and_transposed_layers_are_layers_too() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
            self.matrix = nn.Parameter(torch.zeros(4, 512))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.up(x)).mean((2, 3)) @ self.matrix

    for method in ("he", "autoinit", "zero"):
        made = init(Net(), torch.randn(2, 8, 4, 4), method=method)
        assert [w.name for w in made.weights] == ["up.weight", "up.bias", "matrix"]
    made = init(Net(), torch.randn(2, 8, 4, 4), method="he")
    assert made.weights[2].deviation == pytest.approx(math.sqrt(2 / 4), rel=0.1)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated", "orthogonal"])
def test_a_distribution_has_the_variance_that_is_asked_for(distribution: str) -> None:
    w = draw((200, 400), 0.3, distribution, torch.Generator().manual_seed(0))
    assert second_moment(w) == pytest.approx(0.3, rel=0.02)
    assert abs(float(w.mean())) < 0.01
    if distribution == "truncated":
        assert float(w.abs().max()) < 2.4 * math.sqrt(0.3)
    if distribution == "orthogonal":
        torch.testing.assert_close(w @ w.t(), 0.3 * 400 * torch.eye(200, dtype=torch.float64))


STRIDED: dict[str, nn.Module] = {
    "conv, stride 2": nn.Conv2d(64, 48, 3, 2, bias=False),
    "conv, dilated, grouped": nn.Conv2d(64, 96, 3, (2, 1), dilation=2, groups=4, bias=False),
    "transposed, stride 2": nn.ConvTranspose2d(64, 48, 3, 2, bias=False),
    "transposed, stride 2 and 3": nn.ConvTranspose2d(64, 96, (4, 5), (2, 3), groups=2, bias=False),
    "transposed, dilated": nn.ConvTranspose1d(128, 256, 5, 3, dilation=2, bias=False),
    "transposed, no overlap": nn.ConvTranspose3d(64, 64, 2, 2, bias=False),
    "transposed, gaps": nn.ConvTranspose1d(256, 256, 1, 2, bias=False),
}


@pytest.mark.parametrize("name, mode", crossed(STRIDED, ["fan_in", "fan_out"]))
def test_he_knows_strides_in_both_modes(name: str, mode: str) -> None:
    """Away from the border the power of values (of gradients) is kept on average: by Monte Carlo."""
    layer = STRIDED[name]
    stride, rank = layer.stride, len(layer.kernel_size)  # type: ignore[arg-type]
    x = torch.randn(2, layer.in_channels, *({1: 600, 2: 48, 3: 16}[rank],) * rank)  # type: ignore[call-overload]
    powers = []
    for seed in range(8):
        made = init(layer, x, method="he", mode=mode, seed=seed).module
        values = torch.randn_like(x).requires_grad_()
        result = made(values)
        cotangent = torch.randn_like(result)
        (gradient,) = torch.autograd.grad(result, values, cotangent)
        seen = gradient if mode == "fan_out" else result.detach()
        for axis, s in enumerate(stride, start=2):  # whole strides, far from the border
            margin = 12 if rank == 1 else 6 if rank == 2 else 4
            length = (seen.shape[axis] - 2 * margin) // s * s
            seen = seen.narrow(axis, margin, length)
        powers.append(second_moment(seen))
    assert sum(powers) / len(powers) == pytest.approx(1, rel=0.03)
