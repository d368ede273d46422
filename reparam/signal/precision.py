"""sensitivity: which layers lose most in fp16, bf16 and int8.

A layer whose weights and input are rounded gives y + d. To first order the result of the network changes by J d; with
random cotangents g, E (g . J d)^2 = |J d|^2, so that one pass back tells the signal to noise of every layer:

    10 log10(|result|^2/|J d|^2)    in dB; 6 dB are one bit

"exact" stands where rounding changes nothing, "overflows" where a rounded value is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.errors import InputError
from reparam.ir import CATS, MOVEMENTS, WEIGHTED, Program, arguments, is_call, op_name, own_generator, place_of

from .functions import is_pointwise
from .places import names_of
from .running import Sampled, differentiable
from .table import Table

PRECISIONS = ("fp16", "bf16", "int8")
DRAWS = 8
MOST = 400.0  # dB that are drawn
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def sensitivity(sampled: Sampled) -> Table:
    """Signal to noise of the result when one layer alone computes on rounded weights and inputs, to first order."""
    program = sampled.program
    nodes = [n for n in program.calls() if is_call(n, WEIGHTED) and n.meta["data"]]
    if not nodes:
        raise InputError("the network has no layer")
    noise = {n: dict.fromkeys(PRECISIONS, 0.0) for n in nodes}
    signal = size = 0.0
    generator = own_generator("sensitivity", sampled.seed)
    for batch in sampled.batches:
        operands = {o for n in nodes for o in n.all_input_nodes}
        made = differentiable(program, batch, frozenset(nodes) | operands, training=sampled.training)
        if not made.outputs:
            raise InputError("no output of the network can be differentiated")
        known = [n for n in nodes if n in made.values]
        with torch.no_grad():
            errors = {n: {p: _error(n, made.values, p) for p in PRECISIONS} for n in known}
        size = size or max(float(y.detach().abs().max()) if y.numel() else 0.0 for y in made.outputs)
        if not 0 < size < math.inf:
            why = "zero" if size == 0 else "not finite"
            raise InputError(
                f"the result of the network is {why} on these inputs, so that no noise can be told from it"
            )
        signal += sum(float((y.detach() / size).square().sum()) for y in made.outputs)
        for _ in range(DRAWS):
            flows = made.gradients([made.values[n] for n in known], [c / size for c in made.cotangents(generator)])
            for node, g in zip(known, flows, strict=True):
                for name, error in errors[node].items():
                    if not bool(torch.isfinite(error).all()):
                        noise[node][name] = math.inf
                        continue
                    per_sample = (g * error).flatten(1).sum(1) if g.dim() > 1 else (g * error).sum().reshape(1)
                    noise[node][name] += float(per_sample.square().sum()) / DRAWS
    found = [[_decibels(signal, noise[node][p]) for p in PRECISIONS] for node in nodes]
    names = names_of(nodes)
    told = [[_shown_decibels(v) for v in row] for row in found]
    worst = {f"least {p}": _shown_decibels(min(_ranked(row[i]) for row in found)) for i, p in enumerate(PRECISIONS)}
    order = [name for _, name in sorted(zip((_ranked(row[-1]) for row in found), names, strict=True))]
    return Table(
        "sensitivity",
        "signal to noise of the result in dB, to first order, when one layer alone reads rounded weights and inputs",
        ("place", *PRECISIONS),
        tuple((name, *row) for name, row in zip(names, told, strict=True)),
        {p: tuple(min(row[i], MOST) for row in found) for i, p in enumerate(PRECISIONS)},
        facts=dict(worst),
        detail={"most sensitive in int8": order[:10]},
        notes=_left_out(program, nodes),
    )


def _left_out(program: Program, nodes: Sequence[fx.Node]) -> tuple[str, ...]:
    """Calls that have weights and are no layers: they are not looked at. nodes: the layers."""
    others = [
        n
        for n in program.calls()
        if n not in nodes
        and n.meta["data"]
        and not is_pointwise(n)
        and not is_call(n, MOVEMENTS | CATS)
        and any(_is_matrix(program, w) for w in n.all_input_nodes)
    ]
    if not others:
        return ()
    names = ", ".join(f"'{place_of(n)}' ({op_name(n)})" for n in others[:3])
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return (f"calls with weights that are no convolutions or linear layers are not looked at: {names}{more}",)


def _is_matrix(program: Program, node: fx.Node) -> bool:
    return node.op == "get_attr" and program.constants[str(node.target)].value.dim() > 1


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return -math.inf if noise == math.inf else 10 * (math.log10(signal) - math.log10(noise))


def _ranked(decibels: float) -> float:
    """What is not known comes last."""
    return math.inf if math.isnan(decibels) else decibels


def _shown_decibels(decibels: float) -> float | str:
    if math.isfinite(decibels) or math.isnan(decibels):
        return decibels
    return "exact" if decibels > 0 else "overflows"


def _error(node: fx.Node, values: Any, precision: str) -> Tensor:
    """What the result of a layer changes by when its weight and its input are rounded."""
    args = arguments(node)

    def given(name: str) -> Any:
        operand = args[name]
        return values[operand].detach() if isinstance(operand, fx.Node) else operand

    x, w, bias = given("input"), given("weight"), given("bias")
    axis = 1 if "transpose" in str(node.target) else 0
    rounded = args | {"input": _rounded(x, precision, None), "weight": _rounded(w, precision, axis), "bias": bias}
    assert callable(node.target)
    made: Tensor = node.target(*rounded.values()) - values[node].detach()
    return made


def _rounded(value: Tensor, precision: str, axis: int | None) -> Tensor:
    """In floating precisions by their own rounding; int8 with a scale for each output channel of a weight, and with a
    scale and a zero point for an input."""
    if precision in _DTYPES:
        short: Tensor = value.to(_DTYPES[precision]).to(torch.float64)
        return short
    if axis is None:
        low, high = min(0.0, float(value.min())), max(0.0, float(value.max()))
        step = (high / 255 - low / 255) or 1.0
        zero = round(-low / step)
        made: Tensor = ((value / step).round().add(zero).clamp(0, 255) - zero) * step
        return made
    others = [i for i in range(value.dim()) if i != axis]
    step_of = value.abs().amax(others, keepdim=True).clamp(min=1e-300) / 127
    rounded: Tensor = (value / step_of).round().clamp(-127, 127) * step_of
    return rounded
