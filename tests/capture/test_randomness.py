"""A network that draws random numbers is refused by the operator's name, its layer and its line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam import CaptureError, convert
from reparam.capture import capture, from_exported
from support.applied import Applied

IMAGE = torch.ones(2, 4, 6, 6)
Function = Callable[[Tensor], Tensor]


def net(function: Function) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 1), Applied(function)).eval()


RANDOM: dict[str, tuple[str, Function]] = {
    "dropout": ("dropout", lambda x: F.dropout(x, 0.5, training=True)),
    "dropout by default": ("dropout", F.dropout),
    "dropout in place": ("dropout_", lambda x: F.dropout(x, 0.5, training=True, inplace=True)),
    "dropout of channels": ("feature_dropout", lambda x: F.dropout2d(x, 0.5)),
    "alpha dropout": ("alpha_dropout", lambda x: F.alpha_dropout(x, 0.5, training=True)),
    "rrelu": ("rrelu", lambda x: F.rrelu(x, training=True)),
    "rand": ("rand", lambda x: x + torch.rand(6)),
    "rand_like": ("rand_like", lambda x: x * torch.rand_like(x)),
    "randn": ("randn", lambda x: x + torch.randn(1, 4, 1, 1)),
    "randint": ("randint", lambda x: x + torch.randint(0, 3, (6,))),
    "randperm": ("randperm", lambda x: x[:, torch.randperm(4)]),
    "bernoulli": ("bernoulli", lambda x: torch.bernoulli(torch.sigmoid(x))),
    "stochastic depth": ("bernoulli_", lambda x: x * torch.empty(2, 1, 1, 1).bernoulli_(0.5)),
    "multinomial": ("multinomial", lambda x: torch.multinomial(x.flatten(1).softmax(1), 2).float()),
    "normal": ("normal", lambda x: torch.normal(x, 1.0)),
    "noise in place": ("normal_", lambda x: x + torch.zeros(6).normal_()),
    "poisson": ("poisson", lambda x: torch.poisson(x.abs())),
    "gumbel": ("exponential_", lambda x: F.gumbel_softmax(x, dim=1)),
    "fractional pool": ("rand", lambda x: F.fractional_max_pool2d(x, 2, output_size=3)),
    "attention": ("scaled_dot_product_attention", lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)),
    "seeded": ("rand", lambda x: (torch.manual_seed(0), x + torch.rand(6))[1]),
}


@pytest.mark.parametrize("case", RANDOM)
def test_what_draws_is_refused_by_name_layer_and_line(case: str) -> None:
    name, function = RANDOM[case]
    with pytest.raises(CaptureError) as raised:
        convert(net(function), IMAGE)
    message = str(raised.value)
    assert message.startswith(f"the model draws random numbers while it runs, by {name} in '1' (")
    assert "applied.py:" in message and "`return self.function(x)`" in message


QUIET: dict[str, Function] = {
    "off": lambda x: F.dropout(x, 0.5, training=False),
    "drops nothing": lambda x: F.dropout(x, 0.0, training=True),
    "rrelu in evaluation": lambda x: F.rrelu(x, training=False),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "not used": lambda x: (torch.rand_like(x), x)[1],
    "batch statistics": lambda x: F.batch_norm(x, None, None, training=True),
}


@pytest.mark.parametrize("case", QUIET)
def test_what_draws_nothing_is_taken(case: str) -> None:
    assert capture(net(QUIET[case]), [IMAGE]).program.placeholders


def test_recurrent_layers_drop_in_training_alone() -> None:
    layer = nn.LSTM(6, 5, 2, dropout=0.5, batch_first=True)
    assert capture(layer, [torch.ones(2, 3, 6)]).program.placeholders
    trained = torch.export.export(layer.train(), (torch.ones(2, 3, 6),))
    with pytest.raises(CaptureError, match="by lstm"):
        from_exported(trained)


def test_a_module_that_switches_its_dropout_on() -> None:
    class Stuck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            self.drop.train()
            return self.drop(x)

    with pytest.raises(CaptureError, match=r"by dropout in 'drop' \(.*test_randomness\.py:\d+ `return self\.drop"):
        convert(Stuck(), IMAGE)


def test_a_program_that_was_exported_in_training_mode() -> None:
    program = torch.export.export(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout()).train(), (IMAGE,))
    with pytest.raises(CaptureError, match="random numbers while it runs, by dropout in '1'"):
        convert(program)


@given(draws=st.lists(st.booleans(), min_size=1, max_size=6))
def test_three_are_named_and_the_others_counted(draws: list[bool]) -> None:
    layers = [Applied((lambda x: x + torch.rand(6)) if d else torch.relu) for d in draws]
    module = nn.Sequential(*layers)
    places = [f"rand in '{i}'" for i, d in enumerate(draws) if d]
    if not places:
        assert capture(module, [IMAGE]).program.placeholders
        return
    with pytest.raises(CaptureError) as raised:
        capture(module, [IMAGE])
    message = str(raised.value)
    assert all(p in message for p in places[:3]) and not any(p in message for p in places[3:])
    assert (f" and {len(places) - 3} more" in message) == (len(places) > 3)


@pytest.mark.parametrize("name", ["dropout", "randn", "rand_like"])
def test_the_state_of_torchs_generator_is_left_as_it_was(name: str) -> None:
    torch.manual_seed(3)
    model, before = net(RANDOM[name][1]), torch.get_rng_state()
    with pytest.raises(CaptureError):
        capture(model, (IMAGE,))
    assert torch.equal(torch.get_rng_state(), before)
