"""Each method of `init` on small networks, against closed forms and published figures."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam import convert, init
from reparam.errors import InputError
from reparam.loading import build_architecture
from reparam.models.point_conv import PointNet
from support.choice import mostly_in_sweeps
from support.initial_nets import Residual, plain, second_moment


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- 3, 6: he, autoinit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [pytest.param(0.0, marks=pytest.mark.sweep), 0.25])
def test_he_keeps_the_power_of_thirty_layers(slope: float) -> None:
    net = plain(30, 256, nn.PReLU, init=slope)
    found = []
    for seed in range(2):
        made = init(net, torch.randn(2, 256), method="he", seed=seed)
        with torch.no_grad():
            found.append(second_moment(made.module(torch.randn(32, 256))))
    assert 0.2 < sum(found) / len(found) < 5  # 1e-9 with weights of variance 1/n
    assert made.weights[2].deviation == pytest.approx(math.sqrt(2 / (1 + slope**2) / 256), rel=0.02)


def test_he_backwards_looks_at_what_is_behind_a_layer() -> None:
    net = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 64), nn.Tanh())
    made = {w.name: w for w in init(net, torch.randn(2, 8), method="he", mode="fan_out").weights}
    assert made["0.weight"].deviation == pytest.approx(math.sqrt(2 / 512), rel=0.05)
    assert made["2.weight"].deviation == pytest.approx(1.46741 / math.sqrt(64), rel=0.05)


def autoinit_powers(act: type[nn.Module], depth: int, width: int, seeds: int, rows: int, **options: int) -> list[float]:
    """E y^2 on inputs that no weight was scaled on, of one network for each seed."""
    net, found = plain(depth, width, act), []
    for seed in range(seeds):
        made = init(net, torch.randn(2, width), method="autoinit", seed=seed, **options)
        assert made.figures["predicted_output_power"] == pytest.approx(1)
        with torch.no_grad():
            found.append(second_moment(made.module(torch.randn(rows, width))))
    return found


@pytest.mark.parametrize(
    "act",
    mostly_in_sweeps(
        (nn.Tanh, nn.Softsign, nn.Sigmoid, nn.Softplus, nn.SELU, nn.ELU, nn.ReLU, nn.LeakyReLU, nn.PReLU), nn.ReLU
    ),
)
def test_autoinit_gives_variance_one_behind_fifty_layers(act: type[nn.Module]) -> None:
    assert autoinit_powers(act, 50, 256, 1, 1024) == [pytest.approx(1, rel=0.05)]


@pytest.mark.sweep
@pytest.mark.parametrize("act", [nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish])
def test_autoinit_gives_it_on_average_where_samples_are_driven_apart(act: type[nn.Module]) -> None:
    """Where E f(sX)^2 grows faster than s^2, a few samples have nearly all of the power: many are looked at."""
    powers = autoinit_powers(act, 50, 256, 3, 16_384, samples=16_384)
    assert sum(powers) / len(powers) == pytest.approx(1, rel=0.1)


DRIVEN_APART = [
    (nn.SiLU, r"half of them have less than \S+: .*; 29 of 29 .* '1' \(silu\), behind .* grows as s\^2.35$"),
    (nn.Mish, r"29 of 29 activations drive samples apart, such as '1' \(mish\), behind .* grows as s\^2.15$"),
    (nn.Hardswish, r"'1' \(hardswish\), behind which E f\(sX\)² grows as s\^2.45$"),
    (nn.Softshrink, r"9\d % of them give zero: it is the power of a few, .* '1' \(softshrink\), .* as s\^2.94$"),
    (nn.Tanhshrink, r"9\d % of them give zero"),
    (nn.Tanh, ""),
    (nn.ReLU, ""),
    (nn.Hardtanh, ""),
]


@pytest.mark.parametrize(("act", "words"), mostly_in_sweeps(DRIVEN_APART, *DRIVEN_APART[:4], DRIVEN_APART[-2]))
def test_autoinit_tells_where_samples_are_driven_apart(act: type[nn.Module], words: str) -> None:
    made = init(plain(30, 64, act), torch.randn(2, 64), method="autoinit", samples=256)
    assert (made.figures["deviation_between_samples"] > 1) == bool(words)
    assert len(made.notes) == bool(words) and all(re.search(words, note) for note in made.notes)


def test_a_spread_that_no_activation_makes_has_no_reason() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(x * (x.mean(1, keepdim=True) > 0.6))
            return y

    (note,) = init(Scaled(), torch.randn(2, 8), method="autoinit", samples=1024).notes
    assert "% of them give zero: it is the power of a few" in note and note.endswith("it may be another")


def test_a_function_that_is_flat_near_zero_alone_is_an_activation() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Hardshrink(), nn.Linear(8, 8))
    (factor,) = init(net, torch.randn(2, 8), method="normalised-act", keep="forward").figures["factors"]
    x = torch.randn(1_000_000, dtype=torch.float64)
    assert factor == pytest.approx(float(F.hardshrink(x).square().mean()) ** -0.5, rel=1e-2)


@pytest.mark.parametrize(
    "act",
    [nn.ReLU, nn.SiLU, *(pytest.param(a, marks=pytest.mark.sweep) for a in (nn.GELU, nn.ELU, nn.Mish, nn.Hardswish))],
)
def test_autoinit_by_moments_alone_keeps_power_on_average(act: type[nn.Module]) -> None:
    """Where all inputs become alike, one network of width n is off by about sqrt(5 L/n): six layers are looked at."""
    powers = autoinit_powers(act, 6, 256, 6, 128, samples=0)
    assert sum(powers) / len(powers) == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("inplace", [False, True])
def test_autoinit_scales_on_what_dropouts_let_through(inplace: bool) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5, inplace=inplace), nn.Linear(64, 256))
    made = init(net, torch.randn(2, 64), method="autoinit")
    assert made.module.get_submodule("2").inplace == inplace
    x = torch.randn(2048, 64)
    assert second_moment(made.module.train()(x)) == pytest.approx(1, rel=0.05)
    assert second_moment(made.module.eval()(x)) < 0.8


@pytest.mark.parametrize("samples", [0, 1024])
def test_autoinit_knows_that_slopes_are_random_in_training(samples: int) -> None:
    net = nn.Sequential(nn.Linear(64, 256), nn.RReLU(0, 2), nn.Linear(256, 256))  # E y^2 = (1 + 4/3)/2 of E x^2
    made = init(net, torch.randn(2, 64), method="autoinit", samples=samples).module
    x = torch.randn(2048, 64)
    assert second_moment(made.train()(x)) == pytest.approx(1, rel=0.08 if samples == 0 else 0.01)
    assert second_moment(made.eval()(x)) < 0.9


@pytest.mark.sweep
def test_autoinit_gives_variance_one_behind_fifty_layers_with_random_slopes() -> None:
    made = init(plain(50, 256, nn.RReLU), torch.randn(2, 256), method="autoinit").module
    assert second_moment(made.train()(torch.randn(4096, 256))) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("name", [pytest.param("timm/resnet18", marks=pytest.mark.sweep), "timm/convnext_atto"])
def test_autoinit_on_networks_with_branches(name: str) -> None:
    x = torch.randn(16, 3, 32, 32)
    made = init(build_architecture(name).module, x[:2], method="autoinit", samples=32)
    with torch.no_grad():
        assert second_moment(made.module.train()(x)) == pytest.approx(1, rel=0.2)


def test_autoinit_of_a_network_that_does_not_run_on_random_inputs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(torch.linalg.cholesky(self.first(x)))
            return y

    net = Net()
    with torch.no_grad():
        net.first.weight.copy_(torch.eye(8))
    made = init(net, torch.eye(8).repeat(2, 1, 1), method="autoinit")
    assert [("times" in w.what) for w in made.weights] == [True, False]
    assert any("not positive-definite" in note for note in made.notes)


# ---- 8: zero ---------------------------------------------------------------------------------------------------------


def test_zero_starts_as_the_identity_path() -> None:
    net = Residual(width=32)
    made = init(net, torch.randn(2, 16), method="zero").module
    assert isinstance(made, Residual)
    x = torch.randn(5, 16)
    torch.testing.assert_close(made.stream(made.stem(x)), made.stem(x))  # the branches are zero
    assert not made(x).any()  # and so is what gives an output
    gram = made.stem.weight.t() @ made.stem.weight
    torch.testing.assert_close(gram, torch.eye(16))  # 32 x 16: columns of a Hadamard matrix
    assert all(torch.equal(layer.weight, torch.eye(32)) for layer in made.first)


@pytest.mark.parametrize("name", ["reparam/zero_mlp_small", "reparam/zero_net_small"])
def test_zero_sets_what_the_published_networks_start_from(name: str) -> None:
    built = build_architecture(name)
    assert built.input_shapes is not None
    made = init(built.module, torch.randn(2, *built.input_shapes[0]), method="zero").module
    for key, value in built.module.state_dict().items():
        torch.testing.assert_close(made.state_dict()[key], value)


def test_zero_on_convolutions_fills_the_centre_of_each_group() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
    made = init(net, torch.randn(2, 4, 8, 8), method="zero").module
    first, last = made[0].weight, made[2].weight  # type: ignore[index]
    assert not first[:, :, 0].any() and first[0, 0, 1, 1] == 0.5
    assert torch.equal(last[:, 0, 1, 1], torch.ones(8)) and last.sum() == 8


# ---- 1: residual-scale -----------------------------------------------------------------------------------------------


def growth(factor: float, scale: str, seeds: int, width: int = 512) -> float:
    """E|y|^2/E|x|^2 of ten blocks."""
    net, found = Residual(width, 10, outer=True), []
    net.stem = net.head = nn.Identity()  # type: ignore[assignment]
    for seed in range(seeds):
        made = init(net, torch.randn(2, width), method="residual-scale", factor=factor, scale=scale, seed=seed)
        x = torch.randn(64, width)
        with torch.no_grad():
            found.append(second_moment(made.module(x)) / second_moment(x))
    return sum(found) / seeds


@pytest.mark.sweep
def test_residual_scale_keeps_the_power_of_ten_blocks() -> None:
    assert growth(math.sqrt(0.5), "fixed", 5) == pytest.approx(1, rel=0.25)
    assert growth(1.0, "fixed", 5) == pytest.approx(1024, rel=0.25)  # it doubles in each block without
    assert growth(math.sqrt(0.5), "shortcut", 5) == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize("scale", [pytest.param("fixed", marks=pytest.mark.sweep), "learned", "shortcut"])
def test_the_factors_fold(scale: str) -> None:
    made = init(Residual(8, 3, 8, outer=True), torch.randn(2, 8), method="residual-scale", scale=scale)
    learned = [n for n, p in made.module.named_parameters() if p.dim() == 0]
    assert len(learned) == (3 if scale == "learned" else 0)
    converted = convert(made.module, torch.randn(2, 8), to="plain")
    assert converted.report.equivalent and converted.report.after.merges == 0
    assert not [n for n in converted.program.calls() if "mul" in str(n.target)]


# ---- 17: depth-scale -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beta", "within"),
    [(0.5, 0.07), pytest.param(1.0, 0.01, marks=pytest.mark.sweep), pytest.param(0.25, 0.25, marks=pytest.mark.sweep)],
)
def test_depth_scale_gives_the_power_of_theory(beta: float, within: float) -> None:
    net, found, seeds = Residual(40, 100), [], 16 if beta < 0.5 else 1
    for seed in range(seeds):
        module = init(net, torch.randn(2, 16), method="depth-scale", beta=beta, seed=seed).module
        assert isinstance(module, Residual)
        x = torch.randn(64, 40)
        with torch.no_grad():
            found.append(float((module.stream(x).square().sum(1) / x.square().sum(1)).mean()))
    theory = (1 + 100 ** (-2 * beta) / 2) ** 100
    assert sum(found) / seeds == pytest.approx(theory, rel=within)


@pytest.mark.parametrize("smooth", ["rbf", "fbm"])
def test_smooth_weights_are_paths_over_the_depth(smooth: str) -> None:
    module = init(Residual(40, 30), torch.randn(2, 16), method="depth-scale", smooth=smooth).module
    assert isinstance(module, Residual)
    weights = torch.stack([layer.weight.detach() for layer in module.first])
    steps = weights.diff(dim=0).square().mean() / weights[-1].square().mean()
    assert float(steps) < 0.2  # 2 for independent layers
    assert second_moment(weights[-1]) == pytest.approx(1 / 40, rel=0.15)


def test_depth_scale_changes_branches_alone() -> None:
    made = init(Residual(8, 3), torch.randn(2, 16), method="depth-scale", beta=1.0)
    assert {w.name for w in made.left} == {"stem.weight", "stem.bias", "head.weight", "head.bias"}
    sizes = {w.name: w.deviation for w in made.weights}
    for i, j in itertools.product(range(3), repeat=2):
        assert sizes[f"first.{i}.weight"] / sizes[f"second.{j}.weight"] == pytest.approx(3, rel=0.5)


# ---- 10: bn-scale ----------------------------------------------------------------------------------------------------


def test_bn_scale_gives_the_groups_of_an_optimiser() -> None:
    net = build_architecture("reparam/input_bn_resnet_small").module
    made = init(net, torch.randn(2, 3, 16, 16), method="bn-scale")
    sizes = {w.name: w.deviation for w in made.weights}
    assert sizes.pop("input_bn.weight") == pytest.approx(0.058)
    assert list(sizes.values()) == pytest.approx([0.1] * len(sizes))
    assert made.frozen == ("input_bn.bias",)
    groups = made.parameter_groups(0.1, 1e-4)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 1e-4), (0.1, 0), (pytest.approx(0.001), 0)]
    known = [id(p) for g in groups for p in g["params"]]
    wanted = [id(p) for n, p in made.module.named_parameters() if n != "input_bn.bias"]
    assert sorted(known) == sorted(wanted)
    torch.optim.SGD(groups, momentum=0.9)
    for rate, decay in ((-0.1, 0), (math.nan, 0), (math.inf, 0), (0.1, "0"), (None, 0), (0.1, True)):
        with pytest.raises(InputError, match="give a number of zero or more"):
            made.parameter_groups(rate, decay)  # type: ignore[arg-type]


# ---- 7, 14: normalised-act, gaussian ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "keep", "depth"),
    [pytest.param(nn.ReLU, "backward", 50, marks=pytest.mark.sweep), (nn.SiLU, "backward", 2), (nn.GELU, "forward", 2)],
)
def test_normalised_activations_keep_powers(act: type[nn.Module], keep: str, depth: int) -> None:
    """lambda is for pre-activations from N(0, 1); only those of ReLU keep the power of both, at any depth."""
    made = init(plain(depth, 512, act), torch.randn(2, 512), method="normalised-act", keep=keep)
    x = torch.randn(64, 512, requires_grad=True)
    y = made.module(x)
    g = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, g)
    gain = second_moment(y) if keep == "forward" else second_moment(gradient) / second_moment(g)
    assert gain == pytest.approx(1, rel=0.5 if depth > 2 else 0.1)


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_normalisers_fold(act: type[nn.Module]) -> None:
    small = init(plain(3, 8, act), torch.randn(2, 8), method="normalised-act")
    assert small.inserted and any("mul" in str(n.target) for n in small.program.calls())
    converted = convert(small.module, torch.randn(2, 8))
    assert converted.report.equivalent
    assert not [n for n in converted.program.calls() if "mul" in str(n.target)]


def test_gaussian_pre_activations_are_gaussian_at_width_three() -> None:
    """20,000 networks of width three side by side; with ReLU the distance is 0.111."""
    count = 20_000
    net = nn.Sequential(
        nn.Conv1d(3 * count, 3 * count, 1, groups=count), nn.ReLU(), nn.Conv1d(3 * count, count, 1, groups=count)
    )
    x = torch.ones(2, 3 * count, 1)
    made = init(net, x, method="gaussian", theta=3.0)
    with torch.no_grad():
        z = made.module(x)[0].flatten().double().sort().values
    below = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    steps = torch.arange(count, dtype=torch.float64) / count
    assert float((below - steps).abs().max()) < 1.63 / math.sqrt(count)  # which N(0, 1) exceeds once in a hundred
    assert not any("relu" in str(n.target) for n in made.program.calls())


# ---- 2, 15: what looks at data ---------------------------------------------------------------------------------------


def test_lsuv_gives_each_layer_deviation_one_on_the_samples() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(1152, 5))
    data = 3 * torch.randn(64, 3, 16, 16) + 2
    module = init(net, data[:2], method="lsuv", data=data, batch=16).module
    x = data
    for layer in module:  # type: ignore[union-attr]  # it is iterable
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert float(x.std(correction=0)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("norm", [False, True])
def test_point_variance_keeps_the_power_of_point_convolutions(norm: bool) -> None:
    torch.manual_seed(0)
    net = PointNet((32, 32), 4, norm=norm)
    clouds = [(torch.randn(16, 32, 3) / 2, torch.randn(16, 32, 3)) for _ in range(4)]
    made = init(net, *(t[:2] for t in clouds[0]), method="point-variance", data=clouds, batch=16)
    seen: list[float] = []
    for layer in made.module.layers:  # type: ignore[union-attr]
        layer.conv.register_forward_hook(lambda m, a, y: seen.append(second_moment(y)))
    made.module.train()(torch.randn(64, 32, 3) / 2, torch.randn(64, 32, 3))
    assert seen == [pytest.approx(1, rel=0.35)] * 2
