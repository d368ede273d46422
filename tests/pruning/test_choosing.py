"""The choice: what is missed least for what it spares, down to a target, above the floors, in multiples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import InputError
from reparam.ir import census
from reparam.pruning import prune
from reparam.pruning.choosing import at_floor, candidates, cut, give_back
from reparam.pruning.gated import Gated, with_gates
from reparam.pruning.gates import Gate
from reparam.pruning.price import cost
from support.prunable import fused, images, make


def drawn(gated: Gated, seed: int = 0) -> dict[Gate, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g: torch.rand(g.count, generator=generator, dtype=torch.float64) for g in gated.gates}


@pytest.mark.parametrize("currency", ["macs", "params"])
def test_a_cut_goes_down_to_the_target_and_not_much_further(currency: str) -> None:
    gated = with_gates(fused("residual"), coupled=True)
    full = cost(gated.plan(), currency)  # type: ignore[arg-type]
    order = candidates(gated, drawn(gated), currency, 0.1)  # type: ignore[arg-type]
    for share in (0.7, 0.4):
        left = cut(gated, order, share * full, currency)  # type: ignore[arg-type]
        assert left == cost(gated.plan(), currency) and 0.6 * share * full < left <= share * full  # type: ignore[arg-type]
        order = candidates(gated, drawn(gated), currency, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["residual", "inverted", "dense", "grouped", "attention"])
def test_the_cost_of_the_whole_is_what_the_report_counts(name: str) -> None:
    program = fused(name)
    plan = with_gates(program, coupled=True).plan()
    assert cost(plan, "macs") == census(program).macs and cost(plan, "params") == census(program).params


class Speech(nn.Module):
    """Words, and what an LSTM makes of the channels of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.one, self.two = nn.Embedding(90, 8), nn.Conv1d(8, 16, 3), nn.Conv1d(16, 8, 3)
        self.rnn = nn.LSTM(8, 24, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(self.words(x).transpose(1, 2)).relu()).transpose(1, 2)
        y: Tensor = self.rnn(x)[0]
        return y[:, -1]


def test_a_budget_that_a_recurrent_layer_alone_is_above_names_it() -> None:
    x = torch.randint(90, (40, 12), generator=torch.Generator().manual_seed(0))
    for budget, held in ({"macs": 0.3}, "78"), ({"params": 0.3}, "68.3"):
        with pytest.raises(InputError, match=rf"\(8\d.\d %, of them {held} % in 'rnn', which loses no channels\)"):
            prune(Speech(), x[:2], x, **budget)  # type: ignore[arg-type]


def test_a_budget_that_no_layer_alone_is_above_names_none() -> None:
    with pytest.raises(InputError, match=r"less than the floors leave \([\d.]+ %\)"):
        prune(make("residual"), images(2), images(40), macs=0.025)


def test_the_least_missed_go_first_and_cheaper_ones_later() -> None:
    gated = with_gates(fused("residual"), coupled=True)
    scores = {g: torch.ones(g.count, dtype=torch.float64) for g in gated.gates}
    first = gated.gates[0]
    scores[first] = torch.arange(first.count, dtype=torch.float64) * 1e-6
    order = candidates(gated, scores, "macs", 0.1)
    assert [c.channels for c in order[:3]] == [(0,), (1,), (2,)] and order[0].gate is first
    assert [c.worth for c in order] == sorted(c.worth for c in order)
    dear, cheap = (next(c.worth for c in order if c.gate.name == n) for n in ("one.0", "three.0"))
    assert dear < cheap  # the one before the stride spares more for the same score
    alike = candidates(gated, scores, "macs", 0.1, priced=False)
    assert {c.worth for c in alike if c.gate is not first} == {1.0}


def test_no_gate_goes_below_its_floor() -> None:
    gated = with_gates(fused("inverted"), coupled=True)
    for share in (0.6, 0.3, 0.0):  # the last one cannot be reached
        cut(gated, candidates(gated, drawn(gated), "macs", 0.5), share * cost(gated.plan(), "macs"), "macs")
    assert all(int(gated.mask(g).sum()) == g.count // 2 for g in gated.gates)
    assert sorted(at_floor(gated, 0.5)) == sorted(g.name for g in gated.gates)
    assert at_floor(gated, 0.1) == []


def test_groups_lose_channels_together() -> None:
    gated = with_gates(fused("grouped"))
    cut(gated, candidates(gated, drawn(gated), "macs", 0.1), 0.4 * cost(gated.plan(), "macs"), "macs")
    for gate in gated.gates:
        counts = gated.mask(gate).reshape(gate.parts, -1).sum(1)
        assert bool((counts == counts[0]).all())
    assert any(gated.mask(g).sum() < g.count for g in gated.gates if g.parts == 3)


def test_widths_become_multiples() -> None:
    gated = with_gates(fused("residual"), coupled=True)
    full = cost(gated.plan(), "macs")
    left = cut(gated, candidates(gated, drawn(gated), "macs", 0.1), 0.5 * full, "macs", round_to=4)
    assert left <= 0.5 * full
    assert all(int(gated.mask(g).sum()) % 4 == 0 for g in gated.gates)


def test_masks_can_be_put_back() -> None:
    gated = with_gates(fused("residual"))
    before, full = gated.masks(), cost(gated.plan(), "macs")
    cut(gated, candidates(gated, drawn(gated), "macs", 0.1), 0.5 * full, "macs")
    assert cost(gated.plan(), "macs") < full
    gated.put_back(before)
    assert cost(gated.plan(), "macs") == full


def test_channels_that_are_computed_all_the_same_are_given_back() -> None:
    gated = with_gates(fused("dense"), coupled=True)
    joined = next(g for g in gated.gates if g.count == 14)  # of a concatenation, which others read as well
    mask = torch.ones(14)
    mask[3] = 0.0  # one of fourteen, which is not worth a gather
    gated.set_mask(joined, mask)
    before = cost(gated.plan(), "macs")
    give_back(gated, before, "macs")
    assert bool(gated.mask(joined).all()) and cost(gated.plan(), "macs") <= before
    inner = next(g for g in gated.gates if g.name == "transition.0")
    gone = torch.ones(8)
    gone[:4] = 0.0
    gated.set_mask(inner, gone)
    give_back(gated, cost(gated.plan(), "macs"), "macs")
    assert torch.equal(gated.mask(inner), gone)  # what is spared stays off
