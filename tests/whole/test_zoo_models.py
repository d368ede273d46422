"""The acceptance list: unmodified networks of timm and torchvision fuse at least as far as their own deploy forms.

By default a network of each family; `make sweep` runs all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.conversion import Conversion, convert
from reparam.errors import InputError
from reparam.ir import Program, evaluate
from support.choice import mostly_in_sweeps
from support.zoo_cases import CASES, Case, Fused, batch_norms, constant_arithmetic, fuse_case, healthy_network

FLOAT64 = 1e-10
WELL_CONDITIONED = 1e-3


def named(case: Case) -> object:
    return pytest.param(case, id=case.name)


@pytest.mark.parametrize("case", [named(c) for c in CASES if c.fast])
def test_a_network_of_each_family_fuses(case: Case) -> None:
    assert_fuses(case)


@pytest.mark.sweep
@pytest.mark.parametrize("case", [named(c) for c in CASES])
def test_every_network_fuses(case: Case) -> None:
    assert_fuses(case)


def assert_fuses(case: Case) -> None:
    fused = fuse_case(case)
    assert_equivalent(fused)
    assert_no_dearer(fused)
    assert_norms_are_explained(fused, case.norms)
    assert_plain_weights(fused)
    if case.deploy:
        assert_beats_the_deploy_form(fused)
    PARTICULAR.get(case.name, lambda _: None)(fused)


def assert_equivalent(fused: Fused) -> None:
    """Equal in float64, no less exact in float32 on a network where that says something; no rule was caught lying."""
    report = fused.conversion.report
    evidence = report.evidence
    assert report.equivalent and evidence is not None
    assert evidence.float64_max_rel <= FLOAT64
    assert evidence.trials >= 8
    size = float(fused.output.double().square().mean().sqrt())
    assert evidence.error <= 2 * evidence.original_error + 4 * torch.finfo(torch.float32).eps * size
    assert fused.loss <= WELL_CONDITIONED
    assert 1e-3 <= float(fused.output.abs().max()) <= 1e3
    assert fused.outcome.rejected == 0
    x = torch.randn(1, *(int(s) for s in evidence.shapes[0][1:]))
    with torch.no_grad():
        assert torch.equal(fused.conversion.module(x), evaluate(fused.conversion.program, [x], None)[0])


def assert_no_dearer(fused: Fused) -> None:
    before, after = fused.before, fused.after
    assert after.convs <= before.convs and after.params <= before.params and after.macs <= before.macs
    assert after.merges <= before.merges and after.nodes < before.nodes


def assert_norms_are_explained(fused: Fused, expected: int) -> None:
    """As many batch norms are left as were known to be, and each has a remark that says where it is stuck."""
    assert len(fused.norms) == expected
    for node in fused.norms:
        remarks = [r for r in fused.missed(node) if r.rule == "fold-batch-norm"]
        assert remarks, f"nothing is said about the batch norm {node}"
        assert all("(at '" in r.message for r in remarks)


def assert_plain_weights(fused: Fused) -> None:
    """Every convolution reads its weight and bias, nothing computes them."""
    for node in fused.conversion.program.calls():
        if node.meta["data"] and "conv" in str(node.target):
            assert all(a is None or a.op == "get_attr" for a in node.args[1:3]), node


def assert_beats_the_deploy_form(fused: Fused) -> None:
    deploy, after = fused.deploy, fused.after
    assert deploy is not None
    assert deploy.difference <= FLOAT64
    assert after.convs <= deploy.census.convs
    assert after.params <= deploy.census.params
    assert after.macs <= deploy.census.macs
    assert after.merges <= deploy.census.merges
    assert len(fused.norms) <= deploy.norms


# ---- particular networks -----------------------------------------------------------------------------------------


def assert_a_chain_of_22_convolutions(fused: Fused) -> None:
    after = fused.after
    assert (after.convs, after.norms, after.merges, after.gates) == (22, 0, 0, 0)
    assert fused.conversion.report.plain


def assert_the_deploy_form_keeps_norms(fused: Fused) -> None:
    """34 and 75 of them, where the fused form has none."""
    assert fused.deploy is not None and fused.deploy.norms in (34, 75)
    assert fused.norms == []


def assert_no_constant_arithmetic(fused: Fused) -> None:
    assert constant_arithmetic(fused.conversion.program) == []


def assert_53_convolutions_and_16_sums(fused: Fused) -> None:
    after = fused.after
    assert (after.convs, after.norms, after.merges) == (53, 0, 16)


PARTICULAR: dict[str, Callable[[Fused], None]] = {
    "repvgg_a0": assert_a_chain_of_22_convolutions,
    "nextvit_small": assert_the_deploy_form_keeps_norms,
    "efficientformerv2_s0": assert_the_deploy_form_keeps_norms,
    "dm_nfnet_f0": assert_no_constant_arithmetic,
    "nf_resnet50": assert_no_constant_arithmetic,
    "resnet50": assert_53_convolutions_and_16_sums,
}


# ---- half precision ----------------------------------------------------------------------------------------------


def resnet18() -> nn.Module:
    return healthy_network(Case("torchvision/resnet18", 64))


def folded_before_emission(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """Collects the program of each conversion as it is before its weights are cast."""
    from reparam import conversion

    seen: list[Program] = []
    finalize = conversion.finalize

    def spy(program: Program, dtype: torch.dtype | None = None) -> Program:
        seen.append(program.copy())
        return finalize(program, dtype)

    monkeypatch.setattr(conversion, "finalize", spy)
    return seen


def dtypes(program: Program) -> set[torch.dtype]:
    return {c.value.dtype for c in program.constants.values() if c.value.is_floating_point()}


@pytest.mark.parametrize("dtype", mostly_in_sweeps([torch.float16, torch.bfloat16], torch.bfloat16))
def test_a_half_precision_checkpoint_folds_in_float64(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = resnet18().to(dtype)
    seen = folded_before_emission(monkeypatch)
    result = convert(model, torch.randn(2, 3, 64, 64, dtype=dtype))
    assert batch_norms(result.program) == []
    folded = [c for c in seen[0].constants.values() if c.folded]
    assert len(folded) == 40  # 20 convolutions with a kernel and a bias each
    assert all(c.value.dtype == torch.float64 and c.dtype == dtype for c in folded)
    assert any(not torch.equal(c.value, c.value.to(dtype).double()) for c in folded)
    assert dtypes(result.program) == {dtype}
    assert_within_the_bar(result, dtype)
    output = result.module(torch.randn(3, 3, 64, 64, dtype=dtype))
    assert output.dtype == dtype and bool(torch.isfinite(output).all())


@pytest.mark.parametrize("dtype", mostly_in_sweeps([torch.float16, torch.bfloat16, torch.float64], torch.float64))
def test_the_emitted_dtype_can_be_chosen(dtype: torch.dtype) -> None:
    result = convert(resnet18(), torch.randn(2, 3, 64, 64), dtype=dtype)
    assert dtypes(result.program) == {dtype}
    assert result.program.inputs[0].dtype == dtype
    assert dtypes(result.original) == {torch.float32}
    assert_within_the_bar(result, dtype)
    assert result.module(torch.randn(3, 3, 64, 64, dtype=dtype)).dtype == dtype


def assert_within_the_bar(result: Conversion, dtype: torch.dtype) -> None:
    evidence = result.report.evidence
    assert evidence is not None and evidence.dtype == str(dtype).removeprefix("torch.")
    assert evidence.float64_max_rel <= FLOAT64
    assert math.isfinite(evidence.error)
    rounding = max(4 * torch.finfo(dtype).eps, FLOAT64)
    assert evidence.error <= 2 * evidence.original_error + rounding * 2.0  # its outputs are about 1


def extreme(var: float = 65000.0, eps: float = 1000.0, gamma: float = 1.0) -> nn.Module:
    """A batch norm whose var + eps (or γ*W) is more than float16 holds, though what it computes is ordinary."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=eps), nn.ReLU())
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        model[0].weight.mul_(200.0)
        norm.running_var.fill_(var)
        norm.weight.fill_(gamma)
    return model.half().eval()


@pytest.mark.parametrize("var, eps, gamma", [(65000.0, 1000.0, 1.0), (60000.0, 1.0, 3000.0)])
def test_what_would_overflow_float16_folds(var: float, eps: float, gamma: float) -> None:
    model = extreme(var, eps, gamma)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    kernel: Tensor = model[0].weight
    naive = (kernel * norm.weight.reshape(-1, 1, 1, 1)) / (norm.running_var + norm.eps).sqrt().reshape(-1, 1, 1, 1)
    assert bool((naive == 0).all()) or not bool(torch.isfinite(naive).all())
    result = convert(model, torch.randn(2, 3, 9, 9).half())
    assert batch_norms(result.program) == []
    kernels = [c.value for c in result.program.constants.values() if c.value.dim() == 4]
    exact = (kernel.double() * gamma / math.sqrt(float(norm.running_var[0]) + eps)).half()
    assert len(kernels) == 1 and torch.equal(kernels[0], exact)


def test_a_network_that_itself_leaves_float16s_range_is_told_so() -> None:
    model = extreme(var=1e-4, eps=0.0, gamma=1000.0)
    with pytest.raises(InputError, match="the original's own outputs are not finite in float16"):
        convert(model, torch.randn(2, 3, 9, 9).half())
