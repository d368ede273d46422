"""Recurrent layers as torch's own. The file has their gates in another order, and both directions in one tensor:

LSTM    i, o, f, c  where torch has  i, f, c, o
GRU     z, r, n     where torch has  r, z, n
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reparam.onnx_input.call import Call

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # the file's gates in torch's order
_FUNCTIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}  # what torch computes
_PEEPHOLES = 7  # which input of an LSTM


def _long_memory(call: Call) -> tuple[Tensor, ...]:
    if call.given(_PEEPHOLES):
        raise call.node.refused("it has peepholes, which are not supported")
    if call.attribute("input_forget", 0):
        raise call.node.refused("its input and forget gates are coupled, which is not supported")
    _check_functions(call, _FUNCTIONS["LSTM"])
    return _run(call, torch.lstm, states=2)


def _gated(call: Call) -> tuple[Tensor, ...]:
    if not call.attribute("linear_before_reset", 0):
        raise call.node.refused(
            "its reset gate acts before the product with the recurrent weights (linear_before_reset=0) and torch has "
            "its own after; export the network with the reset after the product"
        )
    _check_functions(call, _FUNCTIONS["GRU"])
    return _run(call, torch.gru)


def _simple(call: Call) -> tuple[Tensor, ...]:
    if set(_functions(call)) == {"relu"}:
        return _run(call, torch.rnn_relu)
    _check_functions(call, _FUNCTIONS["RNN"])
    return _run(call, torch.rnn_tanh)


def _functions(call: Call) -> list[str]:
    return [str(f).lower() for f in call.node.attributes.get("activations", ())]


def _check_functions(call: Call, usual: tuple[str, ...]) -> None:
    """Raises InputError for other functions than torch's layer computes."""
    given = _functions(call)
    if given and given != list(usual) * (len(given) // len(usual)):
        raise call.node.refused(f"its functions are {', '.join(given)}; {', '.join(usual)} are read")


def _run(call: Call, layer: Callable[..., tuple[Tensor, ...]], states: int = 1) -> tuple[Tensor, ...]:
    """What the layer computes of each step, and its last states, as the file orders them.

    layer: torch's function. states: how many it carries from step to step.
    """
    if "clip" in call.node.attributes:
        raise call.node.refused("it clips what goes into its gates, which is not supported")
    if call.given(4):
        raise call.node.refused("it takes the lengths of the sequences, which is not supported")
    batch_first = bool(call.attribute("layout", 0))
    direction = call.attribute("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise call.node.refused("its direction is none")
    both, backwards = direction == "bidirectional", direction == "reverse"
    x, steps = call.tensor(0), 1 if batch_first else 0
    if backwards:
        x = x.flip(steps)
    weights = [w for d in range(2 if both else 1) for w in _weights(call, d)]
    start = [_start(call, x, 5 + i, batch_first, 1 + both) for i in range(states)]
    y, *last = layer(x, start if states > 1 else start[0], weights, call.given(3), 1, 0.0, False, both, batch_first)
    if backwards:
        y = y.flip(steps)
    y = y.unflatten(2, (1 + both, -1))
    if batch_first:
        return y, *(s.transpose(0, 1) for s in last)
    return y.transpose(1, 2), *last


def _weights(call: Call, direction: int) -> list[Tensor]:
    """The weights of one direction, in torch's order: of the input, of the state, and their biases."""
    order = _GATES[call.node.op]

    def ordered(w: Tensor) -> Tensor:
        gates = w.chunk(len(order))
        return torch.cat([gates[k] for k in order]) if len(order) > 1 else w

    found = [ordered(call.tensor(i)[direction]) for i in (1, 2)]
    if call.given(3):
        found += [ordered(b) for b in call.tensor(3)[direction].chunk(2)]
    return found


def _start(call: Call, x: Tensor, index: int, batch_first: bool, directions: int) -> Tensor:
    """The state before the first step, which is zero where the file gives none."""
    given = call.optional(index)
    if given is not None:
        return given.transpose(0, 1).contiguous() if batch_first else given
    return x.new_zeros(directions, x.shape[0 if batch_first else 1], call.tensor(2).shape[2])


OPERATORS = {"LSTM": _long_memory, "GRU": _gated, "RNN": _simple}
