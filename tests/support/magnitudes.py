"""Networks of many outputs, and how large the values of each may be as far as rounding is concerned."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.check.rounding_bound import magnitudes
from reparam.ir import Program, evaluate_region, upstream
from support.helpers import Lambda, program_of

Forwards = Mapping[str, Callable[..., Any]]


def captured(forwards: Forwards, *inputs: Any, **parts: Any) -> Callable[[], Program]:
    """One program with an output for each forward: a capture takes long."""

    def forward(m: Any, *given: Any) -> Any:
        return tuple(f(m, *given) for f in forwards.values())

    return functools.cache(lambda: program_of(Lambda(forward, **parts).double().eval(), *inputs, dynamic=()))


def of(program: Program, which: int, *inputs: Any) -> tuple[list[fx.Node], dict[fx.Node, Any], dict[fx.Node, Any]]:
    """The region that makes an output, its values and their magnitudes."""
    node = program.output.args[0][which]  # type: ignore[index]
    region = upstream([node], lambda n: n.op == "placeholder")  # type: ignore[list-item]
    given, weights = [x.clone() for x in inputs], {n: c.value.clone() for n, c in program.constants.items()}
    values = evaluate_region(program, region, dict(zip(program.placeholders, given, strict=True)))
    found = magnitudes(program, region, values)
    assert all(torch.equal(a, b) for a, b in zip(given, inputs, strict=True)), "inputs are left as they are"
    assert all(torch.equal(program.constants[n].value, v) for n, v in weights.items()), "weights as well"
    return region, values, found


def size_of(program: Program, forwards: Mapping[str, Any], name: str, *inputs: Tensor) -> Tensor:
    """The magnitude of one of the outputs."""
    region, _, found = of(program, list(forwards).index(name), *inputs)
    made: Tensor = found[region[-1]]
    return made


def param(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.clone())
