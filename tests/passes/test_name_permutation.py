"""name-permutation: indexing by constant channels and spelled channel shuffles become one call that others know."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam import convert
from reparam.passes.drop_identity import DropIdentity
from reparam.passes.name_permutation import NamePermutation
from support.helpers import Lambda, apply_exactly, doubles


@given(st.lists(st.integers(-5, 4), min_size=1, max_size=7), st.integers(1, 2))
def test_indexing_by_constants(index: list[int], axis: int) -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        return x[:, index] if axis == 1 else x[:, :, torch.tensor(index)]

    done = apply_exactly(Lambda(forward), doubles(2, 5, 5), rules=[DropIdentity(), NamePermutation()], bound=0.0)
    assert done.text.startswith("index_select(x")


def test_indexing_by_constant_truth_values() -> None:
    mask = torch.tensor([True, False, True, True, False])
    done = apply_exactly(
        Lambda(lambda _, x: x[:, mask].sin()), doubles(2, 5, 3), rules=[DropIdentity(), NamePermutation()], bound=0.0
    )
    assert "index_select" in done.text


def spelled(x: Tensor, groups: int) -> Tensor:
    n, c, *space = x.shape
    return x.view(n, groups, c // groups, *space).transpose(1, 2).contiguous().view(n, c, *space)


def permuted(x: Tensor, groups: int) -> Tensor:
    n, c, *space = x.shape
    order = (0, 2, 1, *range(3, x.dim() + 1))
    return x.reshape(n, groups, c // groups, *space).permute(order).flatten(1, 2)


@pytest.mark.parametrize("shuffle", [spelled, permuted])
@pytest.mark.parametrize(("shape", "groups"), [((2, 6, 4, 5), 2), ((2, 6, 4), 3), ((1, 8, 3, 3, 3), 4)])
def test_spelled_shuffle(shuffle: Callable[[Tensor, int], Tensor], shape: tuple[int, ...], groups: int) -> None:
    done = apply_exactly(
        Lambda(lambda _, x: shuffle(x.sin(), groups)), doubles(*shape), rules=[NamePermutation()], bound=0.0
    )
    assert done.text == f"channel_shuffle(sin(x), {groups})"


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x.view(2, 2, 3, 4).transpose(1, 3).reshape(2, 6, 4),
        lambda x: x.view(2, 2, 3, 4).transpose(1, 2).reshape(2, 4, 6),
        lambda x: x.view(2, 6, 2, 2).transpose(1, 2).reshape(2, 6, 4),
    ],
    ids=["another swap", "another shape", "another axis"],
)
def test_other_reshapes_stay(forward: Callable[[Tensor], Tensor]) -> None:
    done = apply_exactly(Lambda(lambda _, x: forward(x)), doubles(2, 6, 4), rules=[NamePermutation()], bound=0.0)
    assert done.passed("name-permutation") == []


@pytest.mark.parametrize(
    "shuffle",
    [lambda x: spelled(x, 2), nn.ChannelShuffle(2), lambda x: x[:, [0, 4, 1, 5, 2, 6, 3, 7]]],
    ids=["view", "module", "index"],
)
def test_a_shuffle_is_carried(shuffle: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Lambda(
        lambda m, x: m.out(torch.relu(shuffle(m.b(torch.relu(shuffle(m.a(x))))) + x)),
        a=nn.Conv2d(8, 8, 1, groups=2),
        b=nn.Conv2d(8, 8, 3, padding=1, groups=2),
        out=nn.Conv2d(8, 3, 1),
    )
    done = convert(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), model), torch.rand(2, 3, 8, 8), to="plain")
    assert done.report.after.merges == 0 and done.report.plain
