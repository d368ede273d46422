"""What the papers of the reference architectures promise: initial weights, invariances, and measured figures."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.models import deep_sets_pp, gradinit_net, nfnet, prelu_net, robust_residual, scaled_resnet, zero_net
from reparam.models.autoinit_net import AutoInitNet
from reparam.models.gaussian_preact import GaussianActivation, weibull
from reparam.models.input_bn_resnet import InputBNResNet
from reparam.models.momentum_resnet import MomentumResNet
from reparam.models.normalised_activation_net import NormalisedActivation
from reparam.models.registry import entries
from reparam.models.revnet import Block as RevBlock
from reparam.models.set_transformer_pp import SetTransformer
from reparam.models.standardised import StandardisedConv
from reparam.models.stochastic_depth_resnet import StochasticDepthResNet
from reparam.models.transformer import Transformer
from reparam.models.wrn_groupnorm_ws import WideResNet
from support.helpers import healthy

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # scripts, and no package
SYSTEMS, FIELDS, TRAINED, CONVERTED = (
    importlib.import_module(f"systems{of}") for of in ("", "_fields", "_trained", "_converted")
)
DIGITS = importlib.import_module("digits")
COMMANDS = re.findall(r"^\| (\d+) \| `reparam (.*)` \|$", (ROOT / "docs" / "systems.md").read_text(), re.M)
OF_IMAGES = [e.name for e in entries().values() if DIGITS.takes_digits(e)]


def _name(figure: Any) -> str:
    return f"{figure.system}: {figure.what}"


# Further figures of a system, each of which takes more than a second.
SLOW = (
    "5: cosine of tokens, L = 50, a = 1/\u221aL",
    "7: backward gain of 50 layers, silu",
    "15: E y\u00b2, first point convolution",
)


@pytest.mark.parametrize(
    "figure",
    [
        pytest.param(f, id=_name(f), marks=pytest.mark.sweep if _name(f) in SLOW else ())
        for f in SYSTEMS.FIGURES + FIELDS.FIGURES
    ],
)
def test_a_figure_is_what_it_is_expected_to_be(figure: Any) -> None:
    assert figure.holds()


@pytest.mark.sweep
@pytest.mark.parametrize("figure", TRAINED.FIGURES + CONVERTED.FIGURES, ids=_name)
def test_a_figure_of_a_trained_or_converted_network_is_what_it_is_expected_to_be(figure: Any) -> None:
    assert figure.holds()


def test_a_trained_network_predicts_the_same_after_conversion() -> None:
    accuracy, fused, plain = DIGITS.measure("robust_residual_small", epochs=4)
    assert accuracy > 0.5  # by chance: 0.1
    assert (fused, plain) == (0, 0)


@pytest.mark.sweep
@pytest.mark.parametrize("name", OF_IMAGES)
def test_every_trained_network_predicts_the_same_after_conversion(name: str) -> None:
    accuracy, fused, plain = DIGITS.measure(name)
    assert accuracy > 0.3
    assert (fused, plain) == (0, 0)


def test_what_takes_no_digits_is_said() -> None:
    *_, last = (ROOT / "docs" / "systems.md").read_text().split("Left out are")
    small = {name for name in entries() if name.endswith("_small")}
    assert set(re.findall(r"`(\w+)`", last)) == small - set(OF_IMAGES)


def test_every_system_has_a_command() -> None:
    assert {int(system) for system, _ in COMMANDS} == set(range(1, 21))


def test_no_two_commands_write_one_file() -> None:
    def output(command: str) -> str:
        words = shlex.split(command)
        told = dict(itertools.pairwise(words))
        return told.get("-o", f"{told['--arch'].rpartition('/')[2]}-{told['--to']}.pt2")

    written = [output(command) for _, command in COMMANDS]
    assert sorted(set(written)) == sorted(written)


@pytest.mark.sweep
@pytest.mark.parametrize("command", dict.fromkeys(command for _, command in COMMANDS))
def test_a_command_runs(command: str, tmp_path: Path) -> None:
    whole = [sys.executable, "-m", "reparam", *shlex.split(command)]
    done = subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.pt2"))) == 1


# ---- initial weights -------------------------------------------------------------------------------------------------


def test_zero_starts_from_zeros_and_ones() -> None:
    wide = zero_net.zero_matrix(6, 3)
    assert wide.shape == (6, 3)
    torch.testing.assert_close(wide.abs(), torch.full((6, 3), 8**-0.5))
    assert torch.linalg.matrix_rank(wide) == 3
    assert torch.equal(zero_net.zero_matrix(3, 5), torch.eye(3, 5))
    h = zero_net.hadamard(8)
    assert torch.equal(h @ h.t(), 8 * torch.eye(8))
    model = zero_net.zero_net((1, 1), width=4)
    assert bool((model.conv1.weight[:, :, 0] == 0).all())  # off the centre
    assert all(bool((m.conv2.weight == 0).all()) for m in model.modules() if isinstance(m, zero_net.Basic))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(images), torch.zeros(2, 10))


def _trained_rank(hadamard: bool) -> int:
    """The rank of W3 - I of a perceptron of 6 inputs and 4 classes after some steps on random data."""
    torch.manual_seed(0)
    model = zero_net.ZeroMLP((6, 6, 32, 32, 4), hadamard).double()
    x, labels = torch.randn(64, 6, dtype=torch.float64), torch.arange(64) % 4
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimiser.step()
    change = model.layers[2].weight.detach() - torch.eye(32, dtype=torch.float64)
    return int(torch.linalg.matrix_rank(change, rtol=1e-9))


def test_without_the_hadamard_matrix_a_square_layer_learns_in_few_dimensions() -> None:
    """At most the 6 inputs without it; with it the 8 rows that differ, and the 4 neurons that classes tell apart."""
    assert (_trained_rank(False), _trained_rank(True)) == (6, 12)


def test_weights_that_do_not_know_the_points_miss_the_variance() -> None:
    """He's, beside those of the figures, which do."""
    assert SYSTEMS.point_outputs(aware=False, layer=0) > 2


@pytest.mark.sweep
def test_set_norm_learns_the_variance_of_a_set_where_layer_norm_does_not() -> None:
    assert TRAINED.normal_var("set") < 7.5 < 100 / 12 < TRAINED.normal_var("layer")


@pytest.mark.sweep
def test_on_digits_a_square_layer_learns_in_more_dimensions_than_there_are_inputs() -> None:
    assert TRAINED.zero_mlp(False)[0] <= 64 < TRAINED.zero_mlp(True)[0] <= 74


def test_small_scales_and_the_groups_of_the_optimiser() -> None:
    model = InputBNResNet(block="basic", layers=(1,), width=4, num_classes=3, stem="small")
    assert float(model.input_bn.weight[0].detach()) == pytest.approx(0.058)
    assert float(model.body.bn1.weight[0].detach()) == pytest.approx(0.1)
    matrices, vectors, gammas = model.parameter_groups(0.5, 1e-4)
    assert (gammas["lr"], gammas["weight_decay"], len(gammas["params"])) == (0.005, 0.0, 4)
    assert (vectors["weight_decay"], matrices["weight_decay"]) == (0.0, 1e-4)
    total = sum(p.numel() for group in (matrices, vectors, gammas) for p in group["params"])
    assert total == sum(p.numel() for p in model.parameters() if p.requires_grad)
    slopes = prelu_net.PReLUNet((4, 3, 1), 0, ((4, 1),), (8,), 4, 2).parameter_groups(0.1)[1]
    assert slopes["weight_decay"] == 0.0 and all(float(s[0]) == 0.25 for s in slopes["params"])


@pytest.mark.parametrize("kind", ["iid", "rbf", "fbm"])
def test_weights_are_paths_over_the_depth(kind: str) -> None:
    paths = scaled_resnet.paths(kind, 60, (2000,))
    assert float(paths[-1].square().mean()) == pytest.approx(1.0, abs=0.1)
    steps = float((paths[1:] - paths[:-1]).square().mean())
    assert (steps > 1.5) if kind == "iid" else (steps < 0.05)


def test_standardised_rows_have_the_norm_of_their_gain() -> None:
    layer = StandardisedConv(6, 4)
    with torch.no_grad():
        layer.gain.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]).reshape(-1, 1, 1, 1))
    rows = layer.standardised().flatten(1)
    torch.testing.assert_close(rows.norm(dim=1), layer.gain.flatten())
    torch.testing.assert_close(rows.mean(1), torch.zeros(4))


def test_weibull_weights_have_their_quantiles() -> None:
    w = weibull((100_000,), 3.0)
    assert float((w.abs() > 1).float().mean()) == pytest.approx(torch.e**-1, abs=0.01)
    assert float((w > 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_multipliers_scale_weights_and_biases() -> None:
    layer, x = gradinit_net.GainedConv(3, 4), torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        nn.init.normal_(layer.bias)
        layer.alpha.fill_(2.0)
        layer.beta.fill_(0.0)
    plain = nn.functional.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(layer(x), 2 * plain)


# ---- what a network must not change ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [deep_sets_pp.DeepSets(2, 8, 3, 4), deep_sets_pp.DeepSets(2, 8, 3, 4, "layer"), SetTransformer(1, 8, 2, 3, 3, 4)],
    ids=["deep sets", "deep sets, layer norm", "set transformer"],
)
def test_the_order_of_a_set_does_not_matter(model: nn.Module) -> None:
    model.double()
    x = torch.randn(3, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(model(x), model(x[:, torch.randperm(7)]), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(x), model(x.flip(2)))


def test_set_norm_takes_one_mean_of_a_set() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64) * 4 + 7
    y = deep_sets_pp.SetNorm(3).double()(x)
    torch.testing.assert_close(y.mean((1, 2)), torch.zeros(2, dtype=torch.float64))
    assert float(y.mean(2).abs().max()) > 0.1  # of an element it does not, as a layer norm would


def test_a_reversible_block_is_reversed() -> None:
    block = healthy(RevBlock(8, 8))
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block.inverse(block(x)), x, rtol=1e-12, atol=1e-12)


def test_momentum_layers_reverse_or_store_the_same() -> None:
    def gradients(reversible: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = MomentumResNet((3,), 2, reversible=reversible).double().eval()
        model(torch.randn(2, 3, 6, 6, dtype=torch.float64)).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rescale", ["test", "train"])
def test_both_conventions_of_stochastic_depth(rescale: str) -> None:
    """In the mean over draws, training gives what evaluation gives (with batch norms that do not learn meanwhile)."""
    model = healthy(StochasticDepthResNet(8, 2, rescale=rescale)).double()
    block = model.blocks[0]
    x = torch.rand(1, 2, 4, 4, dtype=torch.float64) + 20  # nothing is cut off by the ReLU, so that means commute
    with torch.no_grad():
        expected = block(x)
        block.training = True  # the block alone: batch norms keep to their statistics
        mean = torch.stack([block(x) for _ in range(2000)]).mean(0)
    branch = float((expected - x).abs().max())
    assert float((mean - expected).abs().max()) <= 0.1 * branch
    fused = convert(model.eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64), to="plain")
    assert fused.report.plain


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: robust_residual.RobustResNet(scale="none"), "unknown scale 'none'; choose from fixed"),
        (lambda: scaled_resnet.ScaledResNet(init="flat"), "unknown initialisation 'flat'"),
        (lambda: StochasticDepthResNet(8, rescale="both"), "unknown convention 'both'"),
        (lambda: WideResNet(depth=12), "the depth is 12; it must be 6n"),
        (lambda: NormalisedActivation("step"), "unknown activation 'step'"),
        (lambda: NormalisedActivation("relu", "both"), "'both' cannot be kept"),
        (lambda: Transformer(norm="last"), "unknown place for a norm 'last'"),
        (lambda: Transformer(dim=10, heads=3), "10 features cannot be split into 3 heads"),
        (lambda: SetTransformer(1, 10, 3), "10 features cannot be split into 3 heads"),
        (lambda: deep_sets_pp.DeepSets(norm="batch"), "unknown norm 'batch'"),
        (lambda: GaussianActivation(1.0), "theta is 1.0; it must lie above 2"),
        (lambda: AutoInitNet(function="step"), "unknown activation 'step'"),
    ],
)
def test_wrong_choices_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_expected_deviations_start_again_in_every_stage() -> None:
    model = nfnet.NFNet((8, 8), (3, 2), (4,), "nf_resnet", last=0)
    found = [b.beta for b in model.modules() if isinstance(b, nfnet.Block)]
    assert found == pytest.approx([1, 1.04**-0.5, 1.08**-0.5, 1.12**-0.5, 1.04**-0.5])
