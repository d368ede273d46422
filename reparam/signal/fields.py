"""erf: the effective receptive field. The gradient of one unit at the centre of a value, by the input.

    sigma of the map |dy/dx|, as a distribution over places; area: places above 1 - 0.9545 of its largest entry, side:
    its root; field: the side of the theoretical receptive field; reach: the side of what is not zero in this image;
    channels: of the unit, all of which are looked at

For n convolutions of kernel k with equal weights sigma = sqrt(n(k^2 - 1)/12), and the field is n(k - 1) + 1.

Source: Luo et al. 2016, "Understanding the effective receptive field in deep convolutional neural networks",
arXiv 1701.04128.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from reparam.errors import InputError
from reparam.ir import CONVS, Program, arguments, is_call, op_name, own_generator, place_of, shape_of

from .axes import channel_axes
from .boxes import Box, complete, one, opened
from .places import names_of, stations
from .reach import reach_of
from .roles import channels_read
from .running import Sampled, differentiable
from .table import Cell, Table

LEVEL = 1 - 0.9545  # of the largest entry
MOST_POINTS = 128  # of a side of the map that is kept
WHOLE = "whole image"
CHANNELS = "channels"
DRAWS = 4  # of random directions in the channels of a unit


def field(sampled: Sampled, unit: str | None = None) -> Table:
    """The field of the centre of the value that the module `unit` gives, by default of the last value with places."""
    program = sampled.program
    images = _images(program)
    axes = channel_axes(program)
    node, source, note = _unit(program, axes, unit, images)
    own = channels_read(program.placeholders[source])
    shape = shape_of(program.placeholders[source])
    sides = [n for i, n in enumerate(shape) if i not in (0, own)]
    axis, grid = axes[node], len(sides) == 2 and sides[0] == sides[1]
    total: Tensor | None = None
    for index, batch in enumerate(sampled.batches):
        made = differentiable(program, batch, frozenset({node}), training=sampled.training)
        value, x = made.values[node], made.leaves[source]
        for draw in range(DRAWS):
            generator = own_generator("field", sampled.seed, index, draw)
            cotangent = _at_centre(value, axis, grid, generator)
            (gradient,) = torch.autograd.grad(value, x, cotangent, retain_graph=True, allow_unused=True)
            part = (torch.zeros_like(x) if gradient is None else gradient).abs().mean((0, own))
            total = part if total is None else total + part
    assert total is not None
    most = float(total.max())
    if not 0 < most < math.inf:
        why = "zero everywhere" if most == 0 else "beyond the numbers of float64"
        raise InputError(
            f"the gradient of the central unit of '{place_of(node)}' by the input is {why}, so that there is no field"
        )
    total = total / most
    at = _centre(shape_of(node), axis, grid=grid)
    start = tuple(complete(n) if i is None else one(n, i) for n, i in zip(shape_of(node), at, strict=True))
    reached = reach_of(program, node, start, program.placeholders[source])
    table = _table(total / total.sum(), place_of(node), reached, own, note)
    return replace(table, facts={**table.facts, CHANNELS: shape_of(node)[axis]})


def different_units(names: Sequence[str], tables: Sequence[Table]) -> str | None:
    """What to say of the fields of two networks whose units have not as many channels; None where they have."""
    counts = [t.facts.get(CHANNELS) for t in tables]
    if len(set(counts)) <= 1:
        return None
    told = " and ".join(f"{count} channels in {name}" for count, name in zip(counts, names, strict=True))
    return f"the unit has {told}, and so is not the same; plain networks have channels that carry other values past"


def _images(program: Program) -> list[int]:
    """The placeholders whose values lie in places."""
    specs = {s.name: s for s in program.inputs}
    found = []
    for i, node in enumerate(program.placeholders):
        spec = specs.get(str(node.target))
        if spec is not None and spec.dtype.is_floating_point and len(spec.shape) in (3, 4):
            found.append(i)
    if not found:
        raise InputError(
            "a receptive field needs an input with places: (N, C, L), (N, C, H, W), or (N, tokens, features)"
        )
    return found


def _unit(
    program: Program, axes: Mapping[fx.Node, int], unit: str | None, images: Sequence[int]
) -> tuple[fx.Node, int, tuple[str, ...]]:
    """The value whose centre is looked at, the input of `images` that it is looked at from, and a note where there are
    several. axes: of the channels of all values. unit: a name as tables have it, or a module, whose last value is
    taken."""
    known = [n for n, axis in axes.items() if n.op == "call_function" and _has_places(n, axis)]
    if unit is not None:
        shown = stations(program)
        listed = {n for n, name in zip(shown, names_of(shown), strict=True) if name == unit}
        places = [(n, place_of(n)) for n in known]
        inside = [n for n, place in places if place == unit] or [n for n, p in places if p.startswith(f"{unit}.")]
        known = [n for n in known if n in listed] or inside
        if not known:
            raise InputError(
                f"no value with places is made by a module '{unit[:60]}'; name one that --what moments lists"
            )
    if not known:
        raise InputError("the network has no value with places, (N, C, H, W), (N, C, L) or (N, tokens, features)")
    for node in reversed(known):
        behind = _behind(node)
        met = [i for i in images if program.placeholders[i] in behind]
        if met:
            names = [str(program.placeholders[i].target) for i in images]
            first = str(program.placeholders[met[0]].target)
            note = f"of the inputs {', '.join(names)} the field is that in '{first}'"
            return node, met[0], (note,) if len(images) > 1 else ()
    raise InputError(f"what '{place_of(known[-1])}' gives depends on no input with places, so that there is no field")


def _behind(node: fx.Node) -> set[fx.Node]:
    """All that a value is made of."""
    found, stack = {node}, [node]
    while stack:
        for operand in stack.pop().all_input_nodes:
            if operand not in found:
                found.add(operand)
                stack.append(operand)
    return found


def _has_places(node: fx.Node, channels: int) -> bool:
    shape = shape_of(node)
    if len(shape) not in (3, 4):
        return False
    places = [n for axis, n in enumerate(shape) if axis not in (0, channels)]
    return max(places) > 1 or _looks_around(node)


def _looks_around(node: fx.Node) -> bool:
    """Whether a call is a convolution with more than one tap, whose single result is a unit too."""
    return is_call(node, CONVS) and math.prod(shape_of(arguments(node)["weight"])[2:]) > 1


def _at_centre(value: Tensor, axis: int, grid: bool, generator: torch.Generator) -> Tensor:
    """A random sign for each channel at the central place, zero elsewhere; +1 for a single channel.

    axis: of the channels. grid: see `_centre`.
    """
    cotangent = torch.zeros_like(value)
    at = tuple(slice(None) if p is None else p for p in _centre(value.shape, axis, grid=grid)[1:])
    cotangent[:, *at] = _signs(value.shape[axis], generator)
    return cotangent


def _centre(shape: Sequence[int], channels: int, *, grid: bool) -> list[int | None]:
    """The central place: for each axis the index, 0 for samples, None for channels.

    grid: whether places in a row, such as tokens, are those of a square image, behind others (of a class) or none.
    """
    found: list[int | None] = [None if i == channels else n // 2 for i, n in enumerate(shape)]
    found[0] = 0
    if len(shape) == 3:
        axis = 3 - channels
        count = shape[axis]
        side = math.isqrt(count) if grid else 1
        found[axis] = count - side * side + (side // 2) * (side + 1) if side > 1 else count // 2
    return found


def _signs(count: int, generator: torch.Generator) -> Tensor:
    if count == 1:
        return torch.ones(1, dtype=torch.float64)
    return 2.0 * torch.randint(0, 2, (count,), generator=generator).to(torch.float64) - 1


def _table(share: Tensor, name: str, reached: Box | str, channels: int, said: tuple[str, ...]) -> Table:
    """share: of the gradient, for each place. reached: the theoretical field, in all axes of the input, or why it is
    not known; channels: the axis that is none of places. said: notes that come first."""
    flat = share if share.dim() == 2 else share.unsqueeze(0)
    sigmas = [_deviation(flat.sum(1 - axis)) for axis in range(2) if flat.shape[axis] > 1]
    sigma = math.sqrt(sum(s * s for s in sigmas) / max(1, len(sigmas)))
    area = int((share >= LEVEL * share.max()).sum())
    seen = share > 0
    sides = [int(seen.any(1 - axis).sum()) if share.dim() == 2 else int(seen.sum()) for axis in range(share.dim())]
    reach = max(sides)
    side = area ** (1 / share.dim())
    told, mean_side, notes = _theory(reached, channels, share.shape)
    row = (
        *(name, sigma, area, side, told, side / mean_side if mean_side else None),
        *(reach, side / reach if reach else None),
    )
    columns = ("place", "sigma", "area", "side", "field", "side/field", "reach", "side/reach")
    return Table(
        "erf",
        "effective receptive field of the central unit",
        columns,
        (row,),
        {"across": tuple(map(float, _shrunk(flat.sum(0).unsqueeze(0))[0]))},
        maps={"field": tuple(tuple(map(float, r)) for r in _shrunk(flat))},
        facts=dict(zip(columns[1:], row[1:], strict=True)),
        notes=(*said, *notes),
    )


def _theory(reached: Box | str, channels: int, image: Sequence[int]) -> tuple[Cell, float | None, tuple[str, ...]]:
    """The theoretical field in words, its side (the geometric mean of two), and a note; the image's own sides count
    where the field is the whole of it."""
    if isinstance(reached, str):
        return None, None, (f"the theoretical field is not known: {reached}",)
    spans = [opened(axis) for i, axis in enumerate(reached) if i not in (0, channels)]
    sides = [n if span.whole else int(span.count) for span, n in zip(spans, image, strict=True)]
    mean = math.prod(sides) ** (1 / len(sides))
    through = next((s.by for s in spans if s.whole and s.by is not None), None)
    notes = () if through is None else (f"what is reached by '{place_of(through)}' ({op_name(through)}) has no end",)
    if all(span.whole for span in spans):
        return WHOLE, mean, notes
    if any(not span.whole and span.count > n for span, n in zip(spans, image, strict=True)):
        notes = (*notes, "the theoretical field is larger than the input, at whose border this one ends")
    told = ["all" if span.whole else str(int(span.count)) for span in spans]
    alike = len(set(told)) == 1
    return sides[0] if alike else " × ".join(told), mean, notes


def _deviation(profile: Tensor) -> float:
    at = torch.arange(len(profile), dtype=torch.float64)
    total = profile.sum().clamp(min=1e-300)
    mean = (profile * at).sum() / total
    return float(((profile * (at - mean).square()).sum() / total).sqrt())


def _shrunk(values: Tensor) -> Tensor:
    """At most MOST_POINTS points a side, by sums of neighbours."""
    rows, columns = (max(1, -(-s // MOST_POINTS)) for s in values.shape)
    if rows == columns == 1:
        return values
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % columns, 0, -values.shape[0] % rows))
    summed: Tensor = padded.unflatten(0, (-1, rows)).unflatten(2, (-1, columns)).sum((1, 3))
    return summed
