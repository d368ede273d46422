"""Gates: where channels can be switched off, which go together, and that the price is that of the masked network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.conversion import convert, convert_program
from reparam.ir import census
from reparam.pruning.gated import Gated, with_gates
from reparam.pruning.price import cost
from support.choice import crossed
from support.helpers import Lambda
from support.prunable import NETS, fused, images, make

COUPLED = {
    "residual": {"stem.0": 8, "one.0": 8, "three.0": 8, "root": 8},
    "inverted": {"stem.0": 6, "expand.0": 12, "squeeze": 4},
    "dense": {"stem.0": 8, "first.0": 6, "second.0": 6, "transition.0": 8, "root": 20},
    "grouped": {"a.0": 12, "b.0": 12, "c.0": 8},
    "attention": {"embed": 16, "qkv": 48, "root": 16, "up": 24},
}


def described(gated: Gated) -> dict[str, int]:
    """The gates by the layers that make them; what sums, concatenations and attention make is "root"."""
    layers = ("stem", "one", "two", "three", "four", "short", "expand", "depthwise", "squeeze", "excite", "project")
    layers += ("first", "second", "transition", "a", "b", "c", "embed", "qkv", "out", "up", "down", "head")
    return {g.name if g.name.partition(".")[0] in layers else "root": g.count for g in gated.gates}


@pytest.mark.parametrize("name", NETS)
def test_gates_stand_where_channels_are_made(name: str) -> None:
    assert described(with_gates(fused(name), coupled=True)) == COUPLED[name]


def test_a_stream_has_one_gate_for_all_depths_or_one_for_each() -> None:
    coupled, apart = with_gates(fused("residual"), coupled=True), with_gates(fused("residual"))
    assert max(len(g.masks) for g in coupled.gates) == 2 and all(len(g.masks) == 1 for g in apart.gates)
    assert len(apart.gates) == len(coupled.gates) + 1


def test_groups_and_heads_lose_as_many_channels_each() -> None:
    parts = {g.name: g.parts for g in with_gates(fused("grouped")).gates}
    assert parts == {"a.0": 3, "b.0": 3, "c.0": 1}
    heads = [g.parts for g in with_gates(fused("attention")).gates if g.parts > 1]
    assert heads == [2]


def test_outputs_and_inputs_are_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU())
    gates = with_gates(convert(net.eval(), images(2)).program).gates
    assert [g.count for g in gates] == [4]


def test_layers_that_are_kept_lose_no_channels() -> None:
    kept = with_gates(fused("residual"), keep=r"^one")
    assert {"one.0", "stem.0"}.isdisjoint(g.name for g in kept.gates)  # it reads what the stem makes
    assert "three.0" in {g.name for g in kept.gates}


def test_a_product_of_two_layers_has_one_gate() -> None:
    class Glu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) * torch.sigmoid(self.b(x)))

    gated = with_gates(convert(Glu().eval(), images(2)).program)
    assert [g.count for g in gated.gates] == [6]
    before = cost(gated.plan(), "macs")
    gated.set_mask(gated.gates[0], torch.tensor([1, 0, 0, 1, 1, 1.0]))
    assert cost(gated.plan(), "macs") == pytest.approx(before * 2 / 3)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_gated_linear_unit_has_one_gate_for_factors_and_gates(groups: int) -> None:
    a, b, c = nn.Conv2d(4, 16, 3, groups=groups), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
    program = convert(
        Lambda(lambda m, x: m.c(m.b(F.glu(m.a(x), 1)).relu()), a=a, b=b, c=c), torch.randn(2, 4, 8, 8)
    ).program
    gated = with_gates(program)
    assert [g.count for g in gated.gates] == [8]
    gated.set_mask(gated.gates[0], torch.tensor([1, 1, 0, 0, 0, 1, 0, 1.0]))
    found = convert_program(gated.masked()).report
    assert found.evidence is not None and found.evidence.float64_max_rel < 1e-12
    assert found.after.macs == pytest.approx(census(program).macs / 2) == cost(gated.plan(), "macs")


@pytest.mark.parametrize("name, coupled", crossed(NETS, [True, False]))
def test_the_masked_network_is_what_it_says_and_costs_what_the_plan_says(name: str, coupled: bool) -> None:
    program = fused(name)
    gated = with_gates(program, coupled=coupled)
    assert cost(gated.plan(), "macs") <= census(program).macs
    generator = torch.Generator().manual_seed(3)
    for gate in gated.gates:
        size = gate.count // gate.parts
        lost = torch.randperm(size, generator=generator)[: size // 2]
        mask = torch.ones(gate.parts, size)
        mask[:, lost] = 0.0
        gated.set_mask(gate, mask.flatten())
    found = convert_program(gated.masked())
    assert found.report.evidence is not None and found.report.evidence.float64_max_rel < 1e-12
    assert found.report.after.macs < 0.75 * census(program).macs
    products = 2 if name == "attention" else 0  # of queries with keys, and with values
    assert found.report.after.macs <= 1.01 * cost(gated.plan(), "macs") + products * 64 * 64 * 16
    layers = sum(found.program.tensor(n).numel() for n in found.program.graph.nodes if is_weight(found.program, n))
    assert layers <= cost(gated.plan(), "params") * 1.01


def is_weight(program: object, node: object) -> bool:
    """Whether a node is the weight of a layer: a matrix or a kernel that something reads."""
    value = program.tensor(node)  # type: ignore[attr-defined]
    return value is not None and value.is_floating_point() and value.dim() > 1 and value.shape[0] > 1


def test_masks_that_switch_nothing_off_leave_the_network_as_it_was() -> None:
    program = fused("dense")
    masked = with_gates(program).masked()
    assert [n.target for n in masked.calls()] == [n.target for n in program.calls()]
    assert set(masked.constants) == set(program.constants)


def test_the_network_that_is_given_is_left_untouched() -> None:
    module = make("residual")
    before = module(images(3))
    program = convert(module, images(2)).program
    nodes = [n.name for n in program.graph.nodes]
    gated = with_gates(program)
    gated.set_mask(gated.gates[0], torch.zeros(8))
    assert nodes == [n.name for n in program.graph.nodes] and torch.equal(module(images(3)), before)
    assert F.mse_loss(convert_program(program).module(images(3)), before) < 1e-9
