"""Norms that are spelled out are found by what they do, and measured like those that are calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import InputError, analyze
from support.of import Of

GAIN = torch.linspace(0.5, 2, 16)


def layer_norm(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).pow(2).mean(-1, keepdim=True) + 1e-5)


def shared_difference(x: Tensor) -> Tensor:
    d = x - x.mean(-1, keepdim=True)
    return d * torch.rsqrt(d.square().mean(-1, keepdim=True) + 1e-5)


def by_var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def by_std(x: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(x, -1, keepdim=True, correction=0)
    return (x - mean) / deviation


def by_einsum(x: Tensor) -> Tensor:
    return x * torch.rsqrt(torch.einsum("nc,nc->n", x, x)[:, None] / 16 + 1e-6)


SPELLED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]] = {
    "layer norm": (layer_norm, lambda x: F.layer_norm(x, (16,)), "spelled out, centred"),
    "difference once": (shared_difference, lambda x: F.layer_norm(x, (16,)), "spelled out, centred"),
    "var": (
        lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5) ** 0.5,
        lambda x: F.layer_norm(x, (16,)),
        "spelled out, centred",
    ),
    "rms norm": (
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: F.rms_norm(x, (16,), eps=1e-6),
        "spelled out",
    ),
    "with a gain": (
        lambda x: GAIN * (x / (x.norm(dim=-1, keepdim=True) / 4)),
        lambda x: F.rms_norm(x, (16,), GAIN, eps=0),
        "spelled out",
    ),
    "var_mean": (by_var_mean, lambda x: F.layer_norm(x, (16,)), "spelled out, centred"),
    "std_mean": (by_std, lambda x: F.layer_norm(x, (16,)), "spelled out, centred"),
    "einsum": (by_einsum, lambda x: F.rms_norm(x, (16,), eps=1e-6), "spelled out"),
    "matmul": (
        lambda x: x / (x.unsqueeze(1) @ x.unsqueeze(2)).flatten(1).sqrt() * 4,
        lambda x: F.rms_norm(x, (16,), eps=0),
        "spelled out",
    ),
    "normalize": (lambda x: F.normalize(x, dim=-1) * 4, lambda x: F.rms_norm(x, (16,), eps=0), "spelled out"),
}


@pytest.mark.parametrize("name", SPELLED)
def test_a_norm_that_is_spelled_out_is_measured_like_the_call(name: str) -> None:
    torch.manual_seed(0)
    spelled, called, kind = SPELLED[name]
    first, second, x = nn.Linear(16, 16), nn.Linear(16, 16), torch.randn(32, 16)
    mine, theirs = (
        analyze(Of(lambda a, b, x, f=f: b(f(a(x))), first, second), x, what="norm", data=[x], batch=32)["norm"]
        for f in (spelled, called)
    )
    assert [row[1] for row in mine.rows] == [kind]
    assert len(theirs.rows) == 1
    for a, b in zip(mine.rows[0][2:], theirs.rows[0][2:], strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("size", [lambda x: x.abs().max(), lambda x: x.max(-1, keepdim=True).values, torch.std])
def test_a_quotient_by_any_statistic_of_its_own_is_a_norm(size: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = Of(lambda a, b, x: b((y := a(x)) / size(y)), nn.Linear(16, 16), nn.Linear(16, 16))
    (row,) = analyze(net, torch.randn(4, 16), what="norm")["norm"].rows
    assert row[1] == "spelled out"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * (x == x.max(-1, keepdim=True).values),
        lambda x: x * x.mean(-1, keepdim=True).sigmoid(),  # a gate
        lambda x: x - x.mean(-1, keepdim=True),
        lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
        lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
        lambda x: x * (x.square().mean(-1, keepdim=True) + 1),
    ],
)
def test_what_a_factor_changes_is_no_norm(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = Of(lambda a, b, x: b(function(a(x))), nn.Linear(16, 16), nn.Linear(16, 16))
    with pytest.raises(InputError, match="no norm"):
        analyze(net, torch.randn(4, 16), what="norm")
