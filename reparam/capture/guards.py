"""Which sizes a captured graph holds for: the guards that torch.export met on free axes, and the lines that made them.

A guard is a condition on sizes that the traced path took for granted: a branch (`if h % 2`), a loop over the batch, a
`len(x)`. Where a line of the model made one, the axis is not free: the graph is one of several paths through the model.
Guards of torch's own code (maps of one element, memory layouts) rarely matter. The model is run at sizes that break
them (`probes`), which tells.
"""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sympy  # type: ignore[import-untyped]  # it ships no types
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from reparam.ir import SizeCondition, fixed_size, size_hint
from reparam.utils import axis_name

from .places import is_ours

USUAL = 16  # a size beside those
MOST_SAMPLES, MOST_PLACES = 128, 640  # where a condition is tried for the numbers that it names
MANY_SAMPLES, SMALL_INPUTS = 4096, 1 << 16  # of samples that are small, so many that their numbers are no more
FARTHEST = 1 << 20  # where a line of the model is asked for the numbers that it names, which runs nothing
_ASSERTS = re.compile(r"(assert\b|([\w.]+\.)?_?assert\w*\()[^;]*$")
PROBES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 48, 64, 81, 97, 128, 224, 256, 512, 1000)


@dataclass(frozen=True)
class Axis:
    """One axis of one input. name: batch, height, width, or its number."""

    input: str
    index: int
    name: str

    def __str__(self) -> str:
        return (
            f"the {self.name} of '{self.input}'" if not self.name.isdigit() else f"axis {self.name} of '{self.input}'"
        )


Labels = Mapping[tuple[str, int], str]  # what the user calls axes, by their input and number


def _named(labels: Labels, name: str, index: int, rank: int) -> Axis:
    return Axis(name, index, labels.get((name, index), axis_name(index, rank)))


def free_axes(exported: torch.export.ExportedProgram, labels: Labels = MappingProxyType({})) -> dict[str, Axis]:
    """The axes of the inputs whose sizes are symbols, by the symbol; of equal ones the first."""
    found: dict[str, Axis] = {}
    for name, value in tensor_inputs(exported):
        for i, size in enumerate(value.shape):
            if fixed_size(size) is None:
                found.setdefault(str(size), _named(labels, name, i, value.dim()))
    return found


def equal_axis(exported: torch.export.ExportedProgram, name: str, labels: Labels = MappingProxyType({})) -> Axis | None:
    """A free axis of another name that has the size of the axes called so wherever the captured graph holds."""
    free = free_axes(exported, labels)
    for input_name, value in tensor_inputs(exported):
        for i, size in enumerate(value.shape):
            called = _named(labels, input_name, i, value.dim()).name
            if called == name and (twin := free.get(str(size))) is not None and twin.name != name:
                return twin
    return None


def tensor_inputs(exported: torch.export.ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    """The names and values of the inputs that are tensors, in order."""
    names = set(exported.graph_signature.user_inputs)
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in names and isinstance(node.meta.get("val"), Tensor):
            yield node.name, node.meta["val"]


@dataclass(frozen=True)
class SizeGuard:
    """A condition on free sizes, as the traced path took it for granted.

    axes: whose sizes it is about. condition: in terms of these sizes, in that order. place: the line that asked.
    of_model: whether that is a line of the model, not of torch. asserted: whether the model raises where it does not
    hold, so that it only says for which sizes there is a model at all.
    """

    axes: tuple[Axis, ...]
    condition: SizeCondition
    place: str
    of_model: bool
    asserted: bool

    @property
    def symbols(self) -> tuple[str, ...]:
        """Those of the sizes."""
        return tuple(map(str, self.condition.symbols))

    @property
    def text(self) -> str:
        """The condition in terms of the names of the axes."""
        return _readable(self.condition, self.axes)

    def holds(self, sizes: Sequence[int]) -> bool:
        """Whether it does for these sizes, in the order of the axes."""
        return self.condition.holds([sizes])[0]

    @property
    def binds(self) -> bool:
        """Whether some sizes that inputs may have break it: equal ones, or one that is unlike the others."""
        count = len(self.axes)
        asked = (*PROBES, *sorted(_named_in(self.condition, FARTHEST)))
        sizes = [[n] * count for n in asked]
        if count > 1:
            sizes += [[n if j == i else USUAL for j in range(count)] for i in range(count) for n in asked]
        return not all(self.condition.holds(sizes))


def size_guards(exported: torch.export.ExportedProgram, labels: Labels = MappingProxyType({})) -> list[SizeGuard]:
    """The guards on axes that were to be free, also on those that torch fixed because of them."""
    env = _shape_env(exported)
    axes = _axes_of_symbols(exported, env, labels)
    found: dict[tuple[Any, str], SizeGuard] = {}
    for guard in env.guards if env is not None else ():
        symbols = sorted(getattr(guard.expr, "free_symbols", ()), key=str)
        if symbols and all(str(s) in axes for s in symbols):
            made = _read(guard, symbols, [axes[str(s)] for s in symbols])
            found.setdefault((guard.expr, made.place), made)
    return list(found.values())


def _read(guard: Any, symbols: Sequence[Any], axes: Sequence[Axis]) -> SizeGuard:
    condition = SizeCondition(guard.expr, symbols)
    frame = getattr(guard.sloc, "framework_loc", None)
    if not isinstance(frame, traceback.FrameSummary):
        return SizeGuard(tuple(axes), condition, str(frame or ""), False, False)
    line = (frame.line or "").strip()
    place = f"{frame.filename}:{frame.lineno}" + (f" `{line}`" if line else "")
    theirs, asserted = not is_ours(frame.filename), _ASSERTS.match(line) is not None
    return SizeGuard(tuple(axes), condition, place, theirs, asserted)


def _axes_of_symbols(exported: torch.export.ExportedProgram, env: Any, labels: Labels) -> dict[str, Axis]:
    """Where each size symbol came from: an axis of an input. Those that torch fixed later have theirs too."""
    ranks = {name: value.dim() for name, value in tensor_inputs(exported)}
    found = dict(free_axes(exported, labels))
    for symbol, sources in getattr(env, "var_to_sources", {}).items():
        for source in sources:
            index, base = getattr(source, "idx", None), getattr(source, "base", None)
            if isinstance(index, int) and base is not None:
                name = _input_name(base)
                rank = ranks.get(name, max(ranks.values(), default=0))
                found.setdefault(str(symbol), _named(labels, name, index, rank))
    return found


def _input_name(source: Any) -> str:
    """The name of the argument that a source starts from."""
    while getattr(source, "base", None) is not None:
        source = source.base
    return str(getattr(source, "local_name", "an input"))


def mode_of(exported: torch.export.ExportedProgram) -> FakeTensorMode | None:
    """The mode that the shapes of an exported program were found in; None where it has no tensors."""
    modes = (getattr(node.meta.get("val"), "fake_mode", None) for node in exported.graph.nodes)
    return next((mode for mode in modes if mode is not None), None)


def _shape_env(exported: torch.export.ExportedProgram) -> Any:
    mode = mode_of(exported)
    return None if mode is None else mode.shape_env


def _readable(condition: SizeCondition, axes: Sequence[Axis]) -> str:
    """`height % 2 == 0` for Eq(Mod(s53, 2), 0)."""
    names = {s: sympy.Symbol(a.name) for s, a in zip(condition.symbols, axes, strict=True)}
    text = str(condition.expression.xreplace(names))
    text = re.sub(r"Mod\(([^,()]+), ([^,()]+)\)", _remainder, text)
    for pattern, shown in ((r"^Eq\((.+), (.+)\)$", r"\1 == \2"), (r"^Ne\((.+), (.+)\)$", r"\1 != \2")):
        text = re.sub(pattern, shown, text)
    return text


def _remainder(found: re.Match[str]) -> str:
    """`a % b`, in brackets where it would be read otherwise."""
    a, b = found.groups()
    text = f"({a}) % {b}" if " " in a else f"{a} % {b}"
    before = found.string[: found.start()].rstrip()
    return f"({text})" if before.endswith(("+", "-", "*", "/")) else text


def probes(exported: torch.export.ExportedProgram, most: int = 6) -> tuple[dict[str, int], ...]:
    """Values of free sizes at which some guard does not hold, near the traced ones; one or two for each guard and axis.

    most: of the first ones, and of the second. Two where a guard is a limit: x[:20] is all of x for 20 rows too, where
    torch took fewer than 20 for granted.
    """
    traced = _traced(exported)
    samples = _most_samples(exported)
    found: list[dict[str, int]] = []
    second: list[dict[str, int]] = []
    for guard in size_guards(exported):
        hints = [traced.get(s, 2) for s in guard.symbols]
        for i, symbol in enumerate(guard.symbols):
            if symbol not in traced:
                continue
            most_named = max(8 * hints[i], MOST_PLACES) if guard.axes[i].index else samples
            sizes = {*range(2, 2 * hints[i] + 32), *_named_in(guard.condition, most_named)}
            near = sorted(sizes, key=lambda n: abs(n - hints[i]))
            held = guard.condition.holds([[*hints[:i], n, *hints[i + 1 :]] for n in near])
            breaks = next((n for n, holds in zip(near, held, strict=True) if not holds), None)
            if breaks is None or (probe := traced | {symbol: breaks}) in found:
                continue
            found.append(probe)
            beyond = breaks + (1 if breaks > hints[i] else -1)
            if beyond > 1 and not guard.holds([*hints[:i], beyond, *hints[i + 1 :]]):
                second.append(traced | {symbol: beyond})
    return tuple(found[:most] + [p for p in second[:most] if p not in found])


def _most_samples(exported: torch.export.ExportedProgram) -> int:
    """How many samples there are at most where a condition on the batch is tried."""
    numbers = max(1, sum(math.prod(map(size_hint, v.shape[1:])) for _, v in tensor_inputs(exported)))
    return max(MOST_SAMPLES, min(MANY_SAMPLES, SMALL_INPUTS // numbers))


def _named_in(condition: SizeCondition, most: int) -> set[int]:
    """Sizes at the numbers that a condition names, and beside them: those above 20 for x[:20]."""
    numbers = {int(n) for n in condition.expression.atoms(sympy.Integer)}
    return {n for c in numbers for n in (c - 1, c, c + 1) if 2 <= n <= most}


def probes_at(exported: torch.export.ExportedProgram, sizes: Iterable[int]) -> tuple[dict[str, int], ...]:
    """Values of free sizes with one of them at each of the given numbers, the others as they were traced."""
    traced = _traced(exported)
    return tuple(traced | {symbol: n} for n in sizes for symbol in traced)


def _traced(exported: torch.export.ExportedProgram) -> dict[str, int]:
    """The free sizes as they were traced."""
    found: dict[str, int] = {}
    for _, value in tensor_inputs(exported):
        for size in value.shape:
            if not isinstance(size, int) and fixed_size(size) is None and size.node.hint is not None:
                found.setdefault(str(size), int(size.node.hint))
    return found
