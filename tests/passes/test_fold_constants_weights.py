"""What a computed constant becomes: a weight of which name, dtype and precision, and whether it is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.ir import Constant, aten, is_call
from reparam.passes.fold_constants import FoldConstants
from support.helpers import Fused, Lambda, program_of, run_rules

Forward = Callable[[Any, Tensor], Tensor]
X = torch.randn(2, 3, 4, 4)


def folded(forward: Forward, **parts: Tensor | nn.Module) -> Fused:
    """The network after the rule alone. Tensors become buffers, parameters stay some."""
    net = Lambda(forward)
    for name, part in parts.items():
        if isinstance(part, nn.Parameter):
            net.register_parameter(name, part)
        elif isinstance(part, Tensor):
            net.register_buffer(name, part)
        else:
            net.add_module(name, part)
    return run_rules(program_of(net.eval(), X), FoldConstants())


def made(done: Fused) -> Constant:
    """The only weight that was computed."""
    (constant,) = (c for c in done.program.constants.values() if c.folded)
    return constant


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def test_it_is_named_after_the_trained_weight_of_its_shape() -> None:
    done = folded(
        lambda m, x: F.conv2d(x, m.mask * m.weight * m.gain),
        mask=torch.ones(4, 3, 1, 1), gain=parameter(4, 1, 1, 1), weight=parameter(4, 3, 1, 1),
    )  # fmt: skip
    constant = made(done)
    assert constant.origin == "weight" and constant.trainable
    (remark,) = done.outcome.remarks
    assert remark.message == "2 constant operation(s) computed once"


def test_without_one_it_is_named_after_the_first_floating_one() -> None:
    done = folded(
        lambda m, x: x * m.table[m.index, m.index].reshape(1, 3, 1, 1) * 2.0,
        index=torch.tensor([2, 0, 1]), table=torch.randn(3, 3),
    )  # fmt: skip
    constant = made(done)
    assert constant.origin == "table" and not constant.trainable


def test_of_whole_numbers_alone_it_is_named_after_the_first_and_stays_whole() -> None:
    done = folded(lambda m, x: x[:, (m.index + 1) % 3], index=torch.tensor([2, 0, 1]))
    (constant,) = done.program.constants.values()
    assert constant.origin == "index" and constant.dtype == constant.value.dtype == torch.int64
    assert constant.value.tolist() == [0, 1, 2]


def test_of_no_weights_it_is_named_after_its_place() -> None:
    done = folded(lambda m, x: x * torch.full((3, 1, 1), 2.0).cos())
    assert made(done).origin.endswith(".constant")


def test_it_is_computed_in_float64() -> None:
    weight, gain = parameter(4, 3, 1, 1), parameter(4, 1, 1, 1)
    constant = made(folded(lambda m, x: F.conv2d(x, m.weight * m.gain), weight=weight, gain=gain))
    assert constant.dtype == torch.float32 and constant.value.dtype == torch.float64
    assert torch.equal(constant.value, weight.detach().double() * gain.detach().double())


def test_a_gather_that_stores_no_more_than_the_table_is_computed() -> None:
    order = torch.tensor([2, 0, 1])
    done = folded(lambda m, x: x * m.table[order].reshape(3, 1, 1), table=parameter(3))
    assert not any(is_call(n, {aten.index.Tensor}) for n in done.program.calls())
    (constant,) = (c for c in done.program.constants.values() if c.folded)
    assert constant.origin == "table"


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_dropout_of_weights_draws_nothing_in_evaluation_mode(rate: float) -> None:
    done = folded(
        lambda m, x: F.conv2d(x, F.dropout(m.weight * m.gain, rate, m.training)),
        weight=parameter(4, 3, 1, 1), gain=parameter(4, 1, 1, 1),
    )  # fmt: skip
    assert made(done).origin == "weight"
    assert not [r for r in done.outcome.remarks if "random" in r.message]


def test_it_keeps_a_dtype_that_is_not_the_networks() -> None:
    done = folded(lambda m, x: (x.double() * (m.scale.double() + 1)).float(), scale=parameter(3, 1, 1))
    (constant,) = done.program.constants.values()
    assert constant.dtype == torch.float64 and done.program.dtype == torch.float32
