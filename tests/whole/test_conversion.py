"""`convert` and `explain`: what they leave alone, what they return, what they refuse, what they say when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import conversion
from reparam.algebra import route
from reparam.check import Evidence
from reparam.conversion import Conversion, convert, explain
from reparam.errors import InputError, MachineError, NotEquivalentError
from reparam.ir import BATCH_NORMS, evaluate, is_call
from reparam.loading import load
from reparam.rewrite import driver
from support.helpers import Lambda, conv_bn, healthy


def network(depth: int = 3, seed: int = 0) -> nn.Sequential:
    """float32: conv, batch norm, relu, `depth` times, and a linear head."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [*conv_bn(3 if i == 0 else 4, 4, padding=1), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    model = healthy(nn.Sequential(*layers)).float()
    assert isinstance(model, nn.Sequential)
    return model


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 9, 11), generator=torch.Generator().manual_seed(3))


def close(a: Tensor, b: Tensor, roundings: float = 64.0) -> bool:
    """Equal up to a few float32 roundings of the largest element."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max()) <= roundings * torch.finfo(torch.float32).eps * float(a.abs().max())


def norms(program: Any) -> int:
    return sum(is_call(n, BATCH_NORMS) for n in program.calls())


# ---- what is left alone ------------------------------------------------------------------------------------------


def snapshot(model: nn.Module) -> dict[str, Any]:
    state = {k: (v.clone(), v.data_ptr(), v._version) for k, v in model.state_dict().items()}
    modules = {
        n: (m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks), set(m._buffers), set(m._parameters))
        for n, m in model.named_modules()
    }
    grads = {n: (p.requires_grad, p.grad) for n, p in model.named_parameters()}
    return {"state": state, "modules": modules, "grads": grads}


def assert_same_snapshot(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["modules"] == after["modules"]
    assert before["grads"] == after["grads"]
    assert list(before["state"]) == list(after["state"])
    for name, (value, place, version) in before["state"].items():
        now, where, writes = after["state"][name]
        assert torch.equal(value, now) and (place, version) == (where, writes), name


@pytest.mark.parametrize("job", [convert, explain])
def test_the_callers_module_is_left_as_it_was(job: Callable[..., Any]) -> None:
    model = network()
    model.train()
    model[1].eval()
    calls: list[int] = []
    model[2].register_forward_hook(lambda *_: calls.append(1))
    before = snapshot(model)
    job(model, image())
    assert_same_snapshot(before, snapshot(model))
    count = len(calls)
    model(image())
    assert len(calls) == count + 1


def test_the_callers_random_state_is_left_as_it_was() -> None:
    model, x = network(), image()
    before = torch.get_rng_state()
    convert(model, x)
    assert torch.equal(before, torch.get_rng_state())


def test_changing_the_result_does_not_change_the_original() -> None:
    model = network()
    result = convert(model, image())
    before = model(image())
    with torch.no_grad():
        for constant in result.program.constants.values():
            if constant.folded or constant.value.dim() == 4:
                constant.value.zero_()
    assert torch.equal(before, model(image()))


def test_two_conversions_give_the_same_bits() -> None:
    first, again = (convert(network(), image()).program for _ in range(2))
    assert list(first.constants) == list(again.constants)
    assert all(torch.equal(c.value, again.constants[n].value) for n, c in first.constants.items())
    assert [str(n) for n in first.graph.nodes] == [str(n) for n in again.graph.nodes]


# ---- modes, inputs, outputs --------------------------------------------------------------------------------------


def test_a_module_in_training_mode_is_converted_in_evaluation_mode_with_a_remark() -> None:
    model = network()
    truth = model.eval()(image())
    result = convert(model.train(), image())
    assert close(truth, result.module(image()))
    assert [r.message for r in result.report.remarks if r.kind == "analysis"] == [
        "the model was in training mode; it was captured in evaluation mode"
    ]
    assert not result.module.training


def test_hooks_are_named_in_a_remark() -> None:
    model = network()
    model[2].register_forward_hook(lambda _module, _args, out: out + 1)
    result = convert(model, image())
    assert close(model(image()), result.module(image()))
    assert any("module '2' has hooks" in r.message for r in result.report.remarks)


class Pair(NamedTuple):
    left: Tensor
    rest: tuple[Tensor, ...]


def test_several_inputs_and_nested_outputs_keep_their_structure() -> None:
    def forward(m: Any, x: Tensor, pair: list[Tensor], options: dict[str, Tensor]) -> Any:
        a, b = m.one(x), m.two(pair[0]) + pair[1]
        return {"first": a, "more": [b, (a + b, options["scale"] * a)], "none": None, "three": 3}

    model = healthy(Lambda(forward, one=conv_bn(padding=1), two=conv_bn(padding=1))).float()
    args = (image(2, 4, 6, 6), [image(2, 4, 6, 6), image(2, 4, 6, 6)], {"scale": image(2, 1, 1, 1)})
    result = convert(model, *args)
    truth, got = model(*args), result.module(*args)
    assert set(got) == {"first", "more", "none", "three"}
    assert got["none"] is None and got["three"] == 3
    assert isinstance(got["more"], list) and isinstance(got["more"][1], tuple)
    for a, b in zip(torch.utils._pytree.tree_leaves(truth), torch.utils._pytree.tree_leaves(got), strict=True):
        assert not isinstance(a, Tensor) or close(a, b)
    assert norms(result.program) == 0
    assert len(result.program.inputs) == 4
    batch = tuple(torch.utils._pytree.tree_map(lambda t: torch.cat([t, t, t]), a) for a in args)
    assert result.module(*batch)["first"].shape[0] == 6


def test_a_named_tuple_comes_out_as_one() -> None:
    model = healthy(Lambda(lambda m, x: Pair(m.a(x), (x, m.a(x).relu())), a=conv_bn(padding=1))).float()
    result = convert(model, image(2, 4, 6, 6))
    got = result.module(image(2, 4, 6, 6))
    assert isinstance(got, Pair)
    assert torch.equal(got.rest[0], image(2, 4, 6, 6))


def test_integer_inputs_and_outputs_are_compared_exactly() -> None:
    model = Lambda(
        lambda m, tokens: (m.embed(tokens), m.head(m.embed(tokens)).argmax(-1)),
        embed=nn.Embedding(50, 8),
        head=nn.Linear(8, 6),
    )
    tokens = torch.arange(20).reshape(2, 10)
    result = convert(model, tokens)
    assert torch.equal(result.module(tokens)[1], model(tokens)[1])
    assert result.report.evidence is not None and result.report.evidence.float64_max_rel == 0.0


@pytest.mark.parametrize("model_last", [False, True])
@pytest.mark.parametrize("input_last", [False, True])
def test_channels_last_modules_and_inputs(model_last: bool, input_last: bool) -> None:
    model, x = network(), image()
    truth = model(x)
    if model_last:
        model = model.to(memory_format=torch.channels_last)
    if input_last:
        x = x.to(memory_format=torch.channels_last)
    result = convert(model, x)
    assert norms(result.program) == 0
    for layout in (torch.contiguous_format, torch.channels_last):
        assert close(truth, result.module(x.to(memory_format=layout)))


def test_an_exported_program_is_taken_as_it_is() -> None:
    model = network()
    exported = torch.export.export(model, (image(),), strict=False)
    result = convert(exported)
    assert norms(result.program) == 0
    assert close(model(image()), result.module(image()))


def test_a_float64_model_is_converted_and_held_to_float64() -> None:
    result = convert(network().double(), image().double())
    evidence = result.report.evidence
    assert evidence is not None and evidence.dtype == "float64"
    assert evidence.error <= 1e-10
    assert {c.value.dtype for c in result.program.constants.values()} == {torch.float64}


# ---- the report --------------------------------------------------------------------------------------------------


def test_the_report_holds_what_was_measured() -> None:
    result = convert(network(), image(), seed=4)
    report = result.report.as_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["equivalent"] is True and report["plain"] is True and report["target"] == "fused"
    assert report["before"]["norms"] == 3 and report["after"]["norms"] == 0
    assert report["evidence"]["seed"] == 4 and report["evidence"]["trials"] == 8
    assert report["evidence"]["kinds"]["basis"] + report["evidence"]["kinds"]["sampled"] == len(
        [r for r in report["remarks"] if r["kind"] == "passed"]
    )
    folds = [r for r in report["remarks"] if r["rule"] == "fold-batch-norm"]
    assert [r["module"] for r in folds] == ["1", "4", "7"]
    assert all(0.0 <= r["max_abs"] < 1e-12 for r in folds)
    assert set(report["seconds"]) == {"load", "capture", "rewrite", "verify", "emit"}
    assert report["seconds"]["capture"] > 0


def test_explain_says_what_convert_does_and_checks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    done = convert(network(), image()).report.as_dict()

    def refuse(*_: Any) -> None:
        raise AssertionError("explain does not compare networks")

    monkeypatch.setattr(conversion, "check_float64", refuse)
    planned = explain(network(), image()).as_dict()
    assert planned["equivalent"] is None
    assert planned["remarks"] == done["remarks"]
    assert (planned["before"], planned["after"], planned["plain"]) == (done["before"], done["after"], done["plain"])


def test_progress_is_told_from_capture_to_verification() -> None:
    told: list[tuple[str, int, int]] = []
    convert(network(), image(), progress=lambda *step: told.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages[0] == "capture" and stages[-1] == "verify"
    assert all(0 <= done <= total for _, done, total in told)


# ---- saving ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted() -> Conversion:
    return convert(network(), image())


def test_a_saved_program_is_read_by_torch_and_by_reparam(converted: Conversion, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    converted.save(path)
    truth = converted.module(image(5, 3, 9, 11))
    assert torch.equal(torch.export.load(path).module()(image(5, 3, 9, 11)), truth)
    loaded = load(path)  # inspects the archive before anything in it is run
    assert loaded.exported is not None
    assert torch.equal(loaded.module(image(5, 3, 9, 11)), truth)
    again = convert(loaded.exported)
    assert again.report.before == converted.report.after


def test_saving_does_not_overwrite_unless_it_is_told_to(converted: Conversion, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("precious")
    with pytest.raises(InputError, match=r"net\.pt2 exists already; force=True overwrites it"):
        converted.save(path)
    assert path.read_text() == "precious"
    converted.save(path, force=True)
    assert torch.export.load(path) is not None
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]


def test_a_save_that_fails_leaves_what_was_there(
    converted: Conversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("precious")

    def full(_program: Any, target: Any) -> None:
        target.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(MachineError, match="No space left on device"):
        converted.save(path, force=True)
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]


# ---- failures ----------------------------------------------------------------------------------------------------


def blind_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rewrite passes its own check, whatever it did."""
    monkeypatch.setattr(driver, "check_region", lambda *_: Evidence("sampled", 0.0, 0.0, True))


def broken_kernel(monkeypatch: pytest.MonkeyPatch, *wrong: int) -> None:
    """The kernel that folds an affine into a layer is off by a hundredth in its `wrong`-th calls of each run."""
    kernel, count = route.scale_outputs, [0]

    class Restarting(driver.Driver):
        def run(self, *args: Any) -> Any:
            count[0] = 0
            return super().run(*args)

    def scale_outputs(*args: Any) -> tuple[Tensor, Tensor | None]:
        count[0] += 1
        weight, bias = kernel(*args)
        return (weight * 1.01 if count[0] in wrong else weight), bias

    monkeypatch.setattr(route, "scale_outputs", scale_outputs)
    monkeypatch.setattr(conversion, "Driver", Restarting)


def test_a_broken_kernel_is_caught_by_the_check_of_its_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_kernel(monkeypatch, *range(5, 100))
    result = convert(network(6), image())
    caught = [r for r in result.report.remarks if "rejected by its own check" in r.message]
    assert norms(result.program) == 2
    assert {(r.rule, r.module) for r in caught} >= {("fold-batch-norm", "13"), ("fold-batch-norm", "16")}


@pytest.mark.parametrize("wrong, module, number", [((1,), "1", 1), ((3,), "7", 3), ((6,), "16", 6), ((2, 5), "4", 2)])
def test_the_first_rewrite_that_diverges_is_named(
    wrong: tuple[int, ...], module: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind_evidence(monkeypatch)
    broken_kernel(monkeypatch, *wrong)
    expected = rf"the first rewrite that diverges is fold-batch-norm at '{module}' \(number {number} of 6\)"
    with pytest.raises(NotEquivalentError, match=expected) as error:
        convert(network(6), image())
    assert error.value.exit_code == 1
    assert "float64" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    model = network()
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"weight '3\.weight' holds NaN or infinite values"):
        convert(model, image())


def test_an_infinite_buffer_is_a_mask_and_not_damage() -> None:
    model = Lambda(lambda m, x: (m.fc(x) + m.mask).softmax(-1), fc=nn.Linear(4, 4))
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0, 0.0]))
    result = convert(model, image(2, 4))
    assert close(model(image(2, 4)), result.module(image(2, 4)))
    model.register_buffer("mask", torch.tensor([0.0, torch.nan, 0.0, 0.0]))
    with pytest.raises(InputError, match="weight 'mask' holds NaN"):
        convert(model, image(2, 4))


def test_unknown_targets_and_axes_are_refused() -> None:
    with pytest.raises(InputError, match="unknown target 'fussed'; choose from fused"):
        convert(network(), image(), to="fussed")
    with pytest.raises(InputError, match="unknown dynamic axis 'depth'; choose from batch, height, width"):
        convert(network(), image(), dynamic=("depth",))


# ---- the package -------------------------------------------------------------------------------------------------


def test_the_package_exports_the_names_of_its_documentation() -> None:
    assert reparam.convert is convert and reparam.explain is explain
    with pytest.raises(AttributeError, match="no attribute 'konvert'"):
        _ = reparam.konvert


def test_the_module_is_what_the_program_computes(converted: Conversion) -> None:
    x = image(4, 3, 9, 11)
    with torch.no_grad():
        assert torch.equal(converted.module(x), evaluate(converted.program, [x], None)[0])
