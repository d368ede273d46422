"""Names of weights as attributes of a graph module: what torch or Python keeps gets an underscore, the rest stays."""

from __future__ import annotations

import itertools
import keyword

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from reparam.ir.attributes import OWN_ATTRIBUTES, attribute_names, unlift, with_attribute_names
from support.helpers import Lambda

PARTS = ["graph", "graph_", "graph__", "code", "class", "a", "b", "to", "self", "0", "é b", "_graph"]
PATHS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map(".".join)


def can_be_attributes(name: str) -> bool:
    return not any(p in OWN_ATTRIBUTES or keyword.iskeyword(p) for p in name.split("."))


def shared(one: str, other: str) -> int:
    """How many modules two weights have in common."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


@given(names=st.sets(PATHS, max_size=12))
def test_every_name_can_be_attributes_and_different_ones_stay_different(names: set[str]) -> None:
    found = attribute_names(names)
    assert found.keys() == names
    assert all(can_be_attributes(new) for new in found.values())
    for one in names:
        for other in names:  # weights of one module stay beside each other, and apart from all others
            assert shared(found[one], found[other]) == shared(one, other)
    assert all(found[n] == n for n in names if can_be_attributes(n))


def test_names_of_the_caller_are_taken_too() -> None:
    assert attribute_names(["check.a", "other"], ["check"]) == {"check.a": "check_.a", "other": "other"}


def test_what_torch_sets_on_a_module_of_a_program_is_known() -> None:
    module = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)).module()
    weights = {"weight", "bias"}
    assert {*dir(module), *vars(module)} - weights <= OWN_ATTRIBUTES


def network(name: str) -> nn.Module:
    def forward(net: Lambda, x: Tensor) -> Tensor:
        return net._modules[name](x)  # type: ignore[misc]

    net = Lambda(forward)
    net.add_module(name, nn.Linear(4, 3))
    return net


@pytest.mark.parametrize("name", ["graph", "code", "validate_inputs", "class", "plain"])
def test_a_program_runs_whatever_its_weights_are_called(name: str) -> None:
    net, x = network(name), torch.randn(2, 4)
    exported = torch.export.export(net, (x,))
    keys = list(exported.state_dict)
    assert torch.equal(unlift(exported)(x), net(x))
    plain, names = with_attribute_names(exported)
    assert {new: names[new] for new in plain.state_dict} == dict(zip(plain.state_dict, keys, strict=True))
    assert list(exported.state_dict) == keys  # the caller's program is left as it is
    assert (plain is exported) == (name == "plain")


@given(name=st.sampled_from([*sorted(OWN_ATTRIBUTES - set(dir(nn.Module()))), "if", "None", "__own"]))
def test_any_name_that_torch_has_for_itself(name: str) -> None:
    assume(not hasattr(nn.Module(), name))  # torch.compile leaves one on every module, and torch takes no second
    net, x = network(name), torch.randn(2, 4)
    module = unlift(torch.export.export(net, (x,)))
    assert isinstance(module, fx.GraphModule) and torch.equal(module(x), net(x))
