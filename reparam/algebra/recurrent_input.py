"""The first layer of an LSTM, GRU or RNN takes an affine of its input: W (a x + t) + b = (W diag(a)) x + (b + W t).

Every gate and direction of that layer reads the input through one such product with its own W, and nothing else reads
it. No step has a border, so that a shift goes in as a scale does. The states and the layers above stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from reparam.ir import Program, Refusal, arguments, op_name, shape_of

from .channel_affine import Pair, along
from .kernels import scale_inputs
from .layer import renewed


def recurrent_forward(program: Program, node: fx.Node, known: Mapping[fx.Node, Any]) -> Pair | Refusal:
    """The affine of the input of the recurrent call `node` as vectors (features,), which its weights take.

    known: the affines that values carry, among them some that the call reads.
    """
    args = arguments(node)
    carried = known.get(args["input"])
    if any(isinstance(s, fx.Node) and s in known for s in pytree.tree_leaves(args["hx"])):
        return Refusal("the affine reaches the state with which this recurrent layer starts, which takes none", node)
    if not isinstance(carried, Pair) or any(p in known for p in args["params"]):
        return Refusal(f"{op_name(node)} uses the value in a way that an affine cannot follow", node)
    if any(program.constant(args["params"][i]) is None for at in _first_layer(args) for i in at if i is not None):
        return Refusal("the weights of this recurrent layer are computed", node)
    shape = shape_of(args["input"])
    try:
        scale, shift = along(carried.scale, len(shape) - 1), along(carried.shift, len(shape) - 1)
    except ValueError:
        return Refusal("the affine does not lie along the features that this recurrent layer reads", node)
    if shift is not None and not args["has_biases"]:
        return Refusal("a shift does not fold into a recurrent layer without biases", node)
    return Pair(*(v if v is None else v.expand(shape[-1]) for v in (scale, shift)))


def write_recurrent(program: Program, node: fx.Node, pair: Pair, made: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The recurrent call `node` on what was `made` of its operands; its weights hold `pair`, vectors (features,)."""
    args = arguments(node)
    params = list(args["params"])
    for at, beside in _first_layer(args):
        weight, bias = program.tensor(params[at]), None if beside is None else program.tensor(params[beside])
        assert weight is not None
        weight, bias = scale_inputs("linear", weight, bias, 1, pair.scale, pair.shift)
        if pair.scale is not None:
            params[at] = renewed(program, params[at], weight, like=node)
        if pair.shift is not None and bias is not None and beside is not None:
            params[beside] = renewed(program, params[beside], bias, like=node)
    old = args["input"]
    x, hx = fx.node.map_arg((old, args["hx"]), lambda n: made.get(n, n))
    alike = shape_of(x) == shape_of(old) and x.meta["val"].dtype == old.meta["val"].dtype
    given = args | {"input": x, "hx": hx, "params": params}
    return program.call(node.target, tuple(given.values()), like=node, same=node if alike else None)


def _first_layer(args: Mapping[str, Any]) -> list[tuple[int, int | None]]:
    """Where W and b of each direction of the first layer lie among the weights; None for a bias that is not there.

    A direction of a layer has W, that of its state, both biases where there are any, and a projection of the state.
    """
    directions = 1 + args["bidirectional"]
    count = len(args["params"]) // (directions * args["num_layers"])
    return [(i, i + 2 if args["has_biases"] else None) for i in range(0, directions * count, count)]
