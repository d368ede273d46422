"""What was measured on a whole network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OwnDtypeEvidence:
    """The comparison in the original's own dtype alone, of inputs of these shapes.

    difference: the largest of any output, relative to its largest magnitude. allowed: the most that it may be.
    """

    shapes: tuple[tuple[int, ...], ...]
    difference: float
    allowed: float

    def beside(self, other: OwnDtypeEvidence) -> OwnDtypeEvidence:
        """Both comparisons together."""
        shapes = (*self.shapes, *other.shapes)
        return OwnDtypeEvidence(shapes, max(self.difference, other.difference), max(self.allowed, other.allowed))


@dataclass(frozen=True)
class FileEvidence:
    """What was measured on a file. Errors are RMS against the truth, of the worst output.

    runtime: what ran the file. error: of the file. own_error: of what was read from it, in the same dtypes. trials:
    inputs, samples of one batch counted one by one.
    """

    runtime: str
    error: float
    own_error: float
    trials: int


@dataclass(frozen=True)
class NetworkEvidence:
    """What the end-to-end check measured. Errors are RMS over all inputs and elements, of the worst output.

    own_dtype: None where float64 was compared at all sizes. file: of a network that was read from a file, what
    the file itself gives.
    """

    float64_max_rel: float = 0.0
    error: float = 0.0
    original_error: float = 0.0
    trials: int = 0
    seed: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    dtype: str = "float32"
    own_dtype: OwnDtypeEvidence | None = None
    file: FileEvidence | None = None
