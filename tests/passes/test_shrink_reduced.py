"""shrink: channels through what reduces or pools each of them by itself, values picked from beside their places."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.helpers import doubles
from support.shrinking import Wired, shrunk, widths, zero

Reduced = Callable[[Tensor], Tensor]

HELD: dict[str, Reduced] = {
    "the largest, with places": lambda x: x.max(2).values.max(2)[0],
    "the smallest, with places": lambda x: x.min(3, keepdim=True).values.mean((2, 3)),
    "adaptive pools of two kinds": lambda x: (F.adaptive_max_pool2d(x, 1) + F.adaptive_avg_pool2d(x, 1)).flatten(1),
    "an adaptive pool of one axis": lambda x: F.adaptive_max_pool1d(x.flatten(2), 2).mean(2),
    "the middle": lambda x: x.median(2).values.median(2)[0],
    "the second": lambda x: x.kthvalue(2, 3, keepdim=True).values.mean((2, 3)),
    "sorted": lambda x: x.sort(3, descending=True).values[..., 0].sort(stable=True).values.mean(2),
    "the two largest": lambda x: x.flatten(2).topk(2).values.mean(2),
    "exact nearest": lambda x: F.interpolate(x, (3, 4), mode="nearest-exact").mean((2, 3)),
    "smoothed": lambda x: F.interpolate(x, (3, 4), mode="bilinear", antialias=True).mean((2, 3)),
    "cut at the border": lambda x: F.pad(x, (-1, 0, -2, -1)).mean((2, 3)),
    "repeated": lambda x: x.repeat_interleave(2, 3).mean((2, 3)),
    "patches": lambda x: x.unfold(3, 2, 2).mean((2, 3, 4)),
    "the diagonal": lambda x: x.diagonal(dim1=2, dim2=3).mean(2),
    "a single channel beside the others": lambda x: torch.cat([x[:, 2:3], *x.split([1, 7], 1)], 1)[:, 1:].mean((2, 3)),
    "a pool that knows its places": lambda x: F.max_pool2d(x, 2, return_indices=True)[0].mean((2, 3)),
}
MOVED: dict[str, Reduced] = {
    "deviation": lambda x: x.std((2, 3)),
    "variance": lambda x: x.var((2, 3), correction=0),
    "norm": lambda x: x.norm(dim=(2, 3)),
    "exponentials": lambda x: x.logsumexp((2, 3)),
}


def reduced(by: Reduced) -> tuple[nn.Module, nn.Conv2d]:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 3).double(), nn.Linear(8, 4).double()
    zero(first, rows=[0, 2, 4, 6])
    return Wired(lambda x: last(by(first(x).exp())), first, last), first


@pytest.mark.parametrize("name", HELD)
def test_constants_stay_what_they_are_where_the_largest_or_the_mean_is_taken(name: str) -> None:
    model, _ = reduced(HELD[name])
    assert widths(shrunk(model, doubles(2, 3, 8, 8)).program) == [(4, 3), (4, 4)]


@pytest.mark.parametrize("name", MOVED)
def test_equal_channels_stay_equal_where_another_number_is_made_of_each(name: str) -> None:
    model, first = reduced(MOVED[name])
    with torch.no_grad():
        assert first.bias is not None
        first.bias[2] = first.bias[4] = first.bias[0]
    assert widths(shrunk(model, doubles(2, 3, 8, 8)).program) == [(6, 3), (4, 6)]


def test_values_in_order_of_channels_in_another_order() -> None:
    """The sum keeps all its channels, those that both sides have first."""
    torch.manual_seed(0)
    first, second, last = nn.Conv2d(3, 4, 1).double(), nn.Conv2d(4, 4, 1).double(), nn.Conv2d(4, 2, 1).double()
    zero(first, rows=[1])

    def forward(x: Tensor) -> Tensor:
        y = first(x)
        z: Tensor = last((y + second(y)).topk(2, 3).values)
        return z

    done = shrunk(Wired(forward, first, second, last), doubles(2, 3, 4, 5))
    assert widths(done.program) == [(3, 3), (4, 3), (2, 4)]


def test_places_that_are_read_keep_all_channels() -> None:
    model, _ = reduced(lambda x: x.max(3).values.mean(2) + x.max(3).indices.double().mean(2))
    assert widths(shrunk(model, doubles(2, 3, 8, 8)).program) == [(8, 3), (4, 8)]
