"""GradInit: what it learns, what it takes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam import InputError, init
from support.choice import crossed
from support.two_processes import run_two


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_gradinit_multiplies_each_tensor_by_one_number_and_lowers_the_objective(optimizer: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        net[4].weight.mul_(20)
    x = torch.randn(256, 16)
    data = [(x, x[:, :4].argmax(1))]
    made = init(net, x[:2], method="gradinit", data=data, optimizer=optimizer, steps=150, batch=64)
    for name, parameter in made.module.named_parameters():
        alpha = made.figures["multipliers"][name]
        torch.testing.assert_close(parameter, net.get_parameter(name) * alpha)
        assert alpha >= (0.00999 if parameter.dim() > 1 else 0)
    kinds, norms, objectives = (made.figures[k] for k in ("kinds", "norms", "objectives"))
    assert kinds[0] == "norm" and norms[-1] < norms[0] / 2
    assert min(objectives) < objectives[0]


def test_gradinit_takes_another_loss_and_refuses_one_that_does_not_fit() -> None:
    net, x = nn.Linear(4, 1), torch.randn(32, 4)
    data = [(x, torch.arange(32) % 3)]
    mse = lambda y, t: (y[:, 0] - t).square().mean()  # noqa: E731
    made = init(net, x[:2], method="gradinit", data=data, loss=mse, steps=3)
    assert made.figures["multipliers"].keys() == {"weight", "bias"}
    with pytest.raises(InputError, match=r"a label is 2, and the network has 1 classes.* pass another loss"):
        init(net, x[:2], method="gradinit", data=data, steps=1)


class Heads(nn.Module):
    """Attention of two heads, as torch computes it in one go, without a second derivative on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        y: Tensor = self.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))
        return y


def test_gradinit_learns_through_fused_attention() -> None:
    x = torch.randn(64, 5, 16)
    made = init(Heads(), x[:2], method="gradinit", data=[(x, torch.arange(64) % 4)], steps=3, bound=1e-3)
    assert made.figures["kinds"] == ["norm"] * 3
    assert made.figures["multipliers"]["qkv.weight"] != 1


class Beside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z: Tensor = self.head((self.first(x) + self.second(y)).relu())
        return z


class OfMapping(Beside):
    def forward(self, given: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(given["x"], given["y"])


@pytest.mark.parametrize("method, mapping", crossed(["gradinit", "lsuv"], [False, True]))
def test_samples_of_several_inputs_are_pairs_or_mappings(mapping: bool, method: str) -> None:
    x, y, labels = torch.randn(64, 8), torch.randn(64, 6), torch.arange(64) % 4
    few = {"steps": 2} if method == "gradinit" else {}
    net = OfMapping() if mapping else Beside()
    example = ({"x": x[:2], "y": y[:2]},) if mapping else (x[:2], y[:2])
    found = [
        init(net, *example, method=method, data=[batch], batch=16, **few).module.get_parameter("head.weight")
        for batch in (
            (x, y, labels),
            ((x, y), labels),
            ({"y": y, "x": x}, labels),
            {"x": x, "y": y, "labels": labels},
        )
    ]
    assert all(torch.equal(w, found[0]) for w in found[1:])


TWO_PROCESSES = """
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
torch.manual_seed(rank)
x = torch.randn(64, 8)
made = reparam.init(net, x[:2], method="gradinit", data=[(x, x[:, :4].argmax(1))], steps=12, batch=32)
torch.save(made.figures["multipliers"], f"{folder}/{rank}.pt")
"""


@pytest.mark.sweep
def test_gradinit_gives_two_processes_the_same_multipliers(tmp_path: Path) -> None:
    run_two(TWO_PROCESSES, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second and any(abs(alpha - 1) > 1e-3 for alpha in first.values())


@pytest.mark.parametrize(
    "loss",
    [
        lambda y, labels: 1.0,
        lambda y, labels: None,
        lambda y, labels: F.cross_entropy(y, labels, reduction="none"),
        lambda y, labels: F.cross_entropy(y, labels).detach(),
    ],
)
def test_a_loss_that_is_no_number_of_the_weights_is_refused(loss: Callable[[Tensor, Tensor], object]) -> None:
    x, labels = torch.randn(16, 4), torch.arange(16) % 4
    with pytest.raises(InputError, match="the loss is no tensor of one number that depends on the weights"):
        init(nn.Linear(4, 4), x[:2], method="gradinit", data=[(x, labels)], loss=loss, steps=1)


def test_dropouts_draw_by_the_seed_and_leave_the_state_of_torchs_generator() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 3))
    data = [(torch.randn(16, 8), torch.zeros(16, dtype=torch.long))]
    found = []
    for state, seed in ((1, 0), (2, 0), (2, 5)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        made = init(net, torch.ones(2, 8), method="gradinit", data=data, steps=3, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(made.figures["norms"])
    assert found[0] == found[1] != found[2]
