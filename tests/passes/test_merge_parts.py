"""merge-parts: linear maps of one value that are added or put side by side, part by part, are one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.passes.drop_identity import DropIdentity
from reparam.passes.merge_parts import MergeParts
from support.helpers import (
    Lambda,
    assert_evidence_bites,
    assert_verification_bites,
    doubles,
    fuse_exactly,
    graph_text,
    program_of,
    run_rules,
)

FREE = ("batch", "height", "width")
BOUND = 1e-14
Forward = Callable[..., Tensor]


def conv(c_out: int, k: int = 3, c_in: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, k, padding=k // 2, **options)


def beside(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return torch.cat([y[:, :2] + m.b(x), y[:, 2:]], 1)


def in_place(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.a(x)
    y[:, :2] += m.b(x)
    return y


def indexed(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.a(x)
    y[:, [0, 2]] += x[:, [0, 2]]
    return y


def scattered(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return torch.slice_scatter(y, y[:, :2] + m.b(x), 1, 0, 2)


def taken_off(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return torch.cat([y[:, :1], y[:, 1:] - m.b(x)], 1)


def spread(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.a(x)
    return y + m.b(x).expand_as(y)


def read_twice(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return torch.cat([y, m.b(x)], 1) * y[:, :1]


SPELLED: dict[str, tuple[Forward, Callable[[], dict[str, nn.Module]]]] = {
    "in place": (in_place, lambda: {"a": conv(4), "b": conv(2)}),
    "in place, indexed": (indexed, lambda: {"a": conv(4)}),
    "scattered": (
        scattered,
        lambda: {"a": conv(4), "b": conv(2, 1)},
    ),
    "cat": (
        taken_off,
        lambda: {"a": conv(3), "b": conv(2)},
    ),
    "side by side": (lambda m, x: torch.cat([m.a(x), m.b(x)], 1), lambda: {"a": conv(4), "b": conv(2)}),
    "one channel": (lambda m, x: m.a(x) + m.b(x), lambda: {"a": conv(4), "b": conv(1, 1)}),
    "one channel of the input": (lambda m, x: m.a(x) + x[:, 1:2], lambda: {"a": conv(4)}),
    "expand_as": (spread, lambda: {"a": conv(4), "b": conv(1, 1)}),
    "depthwise": (
        lambda m, x: m.a(x) + torch.cat([x[:, :2], m.b(x[:, 2:])], 1),
        lambda: {"a": conv(4, groups=4), "b": conv(2, c_in=2, groups=2)},
    ),
}


@pytest.mark.parametrize("dynamic", [("batch",), FREE], ids=["batch", "sizes"])
@pytest.mark.parametrize("name", SPELLED)
def test_parts_become_one_convolution(name: str, dynamic: tuple[str, ...]) -> None:
    forward, layers = SPELLED[name]
    model = Lambda(forward, **layers()).double().eval()
    done = fuse_exactly(model, doubles(2, 4, 7, 6), bound=BOUND, dynamic=dynamic)
    assert done.text.startswith("conv3x3") and done.text.count("conv") == 1, done.text
    assert_verification_bites(done, [doubles(2, 4, 7, 6)], bound=BOUND)


@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 8)], ids=["features", "tokens"])
def test_parts_of_linear_layers(shape: tuple[int, ...]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return torch.cat([y[..., :2] + m.b(x), y[..., 2:]], -1)

    model = Lambda(forward, a=nn.Linear(8, 6), b=nn.Linear(8, 2, bias=False)).double().eval()
    assert fuse_exactly(model, doubles(*shape), bound=BOUND).text == "linear(x)"


@given(
    widths=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    kernels=st.lists(st.sampled_from([1, 3]), min_size=3, max_size=3),
    start=st.integers(0, 3),
    bias=st.booleans(),
    sign=st.booleans(),
)
def test_whatever_is_added_to_some_channels(
    widths: list[int], kernels: list[int], start: int, bias: bool, sign: bool
) -> None:
    """Convolutions added to ranges of the channels of a larger one."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.whole(x)
        for i, width in enumerate(widths):
            part = m.parts[i](x)
            y[:, start : start + width] += -part if sign else part
        return y

    layers = [conv(w, k, bias=bias) for w, k in zip(widths, kernels, strict=False)]
    model = Lambda(forward, whole=conv(6), parts=nn.ModuleList(layers)).double().eval()
    assert fuse_exactly(model, doubles(2, 4, 5, 6), bound=BOUND).text == "conv3x3(x)"


def only(forward: Forward, *shape: int, **layers: nn.Module) -> Any:
    """What this rule makes of it, with the graph before, where nothing is idle."""
    program = program_of(Lambda(forward, **layers).double().eval(), doubles(*shape))
    program = run_rules(program, DropIdentity()).program
    return run_rules(program, MergeParts()), graph_text(program)


@pytest.mark.parametrize(
    ("forward", "layers", "reason"),
    [
        (
            lambda m, x: torch.cat([m.a(x), m.b(x)], 1),
            {"a": conv(4), "b": conv(4, 1)},
            "its parts as one layer would cost 12,096 multiply-accumulates instead of 6,720",
        ),
        (
            lambda m, x: torch.cat([m.b(m.a(x)), x], 1),
            {"a": conv(4, 1), "b": conv(4)},
            "its parts do not become one layer: a shift would meet the zero padding that follows, which is wrong on "
            "the border",
        ),
        (
            lambda m, x: torch.cat([m.a(x), F.pad(x, (1, 1, 1, 1), value=1.0)[:, :, 1:-1, 1:-1]], 1),
            {"a": conv(4)},
            "its parts do not become one layer: it pads with something else than zeros around the map",
        ),
    ],
    ids=["dearer", "border", "pad"],
)
def test_what_does_not_become_one_layer_is_told(forward: Forward, layers: dict[str, nn.Module], reason: str) -> None:
    done, before = only(forward, 2, 4, 7, 6, **layers)
    assert done.text == before and done.missed("merge-parts") == [reason]


@pytest.mark.parametrize(
    ("forward", "layers"),
    [
        (lambda m, x: torch.cat([F.relu(m.a(x)), m.b(x)], 1), {"a": conv(4), "b": conv(4)}),
        (read_twice, {"a": conv(4), "b": conv(4)}),
        (lambda m, x: torch.cat([x[:, :2], x[:, 1:3] + x[:, 2:]], 1), {}),
        (lambda m, x: torch.cat([m.a(x), x.sin()], 1), {"a": conv(4)}),
        (lambda m, x: torch.cat([m.a(x).long(), m.b(x).long()], 1), {"a": conv(4), "b": conv(4)}),
    ],
    ids=["an activation", "read elsewhere", "no layer", "another source", "whole numbers"],
)
def test_what_is_no_linear_map_of_one_value_is_passed_over(forward: Forward, layers: dict[str, nn.Module]) -> None:
    done, before = only(forward, 2, 4, 7, 6, **layers)
    assert done.text == before and not done.outcome.remarks


def test_the_whole_is_cut_down_to_what_its_reader_takes() -> None:
    """Of six channels four are read, in another order."""
    order = torch.tensor([5, 0, 3, 1])
    done, _ = only(lambda m, x: torch.cat([m.a(x), m.b(x)], 1).index_select(1, order), 2, 4, 7, 6, a=conv(4), b=conv(2))
    assert done.text == "conv3x3(x)"
    [weight] = [c.value for c in done.program.constants.values() if c.value.dim() == 4]
    assert weight.shape == (4, 4, 3, 3)


def test_a_wrong_entry_is_rejected() -> None:
    model = Lambda(beside, a=conv(4), b=conv(2)).double().eval()
    assert_evidence_bites(program_of(model, doubles(2, 4, 7, 6)), MergeParts(), DropIdentity())


def test_what_it_says() -> None:
    done, _ = only(beside, 2, 4, 7, 6, a=conv(4), b=conv(2))
    assert done.passed("merge-parts")[-1] == "2 layers and their parts became one layer"
    done, _ = only(lambda m, x: torch.cat([m.a(x)[:, :2] + x[:, :2], x[:, 2:]], 1), 2, 4, 7, 6, a=conv(4))
    assert done.passed("merge-parts")[-1] == "a layer and what is added to it became one layer"


def test_pieces_of_a_value_come_from_that_value() -> None:
    """The list of pieces, at which all ways meet first, is none by itself."""

    def forward(m: Any, x: Tensor) -> Tensor:
        one, two = x.split([2, 2], 1)
        return torch.cat([m.a(one) + m.b(two), m.c(one)], 1)

    done, before = only(forward, 2, 4, 7, 6, a=conv(3, c_in=2), b=conv(3, c_in=2), c=conv(1, c_in=2))
    assert done.text == before
    assert done.missed("merge-parts")[-1].startswith("its parts as one layer would cost")


def test_parts_of_two_inputs_are_passed_over() -> None:
    model = Lambda(lambda m, x, y: torch.cat([m.a(x), y], 1), a=conv(4)).double().eval()
    program = program_of(model, doubles(2, 4, 7, 6), doubles(2, 3, 7, 6, seed=1))
    done = run_rules(program, MergeParts())
    assert done.text == graph_text(program) and not done.outcome.remarks
