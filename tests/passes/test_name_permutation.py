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
from support.helpers import Lambda, apply_exactly, doubles, graph_text, program_of, run_rules


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
    (message,) = done.passed("name-permutation")
    assert message == f"{'reshape' if shuffle is spelled else 'flatten'} became channel_shuffle"


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x.view(2, 2, 3, 4).transpose(1, 3).reshape(2, 6, 4),
        lambda x: x.view(2, 2, 3, 4).transpose(1, 2).reshape(2, 4, 6),
        lambda x: x.view(2, 6, 2, 2).transpose(1, 2).reshape(2, 6, 4),
        lambda x: x.view(2, 2, 3, 4).transpose(0, 2).reshape(2, 6, 4),
        lambda x: x.view(2, 2, 3, 4).permute(0, 2, 3, 1).reshape(2, 6, 4),
        lambda x: x.reshape(2, 6, 2, 2).permute(0, 2, 1, 3).reshape(2, 6, 4),
        lambda x: x.view(2, 2, 3, 2, 2).transpose(1, 2).reshape(2, 6, 4),
        lambda x: x.flatten(1).view(2, 4, 6).transpose(1, 2).reshape(2, 24),
        lambda x: x.view(2, 1, 6, 4).transpose(1, 2).reshape(2, 6, 4),
        lambda x: x.view(2, 6, 1, 4).transpose(1, 2).reshape(2, 6, 4),
        lambda x: x.transpose(1, 2).reshape(2, 6, 4),
        lambda x: x.view(2, 2, 3, 4).reshape(2, 6, 4),
        lambda x: x.view(2, 2, 3, 4).sin().transpose(1, 2).reshape(2, 6, 4),
        lambda x: x.view(2, 2, 3, 4).transpose(1, 2).sin().reshape(2, 6, 4),
        lambda x: (y := x.view(2, 2, 3, 4)).transpose(1, 2).reshape(2, 6, 4) + y.sum(),
        lambda x: (y := x.view(2, 2, 3, 4).transpose(1, 2)).reshape(2, 6, 4) + y.sum(),
        lambda x: (y := x.view(2, 2, 3, 4).transpose(1, 2).contiguous()).view(2, 6, 4) + y.sum(),
    ],
    ids=[
        "another swap",
        "another shape",
        "another axis",
        "a swap with the batch",
        "a turn of three axes",
        "a split of the last axis",
        "a split of two axes",
        "no map",
        "one group",
        "groups of one",
        "no split",
        "no swap",
        "something behind the split",
        "something behind the swap",
        "the split is read elsewhere",
        "the swap is read elsewhere",
        "the copy is read elsewhere",
    ],
)
def test_other_reshapes_stay(forward: Callable[[Tensor], Tensor]) -> None:
    program = program_of(Lambda(lambda _, x: forward(x)), doubles(2, 6, 4), dynamic=())
    done = run_rules(program, NamePermutation())
    assert done.text == graph_text(program) and not done.outcome.remarks


def test_copies_in_between_go_as_well() -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        return x.view(2, 2, 3, 4).clone().transpose(-3, -2).contiguous().clone().view(2, 6, 4)

    done = run_rules(program_of(Lambda(forward), doubles(2, 6, 4), dynamic=()), NamePermutation())
    assert done.text == "channel_shuffle(x, 2)"


def test_a_shuffle_of_an_axis_of_free_size_stays() -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 1, 3)
        return y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)

    program = program_of(Lambda(forward), doubles(2, 3, 6, 4), dynamic=("height",))
    done = run_rules(program, NamePermutation())
    assert done.text == graph_text(program) and not done.outcome.remarks


# ---- indexing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_index_is_a_weight_of_whole_positive_numbers(dtype: torch.dtype) -> None:
    index = torch.tensor([-1, 0, 3, -4], dtype=dtype)
    block = Lambda(lambda m, x: x[:, m.i], i=nn.Buffer(index))
    done = apply_exactly(nn.Sequential(block), doubles(2, 5, 3), rules=[DropIdentity(), NamePermutation()], bound=0.0)
    assert done.text == "index_select(x, 1, w)"
    assert done.passed("name-permutation") == ["index became index_select"]
    constant = done.program.constants["0.channels"]
    assert constant.value.tolist() == [4, 0, 3, 1] and constant.value.dtype == torch.int64


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x[:, m.i, m.i],
        lambda m, x: x[:, m.square],
        lambda m, x: x[:, m.none],
        lambda m, x: x[m.i],
        lambda m, x: x[:, (m.i * x.sum()).long()],
    ],
    ids=["two axes", "a table", "nothing", "an axis of free size", "positions of data"],
)
def test_other_indexing_stays(forward: Callable[..., Tensor]) -> None:
    index = torch.tensor([0, 1])
    buffers = {"i": index, "square": torch.stack([index, index]), "none": index[:0]}
    model = Lambda(forward, **{name: nn.Buffer(value) for name, value in buffers.items()})
    program = program_of(model, doubles(2, 5, 3))
    done = run_rules(program, NamePermutation())
    assert done.text == graph_text(program) and not done.outcome.remarks


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
