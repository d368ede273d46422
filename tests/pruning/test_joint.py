"""The refit of all layers at once: exact where the network is linear, and nothing is kept that is not better."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.data import Deck, open_samples, spool
from reparam.ir import Program
from reparam.pruning.gated import Gated, with_gates
from reparam.pruning.joint import STEPS, Joint, affordable, refit_jointly, refit_on
from reparam.pruning.mixing import only_mixes, with_mixes
from reparam.pruning.narrow import Narrow
from reparam.pruning.quality import Judge, Quality, parted, surely_less
from reparam.pruning.refitting import refit_layers
from support.choice import mostly_in_sweeps
from support.prunable import NETS, Twice, error, fused, half_off, images


@dataclass(frozen=True)
class Held:
    """Held-out samples without labels."""

    x: Tensor
    labelled: bool = False

    def batches(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], None]]:
        return (((part,), None) for part in self.x.split(size))


def batches(step: int) -> Iterable[Sequence[Tensor]]:
    return only_mixes([(part,) for part in images(192, seed=4).split(64)], step)


def judged(gated: Gated, seed: int = 5) -> Judge:
    return Judge(gated.reference, Held(images(96, seed=seed)), 32)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", mostly_in_sweeps(NETS, "residual", "attention"))
def test_outputs_come_closer_than_layers_by_themselves_bring_them(name: str) -> None:
    gated = with_gates(fused(name), coupled=True)
    half_off(gated)
    refit_layers(gated, lambda: batches(0))
    x = images(64, seed=9)
    before = error(gated, x)
    masks = gated.masks()
    with judged(gated) as judge:
        found = refit_jointly(Narrow(gated.program, ()), gated.reference, batches, judge, judge, steps=12)
    assert found.refused == "" and found.steps == 12 and found.taken > 0
    assert found.after.error < found.before.error and error(gated, x) < before
    assert all(torch.equal(gated.mask(g), m) for g, m in masks.items())


def test_a_linear_network_is_solved_in_one_step() -> None:
    """z = w x with one layer: J'J d = J'(t - z) has the solution w + d = that of the original."""
    torch.manual_seed(0)
    gated = with_gates(convert(nn.Conv2d(3, 4, 3).eval(), images(2)).program)
    wanted = {n: c.value.clone() for n, c in gated.program.constants.items()}
    for name, value in wanted.items():
        gated.set_weight(name, value + 0.3)
    with judged(gated) as judge:
        found = refit_jointly(Narrow(gated.program, ()), gated.reference, batches, judge, judge, steps=1, iterations=12)
    assert len(wanted) == 2 and found.taken == 1
    assert all(torch.allclose(gated.program.constants[n].value, v, atol=1e-3) for n, v in wanted.items())


def test_steps_go_on_and_their_average_is_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer that the first step solves, d = -(w - w*): off by 0, 3/4 and 9/16 of that step, of which an average
    over two has 0, 3/8 and 15/32."""
    torch.manual_seed(0)
    gated = with_gates(convert(nn.Conv2d(3, 4, 3).eval(), images(2)).program)
    constants = gated.program.constants
    name = next(n for n in constants if n.endswith("weight"))
    wanted = constants[name].value.clone()
    for each, constant in list(constants.items()):
        gated.set_weight(each, constant.value + 0.25)
    offs: list[float] = []
    with judged(gated) as chooser, judged(gated, 6) as judge:
        plain = chooser.look

        def look(program: Program) -> tuple[Quality, Tensor]:
            offs.append(float((wanted - constants[name].value.detach()).mean()) / 0.25)
            return plain(program)

        monkeypatch.setattr(chooser, "look", look)
        found = refit_jointly(
            Narrow(gated.program, ()), gated.reference, batches, chooser, judge, steps=8, iterations=12
        )
    assert offs[:4] == pytest.approx([-1, 0, 3 / 8, 15 / 32], abs=2e-3) and found.taken == 1


def test_the_original_is_left_as_it_is() -> None:
    gated = with_gates(fused("residual"), coupled=True)
    before = {n: c.value.clone() for n, c in gated.program.constants.items()}
    with judged(gated) as judge:
        found = refit_jointly(Narrow(gated.program, ()), gated.reference, batches, judge, judge, steps=2)
    assert found.taken == 0 and found.after == found.before
    assert all(torch.equal(c.value, before[n]) for n, c in gated.program.constants.items())


def test_the_samples_that_figures_are_taken_from_choose_nothing() -> None:
    """Nor do they refuse what is worse on them: here they are far from those that are fitted to."""
    gated = with_gates(fused("residual"), coupled=True)
    half_off(gated)
    refit_layers(gated, lambda: batches(0))
    far = Judge(gated.reference, Held(1e3 * images(8, seed=6)), 32)  # type: ignore[arg-type]
    with judged(gated) as chooser, far as judge:
        told = chooser.quality(gated.program)
        found = refit_jointly(Narrow(gated.program, ()), gated.reference, batches, chooser, judge, steps=6)
        assert found.taken > 0 and chooser.quality(gated.program).error < told.error
        assert found.after == judge.quality(gated.program) and found.before.samples == 8
    assert found.after.error > found.before.error


def test_what_is_better_by_chance_is_not_kept() -> None:
    """Logarithms of what is left of each sample: -0.2 on average, with standard errors of 0.1 and of 0.05."""
    before = torch.logspace(-3, 3, 9, dtype=torch.float64)
    noise = torch.tensor([-3.0, 3, -3, 3, -3, 3, -3, 3, 0], dtype=torch.float64) / 10
    assert not surely_less(before * (noise - 0.199).exp(), before)
    assert surely_less(before * (noise - 0.201).exp(), before)
    assert surely_less(before * (noise / 2 - 0.101).exp(), before)
    assert not surely_less(before, before) and not surely_less(before.zero_(), before)
    assert surely_less(torch.zeros(5), torch.ones(5)) and not surely_less(torch.zeros(4), torch.ones(4))


def test_samples_choose_or_are_measured_on() -> None:
    gated = with_gates(fused("residual"), coupled=True)
    program = gated.reference

    def run(held: Deck, steps: int = 1) -> tuple[Joint, int]:
        choosing, figures = parted(held, steps)
        with Judge(program, figures, 4) as judge:
            tell = lambda done, total: None  # noqa: E731
            return refit_on(gated, decks.fit, choosing, judge, steps=1, seed=0, tell=tell), len(figures)

    with spool(open_samples(images(100), program)) as decks:
        held = len(decks.held)
        found, figures = run(decks.held)
        assert figures == held - -(-held // 3) == found.after.samples == found.before.samples and found.steps == 1
        few, figures = run(replace(decks.held, count=12))
        assert figures == 12 and few.steps == 0 and "too few samples were held out" in few.refused
        assert parted(replace(decks.held, count=13), 1)[1].rows == 8
        assert parted(decks.held, 0) == (None, decks.held)


def test_a_step_that_is_worse_on_held_out_samples_is_not_kept() -> None:
    """The samples are all alike, so that nothing is learned of others."""
    gated = with_gates(fused("residual"), coupled=True)
    half_off(gated)
    refit_layers(gated, lambda: batches(0))
    before = {n: c.value.clone() for n, c in gated.program.constants.items()}
    one = 3 * images(1, seed=7).expand(8, -1, -1, -1)
    with judged(gated) as judge:
        found = refit_jointly(
            Narrow(gated.program, ()), gated.reference, lambda step: [(one,)], judge, judge, steps=2, iterations=12
        )
        assert judge.quality(gated.program) == found.after == found.before
    assert found.steps == 2 and found.taken == 0
    assert all(torch.equal(c.value, before[n]) for n, c in gated.program.constants.items())


def test_what_is_switched_off_in_the_weights_stays_off_and_runs_are_the_same() -> None:
    made = []
    for _ in range(2):
        gated = with_gates(fused("residual"), coupled=True)
        name = next(n for n in gated.program.constants if n.startswith("one") and n.endswith("weight"))
        weight = gated.program.constants[name].value.clone()
        weight[:3] = 0.0
        weight[:, 5] = 0.0
        gated.set_weight(name, weight)
        with judged(gated) as judge:
            found = refit_jointly(Narrow(gated.program, ()), gated.reference, batches, judge, judge, steps=1)
        assert found.taken == 1
        now = gated.program.constants[name].value
        assert not now[:3].any() and not now[:, 5].any() and not torch.equal(now, weight)
        made.append({n: c.value for n, c in gated.program.constants.items()})
    assert all(torch.equal(v, made[1][n]) for n, v in made[0].items())


def test_weights_that_two_calls_share_stay_shared() -> None:
    torch.manual_seed(0)
    gated = with_gates(convert(Twice().eval(), images(2)).program)
    gated.set_mask(gated.gates[0], torch.tensor([1.0, 0, 1, 1, 1, 1]))
    shared = {n: gated.program.constants[n].value.clone() for n in ("same.weight", "same.bias")}
    with judged(gated) as judge:
        assert refit_jointly(Narrow(gated.program, ()), gated.reference, batches, judge, judge, steps=4).taken > 0
    assert all(torch.equal(gated.program.constants[n].value, v) for n, v in shared.items())


class _NoTangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:  # type: ignore[override]
        return g


def test_an_operator_without_such_derivatives_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gated = with_gates(fused("residual"), coupled=True)
    half_off(gated)
    before = {n: c.value.clone() for n, c in gated.program.constants.items()}
    for node in gated.program.calls():
        if "relu" in str(node.target):
            monkeypatch.setattr(node, "target", _NoTangent.apply)
    with judged(gated) as judge:
        found = refit_jointly(Narrow(gated.program, ()), gated.reference, batches, judge, judge)
    assert "derivatives" in found.refused and found.taken == found.steps == 0 and found.after == found.before
    assert all(torch.equal(c.value, before[n]) for n, c in gated.program.constants.items())


def test_large_networks_take_fewer_steps() -> None:
    assert affordable(10_000_000, 400) == STEPS
    assert 0 < affordable(300_000_000, 400) < STEPS
    assert affordable(4_000_000_000, 400) == 0


def test_mixes_have_the_mean_and_the_variance_of_the_samples_and_come_again() -> None:
    x = 3 + 2 * images(4000, seed=3, side=2)
    (mix,) = next(iter(only_mixes([(x,)], 1)))
    assert float((mix.mean(0) - x.mean(0)).abs().max()) < 0.2 and not torch.equal(mix, x)
    assert float((mix.var(0) / x.var(0) - 1).abs().max()) < 0.2
    again, other = (next(iter(only_mixes([(x,)], seed)))[0] for seed in (1, 2))
    assert torch.equal(again, mix) and not torch.equal(other, mix)
    first, *more = with_mixes([(x,)], 3)
    assert torch.equal(first[0], x) and len(more) == 2 and not torch.equal(more[0][0], more[1][0])


def test_all_inputs_of_a_sample_are_mixed_alike() -> None:
    x = images(16, seed=3)
    one, two = next(iter(only_mixes([(x, 2 * x)])))
    assert torch.allclose(two, 2 * one, atol=1e-5)


def test_what_cannot_be_mixed_comes_alone() -> None:
    whole, single = (images(4), torch.arange(4)), (images(1),)
    for inputs in (whole, single):
        assert [i is inputs for i in with_mixes([inputs], 4)] == [True]
        assert next(iter(only_mixes([inputs]))) is inputs


def test_what_is_not_finite_stays_as_it_is() -> None:
    x = torch.tensor([[0.0, -torch.inf], [1.0, 0.0], [2.0, 1.0]])
    (mix,) = next(iter(only_mixes([(x,)])))
    assert mix[:, 0].isfinite().all() and torch.equal(mix[:, 1], x[:, 1])
