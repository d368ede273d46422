"""Networks and sizes that do not run: told in a sentence, or passed over where the original does not run either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.errors import CaptureError, InputError
from support.helpers import Lambda

IMAGE = (2, 3, 16, 16)
ALL = ("batch", "height", "width")


def image() -> Tensor:
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(4))


def on_maps(compute: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    return Lambda(lambda net, x: compute(net.conv(x), x), conv=nn.Conv2d(3, 4, 3, padding=1)).eval()


@pytest.mark.parametrize("verb", [reparam.convert, reparam.explain])
@pytest.mark.parametrize(
    "net",
    [
        nn.Conv2d(3, 4, 0),
        nn.Conv2d(3, 4, (0, 1)),
        nn.Sequential(nn.Conv2d(3, 4, 0), nn.BatchNorm2d(4)),
        nn.Upsample(scale_factor=0.01),
    ],
)
def test_what_can_be_traced_and_cannot_run_is_told(verb: Callable[..., Any], net: nn.Module) -> None:
    with pytest.raises(
        CaptureError, match=r"does not run on random inputs of the traced size: .*greater than (zero|0)"
    ):
        verb(net.eval(), image())


@torch.library.custom_op("reparam_tests::narrow_double", mutates_args=())
def narrow_double(x: Tensor) -> Tensor:
    """An operator that is not there in float64."""
    if x.dtype == torch.float64:
        raise NotImplementedError("\"narrow_double\" not implemented for 'Double'")  # in torch's words
    return x * 2


@narrow_double.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_operator_that_is_not_there_in_float64_is_told_of_the_run_in_float64(dtype: torch.dtype) -> None:
    net, x = on_maps(lambda y, x: narrow_double(y)).to(dtype), image().to(dtype)
    with pytest.raises(CaptureError, match=r"does not run in float64, in which it is checked: .*'Double'"):
        reparam.convert(net, x)
    with pytest.raises(InputError, match=r"do not run in float64, in which they are compared: .*'Double'"):
        reparam.verify(net, net, x)
    assert reparam.explain(net, x).before.convs == 1


def test_fake_quantisation_is_named_where_it_does_not_run_in_float64() -> None:
    fake = torch.ao.quantization.default_fused_act_fake_quant()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), fake, nn.ReLU()).train()
    net(image())
    with pytest.raises(CaptureError, match=r"in which it is checked: it has fake quantisation.* before prepare_qat"):
        reparam.convert(net.eval(), image())


DIVIDING = {
    "product": lambda y, x: y.flatten(2) * (x.shape[2] // (x.shape[3] // 8)),
    "rest": lambda y, x: y * (x.shape[2] % (x.shape[3] // 8)),
    "pool": lambda y, x: F.adaptive_avg_pool2d(y, (x.shape[2] // (x.shape[3] // 8), 4)),
}


@pytest.mark.parametrize("way", DIVIDING)
def test_sizes_at_which_a_network_divides_by_zero_are_passed_over(way: str) -> None:
    net = on_maps(DIVIDING[way])
    result = reparam.convert(net, image(), dynamic=ALL)
    x = torch.randn(1, 3, 25, 17)
    torch.testing.assert_close(result.module(x), net(x))
    for module in (net, result.module):
        with pytest.raises(ZeroDivisionError):
            module(torch.randn(1, 3, 16, 7))


class OwnError(Exception):
    """What a model raises."""


class Picky(nn.Module):
    """Raises an exception of its own kind where `refuses` says so."""

    def __init__(self, refuses: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.conv, self.refuses = nn.Conv2d(3, 4, 3), refuses

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and self.refuses(x):
            raise OwnError("not these")
        return self.conv(x)


@pytest.mark.parametrize(
    "refuses",
    [lambda x: x.shape[0] == 1, lambda x: x.dtype == torch.float64, lambda x: x.shape[2] < 8],
    ids=["one", "double", "small"],
)
def test_a_model_may_raise_errors_of_any_kind_for_what_it_does_not_take(refuses: Callable[[Tensor], bool]) -> None:
    net = Picky(refuses).eval()
    result = reparam.convert(net, image(), dynamic=ALL)
    torch.testing.assert_close(result.module(image()), net(image()))


def test_a_model_that_takes_nothing_is_told() -> None:
    with pytest.raises(CaptureError, match="does not run on random inputs of the traced size"):
        reparam.convert(Picky(lambda x: True).eval(), image())
