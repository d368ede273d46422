"""Looks for the cheapest schedule of a network: levels for its values, see `schedule`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from reparam.ir import Refusal

from .linear_form import RegisterValue, apply_map
from .schedule import Planner
from .stage import Infeasible, Schedule

EXACT = 1000  # schedules of a network that are all priced
EXHAUSTIVE = 600
FEW = 10  # values of a network in which also what must exist may take a level of its own
SWEEPS = 6
OFFERS = 6000  # schedules that coordinate descent may price, times the values of each

Price = Callable[[Schedule], float]


def required(planner: Planner) -> set[int]:
    """Optional values that some reader cannot inline exactly."""
    found: set[int] = set()
    for w in planner.span_values.values:
        for u, m in w.form.maps if w.form is not None else ():
            if u.optional and u.form is not None and isinstance(apply_map(m, u.form), Refusal):
                found.add(u.index)
    return found


def earliest(planner: Planner, fixed: set[int]) -> dict[int, float | None]:
    """The first level at which each value can exist; optional ones that are not in `fixed` have none.

    Values that come into being by a stride share a level with the others of their resolution, since a register has one.
    """
    values = planner.span_values.values
    floor: dict[int, float] = {}
    levels = _soonest(values, fixed, floor)
    for _ in values:
        meets: dict[object, list[int]] = {}
        for v in values:
            if levels[v.index] is not None and _strides(v):
                meets.setdefault(v.space or v.positions, []).append(v.index)
        late = {i: max(levels[j] or 0.0 for j in group) for group in meets.values() for i in group}
        if all(levels[i] == t for i, t in late.items()):
            break
        floor |= late
        levels = _soonest(values, fixed, floor)
    return levels


def _strides(value: RegisterValue) -> bool:
    maps = value.form.maps if value.form is not None else ()
    return value.kind == "pool" or any(s > 1 for _, m in maps for s in m.window.stride)


def _soonest(values: Iterable[RegisterValue], fixed: set[int], floor: Mapping[int, float]) -> dict[int, float | None]:
    times: dict[int, float] = {}

    def reached(value: RegisterValue) -> float:
        if value.index not in times:
            behind = max((before(u, value) for u in value.operands), default=0.0)
            inlined = value.kind == "input" or (value.optional and value.index not in fixed)
            times[value.index] = behind if inlined else max(behind + 1, floor.get(value.index, 0.0))
        return times[value.index]

    def before(operand: RegisterValue, value: RegisterValue) -> float:
        """When `value` can read `operand`; two results of one stride may come into being together."""
        if operand.optional and _strides(operand) and _strides(value):
            return max((reached(u) for u in operand.operands), default=0.0)
        return reached(operand)

    return {v.index: None if v.optional and v.index not in fixed else reached(v) for v in values}


def every(planner: Planner, fixed: set[int]) -> Iterator[dict[int, float | None]]:
    """Every schedule, level by level: on each some of the values whose operands exist; optional ones may stay out.

    Left out are only schedules that cannot be laid out, and optional values that come after all their readers.
    """
    values = planner.span_values.values
    optional = {v.index for v in values if v.optional} - fixed
    inputs = frozenset(v.index for v in values if v.kind == "input")
    result = planner.span_values.result.index
    needs: dict[int, frozenset[int]] = {}
    for v in values:
        found = [needs[u.index] if u.index in optional else {u.index} for u in v.operands]
        needs[v.index] = frozenset(itertools.chain(*found))
    readers = {v.index: {w.index for w in _readers(values, v)} for v in values}
    must = _alive(planner.span_values.result) - optional

    def onwards(
        levels: dict[int, float | None], placed: frozenset[int], top: float
    ) -> Iterator[dict[int, float | None]]:
        if must - placed == {result}:
            yield {i: levels.get(i) for i in needs} | {result: top}
        ready = [i for i in needs if i not in placed and i != result and needs[i] <= placed]
        for n in range(1, len(ready) + 1):
            for chosen in itertools.combinations(ready, n):
                after = placed.union(chosen)
                if all(readers[i] - after for i in chosen):
                    yield from onwards(levels | dict.fromkeys(chosen, top), after, top + 1)

    return onwards(dict.fromkeys(inputs, 0.0), inputs, 1.0)


def _alive(result: RegisterValue) -> set[int]:
    """What the result needs."""
    found, stack = {result.index}, [result]
    while stack:
        new = [u for u in stack.pop().operands if u.index not in found]
        found |= {u.index for u in new}
        stack += new
    return found


def search(planner: Planner, price: Price) -> Schedule | Infeasible:
    """The cheapest schedule: of all when they are few.

    Otherwise the best of four starts, all around the first when those are few, then coordinate descent.
    """
    values = planner.span_values.values
    fixed = required(planner)
    best = _Best(planner, price)
    whole = list(itertools.islice(every(planner, fixed), EXACT + 1))
    if len(whole) <= EXACT:
        for levels in whole:
            best.offer(levels)
        return best.result()
    start = earliest(planner, fixed)
    optional = {v.index for v in values if v.optional}
    best.offer(start)
    best.offer(earliest(planner, fixed | {i for i in optional if _strides(values[i])}))
    best.offer(earliest(planner, fixed | {i for i in optional if len(_readers(values, values[i])) > 1}))
    best.offer(earliest(planner, fixed | optional))
    choices = {i: _choices(planner, start, i, fixed) for i in start if values[i].kind != "input"}
    if math.prod(len(c) for c in choices.values()) <= EXHAUSTIVE:
        for combination in itertools.product(*choices.values()):
            best.offer(dict(start) | dict(zip(choices, combination, strict=True)))
    few = len(values) <= FEW
    for _ in range(SWEEPS):
        before = best.score
        for i in choices:
            for level in _choices(planner, best.levels, i, fixed, between=best.schedule is None or few):
                if best.offers * len(values) >= OFFERS:
                    return best.result()
                best.offer(dict(best.levels) | {i: level})
        if best.score == before:
            break
    return best.result()


def _readers(values: Iterable[RegisterValue], value: RegisterValue) -> list[RegisterValue]:
    return [w for w in values if value in w.operands]


@dataclass
class _Best:
    """The best schedule seen: fewest faults first, then the lowest price."""

    planner: Planner
    price: Price
    score: tuple[float, float] = (math.inf, math.inf)
    levels: dict[int, float | None] = field(default_factory=dict)
    schedule: Schedule | None = None
    broken: Infeasible | None = None
    offers: int = 0
    _seen: set[tuple[tuple[int, float | None], ...]] = field(default_factory=set)

    def offer(self, levels: dict[int, float | None]) -> None:
        key = tuple(sorted(_compressed(levels).items()))
        if key in self._seen:
            return
        self._seen.add(key)
        self.offers += 1
        found = self.planner.lay_out(dict(key))
        if isinstance(found, Infeasible):
            score = (float(found.faults), 0.0)
            self.broken = self.broken or found
        else:
            score = (0.0, self.price(found))
        if score < self.score:
            self.score, self.levels = score, dict(key)
            if isinstance(found, Schedule):
                self.schedule = found
            else:
                self.broken = found

    def result(self) -> Schedule | Infeasible:
        return self.schedule or self.broken or Infeasible((Refusal("no schedule was found"),))


def _compressed(levels: Mapping[int, float | None]) -> dict[int, float | None]:
    """The same order with levels 0, 1, 2, ..."""
    used = sorted({t for t in levels.values() if t is not None})
    rank = {t: float(k) for k, t in enumerate(used)}
    return {i: None if t is None else rank[t] for i, t in levels.items()}


def _choices(
    planner: Planner, levels: Mapping[int, float | None], index: int, fixed: set[int], *, between: bool = False
) -> list[float | None]:
    """Levels for one value between what it reads and what reads it.

    Optional values may take new ones between two others; `between`: any value may.
    """
    values = planner.span_values.values
    value = values[index]
    optional = value.optional and index not in fixed
    low, high = _lower(levels, value), _upper(levels, values, value, max if optional else min)
    top = max(t for t in levels.values() if t is not None)
    if value is planner.span_values.result:
        return [levels[index]]
    grid = [k / 2 for k in range(int(2 * low) + 1, int(min(high, top + 1) * 2))]
    if not optional:
        if between:
            return list(grid)
        grid = [t for t in grid if t == int(t)] or [levels[index] or 0.0]
        return list(grid)
    return [None, *grid]


def _lower(levels: Mapping[int, float | None], value: RegisterValue) -> float:
    found = 0.0
    for u in value.operands:
        own = levels[u.index]
        found = max(found, own if own is not None else _lower(levels, u))
    return found


def _upper(
    levels: Mapping[int, float | None],
    values: Iterable[RegisterValue],
    value: RegisterValue,
    pick: Callable[[list[float]], float],
) -> float:
    """The level of the first reader, which needs the value, or of the last one, before which it is still of use."""
    found = []
    for w in values:
        if value in w.operands:
            own = levels[w.index]
            found.append(own if own is not None else _upper(levels, values, w, pick))
    return pick(found) if found else math.inf
