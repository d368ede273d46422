"""Operators whose results jump: where two values nearly tie, rounding decides, and may decide otherwise elsewhere."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from .aten import BIT_VIEWS, CASTS, FILLS, arguments, op_name
from .program import Program, module_of

# Results jump in a floating operand. Names as they stand, and with the `_` of a private operator in front.
_JUMP = frozenset(
    [
        "argmax", "argmin", "argsort", "round", "floor", "ceil", "trunc", "fix", "frac", "sign", "sgn",
        "heaviside", "floor_divide", "remainder", "fmod", "hardshrink", "eq", "ne", "lt", "le", "gt", "ge",
        "greater", "greater_equal", "less", "less_equal", "not_equal", "equal", "isclose", "logical_not",
        "logical_and", "logical_or", "logical_xor", "any", "all", "nonzero", "count_nonzero", "searchsorted",
        "bucketize", "histc", "bincount", "unique", "unique2", "unique_consecutive", "unique_dim", "nms",
        "quantize_per_tensor", "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine",
    ]
)  # fmt: skip
# Those of several results, of which the second one, the indices, jumps.
_INDICES = frozenset(
    [
        "topk", "sort", "msort", "max", "min", "median", "nanmedian", "mode", "kthvalue", "cummax", "cummin",
        "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool1d",
        "adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "fractional_max_pool3d",
    ]
)  # fmt: skip
_NEAREST = 1  # grid_sampler's interpolation_mode


def jumps(program: Program) -> dict[str, list[str]]:
    """The operators of a program whose results jump, each with the layers that use it, in the order of the graph.

    Only what depends on floating inputs counts, and of operators with values and indices those whose indices are read.
    """
    found: dict[str, list[str]] = {}
    loose: set[fx.Node] = set()  # what depends on a result that jumped
    for node in program.calls():
        behind = any(operand in loose for operand in node.all_input_nodes)
        jumped = bool(node.meta.get("data")) and (_jumps(node) or (behind and op_name(node) == "one_hot"))
        if jumped:
            places = found.setdefault(op_name(node), [])
            places += [p for p in [module_of(node)] if p not in places]
        if jumped or behind:
            loose.add(node)
    return found


def jump_of_whole_numbers(program: Program, node: fx.Node) -> fx.Node | None:
    """The first call that jumps by a value, where all that it reads is made of whole numbers and constants alone.

    Such values tie by design: 4 * 0.9 / 0.6 is 6 or a rounding below, at every run. Weights and floating inputs make
    ties a matter of chance. None where there is no such call.
    """
    if not _is_floating(node) or not _of_whole_numbers(program, node, {}):
        return None
    known: dict[fx.Node, bool] = {}
    waiting, seen = [node], {node}
    while waiting:
        for user in waiting.pop().users:
            if user in seen or user.op != "call_function":
                continue
            seen.add(user)
            if not _of_whole_numbers(program, user, known):
                continue
            if _jumps(user):
                return user
            waiting.append(user)
    return None


def _of_whole_numbers(program: Program, node: fx.Node, known: dict[fx.Node, bool]) -> bool:
    """Whether neither weights nor floating inputs are behind a value, beside their sizes. known: of other values."""
    waiting, seen = [node], {node}
    while waiting:
        one = waiting.pop()
        found = known.get(one)
        if found is None and one.op == "get_attr":
            constant = program.constant(one)
            found = constant is None or not (constant.trainable and constant.value.is_floating_point())
        elif found is None and one.op == "placeholder":
            found = not _holds_reals(one)
        elif found is None and not _reads_values(one):
            found = True
        if found is False:
            known[node] = False
            return False
        if found is None:
            waiting += [n for n in one.all_input_nodes if n not in seen]
            seen.update(one.all_input_nodes)
    known.update(dict.fromkeys(seen, True))
    return True


def _holds_reals(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _reads_values(node: fx.Node) -> bool:
    """Whether a call depends on more than the sizes of its operands."""
    return isinstance(node.meta.get("val"), Tensor | tuple | list) and node.target not in FILLS


def has_jumps(program: Program) -> bool:
    """Whether any call jumps in what depends on the inputs or their sizes."""
    return any(_jumps(node) for node in program.calls())


def describe_jumps(found: dict[str, list[str]], shown: int = 6) -> str:
    """One sentence about what `jumps` found; "" for nothing."""
    if not found:
        return ""
    listed = "; ".join(f"{name} in {_few(places, shown)}" for name, places in found.items())
    return f"results of these operators jump, so float32 ties may fall otherwise than in the original: {listed}"


def _few(places: Sequence[str], shown: int) -> str:
    names = ", ".join(f"'{p}'" if p else "the network itself" for p in places[:shown])
    return names + (f" and {len(places) - shown} more" if len(places) > shown else "")


def _jumps(node: fx.Node) -> bool:
    name = op_name(node).removeprefix("_")
    if not any(_is_floating(operand) for operand in _operands(node)):
        return False
    if name in _INDICES:
        return any(user.target is operator.getitem and user.args[1] == 1 for user in node.users)
    if node.target in CASTS | BIT_VIEWS:
        value = node.meta.get("val")
        return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    given = arguments(node)
    if name == "div":
        return given.get("rounding_mode") is not None
    if name == "threshold":
        return given.get("threshold") != given.get("value")
    if name in ("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"):
        return given.get("interpolation_mode") == _NEAREST
    return name in _JUMP


def _operands(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that depend on the inputs."""
    return (n for n in node.all_input_nodes if n.meta.get("data"))


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(v, torch.Tensor) and v.is_floating_point() for v in values)
