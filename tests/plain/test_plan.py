"""Ways to carry channels: what `measured` chooses by the clock, and that it says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from reparam.conversion import convert
from reparam.plain import plan as carrying
from support.helpers import doubles, module_rel
from support.plain_blocks import basic, bottleneck, inverted, net, projection
from support.plain_helpers import plain

X = (2, 3, 8, 8)


@pytest.mark.parametrize(("seconds", "groups"), [((1.0, 2.0), [1, 3, 1]), ((2.0, 1.0), [1, 1, 1])])
def test_the_faster_way_is_taken_and_both_are_told(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], groups: list[int]
) -> None:
    monkeypatch.setattr(carrying, "_measure", lambda program, chains: seconds)
    torch.manual_seed(0)
    report = convert(net(bottleneck(8, 4), c=8).float().eval(), torch.randn(X), to="plain", carry="measured").report
    [block] = report.blocks
    assert block["groups"] == groups
    assert block["milliseconds"] == {"auto": 1e3 * seconds[0], "dense": 1e3 * seconds[1]}
    [passed] = [r.message for r in report.remarks if r.rule == "carry-residual" and r.kind == "passed"]
    assert passed.endswith(f"measured auto {1e3 * seconds[0]:.2f} ms against dense {1e3 * seconds[1]:.2f} ms")


def test_equal_blocks_are_measured_once_and_others_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(carrying, "_measure", lambda program, chains: found.append(chains) or (1.0, 2.0))
    model = net(bottleneck(8, 4), bottleneck(8, 4), bottleneck(8, 2), c=8).double().eval()
    plain(model, doubles(*X), carry="measured")
    assert len(found) == 2


def test_what_has_no_groups_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "_measure", lambda program, chains: pytest.fail("there is one way only"))
    model = net(basic(), c=4).double().eval()
    assert plain(model, doubles(*X), carry="measured").text == plain(model, doubles(*X)).text


@pytest.mark.parametrize(
    "model",
    [net(bottleneck(8, 4), c=8), net(bottleneck(8, 2, 8, 2, projection(8, 8, 2)), c=8), net(inverted(8, 16), c=8)],
    ids=["bottleneck", "strided", "inverted"],
)
def test_layers_like_those_of_the_chain_are_timed(model: nn.Module) -> None:
    """The real clock: both ways run, whatever wins is equal."""
    model = model.double().eval()
    fused = plain(model, doubles(*X), carry="measured")
    [block] = [r.block for r in fused.outcome.remarks if r.kind == "passed" and r.block]
    assert all(ms > 0 for ms in dict(block["milliseconds"]).values()) and len(block["milliseconds"]) == 2
    assert module_rel(model, fused.program, [doubles(*X)]) <= 1e-12
