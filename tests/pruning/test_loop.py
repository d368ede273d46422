"""`prune` from end to end: budgets, forms, gates on the quality, states that go on, and what it refuses."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import InputError, MachineError, NotEquivalentError
from reparam.ir import evaluate
from reparam.pruning import Pruned, prune
from reparam.pruning.options import PruneOptions
from reparam.pruning.resuming import NAME
from reparam.utils import PackageState
from support.choice import mostly_in_sweeps
from support.pretended_packages import pretend
from support.prunable import NETS, Residual, images, make

DATA = images(160, seed=4)


def pruned(name: str = "residual", **options: Any) -> Pruned:
    few = {"joint": 2} if options.get("refit", True) else {}
    return prune(make(name), images(2), DATA, **({"macs": 0.5, "form": "residual"} | few | options))


def of_all_classes() -> nn.Module:
    """A network that gives the samples several classes."""
    module = make("residual")
    with torch.no_grad():
        module.head.bias -= module(DATA).mean(0)  # type: ignore[union-attr, operator]
    return module


@functools.cache
def looked_at(**options: Any) -> Pruned:
    """`pruned`, once for all tests that only look at it."""
    return pruned(**options)


@pytest.mark.parametrize("name", mostly_in_sweeps(NETS, "residual"))
def test_the_result_is_within_the_budget_and_close_to_the_original(name: str) -> None:
    module = make(name)
    before = {n: p.clone() for n, p in module.state_dict().items()}
    result = pruned(name, macs=0.6)
    report = result.report
    assert report.after.macs <= 0.6 * report.before.macs
    assert report.conversion.equivalent and report.form == "residual"
    assert report.final.error < 0.5 and report.final.agreement is not None and report.final.agreement > 0.5
    assert report.samples == {"fit": 124, "choosing": 12, "held_out": 24} and report.final.samples == 24
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    x = images(5, seed=7)
    masked = evaluate(result.masked, (x,), torch.float64)[0]
    assert torch.allclose(result.module(x).double(), masked, atol=1e-4)
    assert result.module(x).shape == module(x).shape


def test_refitting_is_what_keeps_the_outputs() -> None:
    with_refit, without = looked_at(), looked_at(refit=False)
    assert with_refit.report.final.error < 0.7 * without.report.final.error
    assert without.report.steps[-1].cut == without.report.steps[-1].refitted


def test_parameters_and_multiples_and_layers_that_stay() -> None:
    result = pruned(macs=None, params=0.6, round_to=2, keep=r"^three")
    assert result.report.after.params <= 0.62 * result.report.before.params
    widths = {w.name: w for w in result.report.widths}
    assert widths["three.0"].after == widths["three.0"].before == (8, 8)
    assert all(w.after[1] % 2 == 0 for n, w in widths.items() if n != "head")
    assert widths["head"].after[1] == 5


@pytest.mark.sweep
def test_both_forms_are_made_and_the_faster_one_is_given() -> None:
    result = pruned(form="auto", engine="torch")
    forms = result.report.forms
    assert set(forms) == {"residual", "plain"}
    times = {name: form.time.ms for name, form in forms.items() if form.time is not None}
    assert result.report.form == min(times, key=lambda n: times[n])


def test_a_plain_chain_is_written_where_it_is_asked_for() -> None:
    result = pruned(form="plain")
    assert result.report.conversion.plain and result.report.after.merges == 0
    assert list(result.report.forms) == ["plain"]


@pytest.mark.sweep
def test_a_form_that_cannot_be_had_is_told() -> None:
    result = pruned("attention", form="auto", engine="torch")
    assert result.report.form == "residual"
    plain = result.report.as_dict()["forms"]["plain"]
    assert plain == {"refused": "the network does not become a chain"}


@pytest.mark.sweep
def test_a_budget_of_latency_is_met_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reparam.pruning import loop
    from reparam.pruning.timing import Time

    def pretended(programs: Any, engine: str, *, rounds: int = 0, seed: int = 0) -> dict[str, Time]:
        """Half of the time is for multiply-accumulates, the other half for whatever else."""
        macs = {name: reparam.ir.census(p).macs for name, p in programs.items()}
        return {n: Time(1.0, 0.5 + 0.5 * m / macs["original"]) for n, m in macs.items()}

    monkeypatch.setattr(loop, "times", pretended)
    result = pruned(macs=None, latency=0.8, resume=tmp_path)
    time = result.report.forms["residual"].time
    assert time is not None and 0.8 * 0.94 <= time.share <= 0.8 * 1.031
    again = pruned(macs=None, latency=0.8, resume=tmp_path)  # nothing is left to do
    assert again.report.after == result.report.after and again.report.steps == result.report.steps
    with pytest.raises(InputError, match=r"40 % of the latency cannot be reached.* gave 5.* % of the time"):
        pruned(macs=None, latency=0.4)  # half of it never goes


@pytest.mark.sweep
def test_a_clock_that_was_wrong_once_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    from reparam.pruning import loop
    from reparam.pruning.timing import Time

    asked: list[int] = []

    def pretended(programs: Any, engine: str, *, rounds: int = 0, seed: int = 0) -> dict[str, Time]:
        """The first answer is far too quick; all others are true: time is multiply-accumulates."""
        asked.append(rounds)
        macs = {name: reparam.ir.census(p).macs for name, p in programs.items()}
        return {n: Time(1.0, 0.5 if len(asked) == 1 else m / macs["original"]) for n, m in macs.items()}

    monkeypatch.setattr(loop, "times", pretended)
    result = pruned(macs=None, latency=0.5)
    assert len(result.report.steps) > 1 and result.report.after.macs <= 0.52 * result.report.before.macs
    assert asked[-1] > asked[0]  # the last word is measured for longer


@pytest.mark.sweep
def test_a_budget_of_latency_makes_widths_that_engines_like(monkeypatch: pytest.MonkeyPatch) -> None:
    from reparam.pruning import loop
    from reparam.pruning.timing import Time

    def pretended(programs: Any, engine: str, *, rounds: int = 0, seed: int = 0) -> dict[str, Time]:
        macs = {name: reparam.ir.census(p).macs for name, p in programs.items()}
        return {n: Time(1.0, m / macs["original"]) for n, m in macs.items()}

    monkeypatch.setattr(loop, "times", pretended)
    result = prune(Residual(24).eval(), images(2), DATA, latency=0.6, form="residual")
    weights = [c.value for n, c in result.program.constants.items() if n.endswith("weight") and c.value.dim() == 4]
    assert len(weights) == 6 and {len(w) % 8 for w in weights} == {0} and {len(w) for w in weights} >= {16, 24}


def test_what_falls_too_far_is_refused() -> None:
    module = of_all_classes()
    with torch.no_grad():
        labels = module(DATA).argmax(1)
    assert len(labels.unique()) > 3

    def run(**options: Any) -> Pruned:
        return prune(module, images(2), DATA, form="residual", **options)

    with pytest.raises(NotEquivalentError, match=r"differ from the original's in .* nothing was written"):
        run(macs=0.2, refit=False, max_drop=0.01)
    with pytest.raises(NotEquivalentError, match="accuracy on held-out samples falls by"):
        run(macs=0.2, refit=False, max_drop=0.01, labels=labels)
    fine = run(macs=0.5, labels=labels, max_drop=0.5, joint=2)
    assert fine.report.original.accuracy == 1.0 and fine.report.final.accuracy == fine.report.final.agreement


def test_what_becomes_of_the_result_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    module, stages = of_all_classes(), list[str]()

    def run(**options: Any) -> Pruned:
        stages.clear()

        def tell(stage: str, done: int, total: int) -> None:
            stages.append(stage)

        return prune(module, images(2), DATA, macs=0.2, refit=False, resume=tmp_path, progress=tell, **options)

    with pytest.raises(NotEquivalentError, match="nothing was written"):
        run(form="residual", max_drop=0.0)
    assert stages.count("prune") > 2
    again = run(form="residual", max_drop=0.9)
    assert stages.count("prune") == 1, "the rounds are not done again"
    plain = run(form="plain")
    assert plain.report.steps == again.report.steps and plain.report.form == "plain"


def test_an_interrupted_run_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    whole = pruned(macs=0.4)
    rounds = len(whole.report.steps)
    seen = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append(stage)
        if stage == "prune" and done == rounds - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(macs=0.4, resume=tmp_path / "state", progress=stop)
    assert [p.name for p in (tmp_path / "state").iterdir()] == [NAME]
    again = pruned(macs=0.4, resume=tmp_path / "state")
    assert again.report.steps == whole.report.steps
    x = images(4, seed=7)
    assert torch.equal(again.module(x), whole.module(x))
    with pytest.raises(InputError, match=r"is the state of another run, with macs 0\.4; give another folder"):
        pruned(macs=0.3, resume=tmp_path / "state")
    with pytest.raises(InputError, match="is the state of another run, on other samples or labels"):
        prune(make("residual"), images(2), images(160, seed=5), macs=0.4, form="residual", resume=tmp_path / "state")
    other = make("residual")
    with torch.no_grad():
        next(other.parameters()).mul_(0.5)
    with pytest.raises(InputError, match="is the state of another run, of another model"):
        prune(other, images(2), DATA, macs=0.4, form="residual", resume=tmp_path / "state")
    same: dict[str, Any] = {"macs": 0.4, "form": "residual", "joint": 2}
    changed = DATA.clone()
    changed[len(DATA) // 2] *= 0.5
    for data, labels in ((changed, None), (DATA, torch.zeros(len(DATA), dtype=torch.int64))):
        with pytest.raises(InputError, match="is the state of another run, on other samples or labels"):
            prune(make("residual"), images(2), data, labels=labels, resume=tmp_path / "state", **same)
    with pytest.raises(InputError, match="is a file"):
        pruned(macs=0.4, resume=tmp_path / "state" / NAME)
    (tmp_path / "state" / NAME).write_bytes(b"\x00" * 40)
    with pytest.raises(InputError, match="is damaged"):
        pruned(macs=0.4, resume=tmp_path / "state")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"macs": None}, "give one budget"),
        ({"params": 0.5}, "give one budget"),
        ({"macs": 1.5}, "macs is 1.5; give a share between 0 and 1"),
        ({"macs": True}, "give a share, such as 0.4"),
        ({"macs": 0.01}, "less than the floors leave"),
        ({"form": "chain"}, "unknown form 'chain'; choose from auto, residual, plain"),
        ({"score": "luck"}, "unknown score"),
        ({"streams": "tied"}, "unknown streams"),
        ({"engine": "abacus"}, "unknown engine"),
        ({"keep": "("}, "no regular expression"),
        ({"keep": "."}, "nothing to prune.*kept by '.'"),
        ({"keep": b"a"}, "give a pattern as text"),
        ({"keep": "thre$"}, "keep is 'thre.', which matches no layer; there are stem.0, one.0, "),
        ({"refit": False, "joint": 1}, "refits are off"),
        ({"refit": "no"}, "give True or False"),
        ({"round_to": 16}, "50 % of the macs cannot be reached.*smaller multiples"),
        ({"round_to": 0}, "give a whole number of one or more"),
        ({"samples": 1.5}, "give a whole number of one or more"),
        ({"joint": -1}, "joint is '-1'; give a whole number of zero or more"),
        ({"width": 3}, "unknown option 'width'"),
        ({"progress": 5}, "progress"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason.replace("(", r"\(")):
        pruned(**options)


class Sorted(torch.nn.Module):
    """A layer whose channels are told apart by their order alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)).mean((2, 3)).sort(1)[0])


def test_networks_and_samples_that_do_not_do_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to prune"):
        prune(torch.nn.Conv2d(3, 4, 3), images(2), DATA, macs=0.5)
    with pytest.raises(InputError, match="some have to be held out"):
        prune(make("residual"), images(2), images(1), macs=0.5)
    with pytest.raises(InputError, match="the 9 samples are all the same"):
        prune(make("residual"), images(2), images(1).expand(9, -1, -1, -1), macs=0.5)
    with pytest.raises(InputError, match="one batch of the size that the network fixes is not enough"):
        prune(make("residual"), images(2), images(3), dynamic=(), macs=0.5)
    with pytest.raises(InputError, match="what reads the channels of the layers needs all of them"):
        prune(Sorted(), images(2), DATA, macs=0.5)


@pytest.mark.parametrize("asked", [{"max_drop": 0.1}, {"labels": torch.zeros(160, dtype=torch.long)}])
def test_what_is_asked_of_classes_is_refused_before_the_work_where_there_are_none(asked: dict[str, Any]) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3))
    stages: list[str] = []
    with pytest.raises(InputError, match="of classes, and the outputs of this network are no scores of classes"):
        prune(net, images(2), DATA, macs=0.5, form="residual", progress=lambda stage, *_: stages.append(stage), **asked)
    assert "prune" not in stages


def test_gradients_are_there_in_inference_mode() -> None:
    with torch.inference_mode():
        found = pruned()
        assert torch.is_inference_mode_enabled()
    assert found.report.joint is not None and found.report.joint.refused == ""


def test_a_share_may_be_a_number_of_numpy() -> None:
    assert PruneOptions.of({"macs": np.float32(0.5)}).budget == ("macs", 0.5)


def test_an_engine_that_is_not_here_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda name: PackageState(name, None, "missing"))
    seen: list[str] = []
    with pytest.raises(MachineError, match="openvino"):
        pruned(form="auto", engine="openvino", progress=lambda stage, done, total: seen.append(stage))
    assert not seen


def test_samples_are_counted_as_rows_where_the_batch_is_fixed() -> None:
    report = pruned(dynamic=(), joint=0).report
    assert report.samples["held_out"] == report.final.samples
    assert sum(report.samples.values()) == len(DATA)


def test_the_report_is_json_and_says_what_was_measured() -> None:
    found = json.loads(json.dumps(looked_at().report.as_dict()))
    assert found["equivalent"] is False and found["budget"] == {"macs": 0.5}
    assert found["evidence"]["float64_max_rel"] < 1e-12
    assert found["quality"]["original"]["agreement"] == 1.0
    assert [s["cost"] for s in found["curve"]] == sorted((s["cost"] for s in found["curve"]), reverse=True)
    assert found["curve"][-1]["refitted"]["samples"] == found["samples"]["held_out"]
    assert found["joint"]["before"] == found["curve"][-1]["refitted"]
    assert found["joint"]["taken"] > 0 and found["joint"]["after"]["error"] < found["joint"]["before"]["error"]
    assert found["quality"]["pruned"]["error"] == pytest.approx(found["joint"]["after"]["error"], rel=1e-3)
    assert {"name", "before", "after"} == set(found["widths"][0])
    assert found["options"]["streams"] == "coupled" and found["forms"]["residual"]["time"] is None


@pytest.mark.sweep
def test_the_refit_of_all_layers_may_be_left_out() -> None:
    assert pruned(joint=0).report.joint is None and looked_at(refit=False).report.joint is None
    one = pruned(joint=1).report.joint
    assert one is not None and one.steps == 1


def test_results_are_saved_as_a_program_and_as_source(tmp_path: Path) -> None:
    result = looked_at()
    result.save(tmp_path / "small.pt2")
    result.save_source(tmp_path / "source")
    assert {p.name for p in tmp_path.iterdir()} == {"small.pt2", "source"}
    loaded: Any = torch.export.load(str(tmp_path / "small.pt2")).module()
    x: Tensor = images(3, seed=7)
    assert torch.equal(loaded(x), result.module(x))
    text = (tmp_path / "source" / "model.py").read_text()
    width = next(w for w in result.report.widths if w.name == "one.0").after
    assert f"nn.Conv2d({width[0]}, {width[1]}, 3" in text.replace("kernel_size=", "")


@pytest.mark.sweep
def test_a_pruned_network_can_be_pruned_further_and_becomes_a_chain() -> None:
    first = pruned(macs=0.7)
    second = prune(first.module, images(2), DATA, macs=0.7, form="residual")
    assert second.report.after.macs <= 0.7 * first.report.after.macs
    plain = reparam.convert(second.module, images(2), to="plain")
    assert plain.report.plain and plain.report.equivalent
