"""Methods that change activations: normalised-act, gaussian."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from reparam.errors import InputError
from reparam.ir import CONVS, LINEARS, Program, arguments, aten, evaluate_region, is_call, place_of, upstream
from reparam.models.gaussian_preact import LIMIT, coefficients
from reparam.signal import PASSIVE, POOLS, Function, Sums, activations, function_read, leading_factor

from .options import InitOptions
from .report import Outcome
from .weights import Weights

SAME = 1e-3  # of a factor to the one that is missing
ALIKE = 0.02  # scales of layers that are taken for one
LEAST = 1e-9  # power of a function, or of its slope, for which there is a factor


def _found(program: Program, method: str) -> list[Function]:
    found = list(activations(program))
    if not found:
        raise InputError(f"the network has no activation for the method {method}: no function of one value but gates")
    return found


# ---- normalised-act ----------------------------------------------------------------------------------------------


def normalised_act(weights: Weights, options: InitOptions) -> Outcome:
    """lambda*f(x) in place of each activation f, and Var(w) = 1/fan_in.

    lambda = E f'(X)^2^(-1/2) keeps the power of gradients (keep="backward"), E f(X)^2^(-1/2) that of values
    (keep="forward"); X ~ N(0, 1). It is a number that training does not change, and conversion folds it. Of a constant
    factor that stands behind an activation already, it is what is missing. Weights that are computed, as standardised
    ones are, stay; where those of all layers that read an activation have variance g^2/fan_in, g counts as a factor.

    Source: Yuan & Zhu 2022, "ANAct: adaptive normalization for activation functions", arXiv 2208.13315.
    """
    program = weights.program
    backward = options.keep == "backward"
    inserted, factors, kept, sums = [], [], [], Sums(program)
    for function in _found(program, "normalised-act"):
        factor = (sums.slope_in_front(function) if backward else sums.gain_in_front(function)) ** 0.5
        _refuse_silent(function, backward=backward)
        own, end = sums.factors_behind(function)
        inside = scale_inside(program, end)
        factors.append(factor)
        own *= inside
        if abs(factor / own - 1) < SAME:
            kept.append(f"'{place_of(end)}' ({own:.5g})")
            continue
        _behind(program, end, factor / own)
        beside = f", beside the {own:.5g} that it has" if own != 1 else ""
        beside += f", {inside:.5g} of it in the weights behind it" if inside != 1 else ""
        inserted.append(f"the factor {factor / own:.5g} behind '{place_of(end)}'{beside}")
    more = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
    notes = (f"nothing is put behind activations that have their factor already: {kept[0]}{more}",) if kept else ()
    for part in weights.first_parts():
        fan = part.fan_in
        weights.put(part.weight, weights.draw(part, 1 / fan, options.drawn_from("normal")), f"variance 1/{fan:.10g}")
        weights.clear_bias(part)
    return Outcome(inserted=tuple(inserted), figures={"factors": factors}, notes=notes)


def _refuse_silent(function: Function, *, backward: bool) -> None:
    """Raises InputError for a function that is flat, or zero, for nearly all values of variance 1."""
    power = function.slope_power() if backward else function.power().second
    if not power > LEAST:
        what = "the slope of" if backward else "what is given by"
        raise InputError(
            f"{what} the activation '{place_of(function.result)}' is zero for nearly all values "
            "from N(0, 1), so that no factor keeps its power"
        )


def scale_inside(program: Program, node: fx.Node) -> float:
    """The g of the layers that read a value, whose weights are computed and have variance g^2/fan_in on average; 1
    where they differ, or another kind of call reads it."""
    found: list[float] = []
    stack = [node]
    while stack:
        at = stack.pop()
        for user in at.users:
            if is_call(user, PASSIVE | POOLS):
                stack.append(user)
                continue
            weight = arguments(user).get("weight") if is_call(user, CONVS | LINEARS) else None
            if not isinstance(weight, fx.Node) or weight.op == "get_attr" or weight.meta["data"]:
                return 1.0
            value: Tensor = evaluate_region(program, upstream([weight]), {})[weight]
            found.append(float(value.detach().double().square().sum() / len(value)) ** 0.5)
    alike = bool(found) and min(found) > 0 and max(found) / min(found) - 1 < ALIKE
    mean = sum(found) / len(found) if alike else 1.0
    return 1.0 if abs(mean - 1) < SAME else mean


def _behind(program: Program, node: fx.Node, factor: float) -> None:
    made = program.call(aten.mul.Tensor, (node, factor), like=node.next)
    made.meta["module"] = node.meta.get("module", "")
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


# ---- gaussian ----------------------------------------------------------------------------------------------------


def gaussian(weights: Weights, options: InitOptions) -> Outcome:
    """z = W phi(x), W: symmetric Weibull(theta, 1)/sqrt(n), phi in place of each activation, so that z is Gaussian.

    phi = F_Y^-1(Phi(x)) is the function for which the product of a weight and of phi(X) is Gaussian, X ~ N(0, 1): then
    pre-activations are so at any width n. A layer that reads no activation has normal weights of variance 1/n; what it
    reads is taken to be of variance 1. Biases are zero.

    Source: Wolinski & Arbel 2025, "Gaussian pre-activations in neural networks: myth or reality?", arXiv 2205.12379.
    phi is the fit of `reparam.models.gaussian_preact`.
    """
    program = weights.program
    reads = {part.node: function_read(program, part.x) for part in weights.first_parts()}
    found, sums = _found(program, "gaussian"), Sums(program)
    ends = [sums.factors_behind(function)[1] for function in found]
    results = {*(function.result for function in found), *ends}
    for part in weights.first_parts():
        function, n = reads[part.node], part.fan_in
        if function is not None and function.result in results:
            value = weibull(part.shape, options.theta, weights.generator) / n**0.5
            weights.put(part.weight, value, f"Weibull({options.theta:g}, 1)/√{n:.10g}")
        else:
            what = f"variance 1/{n:.10g}: it reads no activation"
            weights.put(part.weight, weights.draw(part, 1 / n, "normal"), what)
        weights.clear_bias(part)
    inserted = []
    for function, end in zip(found, ends, strict=True):
        inserted.append(f"phi of theta = {options.theta:g} in place of '{place_of(end)}'")
        _replace(program, function, end, options.theta)
    return Outcome(inserted=tuple(inserted))


def weibull(shape: tuple[int, ...], theta: float, generator: torch.Generator) -> Tensor:
    """Symmetric Weibull(theta, 1), P(|W| > t) = exp(-t^theta): a random sign times (-log U)^(1/theta), in float64."""
    u = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(min=1e-30)
    sign = torch.rand(shape, generator=generator, dtype=torch.float64) < 0.5
    size = (-torch.log(u)).pow(1 / theta)
    return torch.where(sign, -size, size)


def _replace(program: Program, function: Function, old: fx.Node, theta: float) -> None:
    """phi of the same value, behind a factor that the function takes it by: x*P(u), u = 2.5/(1 + x^2/9) - 1.5, x
    clamped.

    old: what it stands in place of, the function with the factors behind it.
    """
    like = old.next

    def call(target: object, *args: object) -> fx.Node:
        made = program.call(target, args, like=like)
        made.meta["module"] = old.meta.get("module", "")
        return made

    _, read = leading_factor(program, function)
    x = call(aten.clamp.default, read, -LIMIT, LIMIT)
    bottom = call(aten.add.Tensor, call(aten.div.Tensor, call(aten.mul.Tensor, x, x), 9.0), 1.0)
    u = call(aten.sub.Tensor, call(aten.mul.Tensor, call(aten.reciprocal.default, bottom), 2.5), 1.5)
    *rest, last = coefficients(theta)
    y = call(aten.add.Tensor, call(aten.mul.Tensor, u, last), rest[-1])
    for c in reversed(rest[:-1]):
        y = call(aten.add.Tensor, call(aten.mul.Tensor, y, u), c)
    made = call(aten.mul.Tensor, y, x)
    old.replace_all_uses_with(made)
    _erase(program, old)


def _erase(program: Program, node: fx.Node) -> None:
    """Erases a call that nobody reads, and what only it read."""
    stack = [node]
    while stack:
        dead = stack.pop()
        if dead.users or dead.op not in ("call_function", "get_attr"):
            continue
        operands = list(dead.all_input_nodes)
        program.erase([dead])
        stack += operands
