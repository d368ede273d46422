"""Where a captured graph is not the model, the axis is named that cannot be free, and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam import CaptureError, convert
from support.choice import mostly_in_sweeps
from support.helpers import Lambda

ALL = ("batch", "height", "width")
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def branching(asks: Callable[[Tensor], bool]) -> nn.Module:
    return Lambda(lambda net, x: net.conv(x) * (2 if asks(x) else 3), conv=nn.Conv2d(3, 3, 3, padding=1)).eval()


ASKS: dict[str, tuple[Callable[[Tensor], bool], str]] = {
    "a text of the height": (lambda x: str(x.shape[2]) == "16", "height"),
    "the length of a text": (lambda x: len(f"{x.shape[3]}") == 2, "width"),
    "a text of the batch": (lambda x: f"{x.shape[0]}" == "2", "batch"),
    "a text of another height": (lambda x: f"{x.shape[2]}" == "37", "height"),
    "a text of two": (lambda x: f"{x.shape[3]}:{x.shape[0]}" == "37:2", "width"),
    "the type of a size": (lambda x: type(x.shape[2]) is int, "height"),
    "a key": (lambda x: {16: True}.get(x.shape[3], False), "width"),
    "a member": (lambda x: x.shape[2] in {16, 32}, "height"),
    "a format": (lambda x: format(x.shape[2], "d") == "16", "height"),
}


@pytest.mark.parametrize("way", mostly_in_sweeps(ASKS, *[*ASKS][::2]))
def test_the_axis_is_named_that_cannot_be_free(way: str) -> None:
    asks, axis = ASKS[way]
    net = branching(asks)
    with pytest.raises(CaptureError) as told:
        convert(net, X, dynamic=ALL)
    assert str(told.value).endswith((f"leave {axis} out of the free axes", f"what need not be free of {axis}"))
    free = [a for a in ALL if a != axis]
    result = convert(net, X, dynamic=free)
    sizes = {"batch": (5, 3, 16, 16), "height": (2, 3, 24, 16), "width": (2, 3, 16, 9)}
    for name in free:
        x = torch.randn(sizes[name])
        torch.testing.assert_close(result.module(x), net(x))


def test_axes_are_called_as_the_user_calls_them() -> None:
    net = Lambda(lambda net, x: net.fc(x) * (2 if f"{x.shape[1]}" == "6" else 3), fc=nn.Linear(4, 4)).eval()
    with pytest.raises(CaptureError, match=r"leave length out of the free axes$"):
        convert(net, torch.randn(2, 6, 4), dynamic={"inputs_0": {0: "batch", 1: "length"}})


def test_a_batch_for_which_nobody_asked_is_not_fixed_for_the_fault_of_another_axis() -> None:
    from reparam.utils import DEFAULT_AXES

    with pytest.raises(CaptureError, match=r"leave height out of the free axes$"):
        convert(branching(lambda x: str(x.shape[2]) == "16"), X, dynamic=(*DEFAULT_AXES, "height"))


UNTRACED: dict[str, Callable[[Tensor], bool]] = {
    "tracing": lambda x: not torch.compiler.is_exporting(),
    "a class": lambda x: type(x) is Tensor,
}


@pytest.mark.parametrize("dynamic", [(), ("batch",), ALL], ids=str)
@pytest.mark.parametrize("way", UNTRACED)
def test_no_axis_is_named_where_none_helps(way: str, dynamic: Any) -> None:
    with pytest.raises(
        CaptureError, match="something else when it runs on inputs of shape 2x3x16x16 than when it is"
    ) as told:
        convert(branching(UNTRACED[way]), X, dynamic=dynamic)
    assert "leave" not in str(told.value)


@given(axis=st.sampled_from([(2, "height"), (3, "width")]), size=st.integers(2, 200), form=st.integers(0, 3))
def test_a_text_of_any_size_that_the_code_names_is_tried(axis: tuple[int, str], size: int, form: int) -> None:
    index, name = axis
    spellings = (f"str(x.shape[{index}]) == '{size}'", f"f'{{x.shape[{index}]}}px' == '{size}px'")
    spellings += (f"repr(x.shape[{index}]) in ('{size}',)", f"'{size}]' in str(list(x.shape[:{index + 1}]))")
    net = branching(eval(f"lambda x: {spellings[form]}"))  # a drawn condition
    with pytest.raises(CaptureError, match=f"leave {name} out of the free axes$"):
        convert(net, X, dynamic=("height", "width"))
