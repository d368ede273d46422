"""Names for the free sizes of engines that keep none."""

from __future__ import annotations

from collections.abc import Iterable


def named_axes(sizes: Iterable[int]) -> tuple[int | str, ...]:
    """The shape of an input or output, where free sizes are negative: they get the names of ONNX models' axes."""
    shape = tuple(sizes)
    images = {len(shape) - 2: "height", len(shape) - 1: "width"} if len(shape) >= 4 else {}
    names = {0: "batch"} | images
    return tuple(s if s >= 0 else names.get(i, f"size{i}") for i, s in enumerate(shape))
