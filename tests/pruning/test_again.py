"""`refit`: networks that other tools have pruned, and what `prune` gave."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from reparam.errors import InputError
from reparam.pruning import prune, refit
from support.prunable import Residual, images, make

DATA = images(160, seed=4)


def masked(module: nn.Module) -> nn.Module:
    """Half of the inner channels of both blocks set to zero, as masks of other tools do."""
    result = copy.deepcopy(module)
    assert isinstance(result, Residual)
    for block in (result.one, result.three):
        torch_prune.ln_structured(block[0], "weight", amount=0.5, n=2, dim=0)
        torch_prune.remove(block[0], "weight")
        off = block[0].weight.flatten(1).abs().sum(1) == 0  # type: ignore[operator, union-attr]
        with torch.no_grad():
            block[1].weight[off] = 0.0  # type: ignore[index, operator]
            block[1].bias[off] = 0.0  # type: ignore[index, operator]
    return result.eval()


def error(module: nn.Module, reference: nn.Module) -> float:
    x = images(64, seed=9)
    with torch.no_grad():
        return float((module(x) - reference(x)).norm() / reference(x).norm())


def test_what_another_tool_masked_is_refitted_and_becomes_small() -> None:
    reference = make("residual")
    pruned = masked(reference)
    result = refit(pruned, reference, DATA, example_inputs=images(2))
    assert error(result.module, reference) < 0.5 * error(pruned, reference)
    assert result.report.after.macs < 0.75 * result.report.before.macs
    assert result.report.evidence is not None and result.report.evidence.float64_max_rel < 1e-12


def test_single_weights_at_zero_are_told_of() -> None:
    """Those of channels that are off, with a bias that makes them constant, are no single ones."""
    reference = make("residual")
    sparse, wide = copy.deepcopy(reference), copy.deepcopy(reference)
    for name in ("stem", "one", "two"):
        torch_prune.l1_unstructured(getattr(sparse, name)[0], "weight", amount=0.6)
        torch_prune.ln_structured(getattr(wide, name)[0], "weight", amount=0.5, n=2, dim=0)
    told, silent = (refit(m, reference, images(40, seed=4), example_inputs=images(2)).report for m in (sparse, wide))
    assert any(
        "zeros of single weights are fitted like all others, those of 'stem.0' and 2" in r.message for r in told.remarks
    )
    assert not any("single weights" in r.message for r in silent.remarks)


def test_a_refit_has_gradients_in_inference_mode() -> None:
    reference = make("residual")
    pruned = masked(reference)
    with torch.inference_mode():
        result = refit(pruned, reference, DATA, example_inputs=images(2))
    assert torch.equal(
        result.module(images(2, seed=9)),
        refit(pruned, reference, DATA, example_inputs=images(2)).module(images(2, seed=9)),
    )


def test_what_prune_gave_is_refitted_on_other_samples() -> None:
    reference = make("residual")
    first = prune(reference, images(2), DATA, macs=0.5, form="residual", refit=False)
    result = refit(first, reference, DATA)
    assert error(result.module, reference) < 0.6 * error(first.module, reference)
    assert result.report.after.macs == first.report.after.macs


@pytest.mark.parametrize("data", [DATA[:1], DATA[1:2], DATA[:1].repeat(6, 1, 1, 1)])
def test_samples_of_which_none_is_left_to_fit_or_to_measure_on_are_refused(data: torch.Tensor) -> None:
    reference = make("residual")
    with pytest.raises(InputError, match=r"one sample is not enough|samples are all the same"):
        refit(masked(reference), reference, data, example_inputs=images(2))


def test_modules_that_are_no_two_versions_of_one_are_refused() -> None:
    with pytest.raises(InputError, match="no two versions of one architecture"):
        refit(make("residual"), make("dense"), DATA, example_inputs=images(2))
    with pytest.raises(InputError, match="no two versions"):
        refit(Residual(6).eval(), make("residual"), DATA, example_inputs=images(2))
    with pytest.raises(InputError, match="give example_inputs"):
        refit(make("residual"), make("residual"), DATA)
