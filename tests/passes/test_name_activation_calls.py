"""name-activation on calls built by hand: every spelling, beside those that are another function."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import fx

from reparam.ir import aten
from reparam.passes.name_activation import NameActivation
from reparam.rewrite import Match, Rewrite
from support.by_hand import ByHand, Make, behind, call, rewritten, then
from support.helpers import doubles, graph_text

RULE = NameActivation()
SHAPE = (2, 3, 16)
VALUES = torch.cat([torch.linspace(-8, 8, 80).double(), doubles(16)]).reshape(SHAPE)
CUBIC, ROOT = math.sqrt(2 / math.pi), math.sqrt(0.5)


def times(value: Any) -> Make:
    return call(aten.mul.Tensor, value)


def plus(value: Any, **options: Any) -> Make:
    return call(aten.add.Tensor, value, **options)


def over(value: Any) -> Make:
    return call(aten.div.Tensor, value)


def both(target: Any, one: Make, other: Make, **options: Any) -> Make:
    """A call of two values that both come from x."""
    return lambda g, x: g.call(target, one(g, x), other(g, x), **options)


def product(*factors: Make) -> Make:
    first, *others = factors
    return first if not others else both(aten.mul.Tensor, first, product(*others))


def itself(graph: ByHand, x: fx.Node) -> fx.Node:
    return x


sigmoid, relu6, hardsigmoid = call(aten.sigmoid.default), call(aten.relu6.default), call(aten.hardsigmoid.default)
tanh, erf, softplus = call(aten.tanh.default), call(aten.erf.default), call(aten.softplus.default)
flip, cube, unit = call(aten.flip.default, [1]), call(aten.pow.Tensor_Scalar, 3), call(aten.clamp.default, 0, 1)
uneven = torch.tensor([1 / 6, 1 / 6, 1 / 5]).double()[:, None]
hard = then(plus(3.0), relu6)
bell = then(over(math.sqrt(2)), erf, plus(1.0))


def cubic(factor: float = 0.044715, power: int = 3, **options: Any) -> Make:
    return both(aten.add.Tensor, itself, then(call(aten.pow.Tensor_Scalar, power), times(factor)), **options)


def bent(inner: Make, factor: float = CUBIC) -> Make:
    return then(inner, times(factor), tanh, plus(1.0))


SPELLED: dict[str, tuple[str, Make]] = {
    "silu": ("silu(x)", product(itself, sigmoid)),
    "silu, gate first": ("silu(x)", product(sigmoid, itself)),
    "silu, doubled and halved": ("silu(x)", then(product(sigmoid, times(2.0)), over(2))),
    "hardswish by its gate": ("hardswish(x)", product(itself, hardsigmoid)),
    "mish": ("mish(x)", product(itself, then(softplus, tanh))),
    "mish of another limit": ("mish(x)", product(then(call(aten.softplus.default, 1, 30), tanh), itself)),
    "hard sigmoid": ("hardsigmoid(x)", then(hard, over(6))),
    "times a sixth": ("hardsigmoid(x)", then(hard, times(1 / 6))),
    "by clamp": ("hardsigmoid(x)", then(plus(3), call(aten.clamp.default, 0, 6), over(6.0))),
    "by hardtanh": ("hardsigmoid(x)", then(plus(3), call(aten.hardtanh.default, 0.0, 6.0), over(6.0))),
    "scaled first": ("hardsigmoid(x)", then(over(6), plus(0.5), unit)),
    "shifted first": ("hardsigmoid(x)", then(plus(3), over(6), call(aten.clamp.default, 0.0, 1.0))),
    "shifted behind": ("hardsigmoid(x)", then(over(6), call(aten.clamp.default, -0.5, 0.5), plus(0.5))),
    "scaled and shifted behind": (
        "hardsigmoid(x)",
        then(call(aten.clamp.default, -3, 3), over(6), call(aten.sub.Tensor, -0.5)),
    ),
    "in two steps": ("hardsigmoid(x)", then(plus(1.0), plus(2.0), relu6, over(2), over(3))),
    "turned twice": (
        "hardsigmoid(x)",
        then(times(-1.0), call(aten.rsub.Scalar, 3.0), relu6, times(-1), over(-6)),
    ),
    "turned twice by its sign": (
        "hardsigmoid(x)",
        then(call(aten.neg.default), call(aten.rsub.Scalar, 3.0), relu6, call(aten.neg.default), over(-6)),
    ),
    "of twice the value": ("hardsigmoid(mul(x, 2.0))", then(times(2.0), hard, over(6))),
    "of the value turned over": ("hardsigmoid(neg(x))", then(call(aten.neg.default), hard, over(6))),
    "hardswish": ("hardswish(x)", then(product(itself, hard), over(6))),
    "hardswish, gate first": ("hardswish(x)", product(then(hard, over(6)), itself)),
    "hardswish, gate scaled first": (
        "hardswish(x)",
        product(itself, then(over(6), plus(0.5), unit)),
    ),
    "hardswish, the gate a clamp of its operand": (
        "hardswish(x)",
        product(itself, then(call(aten.clamp.default, -3, 3), over(6), plus(0.5))),
    ),
    "hardswish, value scaled": ("hardswish(x)", product(hard, over(6))),
    "hardswish, both scaled": ("hardswish(x)", product(then(hard, over(2)), over(3))),
    "gelu": ("gelu(x)", product(times(0.5), bell)),
    "gelu, halved at last": ("gelu(x)", then(product(bell, itself), over(2))),
    "gelu, halved inside": (
        "gelu(x)",
        product(then(times(ROOT), erf, times(0.5), plus(0.5)), itself),
    ),
    "gelu by tanh": ("gelu(x, approximate=tanh)", product(times(0.5), bent(cubic()))),
    "gelu by tanh, cube first": (
        "gelu(x, approximate=tanh)",
        product(
            then(bent(both(aten.add.Tensor, then(cube, times(0.044715)), itself)), times(0.5)),
            itself,
        ),
    ),
    "relu": ("relu(x)", call(aten.clamp.default, 0)),
    "relu without end": ("relu(x)", call(aten.clamp.default, 0.0, math.inf)),
    "relu by clamp_min": ("relu(x)", call(aten.clamp_min.default, 0.0)),
    "relu by hardtanh": ("relu(x)", call(aten.hardtanh.default, 0.0, math.inf)),
}

OTHERS: dict[str, Make] = {
    "a product of three": product(itself, sigmoid, sigmoid),
    "a square": product(itself, itself),
    "a gate of twice the value": product(itself, then(times(2.0), sigmoid)),
    "a gate of another value": product(itself, then(flip, sigmoid)),
    "a hard gate of another value": product(itself, then(flip, hardsigmoid)),
    "twice silu": then(product(itself, sigmoid), times(2.0)),
    "silu with a factor for each channel": then(product(itself, sigmoid), times(doubles(3, 1))),
    "silu over a value": both(aten.div.Tensor, sigmoid, itself),
    "a broadcast gate": both(aten.mul.Tensor, itself, then(call(aten.slice.Tensor, 1, 0, 1), sigmoid)),
    "a broadcast value": both(aten.mul.Tensor, call(aten.slice.Tensor, 1, 0, 1), sigmoid),
    "mish of a sharper softplus": product(itself, then(call(aten.softplus.default, 2), tanh)),
    "mish that is straight too early": product(itself, then(call(aten.softplus.default, 1, 10), tanh)),
    "a tanh of itself": product(itself, tanh),
    "mish of another value": product(itself, then(flip, softplus, tanh)),
    "half a hard sigmoid": then(hard, over(12)),
    "a hard sigmoid with a rounded sixth": then(hard, times(0.1666667)),
    "a hard sigmoid shifted less": then(plus(2.5), relu6, over(6)),
    "a hard sigmoid with another end": then(plus(3.0), call(aten.clamp.default, 0, 5), over(6)),
    "a hard sigmoid with another start": then(plus(3.0), call(aten.clamp.default, 1, 6), over(6)),
    "a hard sigmoid without end": then(plus(3.0), call(aten.clamp.default, 0.5), over(6)),
    "a hard sigmoid upside down": then(hard, over(-6)),
    "a hard sigmoid moved up": then(hard, over(6), plus(1.0)),
    "a hard sigmoid for each channel": then(plus(3.0), relu6, times(uneven)),
    "a hard sigmoid of a hard sigmoid's half": then(hard, relu6, over(6)),
    "a clamp with crossed ends": then(times(-1.0), call(aten.clamp.default, 3, -3), over(-6), plus(0.5)),
    "half a gelu": product(times(0.25), bell),
    "a gelu of another width": product(times(0.5), then(over(2.0), erf, plus(1.0))),
    "a gelu that starts higher": product(times(0.5), then(times(ROOT), erf, plus(2.0))),
    "a gelu aside": product(times(0.5), then(plus(1.0), times(ROOT), erf, plus(1.0))),
    "a gelu of another value": product(times(0.5), then(flip, bell)),
    "another cubic": product(times(0.5), bent(cubic(0.05))),
    "a square in place of the cube": product(times(0.5), bent(cubic(power=2))),
    "a cubic of another slope": product(times(0.5), bent(cubic(), 0.75)),
    "twice the cube": product(times(0.5), bent(cubic(alpha=2))),
    "a cubic aside": product(times(0.5), then(cubic(), times(CUBIC), plus(0.1), tanh, plus(1.0))),
    "a cubic with a shifted cube": product(
        times(0.5),
        bent(both(aten.add.Tensor, itself, then(cube, times(0.044715), plus(0.1)))),
    ),
    "a cubic of two values": product(
        times(0.5),
        bent(both(aten.add.Tensor, flip, then(cube, times(0.044715)))),
    ),
    "a cube of another value": product(
        times(0.5),
        bent(
            both(
                aten.add.Tensor,
                itself,
                then(flip, cube, times(0.044715)),
            )
        ),
    ),
    "a difference": product(
        times(0.5),
        bent(both(aten.sub.Tensor, itself, then(cube, times(-0.044715)))),
    ),
    "tanh in place of the cubic": product(times(0.5), bent(itself)),
    "a clamp from below": call(aten.clamp.default, -0.1),
    "a clamp from above": call(aten.clamp.default, None, 0.0),
    "a clamp with both ends": call(aten.clamp.default, 0.0, 6.0),
    "relu6": relu6,
    "a sum": plus(3.0),
}


@pytest.mark.parametrize("name", SPELLED)
def test_a_spelled_form_is_called_by_its_name(name: str) -> None:
    text, make = SPELLED[name]
    graph = ByHand()
    root = make(graph, graph.input(*SHAPE))
    made = rewritten(RULE, graph, root, VALUES, bound=1e-14)
    assert isinstance(made, Rewrite) and graph_text(graph.program) == text
    assert made.message == f"its spelled form became {text.split('(')[0]}"


@pytest.mark.parametrize("name", OTHERS)
def test_another_function_stays(name: str) -> None:
    graph = ByHand()
    assert rewritten(RULE, graph, OTHERS[name](graph, graph.input(*SHAPE)), VALUES) is None


def test_a_clamp_by_a_size_stays() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE, free=(0,))
    size = graph.call(aten.sym_size.int, x, 0)
    for options in ((size,), (0.0, size)):
        assert RULE.check(graph.program, Match(graph.call(aten.clamp.default, x, *options), {})) is None


def test_a_form_that_widens_its_operand_stays() -> None:
    """A call by the name would give a result in the precision of the operand."""
    graph = ByHand(torch.float32)
    x = graph.input(*SHAPE)
    node = then(plus(torch.tensor([3.0]).double()), relu6, over(6))(graph, x)
    assert node.meta["val"].dtype == torch.float64
    assert RULE.check(graph.program, Match(node, {})) is None
    node = graph.call(aten.mul.Tensor, product(itself, sigmoid)(graph, x), graph.weight(torch.tensor([1.0]).double()))
    assert RULE.check(graph.program, Match(node, {})) is None


def test_whole_numbers_stay() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE, dtype=torch.int64)
    assert RULE.check(graph.program, Match(graph.call(aten.clamp.default, x, 0), {})) is None


def test_numbers_may_be_weights_of_one_entry() -> None:
    graph = ByHand()
    node = then(behind(aten.add.Tensor, torch.tensor(3.0).double()), relu6, over(torch.tensor([6.0]).double()))
    made = rewritten(RULE, graph, node(graph, graph.input(*SHAPE)), VALUES, bound=1e-14)
    assert isinstance(made, Rewrite) and graph_text(graph.program) == "hardsigmoid(x)"


# Which of the values on the way, by the name of their call, may be read elsewhere: only those that stay.
READ: dict[str, tuple[Make, dict[str, bool]]] = {
    "silu": (product(itself, sigmoid), {"x0": True, "sigmoid": False, "mul": True}),
    "scaled silu": (
        then(product(times(2.0), sigmoid), over(2)),
        {"x0": True, "sigmoid": False, "mul_tensor": False, "mul_tensor_1": False, "div": True},
    ),
    "mish": (product(itself, then(softplus, tanh)), {"tanh": False}),
    "hard sigmoid": (then(hard, over(6)), {"x0": True, "add": False, "relu6": False, "div": True}),
    "clamp of a value": (
        then(call(aten.clamp.default, -3, 3), over(6), plus(0.5)),
        {"x0": True, "clamp": False, "div": False},
    ),
    "hard sigmoid that ends in a clamp": (
        then(over(6), plus(0.5), unit),
        {"x0": True, "div": False, "add": False, "clamp": True},
    ),
    "gelu": (
        product(times(0.5), bell),
        {"x0": True, "mul_tensor": False, "add": False, "erf": False, "mul_tensor_1": True},
    ),
    "relu": (call(aten.clamp.default, 0.0), {"x0": True, "clamp": True}),
}


@pytest.mark.parametrize(("form", "place"), [(f, p) for f, (_, places) in READ.items() for p in places])
def test_values_on_the_way_have_no_other_reader(form: str, place: str) -> None:
    """Else they would be computed all the same."""
    make, places = READ[form]
    graph = ByHand()
    root = make(graph, graph.input(*SHAPE))
    named = [n for n in graph.program.graph.nodes if n.name == place or n.name.startswith(f"{place}_")]
    other = graph.call(aten.sin.default, named[0])
    graph.returns(root, other)
    plan = RULE.check(graph.program, Match(root, {}))
    named_so = plan is not None and plan.x is graph.program.placeholders[0]
    assert named_so == places[place]
