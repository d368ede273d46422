"""A model that assigns weights to itself in every run is captured where the values are always the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import CaptureError, ReparamError
from support.helpers import healthy

Forward = Callable[["Merging", Tensor], Tensor]


class Merging(nn.Module):
    """Two convolutions whose product is the weight of a third one, as in layers that merge themselves."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 4, 3, bias=False)
        self.merged, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.how = forward

    def product(self) -> Tensor:
        return torch.einsum("omhw,mi->oihw", self.second.weight.data, self.first.weight.data[:, :, 0, 0]).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def in_front(m: Merging, x: Tensor) -> Tensor:
    m.merged.weight.data = m.product()
    y: Tensor = m.norm(m.merged(x))
    return y


def of_the_input(m: Merging, x: Tensor) -> Tensor:
    m.merged.weight.data = m.product() * x.mean()
    y: Tensor = m.merged(x)
    return y


def of_itself(m: Merging, x: Tensor) -> Tensor:
    m.merged.weight.data = m.merged.weight.data * 0.5
    y: Tensor = m.merged(x)
    return y


def behind_its_use(m: Merging, x: Tensor) -> Tensor:
    y: Tensor = m.merged(x)
    m.merged.weight.data = m.product()
    return y


def test_what_is_made_of_weights_alone_is_a_weight() -> None:
    net, x = healthy(Merging(in_front)).float(), torch.randn(2, 4, 6, 7)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made = reparam.convert(net, x)
    assert made.report.after.norms == 0 and made.report.after.convs == 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for count in (1, 3):
        y = torch.randn(count, 4, 6, 7)
        with torch.no_grad():
            assert torch.allclose(made.module(y), net(y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("forward", [of_the_input, of_itself])
def test_what_differs_from_run_to_run_is_refused(forward: Forward) -> None:
    with pytest.raises(CaptureError, match="memory is freed or replaced"):
        reparam.convert(healthy(Merging(forward)).float(), torch.randn(2, 4, 6, 7))


def of_positive_inputs(m: Merging, x: Tensor) -> Tensor:
    if not torch.compiler.is_exporting() and bool((x < 0).any()):
        raise ValueError("these are no pixels")
    m.merged.weight.data = m.product()
    y: Tensor = m.merged(x)
    return y


def test_a_model_that_does_not_take_the_other_inputs_is_refused_in_words() -> None:
    with pytest.raises(CaptureError, match="memory is freed or replaced"):
        reparam.convert(healthy(Merging(of_positive_inputs)).float(), torch.rand(2, 4, 6, 7))


def test_what_is_assigned_behind_its_use_is_no_function_of_the_input() -> None:
    with pytest.raises(ReparamError):
        reparam.convert(healthy(Merging(behind_its_use)).float(), torch.randn(2, 4, 6, 7))
