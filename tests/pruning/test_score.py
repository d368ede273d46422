"""Scores: gradients of the factors against differences, sensible orders, and the control."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.ir import evaluate
from reparam.pruning.gated import Gated, with_gates
from reparam.pruning.score import SCORES, gradients, scores
from support.choice import crossed
from support.prunable import NETS, fused, images


@pytest.fixture(scope="module")
def gated() -> Gated:
    return with_gates(fused("residual"), coupled=True)


def test_gradients_are_those_of_the_loss_of_each_sample(gated: Gated) -> None:
    x = images(4)
    found = gradients(gated, (x,), torch.Generator().manual_seed(5))
    logits = evaluate(gated.program, (x,), torch.float64)[0]
    drawn = torch.multinomial(logits.float().softmax(1), 1, generator=torch.Generator().manual_seed(5)).flatten()
    for gate in gated.gates:
        for channel in (0, gate.count - 1):
            losses = []
            for step in (-1e-4, 1e-4):
                mask = torch.ones(gate.count)
                mask[channel] += step
                constants = {n: gated.program.constants[n] for n in gate.masks}
                gated.set_mask(gate, mask)
                out = evaluate(gated.program, (x,), torch.float64)[0]
                losses.append(nn.functional.cross_entropy(out, drawn, reduction="none"))
                gated.program.constants.update(constants)
            slope = (losses[1] - losses[0]) / 2e-4
            assert torch.allclose(found[gate][:, channel].double(), slope, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("kind, name", crossed(SCORES, NETS))
def test_every_score_has_a_number_for_every_channel(kind: str, name: str) -> None:
    gated = with_gates(fused(name))
    found = scores(kind, gated, [(images(6),), (images(3, seed=2),)])
    assert set(found) == set(gated.gates)
    for gate, values in found.items():
        assert values.shape == (gate.count,) and values.dtype == torch.float64
        assert bool((values >= 0).all()) and bool(values.isfinite().all())
    assert sum(float(v.sum()) for v in found.values()) > 0


@pytest.mark.parametrize("kind", [s for s in SCORES if s not in ("random", "fpgm")])
def test_a_channel_that_does_nothing_is_missed_least(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        net[0].weight[2] *= 1e-4  # type: ignore[index, operator]
        net[2].weight[:, 2] *= 1e-4  # type: ignore[index]
    gated = with_gates(convert(net.eval(), images(2, side=4)).program)
    found = scores(kind, gated, [(images(16, side=4),)])
    assert int(found[gated.gates[0]].argmin()) == 2


def test_channels_like_others_are_close_to_the_geometric_median() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.Flatten())
    with torch.no_grad():
        net[0].weight[:] = 0.01 * torch.randn(6, 3, 1, 1)  # type: ignore[index, operator]
        net[2].weight[:] = 0.01 * torch.randn(2, 6, 1, 1)  # type: ignore[index, operator]
        net[0].weight[4] = 5.0  # type: ignore[index, operator]
    gated = with_gates(convert(net.eval(), images(2, side=4)).program)
    assert int(scores("fpgm", gated, [])[gated.gates[0]].argmax()) == 4


def test_the_control_is_drawn_by_its_seed(gated: Gated) -> None:
    def values(seed: int) -> Tensor:
        return torch.cat(list(scores("random", gated, [], seed).values()))

    assert torch.equal(values(1), values(1)) and not torch.equal(values(1), values(2))
    assert 0.3 < float(values(1).mean()) < 0.7


def test_outputs_that_are_no_class_scores_have_gradients_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3))
    gated = with_gates(convert(net.eval(), images(2)).program)
    found = scores("fisher", gated, [(images(8),)])[gated.gates[0]]
    assert len(gated.gates) == 1 and float(found.min()) >= 0 and float(found.sum()) > 0


def test_the_scale_is_the_factor_of_the_norm_in_front_of_the_activation() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None)
    with torch.no_grad():
        norm.weight[:] = torch.tensor([0.1, 0.5, 1.0, 2.0])
    x = images(64)
    norm.train()
    norm(conv(x))  # the statistics of this very batch
    net = nn.Sequential(conv, norm, nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    gated = with_gates(convert(net, x[:2]).program)
    found = scores("scale", gated, [(x,)])[gated.gates[0]].sqrt()
    assert torch.allclose(found, norm.weight.detach().double(), rtol=1e-2)
    assert math.isclose(float(found[3]), 2.0, rel_tol=1e-2)
