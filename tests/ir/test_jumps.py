"""Operators whose results jump are named with their layers; the others are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import convert, explain
from reparam.capture import capture
from reparam.ir import describe_jumps, jumps
from support.applied import Applied

IMAGE = torch.randn(2, 4, 6, 6)
Function = Callable[[Tensor], Tensor]


def found(function: Function, x: Tensor = IMAGE) -> dict[str, list[str]]:
    return jumps(capture(nn.Sequential(nn.Identity(), Applied(function)), [x]).program)


def unpooled(x: Tensor) -> Tensor:
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values, indices, 2)


JUMPING: dict[str, Function] = {
    "argmax": lambda x: x.argmax(1),
    "argsort": lambda x: x.argsort(1),
    "topk": lambda x: x.topk(2, 1)[1],
    "sort": lambda x: x.sort(1)[1],
    "max": lambda x: x.max(1)[1],
    "kthvalue": lambda x: x.kthvalue(2, 1)[1],
    "cummax": lambda x: x.cummax(1)[1],
    "max_pool2d_with_indices": unpooled,
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True)[1],
    "round": torch.round,
    "view": lambda x: x.view(torch.int32),
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "frac": torch.frac,
    "sign": torch.sign,
    "fmod": lambda x: torch.fmod(x, 0.5),
    "remainder": lambda x: x % 0.5,
    "floor_divide": lambda x: x // 0.5,
    "div": lambda x: torch.div(x, 0.5, rounding_mode="trunc"),
    "gt": lambda x: torch.where(x > 0.1, x, 2.0),
    "eq": lambda x: (x == 0).float(),
    "hardshrink": F.hardshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 20.0),
    "grid_sampler": lambda x: F.grid_sample(x, x[:, :2].movedim(1, -1), mode="nearest", align_corners=False),
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([0.0, 1.0])),
}


@pytest.mark.parametrize("name", JUMPING)
def test_what_jumps_is_named_with_its_layer(name: str) -> None:
    layers = found(JUMPING[name])
    assert layers.get(name) == ["1"], layers


def test_a_cast_to_integers_jumps() -> None:
    assert list(found(lambda x: (3 * x).long())) in (["to"], ["_to_copy"])


def test_classes_that_were_decided_and_then_encoded_are_named_too() -> None:
    layers = found(lambda x: F.one_hot(x.argmax(1), 4))
    assert layers["argmax"] == ["1"] and layers.get("one_hot", layers.get("eq", ["1"])) == ["1"]


STEADY: dict[str, Function] = {
    "relu": torch.relu,
    "max pool": lambda x: F.max_pool2d(x, 2),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 3),
    "values of topk": lambda x: x.topk(2, 1)[0],
    "the largest": lambda x: x.max(1)[0],
    "median": torch.median,
    "clamp": lambda x: x.clamp(-1, 1),
    "threshold at its value": lambda x: F.threshold(x, 0.1, 0.1),
    "division": lambda x: x / 3,
    "grid": lambda x: F.grid_sample(x, x[:, :2].movedim(1, -1), align_corners=False),
    "a comparison of constants": lambda x: x + (torch.arange(6) > 2),
    "softmax": lambda x: x.softmax(1),
}


@pytest.mark.parametrize("name", STEADY)
def test_what_is_continuous_is_not_named(name: str) -> None:
    assert not found(STEADY[name])


def test_integers_do_not_tie() -> None:
    assert not found(lambda x: (x > 3) & (x % 2 == 0), torch.ones(2, 5, dtype=torch.int64))


def test_one_remark_names_all_of_them() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Applied(unpooled), Applied(torch.round), Applied(torch.round))
    for report in (convert(model, IMAGE).report, explain(model, IMAGE)):
        (remark,) = [r for r in report.remarks if r.rule == "jumps"]
        assert remark.kind == "analysis"
        assert remark.message.startswith("results of these operators jump, so float32 ties may fall otherwise")
        assert remark.message.endswith("max_pool2d_with_indices in '1'; round in '2', '3'")
    assert not [r for r in convert(nn.Conv2d(4, 4, 1), IMAGE).report.remarks if r.rule == "jumps"]


def test_many_layers_are_counted() -> None:
    text = describe_jumps({"round": [str(i) for i in range(9)], "sign": [""]})
    assert text.endswith("round in '0', '1', '2', '3', '4', '5' and 3 more; sign in the network itself")
    assert describe_jumps({}) == ""
