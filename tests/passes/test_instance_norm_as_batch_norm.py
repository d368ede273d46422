"""instance-norm-as-batch-norm: with running statistics it is a batch norm, and folds."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reparam.passes.instance_norm_as_batch_norm import InstanceNormAsBatchNorm
from support.helpers import Lambda, doubles, fuse_exactly, program_of, run_rules


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("conv", "norm", "shape"),
    [
        (nn.Conv1d(3, 5, 3, padding=1), nn.InstanceNorm1d, (2, 3, 9)),
        (nn.Conv2d(3, 5, 1), nn.InstanceNorm2d, (2, 3, 5, 6)),
    ],
)
def test_running_statistics_fold(conv: nn.Module, norm: type[nn.Module], shape: tuple[int, ...], affine: bool) -> None:
    layer = norm(5, affine=affine, track_running_stats=True)
    layer.running_mean.copy_(torch.randn(5))
    layer.running_var.copy_(torch.rand(5) + 0.5)
    model = Lambda(lambda m, x: m.n(m.c(x)).sin(), c=conv, n=layer).double().eval()
    done = fuse_exactly(model, doubles(*shape), bound=1e-13)
    assert "norm" not in done.text
    assert done.passed("instance-norm-as-batch-norm") == ["its running statistics make it a batch norm"]


def test_statistics_of_the_sample_stay() -> None:
    model = Lambda(lambda m, x: m.n(m.c(x)), c=nn.Conv2d(3, 5, 1), n=nn.InstanceNorm2d(5, affine=True)).double()
    assert "instance_norm" in fuse_exactly(model, doubles(2, 3, 5, 6), bound=1e-13).text


def test_statistics_that_are_kept_and_not_used_do_not_count() -> None:
    norm = nn.InstanceNorm1d(3, track_running_stats=True).double()
    model = Lambda(lambda m, x: F.instance_norm(x, m.n.running_mean, m.n.running_var, use_input_stats=True), n=norm)
    done = run_rules(program_of(model, doubles(2, 3, 4)), InstanceNormAsBatchNorm())
    assert "instance_norm" in done.text and not done.outcome.remarks
