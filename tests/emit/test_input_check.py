"""A converted module refuses what it was not verified for in one sentence, and takes all else."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from reparam import InputError
from support.helpers import Lambda

X = torch.randn(2, 4)


class Flags(nn.Module):
    """Computes something else for every flag."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, flag: Any = True, *, scale: Any = 2) -> Tensor:
        return self.layer(x) * scale if flag else x


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    return reparam.convert(nn.Linear(4, 4), X).module


@pytest.mark.parametrize(
    ("words", "keywords", "message"),
    [
        ((None,), {}, "the input 'input' of this network is a tensor, not None"),
        ((X.numpy(),), {}, "is a tensor, not a numpy.ndarray"),
        (([X],), {}, "is a tensor, not a list"),
        ((), {}, "this network takes 'input', and was not given 'input'"),
        ((X, X), {}, "this network takes 'input', and was given 2 inputs"),
        ((X,), {"other": X}, "takes 'input', and was given 'other'"),
        ((X,), {"input": X}, "takes 'input', and was given 'input' twice"),
        ((X.double(),), {}, "the input 'input' of this network is float32, not float64; convert it with .to"),
        ((X.int(),), {}, "is float32, not int32"),
        ((X > 0,), {}, "is float32, not bool"),
        ((X.to_sparse(),), {}, "is an ordinary tensor, not a sparse tensor"),
        ((X[0],), {}, "verified for inputs of shape [any, 4], not [4]"),
    ],
)
def test_inputs_of_another_kind(linear: nn.Module, words: Any, keywords: Any, message: str) -> None:
    for network in (linear, copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        with pytest.raises(InputError) as raised:
            network(*words, **keywords)
        assert message in str(raised.value)


def test_what_is_taken(linear: nn.Module) -> None:
    expected = linear(X)
    assert torch.equal(linear(input=X), expected)
    assert torch.equal(linear(X.requires_grad_()).detach(), expected)
    half = copy.deepcopy(linear).half()
    assert half(X.half()).dtype is torch.float16
    with torch.autocast("cpu"):
        assert linear(X).dtype is torch.bfloat16
    with pytest.raises(InputError, match="is float16, not float64"):
        half(X.double())
    assert reparam.convert(nn.ReLU(), X).module(X.detach().double()).dtype is torch.float64  # no weights, no dtype
    assert reparam.verify(linear, linear, X.detach()).equivalent
    assert torch.equal(torch.export.export(linear, (X.detach(),)).module()(X), expected)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(-2, 2), st.text(max_size=3))


@given(flag=VALUES, scale=VALUES.filter(lambda v: isinstance(v, int | float)), other=VALUES)
@settings(max_examples=15, deadline=None)
def test_a_constant_other_than_that_of_the_example_is_refused(flag: Any, scale: Any, other: Any) -> None:
    """The graph holds for that constant alone, so anything else would be a silent mistake."""
    program = torch.export.export(Flags(), (X.detach(), flag), {"scale": scale})
    module = reparam.convert(program).module
    with torch.no_grad():
        assert torch.allclose(module(X, flag, scale=scale), program.module()(X, flag, scale=scale), atol=1e-6)
    if type(other) is type(flag) and other == flag:
        return
    with pytest.raises(InputError, match="verified for 'flag' = "):
        module(X, other, scale=scale)


def test_the_source_says_which_constant_it_holds_for(tmp_path: Any) -> None:
    result = reparam.convert(Flags(), X.detach(), '\'yes"""\n')
    result.save_source(tmp_path)
    text = (tmp_path / "model.py").read_text()
    assert "It is the network for flag=" in text
    with pytest.raises(InputError, match=r"verified for 'flag' = .* alone, not ''"):
        result.module(X, "")


def test_containers_of_another_build() -> None:
    net = Lambda(lambda net, x: net.layer(x["a"]) + x["b"], layer=nn.Linear(4, 4))
    module = reparam.convert(net, {"a": X.detach(), "b": X.detach()}).module
    assert module({"a": X, "b": X}).shape == (2, 4)
    for wrong in ({"a": X}, {"a": X, "c": X}, [X, X], X, None):
        with pytest.raises(InputError, match="is not built like the example's"):
            module(wrong)


def test_a_size_that_two_inputs_share() -> None:
    net = Lambda(lambda net, x, y: net.layer(x) + y, layer=nn.Linear(4, 4))
    module = reparam.convert(net, X.detach(), X.detach()).module
    assert module(torch.ones(5, 4), torch.ones(5, 4)).shape == (5, 4)
    with pytest.raises(InputError, match="inputs with one free size, not for 5 and 1"):
        module(torch.ones(5, 4), torch.ones(1, 4))
