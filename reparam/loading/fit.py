"""How a state dict compares with an architecture: key by key, shape by shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

ShapeMap = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fit:
    """How a state dict compares with an architecture; it fits when nothing is missing, unexpected or misshapen.

    misshapen: key, shape of the architecture, shape in the file.
    """

    spec: str
    arch_args: Mapping[str, Any]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    @property
    def distance(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def describe(self, limit: int = 3) -> str:
        """`missing a.b, c.d and 7 more; unexpected e; wrong shape f (2, 3), the file has (2, 4)`."""
        wrong = [f"{key} {_shape(want)}, the file has {_shape(have)}" for key, want, have in self.misshapen]
        parts = [
            f"{label} {', '.join(items[:limit])}" + (f" and {len(items) - limit} more" if len(items) > limit else "")
            for label, items in (("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", wrong))
            if items
        ]
        return "; ".join(parts) or "fits"


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a state dict, by key."""
    return {key: tuple(value.shape) for key, value in state.items()}


def compare(spec: str, arch_args: Mapping[str, Any], expected: ShapeMap, found: ShapeMap) -> Fit:
    """Compares key by key; counters of batches, which old checkpoints lack, may be missing."""
    missing = tuple(k for k in expected if k not in found and not k.endswith("num_batches_tracked"))
    unexpected = tuple(k for k in found if k not in expected)
    wrong = tuple((k, s, found[k]) for k, s in expected.items() if k in found and found[k] != s)
    return Fit(spec, arch_args, missing, unexpected, wrong)
