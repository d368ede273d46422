"""What to raise where the captured graph is not the model: the axis that cannot be free, at its own name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from reparam.capture import line_of
from reparam.errors import CaptureError
from reparam.ir import Feed, Program, evaluate
from reparam.utils import axis_name, first_line

from .judge import Judge
from .values import first_shape


class PathError(CaptureError):
    """The captured graph is not the model at some sizes, where the model takes another path.

    what: how it shows. axes: the free ones that are to blame.
    """

    def __init__(self, what: str, axes: Sequence[str]) -> None:
        leave = f"; leave {' and '.join(axes)} out of the free axes" if axes else ""
        super().__init__(what + leave)
        self.what, self.axes = what, tuple(axes)


def path_error(original: Program, message: str, sizes: Mapping[str, int]) -> PathError:
    """The error for a program that is not the model at these sizes of free axes, which are given by their symbols.

    The batch is blamed only where no other axis can be.
    """
    names = names_of_axes(original, sizes)
    return PathError(message, [n for n in names if n != "batch"] or names)


def names_of_axes(original: Program, sizes: Mapping[str, int]) -> list[str]:
    """The names of the free axes that have these sizes, which are given by their symbols."""
    specs = original.inputs
    axes = (axis_name(i, len(s.shape)) for s in specs for i, n in enumerate(s.shape) if n in sizes)
    return list(dict.fromkeys(axes))


def does_not_run(error: Exception) -> CaptureError:
    """What to raise where the model does not run at the traced size."""
    return CaptureError(f"the model does not run on random inputs of the traced size: {first_line(error)}")


def captured_stops(original: Program, values: Feed, sizes: Mapping[str, int]) -> PathError:
    """What to raise where the captured graph does not run at a size at which the model does.

    values: such inputs, in float64. The error names the line of the model at which the graph stops.
    """
    how = f"the captured graph does not run there{_where_it_stops(original, values)}"
    return other_path(original, values, how, sizes)


def other_path(original: Program, values: Feed, how: str, sizes: Mapping[str, int]) -> PathError:
    """What to raise where the captured graph is not the model on some inputs. how: it shows."""
    shape = shape_of_first(values)
    if sizes:
        message = f"the model takes another path for inputs of shape {shape} than the one that was traced: {how}"
        return path_error(original, message, sizes)
    return PathError(
        f"the model does something else when it runs on inputs of shape {shape} than when it is traced with such "
        f"inputs: {how}; it may ask whether it is traced, or of what type its inputs and their sizes are",
        (),
    )


def where_paths_part(judge: Judge, one: Feed, other: Feed) -> str:
    """The lines with which the model goes on where its paths for two inputs part, as a clause.

    Empty where it runs the same lines for both, or does not run on one of them.
    """
    lines, others = judge.lines_where_it_runs(one), judge.lines_where_it_runs(other)
    if lines is None or others is None:
        return ""
    for a, b in zip_longest(lines, others):
        if a is None or not a.is_same(b):
            here, there = a or "its end", b or "its end"
            return f"; with {shape_of_first(one)} it goes on at {here}, with {shape_of_first(other)} at {there}"
    return ""


def shape_of_first(values: Feed) -> str:
    """`2x3x8x8`, the shape of the first tensor."""
    return "x".join(str(n) for n in first_shape(values))


def _where_it_stops(original: Program, values: Feed) -> str:
    waiting = list(original.calls())
    try:
        evaluate(original, values, observe=lambda node, value: waiting.remove(node))
    except Exception:  # of any kind, and only to see where
        line = line_of(waiting[0])
        return f", and stops at {line}" if line is not None else ""
    return ""
