"""bn-scale: small scales of batch norms, and how an optimiser treats them."""

from __future__ import annotations

import torch

from reparam.errors import InputError
from reparam.ir import BATCH_NORMS, CASTS, IDENTITIES, MOVEMENTS, arguments, is_call

from .options import InitOptions
from .report import Outcome
from .weights import Weights

SLOWER = 100  # times, the learning rate of scales


def bn_scale(weights: Weights, options: InitOptions) -> Outcome:
    """gamma = 0.1 in every batch norm, 0.058 and a frozen bias in one that reads the input of the network.

    The learning rate of the scales is a hundredth of the others', and parameters of one axis are not decayed: `groups`.

    Source: Davis & Frank 2022, "Revisiting batch norm initialization", arXiv 2110.13989.
    """
    program = weights.program
    gammas: list[str] = []
    frozen: list[str] = []
    for node in program.calls():
        if not is_call(node, BATCH_NORMS) or not node.meta["data"]:
            continue
        args = arguments(node)
        weight, bias = (program.constant(args[name]) for name in ("weight", "bias"))
        if weight is None:
            continue
        first = _reads_input(args["input"])
        gamma = options.gamma * (options.input_factor if first else 1.0)
        name = str(args["weight"].target)
        weights.put(name, torch.full(tuple(weight.value.shape), gamma, dtype=torch.float64), f"{gamma:.4g}")
        gammas.append(weight.origin)
        if first and bias is not None:
            frozen.append(bias.origin)
    if not gammas:
        raise InputError("the network has no batch norm with a weight, so that there is nothing for bn-scale to set")
    _freeze(weights, frozen)
    notes = () if frozen else ("no batch norm reads the input of the network; the method as published has one there",)
    return Outcome(groups=_groups(weights, gammas), frozen=tuple(frozen), notes=notes)


def _reads_input(node: object) -> bool:
    while is_call(node, MOVEMENTS | IDENTITIES | CASTS):
        node = next(n for n in node.all_input_nodes)  # type: ignore[attr-defined]  # a call is a node
    return getattr(node, "op", "") == "placeholder"


def _freeze(weights: Weights, names: list[str]) -> None:
    held = dict(weights.module.named_parameters(remove_duplicate=False))
    for name in names:
        if name in held:
            held[name].requires_grad_(False)


def _groups(weights: Weights, gammas: list[str]) -> tuple[dict[str, object], ...]:
    """Names of parameters with the factors of the learning rate and of the weight decay; a tied one once."""
    held = [(n, p) for n, p in weights.module.named_parameters() if p.requires_grad]
    known = set(gammas)
    return (
        {"params": [n for n, p in held if n not in known and p.dim() > 1], "rate": 1.0, "decay": 1.0},
        {"params": [n for n, p in held if n not in known and p.dim() <= 1], "rate": 1.0, "decay": 0.0},
        {"params": [n for n, _ in held if n in known], "rate": 1 / SLOWER, "decay": 0.0},
    )
