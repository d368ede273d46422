"""Networks whose own outputs are not finite are told so; no rewrite is blamed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.errors import InputError
from support.helpers import Lambda


def image() -> Tensor:
    return torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("to", ["fused", "plain", "as-is"])
@pytest.mark.parametrize(
    "last",
    [
        lambda x: x.exp().exp(),
        lambda x: (-x.abs() - 1).log(),
        lambda x: x / (x - x),
        lambda x: (x, x.masked_fill(x > 0, -torch.inf)),
        lambda x: x * 1e200 * 1e200,
    ],
    ids=["overflow", "logarithm", "division", "second output", "factors"],
)
def test_a_model_whose_own_outputs_are_not_finite_is_refused(last: Any, to: str) -> None:
    """No rewrite is blamed for it, though there are some."""
    model = Lambda(lambda m, x: last(100 * m.norm(m.conv(x))), conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
    with pytest.raises(InputError) as raised:
        convert(model, image(), to=to)
    assert str(raised.value) == (
        "the original's own outputs are not finite on random inputs, so nothing can be compared"
    )


def test_a_model_whose_own_outputs_are_finite_in_float64_alone() -> None:
    model = Lambda(lambda m, x: m.norm(m.conv(x)) * 1e30 * 1e30, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
    with pytest.raises(InputError, match="the original's own outputs are not finite in float32"):
        convert(model, image())
