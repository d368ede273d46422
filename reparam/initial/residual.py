"""Methods for residual blocks: residual-scale, depth-scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from reparam.errors import InputError
from reparam.ir import BATCH_NORMS, Program, aten, is_call, place_of, shape_of
from reparam.signal import Block, Sums, blocks, factors_of
from reparam.utils import dtype_name

from .drawn import set_he
from .options import InitOptions
from .report import Outcome
from .weights import Weights, draw

SAME = 1e-3  # of a factor to one
LARGEST = 700.0  # logarithm of a factor
_CONV = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}


def _found(program: Program, method: str) -> list[Block]:
    found = list(blocks(program))
    if not found:
        raise InputError(f"the network has no residual block: no sum of a value and of layers that read it ({method})")
    return found


# ---- residual-scale ----------------------------------------------------------------------------------------------


def residual_scale(weights: Weights, options: InitOptions) -> Outcome:
    """y = c*(h(x) + F(x)) in place of each sum y = h(x) + F(x), and He's weights.

    With He's weights E|F(x)|^2 = E|x|^2, so that each sum doubles the power; c = sqrt(1/2), `factor`, keeps it. scale:
    fixed, a number; learned, a parameter for each block that starts there; shortcut, a number, and a layer of one tap
    in each skip that has none. Of a network that has factors of its own, a(s h + b F), c is such that the power is
    multiplied by what it would be without them: c sqrt(2/(s^2 + b^2))/a.

    Source: Civitelli et al. 2021, "A robust initialization of residual blocks for effective ResNet training without
    batch normalization", arXiv 2112.12299.
    """
    program = weights.program
    found, sums = _found(program, "residual-scale"), Sums(program)
    for part in list(weights.first_parts()):
        set_he(weights, part, InitOptions(distribution=options.distribution), sums)
    own = {block.add: factors_of(program, block) for block in found}
    inserted: list[str] = []
    kept: list[str] = []
    for block in reversed(found):  # what is put behind a sum then reaches the skips that read it
        if options.scale == "shortcut" and block.identity:
            added = _shortcut(weights, block)
            inserted.append(f"a layer in the skip of '{place_of(block.add)}'" if added else _unfit(block))
        factors = own[block.add]
        c = options.factor * math.sqrt(2 / factors.power) if 0 < factors.power < math.inf else options.factor
        if factors.described() and abs(c - 1) < SAME and (options.scale != "learned" or factors.learned):
            kept.append(f"'{place_of(block.add)}' ({factors.described()})")
        else:
            inserted.append(_scaled(weights, block.add, options, c, factors.described()))
    first = f"such as {kept[-1]}" if len(kept) > 1 else "".join(kept)
    note = f"{len(kept)} of {len(found)} sums have the factors already, {first}: nothing is put behind them"
    return Outcome(inserted=tuple(reversed(inserted)), notes=(note,) if kept else ())


def _scaled(weights: Weights, add: fx.Node, options: InitOptions, c: float, own: str) -> str:
    """Puts c behind the sum. own: the factors that it has, in words."""
    program = weights.program
    place, after = place_of(add), add.next
    held = torch.finfo(program.dtype)
    if not held.tiny <= abs(c) <= held.max:
        what = f"the factor {c:.4g} behind the sum of '{place}' is beyond the numbers of {dtype_name(program.dtype)}"
        raise InputError(f"{what}: it would make everything zero or infinite")
    if options.scale == "learned":
        name = f"{place}.residual_scale"
        factor: object = program.weight(torch.tensor(c), name, like=after)
        text = f"a parameter '{name}' of {c:.4g} behind the sum of '{place}'"
    else:
        factor, text = c, f"the factor {c:.4g} behind the sum of '{place}'"
    made = program.call(aten.mul.Tensor, (add, factor), like=after)
    made.meta["module"] = add.meta.get("module", "")
    add.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    return f"{text}, beside those that it has: {own}" if own else text


def _shortcut(weights: Weights, block: Block) -> bool:
    """A layer of one tap in the skip, for images, signals and volumes (N, C, ...) and for features (N, C)."""
    program, add, skip = weights.program, block.add, block.skip
    shape = shape_of(skip)
    if len(shape) != 2 and len(shape) not in _CONV:
        return False
    name = f"{place_of(add)}.residual_shortcut.weight"
    channels = shape[1] if len(shape) != 3 or _by_rows(block) else shape[2]
    linear = len(shape) == 2 or (len(shape) == 3 and not _by_rows(block))
    size = (channels, channels) if linear else (channels, channels, *(1 for _ in shape[2:]))
    value = draw(size, 1 / channels, "normal", weights.generator)
    weight = program.weight(value, name, like=add)
    target = aten.linear.default if linear else _CONV[len(shape)]
    made = program.call(target, (skip, weight, None), like=add)
    made.meta["module"] = add.meta.get("module", "")
    add.replace_input_with(skip, made)
    return True


def _by_rows(block: Block) -> bool:
    """Whether the layers of a branch of values (N, a, b) read axis 1: whether they are convolutions."""
    return any("conv" in str(node.target) for node in block.layers)


def _unfit(block: Block) -> str:
    return f"no layer in the skip of '{place_of(block.add)}', whose values have {len(shape_of(block.skip))} axes"


# ---- depth-scale -------------------------------------------------------------------------------------------------


def depth_scale(weights: Weights, options: InitOptions) -> Outcome:
    """h + L^-beta * F(h): the last layer of each of L branches has L^-beta times the weights that it would have.

    Weights of branches are uniform of variance 1/fan_in (smooth="iid"), or functions of the depth k/L: a Gaussian
    process with the kernel exp(-(s - t)^2/(2 length^2)) ("rbf"), a fractional Brownian motion with Hurst index `hurst`
    ("fbm"), a path for each entry. Paths go through layers at the same place of branches with the same weights. Of a
    constant factor that a branch has already, the weights get what is missing; one that is a parameter stays beside it.

    Source: Marion et al. 2022, "Scaling ResNets in the large-depth regime", arXiv 2206.06929. The critical beta is 1/2
    for independent weights, 1 for rbf, 1 - hurst for fbm.
    """
    program = weights.program
    found = _found(program, "depth-scale")
    parts = {part.node: part for part in weights.parts()}
    factor = _depth_factor(len(found), options.beta)
    chains: dict[tuple[object, ...], list[str]] = {}
    last: set[str] = set()
    notes: list[str] = []
    for block in found:
        for place, node in enumerate(block.layers):
            part = parts.get(node)
            if part is None:
                continue
            chain = chains.setdefault((place, len(block.layers), part.shape, part.fan_in), [])
            if part.weight not in chain:
                chain.append(part.weight)
            weights.clear_bias(part)
        if not block.last:
            notes.append(f"the branch at '{place_of(block.add)}' does not end in a layer, and is not scaled")
        last |= {parts[node].weight for node in block.last if node in parts}
    normed = sum(any(is_call(u, BATCH_NORMS) for n in block.last for u in n.users) for block in found)
    if normed:
        notes.append(f"{normed} of {len(found)} branches end in a batch norm, which takes the factor away in training")
    factors = [factors_of(program, block) for block in found]
    own = {parts[n].weight: abs(f.fixed) for b, f in zip(found, factors, strict=True) for n in b.last if n in parts}
    own = {name: value for name, value in own.items() if value not in (0, 1)}
    if own:
        first = next(iter(own.values()))
        notes.append(f"{len(own)} branches have a factor of their own, such as {first:.4g}, which counts")
    learned = [f.branch / f.fixed if f.fixed else 0.0 for f in factors if f.branch != f.fixed]
    if learned:
        notes.append(
            f"{len(learned)} branches have a parameter that they are multiplied by, {learned[0]:.4g}: it stays"
        )
    behind = [f"{f.skip * f.behind:.4g}" for f in factors if f.skip * f.behind != 1]
    if behind:
        notes.append(
            f"{len(behind)} blocks multiply the stream by factors of their own, such as {behind[0]}: they stay"
        )
    done: set[str] = set()
    for (_, _, shape, fan_in), names in chains.items():
        fresh = [n for n in names if n not in done]
        done |= set(fresh)
        assert isinstance(shape, tuple) and isinstance(fan_in, float | int)
        values = paths(options.smooth, len(fresh), shape, weights.generator, options.hurst, options.length)
        for name, value in zip(fresh, values, strict=True):
            scale = factor / own.get(name, 1.0) if name in last else 1.0
            text = f"variance 1/{fan_in:.10g}, {options.smooth}" + (f", times {scale:.4g}" if name in last else "")
            weights.put(name, value * (scale / math.sqrt(fan_in)), text)
    for name, constant in program.constants.items():
        if constant.trainable:
            weights.leave(name, "it lies in no residual branch")
    return Outcome(notes=tuple(notes), figures={"blocks": len(found), "factor": factor, "beta": options.beta})


def _depth_factor(count: int, beta: float) -> float:
    """L^-beta. Raises InputError where float64 does not hold it."""
    factor = math.exp(size) if abs(size := -beta * math.log(count)) < LARGEST else 0.0
    if factor == 0.0:
        raise InputError(f"beta is {beta:g}: branches times {count}^{-beta:g} are zero or infinite in float64")
    return factor


def paths(
    kind: str, layers: int, shape: tuple[int, ...], generator: torch.Generator, hurst: float, length: float
) -> Tensor:
    """(layers, *shape): for each entry a path over the depth with variance 1, at its end for fbm; float64."""
    if kind == "iid":
        return draw((layers, *shape), 1.0, "uniform", generator)
    t = torch.arange(1, layers + 1, dtype=torch.float64) / max(1, layers)
    gap = (t.unsqueeze(0) - t.unsqueeze(1)).abs()
    if kind == "rbf":
        covariance = torch.exp(-(gap / length).square() / 2)
    else:
        power = t.pow(2 * hurst)
        covariance = (power.unsqueeze(0) + power.unsqueeze(1) - gap.pow(2 * hurst)) / 2
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()  # small eigenvalues may come out negative
    noise = torch.randn((layers, math.prod(shape)), generator=generator, dtype=torch.float64)
    made: Tensor = (root @ noise).unflatten(1, shape)
    return made
