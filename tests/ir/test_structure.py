"""`Program.verify`: what a well-formed program is. Every kind of damage is told, at its node."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from reparam.errors import RuleError
from reparam.ir import Program, aten
from reparam.rewrite import ANY, Driver, Match, Pattern, Phase, Rewrite, verifying
from support.helpers import Lambda, program_of


def program() -> Program:
    net = Lambda(lambda m, x: torch.relu(m.conv(x)).mean((2, 3)), conv=nn.Conv2d(3, 4, 3))
    return program_of(net, torch.randn(2, 3, 8, 8))


def call(made: Program, name: str) -> fx.Node:
    return next(n for n in made.calls() if name in str(n.target))


def unread(made: Program) -> None:
    relu = call(made, "relu")
    made.call(aten.neg.default, (relu,), like=made.output)


def missing_weight(made: Program) -> None:
    made.constants.pop("conv.bias")


def other_weight(made: Program) -> None:
    made.constants["conv.bias"] = dataclasses.replace(made.constants["conv.bias"], value=torch.zeros(5))


def spare_weight(made: Program) -> None:
    made.constants["spare"] = made.constants["conv.bias"]


def wrong_shape(made: Program) -> None:
    call(made, "relu").meta["val"] = call(made, "mean").meta["val"]


def wrong_size(made: Program) -> None:
    with made.fake_mode:
        call(made, "mean").meta["val"] = torch.empty(call(made, "mean").meta["val"].shape[0], 9)


def wrong_operands(made: Program) -> None:
    conv = call(made, "conv2d")
    conv.args = (conv.args[0], conv.args[2], *conv.args[2:])


def wrong_dependence(made: Program) -> None:
    call(made, "relu").meta["data"] = False


def no_value(made: Program) -> None:
    del call(made, "relu").meta["val"]


def written(made: Program) -> None:
    call(made, "relu").target = aten.relu_.default


def out_of_order(made: Program) -> None:
    relu = call(made, "relu")
    call(made, "conv2d").prepend(relu)


def lost_input(made: Program) -> None:
    spec = dataclasses.replace(made.inputs[0], name="nobody")
    made.inputs = (spec,)


def unread_weight(made: Program) -> None:
    made.weight(torch.zeros(3), "spare", like=made.output)


def free_told_as_fixed(made: Program) -> None:
    relu = call(made, "relu")
    with made.fake_mode:
        relu.meta["val"] = torch.empty(7, *relu.meta["val"].shape[1:])


def twice_the_batch(made: Program) -> None:
    relu = call(made, "relu")
    batch, *rest = relu.meta["val"].shape
    with made.fake_mode:
        relu.meta["val"] = torch.empty(2 * batch, *rest)


def one_part_too_many(made: Program) -> None:
    relu = call(made, "relu")
    split = made.call(aten.split.Tensor, (relu, 2, 1), like=made.output)
    made.output.args = ([split, made.output.args[0]],)
    split.meta["val"] = (*split.meta["val"], split.meta["val"][0])


def other_input(made: Program) -> None:
    made.inputs = (dataclasses.replace(made.inputs[0], shape=("N", 3, 9, 9)),)


def input_of_another_dtype(made: Program) -> None:
    made.inputs = (dataclasses.replace(made.inputs[0], dtype=torch.int64),)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (unread, "'neg_default': nobody reads it"),
        (missing_weight, "there is no weight 'conv.bias'"),
        (other_weight, r"its weight has the shape \(5,\), not \(4,\)"),
        (spare_weight, "nobody reads the weight 'spare'"),
        (wrong_shape, "its operator gives torch.float32 of rank 4, not torch.float32 of rank 2"),
        (wrong_size, "its operator gives the shape"),
        (wrong_operands, "its operands do not fit aten.conv2d.default"),
        (wrong_dependence, "it does not say rightly whether it depends on the inputs"),
        (no_value, "it has no value"),
        (written, "aten.relu_.default writes to its operand"),
        (out_of_order, "it reads 'conv2d', which does not come before it"),
        (lost_input, "the input 'nobody' has no placeholder"),
        (unread_weight, "nobody reads the weight 'spare'"),
        (free_told_as_fixed, r"its operator gives the shape .*, not \(7, 4, 6, 6\)"),
        (twice_the_batch, r"its operator gives the shape .*, not \(2\*"),
        (one_part_too_many, "its operator gives 2 values, not 3"),
        (other_input, r"the input '\w+' is torch.float32 \('N', 3, 9, 9\), and its placeholder torch.float32 "),
        (input_of_another_dtype, r"the input '\w+' is torch.int64 .*, and its placeholder torch.float32"),
    ],
    ids=lambda v: v.__name__ if callable(v) else "",
)
def test_damage_is_told(damage: Callable[[Program], None], told: str) -> None:
    made = program()
    made.verify()
    damage(made)
    with pytest.raises(RuleError, match=told):
        made.verify()


def test_only_the_nodes_that_are_named_are_looked_at() -> None:
    made = program()
    wrong_dependence(made)
    made.verify([call(made, "conv2d")])
    with pytest.raises(RuleError, match="at 'relu'"):
        made.verify([call(made, "relu")])


@dataclasses.dataclass(frozen=True)
class Careless:
    """Replaces relu by itself, and tells the wrong shape of it."""

    name = "careless"
    pattern: Pattern = ANY

    def check(self, program: Program, match: Match) -> fx.Node | None:
        fresh = match.root.target is aten.relu.default and not match.root.meta.get("seen")
        return match.root if fresh else None

    def rewrite(self, program: Program, plan: fx.Node) -> Rewrite:
        new = program.clone(plan, {})
        new.meta |= {"seen": True, "data": False}
        return Rewrite({plan: new}, "the same again")


def test_the_driver_checks_the_structure_after_every_rewrite_when_it_is_told_to() -> None:
    phases = (Phase("careless", (Careless(),)),)  # type: ignore[arg-type]
    with verifying(False):
        assert len(Driver(program(), allow_cost=False).run(phases).remarks) == 1
    with verifying(), pytest.raises(RuleError, match="the program is broken at 'relu_default'"):
        Driver(program(), allow_cost=False).run(phases)
