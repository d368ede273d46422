"""Which of several models to ship: the fastest that is good enough, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reparam.errors import InputError
from reparam.utils import three_digits

from .latency import Timing

IN_POINTS = ("top-1", "mIoU", "agreement")  # figures that are shares; a drop of them is told in hundredths
SLACK = 1e-9  # points by which sums of rounded numbers may miss


@dataclass(frozen=True)
class Choice:
    """What was asked for, and what came of it.

    model: the one to ship, None where only the gate was asked for. why: in a sentence. max_drop: in points, or in the
    units of a metric of the user's own. out: models that drop by more, each with its drop.
    """

    model: str | None
    why: str
    max_drop: float | None
    out: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"model": self.model, "why": self.why, "max_drop": self.max_drop, "out": dict(self.out)}


def choose(
    drops: Mapping[str, float | None],
    rows: Sequence[Timing],
    figure: str,
    *,
    max_drop: float | None,
    fastest: bool,
    copies: Sequence[str] = (),
) -> Choice | None:
    """The choice among the models of `drops`, whose first is the one that the others are compared with.

    drops: by how much each is worse in `figure` than the first. rows: the times at one batch. copies: models of which a
    copy was run, which are not chosen where there are others. Raises InputError for a gate on what was not measured.
    """
    if max_drop is None and not fastest:
        return None
    out: dict[str, float] = {}
    if max_drop is not None:
        if any(drop is None for drop in drops.values()):
            raise InputError("--max-drop is of an accuracy, a --metric or equal classes, and none of them was measured")
        out = {n: d for n, d in drops.items() if d is not None and d > max_drop + SLACK}
    first = next(iter(drops))
    if not fastest:
        told = ", ".join(f"{n} drops by {d:.4g}" for n, d in out.items())
        gate = _amount(max_drop or 0.0, figure)
        why = f"{figure} may drop by {gate}: {told}" if told else f"no model drops by more than {gate} of {figure}"
        return Choice(None, why, max_drop, out)
    held = [r for r in rows if r.model not in out]
    left = [r for r in held if r.model not in copies] or held
    best = min(left, key=lambda r: r.median_ms)
    why = _why(best, left, drops, figure, first, max_drop, out)
    passed = [r.model for r in held if r not in left]
    told = f"; not {', '.join(passed)}, of which a copy was run" if passed else ""
    return Choice(best.model, why + told, max_drop, out)


def _why(
    best: Timing,
    left: Sequence[Timing],
    drops: Mapping[str, float | None],
    figure: str,
    first: str,
    max_drop: float | None,
    out: Mapping[str, float],
) -> str:
    among = "of all" if max_drop is None else f"of those whose {figure} drops by at most {_amount(max_drop, figure)}"
    parts = [f"the fastest {among}: {three_digits(best.median_ms)} ms at batch {best.batch}"]
    if best.model != first:
        drop = drops[best.model]
        parts[0] += f", {best.speed:.2f} times as fast as {first}"
        if drop is not None:
            parts[0] += f", with {_drop_text(drop, figure)} of {figure}"
    close = [r.model for r in left if r.model != best.model and r.low_ms <= best.high_ms]
    if close:
        parts.append(f"within the spread {', '.join(close)} may be as fast")
    if out:
        parts.append("out: " + ", ".join(f"{n} (drops by {_amount(d, figure)})" for n, d in out.items()))
    return "; ".join(parts)


def _drop_text(drop: float, figure: str) -> str:
    if abs(drop) <= SLACK:
        return "no drop"
    return f"a drop of {_amount(drop, figure)}" if drop > 0 else f"a gain of {_amount(-drop, figure)}"


def _amount(count: float, figure: str) -> str:
    """In points; of a metric of the user's own, in its own units."""
    return points(count) if figure in IN_POINTS else f"{count:.4g}"


def points(count: float) -> str:
    """`1 point`, `0.5 points`."""
    return f"{count:.4g} point{'' if count == 1 else 's'}"
