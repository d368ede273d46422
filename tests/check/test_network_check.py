"""The end-to-end check: what it feeds, what it lets pass, and the bars that it holds a converted network to."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.check import NetworkEvidence, check_emitted, check_float64
from reparam.check import emitted_check as subject
from reparam.conversion import convert
from reparam.emit import finalize
from reparam.errors import CaptureError, InputError, NotEquivalentError
from reparam.ir import InputSpec, Program, feed, random_input
from support.helpers import Lambda, conv_bn, fuse, healthy, program_of

EPS = torch.finfo(torch.float32).eps


def model(size: int = 5) -> nn.Module:
    torch.manual_seed(0)
    net = Lambda(
        lambda m, x: m.fc(m.block(x).relu().mean((2, 3))), block=conv_bn(3, 8, padding=1), fc=nn.Linear(8, size)
    )
    return healthy(net).float()


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 12, 12), generator=torch.Generator().manual_seed(4))


def program(*shape: int, **options: Any) -> Program:
    return program_of(model(), image(*shape), **options)


def shifted(original: Program, by: float) -> Program:
    """Every output is off by `by`, which neither depends on the input nor on any dtype's arithmetic."""
    copy = original.copy()
    constant = copy.constants["fc.bias"]
    copy.constants["fc.bias"] = dataclasses.replace(constant, value=constant.value.detach().double() + by)
    return copy


# ---- the bar of the emitted dtype --------------------------------------------------------------------------------


def measured(original: Program, dtype: torch.dtype | None = None) -> tuple[Any, NetworkEvidence, float]:
    """The rounds, the evidence of the original against itself, and the bar that follows from it."""
    evidence, rounds = check_float64(original, original.copy())
    evidence = check_emitted(original, finalize(original.copy(), dtype), rounds, evidence, dtype)
    assert evidence.error == evidence.original_error > 0
    total = sum(float(r.truth[0].square().sum()) for r in rounds)
    size = math.sqrt(total / sum(r.truth[0].numel() for r in rounds))
    eps = torch.finfo(dtype or original.dtype).eps
    return rounds, evidence, 2 * evidence.original_error + 4 * eps * size


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_emitted_model_beyond_the_bar_is_refused_and_one_below_it_passes(dtype: torch.dtype | None) -> None:
    original = program()
    rounds, own, bar = measured(original, dtype)
    emitted = finalize(original.copy(), dtype)
    kept = check_emitted(original, shifted(emitted, 0.8 * bar), rounds, NetworkEvidence(), dtype)
    assert own.original_error < kept.error < bar
    with pytest.raises(NotEquivalentError, match=r"less exact than the original in b?float.* in the median input"):
        check_emitted(original, shifted(emitted, 1.3 * bar), rounds, NetworkEvidence(), dtype)


def test_an_emitted_model_that_is_not_finite_is_refused() -> None:
    original = program()
    rounds, _, _ = measured(original)
    for bad in (math.nan, math.inf):
        with pytest.raises(NotEquivalentError, match="less exact"):
            check_emitted(original, shifted(original, bad), rounds, NetworkEvidence(), None)


def test_a_network_that_overflows_in_its_own_dtype_is_refused_with_the_reason() -> None:
    net = Lambda(lambda m, x: (m.conv(x) * 1e15).square().square(), conv=nn.Conv2d(3, 4, 1))
    with pytest.raises(InputError, match="the original's own outputs are not finite in float32"):
        convert(net, image())


def test_the_worst_of_several_outputs_is_reported_and_decides() -> None:
    def build(by: float) -> Program:
        made = program_of(Lambda(lambda m, x: (x * 2, m.fc(x) * 1e3), fc=nn.Linear(4, 4)), torch.randn(2, 4))
        bias = made.constants["fc.bias"]
        made.constants["fc.bias"] = dataclasses.replace(bias, value=torch.full((4,), 1.0 + by))
        return made

    torch.manual_seed(0)
    original = build(0.0)
    weight = original.constants["fc.weight"]
    other = build(1e-5)
    other.constants["fc.weight"] = weight
    evidence, rounds = check_float64(original, original.copy())
    evidence = check_emitted(original, original.copy(), rounds, evidence, None)
    assert evidence.original_error > 1e-6, "of the second output, the first one is exact"
    with pytest.raises(NotEquivalentError):
        check_emitted(original, other, rounds, evidence, None)


def test_in_float64_the_bar_is_that_of_the_check_before() -> None:
    original = program_of(model().double(), image().double())
    evidence, rounds = check_float64(original, original.copy())
    size = 1.0
    small = check_emitted(original, shifted(original, 1e-12 * size), rounds, evidence, None)
    assert small.dtype == "float64" and small.original_error == 0.0 and 0.0 < small.error < 1e-11
    with pytest.raises(NotEquivalentError, match="less exact than the original in float64"):
        check_emitted(original, shifted(original, 1e-8 * size), rounds, evidence, None)


def test_a_dtype_that_the_machine_cannot_compute_is_the_callers_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    original = program()
    evidence, rounds = check_float64(original, original.copy())

    def refuse(*_: Any) -> None:
        raise RuntimeError("\"conv2d\" not implemented for 'Half'")

    monkeypatch.setattr(subject, "evaluate", refuse)
    with pytest.raises(InputError, match=r"this machine cannot run the network in float16: .* not implemented"):
        check_emitted(original, original, rounds, evidence, torch.float16)


def test_a_network_that_runs_in_float64_alone_is_not_the_machines_fault() -> None:
    """Its weights are float32 and its example is float64, which torch.export does not mind."""
    with pytest.raises(CaptureError, match=r"does not run on random inputs of the traced size: .* Double and Float"):
        convert(nn.Linear(4, 4), torch.randn(2, 4, dtype=torch.float64))


# ---- the float64 bar ---------------------------------------------------------------------------------------------


def test_a_network_that_differs_in_float64_is_refused() -> None:
    original = program()
    evidence, _ = check_float64(original, shifted(original, 1e-13))
    assert 0.0 < evidence.float64_max_rel < 1e-11
    with pytest.raises(NotEquivalentError, match=r"float64 error .* exceeds 1e-10"):
        check_float64(original, shifted(original, 1e-8))


def cancelling(dtype: torch.dtype, large: float, folded: bool) -> Program:
    """(x + c)*w - c*w, or w*x: equal on paper; the first loses what c is larger than x."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.w * x if folded else (x + m.c) * m.w - m.c * m.w

    net = Lambda(forward)
    net.w = nn.Parameter(torch.linspace(0.5, 1.5, 4, dtype=dtype))
    net.c = nn.Parameter(torch.full((4,), large, dtype=dtype))
    return program_of(net, torch.randn(2, 4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_ill_conditioned_network_is_held_to_its_measured_amplification(dtype: torch.dtype) -> None:
    """Both forms are right; what they differ by is the original's own rounding, which float32 shows."""
    original, exact = cancelling(dtype, 1e7, False), cancelling(dtype, 1e7, True)
    evidence, rounds = check_float64(original, exact)
    assert 1e-10 < evidence.float64_max_rel < 1e-7
    assert len(rounds) == 3 and all(r.limit > evidence.float64_max_rel for r in rounds)
    check_emitted(original, exact, rounds, evidence, None)


def test_the_amplification_excuses_nothing_else() -> None:
    original = cancelling(torch.float32, 1e7, False)
    wrong = cancelling(torch.float32, 1e7, True)
    weight = wrong.constants["w"]
    wrong.constants["w"] = dataclasses.replace(weight, value=weight.value.detach() * (1 + 1e-5))
    with pytest.raises(NotEquivalentError):
        check_float64(original, wrong)


def test_shapes_integers_and_constants_have_to_be_equal() -> None:
    def build(forward: Any) -> Program:
        return program_of(Lambda(forward), torch.randn(2, 4))

    same = build(lambda m, x: (x * 2, x.argmax(-1), 3))
    assert check_float64(same, same.copy())[0].float64_max_rel == 0.0
    for other in (
        lambda m, x: (x[:, :3] * 2, x.argmax(-1), 3),
        lambda m, x: (x * 2, x.argmin(-1), 3),
        lambda m, x: (x * 2, x.argmax(-1), 4),
    ):
        with pytest.raises(NotEquivalentError, match="float64 error inf"):
            check_float64(same, build(other))


def test_outputs_without_elements_and_zero_outputs_are_equal() -> None:
    def build(forward: Any) -> Program:
        return program_of(Lambda(forward), torch.randn(2, 4))

    a, b = build(lambda m, x: (x[:, 4:], 0 * x)), build(lambda m, x: (x[:, 4:] + 1, x - x))
    evidence, rounds = check_float64(a, b)
    check_emitted(a, b, rounds, evidence, None)
    assert (evidence.float64_max_rel, evidence.error, evidence.original_error) == (0.0, 0.0, 0.0)


# ---- sizes -------------------------------------------------------------------------------------------------------


def shapes(original: Program) -> list[list[int]]:
    return [list(s) for s in check_float64(original, original.copy())[0].shapes]


def test_batch_one_at_the_traced_size_then_seven_at_a_smaller_odd_one() -> None:
    """So many among them as were traced."""
    assert shapes(program()) == [[1, 3, 12, 12], [5, 3, 9, 9], [2, 3, 9, 9]]
    assert shapes(program(4, 3, 96, 80)) == [[1, 3, 96, 80], [3, 3, 33, 33], [4, 3, 33, 33]]
    assert shapes(program(7, 3, 12, 12)) == [[1, 3, 12, 12], [7, 3, 9, 9]]
    assert shapes(program(9, 3, 12, 12)) == [[1, 3, 12, 12], [7, 3, 9, 9], [9, 3, 9, 9]]


def test_free_heights_and_widths_are_run_at_other_sizes_odd_and_even() -> None:
    run = shapes(program(dynamic=("batch", "height", "width")))
    assert run[:3] == [[1, 3, 12, 12], [5, 3, 9, 9], [2, 3, 9, 9]]
    assert run[8:] == [[2, 3, 12, 1], [2, 3, 1, 12], [2, 3, 1, 1]]
    free = run[3:8]
    assert all(s[2] != s[3] for s in free) and len({tuple(s) for s in free}) == 5
    assert {s[2] % 2 for s in free} == {0, 1}
    assert min(min(s[2:]) for s in free) == 3 and max(max(s[2:]) for s in free) > 44


def test_a_graph_of_one_size_falls_back_to_the_traced_one() -> None:
    torch.manual_seed(0)
    fixed = Lambda(lambda m, x: m.fc(m.conv(x).flatten(1)), conv=nn.Conv2d(3, 2, 3), fc=nn.Linear(2 * 100, 4))
    original = program_of(fixed, image())
    evidence, _ = check_float64(original, original.copy())
    assert evidence.shapes == ((1, 3, 12, 12), (5, 3, 12, 12), (2, 3, 12, 12))
    assert evidence.trials == 8


def test_a_fixed_batch_is_run_eight_times() -> None:
    evidence, rounds = check_float64(program(dynamic=()), program(dynamic=()))
    assert evidence.trials == 8 == len(rounds)
    assert evidence.shapes[0] == (2, 3, 12, 12)
    assert not torch.equal(rounds[1].values[0], rounds[2].values[0])


def pooled(ceil_mode: bool, dynamic: tuple[str, ...]) -> Program:
    net = Lambda(lambda m, x: F.avg_pool2d(x, 2, ceil_mode=ceil_mode).mean((2, 3)))
    return program_of(net, image(2, 3, 8, 8), dynamic=dynamic)


@pytest.mark.parametrize("dynamic", [("batch",), ("batch", "height", "width")])
def test_what_goes_wrong_at_odd_sizes_alone_is_caught(dynamic: tuple[str, ...]) -> None:
    """Pools with and without ceil_mode agree on the traced eight by eight. With a fixed size that is all that counts:
    an input of another size that tells them apart is not what the model is for, so the traced size decides."""
    floor, ceiling = pooled(False, dynamic), pooled(True, dynamic)
    if dynamic == ("batch",):
        assert check_float64(floor, ceiling)[0].shapes == ((1, 3, 8, 8), (5, 3, 8, 8), (2, 3, 8, 8))
        return
    with pytest.raises(NotEquivalentError):
        check_float64(floor, ceiling)


def test_a_conversion_that_fixes_the_batch_by_mistake_is_caught() -> None:
    original = program_of(Lambda(lambda m, x: x - x.mean(1, keepdim=True)), torch.randn(2, 4))
    wrong = program_of(Lambda(lambda m, x: x - x.mean()), torch.randn(1, 4), dynamic=())
    with pytest.raises(NotEquivalentError):
        check_float64(original, wrong)


def test_the_reported_evidence_is_that_of_the_conversion() -> None:
    result = convert(model(), image(), dynamic=("batch", "height", "width"), seed=9)
    evidence = result.report.evidence
    assert evidence is not None
    assert evidence.seed == 9 and len(evidence.shapes) == 11 and evidence.trials == 22
    assert 0.0 < evidence.float64_max_rel < 1e-13
    assert 0.0 < evidence.error <= 2 * evidence.original_error + 4 * EPS


# ---- inputs ------------------------------------------------------------------------------------------------------


def drawn(dtype: torch.dtype, low: float = -math.inf, high: float = math.inf) -> Tensor:
    return random_input(InputSpec("x", (1000,), dtype, low, high), (1000,), torch.Generator().manual_seed(0))


def test_random_inputs_keep_to_their_range_and_kind() -> None:
    free = drawn(torch.float32)
    assert free.dtype == torch.float64 and abs(float(free.mean())) < 0.2 and 0.9 < float(free.std()) < 1.1
    both = drawn(torch.float32, -2.0, 5.0)
    assert -2.0 <= float(both.min()) < -1.5 and 4.5 < float(both.max()) <= 5.0
    assert float(drawn(torch.float32, 3.0).min()) >= 3.0
    assert float(drawn(torch.float32, -math.inf, -1.0).max()) <= -1.0
    assert set(drawn(torch.int64).tolist()) == {0, 1}
    assert set(drawn(torch.int32, 2, 4).tolist()) == {2, 3, 4}
    assert drawn(torch.bool).dtype == torch.bool and 0 < int(drawn(torch.bool).sum()) < 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_inputs_are_numbers_that_every_dtype_has(dtype: torch.dtype) -> None:
    """So that the emitted dtype's rounding of the input is no part of the error."""
    original = program_of(nn.ReLU(), torch.zeros(2, 50, dtype=dtype))
    (values,) = feed(original, {}, torch.Generator().manual_seed(0))
    assert values.dtype == torch.float64
    assert torch.equal(values, values.to(dtype).double())
    assert not torch.equal(values, values.round())


def test_every_row_of_a_table_can_be_looked_up() -> None:
    """An index has no range of its own: that of the table decides."""

    def forward(m: Any, tokens: Tensor, factor: Tensor) -> Tensor:
        rows = tokens.reshape(-1).long()
        return m.a(rows) + m.b(rows) * factor[0]

    net = Lambda(forward, a=nn.Embedding(9, 2), b=nn.Embedding(7, 2))
    original = program_of(net, torch.zeros(2, 500, dtype=torch.int32), torch.tensor([1]))
    tokens, factor = feed(original, {}, torch.Generator().manual_seed(0))
    assert tokens.dtype == torch.int32 and set(tokens.flatten().tolist()) == set(range(7))
    assert factor.dtype == torch.int64 and set(factor.tolist()) <= {0, 1}


def test_the_fused_network_of_the_helpers_passes_end_to_end() -> None:
    fused = fuse(model(), image())
    evidence, rounds = check_float64(fused.original, fused.program)
    assert evidence.float64_max_rel < 1e-13
    assert len(rounds) == 3 and all(bool(torch.isfinite(r.truth[0]).all()) for r in rounds)
