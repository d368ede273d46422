"""Which axes of the inputs are to stay free, by what the user calls them, and which of them the model leaves free."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from reparam.errors import InputError
from reparam.ir import fixed_size
from reparam.utils import AXES, NamedAxis, axis_name, describe_type, is_batch, read_named_axis

from .guards import equal_axis, free_axes, size_guards, tensor_inputs
from .recurrent import RecurrentLayers

ROWS = 5  # where axis 0 of an example is a free axis that is not the batch, at least so many

Wanted = list[dict[int, str]]  # for each tensor among the arguments, what its free axes are called
Group = tuple[tuple[int, int], ...]  # axes of one size: the place of a tensor among the arguments, and its axis


def read_axes(dynamic: Any) -> tuple[str, ...]:
    """The names of free axes; one text may hold several, as on the command line. Raises InputError."""
    if isinstance(dynamic, Mapping):
        if odd := next((v for v in dynamic.values() if not isinstance(v, Mapping)), None):
            raise InputError(
                f"dynamic holds {describe_type(odd)} for an input; name its axes, as in {{'x': {{1: 'n'}}}}"
            )
        dynamic = [f"{name}:{i}={label}" for name, axes in dynamic.items() for i, label in dict(axes).items()]
    names = dynamic.split(",") if isinstance(dynamic, str) else dynamic
    if not isinstance(names, Sequence):
        raise InputError(f"dynamic is {describe_type(dynamic)}; give the names of free axes, such as ('batch',), or ()")
    unknown = [a for a in names if a not in AXES and read_named_axis(a) is None]
    if unknown:
        raise InputError(
            f"unknown dynamic axis '{str(unknown[0])[:60]}'; choose from {', '.join(AXES)}, or write input:axis=name, "
            "such as x:1=sequence"
        )
    called: dict[tuple[str, int], str] = {}
    for axis in filter(None, map(read_named_axis, names)):
        other = called.setdefault((axis.input, axis.axis), axis.name)
        if other != axis.name:
            raise InputError(f"axis {axis.axis} of '{axis.input}' is given two names, '{other}' and '{axis.name}'")
    return tuple(dict.fromkeys(names))


def frees_batch(dynamic: Sequence[str]) -> bool:
    """Whether the samples of a batch may be of any number."""
    return any(is_batch(d) for d in dynamic)


def without_batch(dynamic: Sequence[str]) -> tuple[str, ...]:
    """The axes that are to stay free beside the batch."""
    return tuple(d for d in dynamic if not is_batch(d))


def widened(module: nn.Module, args: tuple[Any, ...], dynamic: Sequence[str]) -> tuple[Any, ...]:
    """The arguments with a batch of two where one of one is to stay free: a traced size of one is taken as fixed.

    Raises InputError for another free axis of size one, and for a name that no input has.
    """
    wanted = iter(wanted_axes(module, args, dynamic))

    def widen(value: Any) -> Any:
        axes = next(wanted) if isinstance(value, Tensor) else {}
        for axis, name in axes.items():
            if value.shape[axis] != 1:
                continue
            if axis or name != "batch":
                raise InputError(
                    f"axis {axis} of an example input, the {name}, has size 1, which is taken as fixed; give an "
                    "example with more"
                )
            value = torch.cat([value, value])
        return value

    return tuple(pytree.tree_map(widen, args))


def first_sizes(
    module: nn.Module, args: tuple[Tensor, ...], dynamic: Sequence[str], batch: int, rows: int | None = None
) -> tuple[tuple[int, ...], str]:
    """The sizes that axis 0 of each input is drawn with, and what that of the first is called.

    args: examples, whose other axes are as they will be. batch: the size where axis 0 is the batch, or has no name.
    rows: where it is called something else; else a size that no other axis has. Axes of one name are of one size.

    Raises InputError for a name that no input has.
    """
    wanted = wanted_axes(module, args, dynamic)
    known: dict[str, int] = {}
    for value, axes in zip(args, wanted, strict=False):
        for axis, name in axes.items():
            if axis:
                known.setdefault(name, value.shape[axis])
    taken = {batch, *(size for value in args for size in value.shape[1:])}
    sizes = []
    for axes in wanted:
        name = axes.get(0, "batch")
        if name != "batch" and name not in known:
            known[name] = rows or next(n for n in itertools.count(ROWS) if n not in taken)
            taken.add(known[name])
        sizes.append(known[name] if 0 in axes and name in known else batch)
    sizes += [batch] * (len(args) - len(sizes))  # more than the module takes, which it says itself
    return tuple(sizes), wanted[0].get(0, "batch") if wanted else "batch"


def wanted_axes(module: nn.Module, args: tuple[Any, ...], dynamic: Sequence[str]) -> Wanted:
    """The free axes of each tensor among the arguments."""
    named = [axis for d in dynamic if (axis := read_named_axis(d)) is not None]
    names = _names(module, args)
    for axis in named:
        _check(axis, names)
    found: Wanted = []
    for name, value in names:
        rank = value.dim()
        axes = {i: axis_name(i, rank) for i in range(rank) if axis_name(i, rank) in dynamic}
        found.append(axes | {a.axis: a.name for a in named if a.input == name})
    return found


def _names(module: nn.Module, args: tuple[Any, ...]) -> list[tuple[str, Tensor]]:
    """The tensors among the arguments, each with the name of its parameter; of several in one, `x_0`, `x_1`."""
    named: list[tuple[str, Any]] = []
    rest = iter(args)
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            named += [(f"{name}_{i}", value) for i, value in enumerate(rest)]
        elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            named += [(name, value) for value in [next(rest, None)] if value is not None]
    found = []
    for name, value in named:
        leaves = [v for v in pytree.tree_leaves(value) if isinstance(v, Tensor)]
        found += [(name if isinstance(value, Tensor) else f"{name}_{i}", v) for i, v in enumerate(leaves)]
    return found


def _check(axis: NamedAxis, names: Sequence[tuple[str, Tensor]]) -> None:
    ranks = {name: value.dim() for name, value in names}
    if axis.input not in ranks:
        raise InputError(f"no input is called '{axis.input}'; the model's inputs are {', '.join(ranks) or 'none'}")
    if axis.axis >= ranks[axis.input]:
        raise InputError(f"'{axis.input}' has {ranks[axis.input]} axes, so that axis {axis.axis} is none of them")


def equal_sizes(module: nn.Module, args: tuple[Any, ...], dynamic: Sequence[str]) -> tuple[Group, ...]:
    """The axes that were given one name: groups of a tensor's place among the arguments and its axis, of one size."""
    named = [axis for d in dynamic if (axis := read_named_axis(d)) is not None]
    tensors = _names(module, args)
    places = {name: i for i, (name, _) in enumerate(tensors)}
    groups: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for axis in named:
        place = places[axis.input]
        groups.setdefault((axis.name, tensors[place][1].shape[axis.axis]), []).append((place, axis.axis))
    return tuple(tuple(g) for g in groups.values() if len(g) > 1)


def keep_equal(module: nn.Module, groups: Sequence[Group]) -> None:
    """Has the module say, when it is called, that the axes of each group are of one size, which its code may take."""

    def say(_: nn.Module, args: tuple[Any, ...]) -> None:
        tensors = [v for v in pytree.tree_leaves(args) if isinstance(v, Tensor)]
        for (first, axis), *others in groups:
            for place, other in others:
                _say_equal(tensors[first], axis, tensors[place], other)

    if groups and isinstance(module, fx.GraphModule):  # which torch.export reads node by node
        _say_in_graph(module, groups)
    elif groups:
        module.register_forward_pre_hook(say)


def _say_equal(a: Tensor, axis: int, b: Tensor, other: int) -> None:
    torch._check(a.shape[axis] == b.shape[other])


def _say_in_graph(module: fx.GraphModule, groups: Sequence[Group]) -> None:
    inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
    with module.graph.inserting_after(inputs[-1]):
        for (first, axis), *others in groups:
            for place, other in others:
                module.graph.call_function(_say_equal, (inputs[first], axis, inputs[place], other))
    module.recompile()


def dynamic_shapes(args: tuple[Any, ...], wanted: Wanted) -> tuple[Any, ...]:
    """What torch.export is told of each argument."""
    left = iter(wanted)

    def spec(value: Any) -> Any:
        axes = next(left) if isinstance(value, Tensor) else {}
        return dict.fromkeys(axes, torch.export.Dim.AUTO) or None

    return tuple(pytree.tree_map(spec, args))


def bound_axes(exported: torch.export.ExportedProgram, wanted: Wanted, recurrent: RecurrentLayers) -> dict[str, str]:
    """The axes that the model does not leave free, by name, with the reason.

    recurrent: what was seen of its recurrent layers.
    """
    labels = dict(_labels(exported, wanted))
    found: dict[str, str] = {}
    for guard in size_guards(exported, labels):
        if guard.of_model and not guard.asserted and guard.binds:
            for axis in guard.axes:
                found.setdefault(axis.name, f"the model asks whether {guard.text} at {guard.place}")
    free = {axis.name for axis in free_axes(exported, labels).values()}
    names = dict.fromkeys(labels.values())
    for name in names:
        if name not in free and name not in found:
            twin = equal_axis(exported, name, labels)
            layer = next(filter(None, (recurrent.fixing(*at) for at in _called(wanted, name))), None)
            alone = (
                "the model works with one size of it alone"
                if layer is None
                else f"a recurrent layer ('{layer}') is captured for one number of steps"
            )
            found[name] = alone if twin is None else f"what is captured holds where it is equal to {twin} alone"
    return {name: why for name, why in found.items() if name in names}


def _called(wanted: Wanted, name: str) -> Iterator[tuple[int, int]]:
    """The axes that are called by a name: a tensor's place among the arguments, and its axis."""
    return ((place, i) for place, axes in enumerate(wanted) for i, label in axes.items() if label == name)


def free_sizes(exported: torch.export.ExportedProgram) -> int:
    """How many sizes of the inputs are free, as of now: what torch does with the graph may fix some of them."""
    return sum(fixed_size(size) is None for _, value in tensor_inputs(exported) for size in value.shape)


def _labels(exported: torch.export.ExportedProgram, wanted: Wanted) -> Iterator[tuple[tuple[str, int], str]]:
    for (name, _), axes in zip(tensor_inputs(exported), wanted, strict=False):
        yield from (((name, axis), label) for axis, label in axes.items())
