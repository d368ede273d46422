"""`init` of networks that few people have: weights, or one sentence, and nothing that is not so."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import utils

from reparam import CaptureError, InputError, analyze, init, recalibrate
from support.of import Of


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Keeping(nn.Module):
    """What cannot be copied: a lock, and a value with a history, once it has run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last, self.lock = nn.Linear(8, 8), nn.Linear(8, 4), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.value = torch.relu(self.layer(x))
        y: Tensor = self.last(self.value)
        return y


def _normed(kind: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(kind(nn.Linear(8, 8)), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("make", [Keeping, _normed(utils.weight_norm), _normed(utils.spectral_norm)])
def test_models_that_torch_does_not_copy_are_taken_as_well(make: Callable[[], nn.Module]) -> None:
    net, x = make(), torch.randn(16, 8)
    net(x)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    made = init(net, x[:2], method="he")
    last = [n for n, p in net.named_parameters() if p.shape == (4, 8)]
    assert set(last) <= {w.name for w in made.weights}
    if isinstance(net, nn.Sequential):
        net[2].register_buffer("noted", net[0].weight.sum().reshape(1) if hasattr(net[0], "weight_g") else None)
        recalibrate(net, x[:2], data=x)
    assert all(torch.equal(net.state_dict()[n], t) for n, t in before.items())


def test_gradinit_needs_parameters() -> None:
    x, labels = torch.randn(16, 4), torch.arange(16) % 4
    for net in (nn.ReLU(), nn.Linear(4, 4).requires_grad_(False)):
        with pytest.raises(InputError, match="no parameter that takes a gradient"):
            init(net, x[:2], method="gradinit", data=[(x, labels)], steps=1)


def test_autoinit_tells_what_is_not_finite_on_random_inputs() -> None:
    net = Of(lambda a, b, x: b(torch.log(a(x))), nn.Linear(8, 4), nn.Linear(4, 2))
    made = init(net, torch.randn(2, 8), method="autoinit")
    assert "measured_output_power" not in made.figures
    assert made.notes == (
        "1 layers give nothing, or nothing finite, on random inputs, and are not scaled, such as 'parts.1'",
        "the result is not finite on random inputs, so that its power is not known",
    )
    dead = Of(lambda a, b, x: b((a(x) - 1e9).relu()), nn.Linear(8, 4), nn.Linear(4, 2))
    assert made.notes[0] in init(dead, torch.randn(2, 8), method="autoinit").notes


def test_a_weight_that_its_dtype_does_not_hold_is_named() -> None:
    net = Of(lambda layer, x: layer(x * 1e-4), nn.Linear(8, 4)).half()
    x = torch.randn(2, 8).half()
    assert init(net, x, method="lsuv", data=[torch.randn(64, 8).half()]).weights[0].deviation > 1e3
    tiny = Of(lambda layer, x: layer(x * 1e-6), nn.Linear(8, 4)).half()
    with pytest.raises(InputError, match=r"weight 'parts.0.weight' would have entries beyond the numbers of float16"):
        init(tiny, x, method="lsuv", data=[torch.randn(64, 8).half()])
    for method, options in (("autoinit", {"variance": 1e-300}), ("bn-scale", {"gamma": 1e300})):
        with pytest.raises(InputError, match="beyond the numbers of float32"):
            init(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), torch.randn(2, 8), method=method, **options)


def test_a_short_length_of_paths_makes_weights_independent() -> None:
    net = Of(lambda a, b, x: x + b(a(x).relu()), nn.Linear(8, 8), nn.Linear(8, 8))
    made = init(net, torch.randn(2, 8), method="depth-scale", smooth="rbf", length=1e-300)
    assert made.weights[-1].deviation == pytest.approx(8**-0.5, rel=0.4)


def test_few_results_are_not_taken_for_few_samples() -> None:
    for count in (1, 2, 64):
        net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, count))
        assert init(net, torch.randn(2, 64), method="autoinit").notes == ()


def test_a_layer_that_is_called_twice_on_one_value_is_not_shared() -> None:
    net = Of(lambda layer, x: torch.tanh(layer(x)) * torch.sigmoid(layer(x)), nn.Linear(8, 8))
    assert init(net, torch.randn(2, 8), method="he").notes == ()


def test_functions_of_complex_numbers_are_no_activations() -> None:
    net = Of(lambda layer, x: torch.fft.fft(layer(x)).abs(), nn.Linear(8, 4))
    for method in ("gaussian", "normalised-act"):
        with pytest.raises(InputError, match="no activation"):
            init(net, torch.randn(2, 8), method=method)


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(InputError, match="Linear has no values for 'weight', only its shape"):
        init(nn.Linear(4, 4, device="meta"), torch.randn(2, 4), method="he")


def test_labels_and_a_loss_are_for_gradinit() -> None:
    x = torch.randn(2, 4)
    for options in ({"labels": torch.zeros(2)}, {"loss": nn.functional.mse_loss}):
        with pytest.raises(InputError, match="the method he looks at no labels and takes no loss"):
            init(nn.Linear(4, 4), x, method="he", **options)


@pytest.mark.parametrize("kind", ["weight", "buffer"])
def test_a_weight_that_no_memory_holds_a_copy_of_is_named(kind: str) -> None:
    """It is stored once and repeated."""
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    big = torch.zeros(1).expand(2**40)
    net[0].register_parameter("big", nn.Parameter(big)) if kind == "weight" else net[0].register_buffer("big", big)
    x = torch.randn(2, 4)
    for work in (lambda: init(net, x, method="he"), lambda: recalibrate(net, x, data=[torch.randn(8, 4)])):
        with pytest.raises(
            CaptureError, match=r"'0\.big' has 1,099,511,627,776 values and stores 1 of them; .* 8,796 GB"
        ):
            work()


@pytest.mark.parametrize("limit", [5.0, 100.0])
def test_a_clamp_beyond_the_usual_values_is_an_activation(limit: float) -> None:
    net = nn.Sequential(nn.Linear(32, 32), nn.Hardtanh(-limit, limit), nn.Linear(32, 4))
    x = torch.randn(2, 32)
    made = init(net, x, method="normalised-act")
    assert made.figures["factors"] == pytest.approx([1.0], abs=1e-3)
    assert made.inserted == () and "'1' (1)" in made.notes[0]  # its factor is one
    assert "phi of theta" in init(net, x, method="gaussian").inserted[0]
    loud = torch.full((16, 32), 300.0)
    row = analyze(net, loud, what="dead", data=[loud])["dead"].rows[0]
    assert row[:2] == ("1", 32)
    assert analyze(net, loud, what="gaussianity", data=[loud])["gaussianity"].rows[0][0] == "0"


def test_an_affine_spelled_as_a_function_is_none() -> None:
    net = Of(lambda a, b, x: b((a(x) * 3.0 + 0.7) / 2), nn.Linear(8, 8), nn.Linear(8, 4))
    with pytest.raises(InputError, match="no activation"):
        init(net, torch.randn(2, 8), method="normalised-act")


@pytest.mark.parametrize("silent", [nn.Softshrink(10.0), nn.Threshold(20.0, 0.0)])
@pytest.mark.parametrize("keep", ["forward", "backward"])
def test_normalised_act_refuses_what_gives_nothing(silent: nn.Module, keep: str) -> None:
    net = nn.Sequential(nn.Linear(8, 8), silent, nn.Linear(8, 4))
    with pytest.raises(InputError, match="'1' is zero for nearly all values"):
        init(net, torch.randn(2, 8), method="normalised-act", keep=keep)
