"""What to raise where the captured graph is not the model: the axis that cannot be free, at its own name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reparam.errors import CaptureError
from reparam.ir import Program
from reparam.utils import axis_name


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
    specs = original.inputs
    axes = [axis_name(i, len(s.shape)) for s in specs for i, n in enumerate(s.shape) if n in sizes]
    names = [n for n in dict.fromkeys(axes) if n != "batch"] or list(dict.fromkeys(axes))
    return PathError(message, names)


def captured_stops(original: Program, shape: str, sizes: Mapping[str, int]) -> PathError:
    """What to raise where the captured graph does not run at a size at which the model does."""
    return path_error(
        original,
        f"the model takes another path for inputs of shape {shape} than the one that was traced: the captured graph "
        "does not run there",
        sizes,
    )
