"""torch fixes the steps of recurrent layers when it traces them; the refusal of such a free axis names the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.capture import capture
from reparam.errors import CaptureError
from support.helpers import Lambda

KINDS = (nn.LSTM, nn.GRU, nn.RNN)


class One(Lambda):
    """Of an input x."""

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, x)


class Two(Lambda):
    """Of the inputs x and z."""

    def forward(self, x: Tensor, z: Tensor) -> Any:
        return self.compute(self, x, z)


def refusal(model: nn.Module, *inputs: Tensor, dynamic: tuple[str, ...]) -> str:
    with pytest.raises(CaptureError) as told:
        capture(model.eval(), inputs, dynamic=dynamic)
    return str(told.value)


def fixed_by(layer: str, axis: str = "T") -> str:
    return (
        f"axis '{axis}' cannot stay free: a recurrent layer ('{layer}') is captured for one number of steps; leave it "
        "out of the free axes"
    )


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_is_named(kind: Any, batch_first: bool) -> None:
    block = nn.Module()
    block.rnn = kind(6, 5, batch_first=batch_first)
    net = One(lambda m, x: m.head(m.block.rnn(x)[0]), block=block, head=nn.Linear(5, 3))
    steps = 1 if batch_first else 0
    assert refusal(net, torch.randn(4, 7, 6), dynamic=(f"x:{steps}=T",)) == fixed_by("block.rnn")
    capture(net, (torch.randn(4, 7, 6),), dynamic=(f"x:{1 - steps}=N",))


def test_steps_that_are_computed_of_the_size_and_that_are_given_by_name() -> None:
    net = One(
        lambda m, x: m.second(input=m.first(x.transpose(1, 2)[:, 1:]))[0],
        first=nn.Linear(3, 3),
        second=nn.GRU(3, 2, batch_first=True),
    )
    assert refusal(net, torch.randn(2, 3, 9), dynamic=("batch", "x:2=T")) == fixed_by("second")


def test_a_network_that_is_a_recurrent_layer_itself() -> None:
    assert refusal(nn.LSTM(6, 5), torch.randn(7, 2, 6), dynamic=("input:0=T",)) == fixed_by("LSTM")
    captured = capture(nn.LSTM(6, 5).eval(), (torch.randn(7, 6),))
    assert "the batch is fixed at 7, that of the example: a recurrent layer ('LSTM') is captured" in captured.notes[0]


def test_the_first_of_several_layers_and_the_axis_of_its_input() -> None:
    net = Two(
        lambda m, x, z: m.a(m.conv(x))[0].sum() + m.b(z)[0],
        conv=nn.Linear(3, 3),
        a=nn.GRU(3, 2, batch_first=True),
        b=nn.RNN(3, 2, batch_first=True),
    )
    inputs = torch.randn(2, 5, 3), torch.randn(2, 6, 3)
    assert refusal(net, *inputs, dynamic=("z:1=T",)) == fixed_by("b")
    assert refusal(net, *inputs, dynamic=("x:1=S",)) == fixed_by("a", "S")


def test_an_axis_that_something_else_fixes_beside_a_recurrent_layer() -> None:
    net = Two(
        lambda m, x, z: m.rnn(x)[0].sum() + torch.stack([row * 2 for row in z.unbind(1)]),
        rnn=nn.GRU(3, 2, batch_first=True),
    )
    told = refusal(net, torch.randn(2, 5, 3), torch.randn(2, 6, 3), dynamic=("z:1=T",))
    assert told == "axis 'T' cannot stay free: the model works with one size of it alone; leave it out of the free axes"
    assert not any(m._forward_pre_hooks for m in net.modules())
