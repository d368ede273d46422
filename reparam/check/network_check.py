"""Evidence for the whole network: float64 end to end, then once more in the dtype that is emitted.

Inputs are planned (`input_plan`), the original and the converted network run on them, and what they give is compared,
in that order. The truth is what the caller's own model gives in float64 (`judge`).

In the emitted dtype the figure that counts is the converted model's error against that truth, beside the original's own
error against it, input by input (`exactness`).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from reparam.errors import CaptureError, NotEquivalentError, ReparamError
from reparam.ir import (
    SMALL_SIZE,
    Feed,
    Program,
    axes_of_images,
    evaluate,
    evaluate_where_it_runs,
    feed,
    op_name,
    shrinks_much,
    smaller_sides,
    takes_shapes,
    typed,
)
from reparam.utils import first_line

from .evidence import NetworkEvidence, OwnDtypeEvidence
from .finite_sizes import not_finite
from .input_plan import Plan, plans_of
from .judge import Judge
from .own_dtype import same_in_own_dtype
from .path_error import (
    PathError,
    captured_stops,
    does_not_run,
    other_path,
    path_error,
    shape_of_first,
    where_paths_part,
)
from .rounds import Round, Try, depth_limit
from .values import all_finite, first_shape, largest_difference

_log = logging.getLogger(__name__)
ROUNDINGS = 256
NEAR = 16  # times fewer values, on which as much is lost
ENOUGH = 3  # inputs of the traced size, where a network takes no smaller images
_FAKE = (
    "it has fake quantisation, which torch computes in float32 alone; convert the network as it was before "
    "prepare_qat, or one without it that has the trained float weights"
)


def _values_of_one(values: Feed) -> int:
    """How many values the first input has for one sample."""
    return math.prod(first_shape(values)[1:])


def _lost_at_most(size: int, lost: Sequence[tuple[int, float]]) -> float:
    """The least that was lost on inputs of so many values, or some fewer: more is lost on larger ones.

    lost: (values of one sample, loss). The least of all where all are larger.
    """
    below = [n for n, _ in lost if n <= size]
    return min(loss for n, loss in lost if not below or max(below) <= n * NEAR <= size * NEAR)


def _limit(original: Program, values: Feed, truth: Sequence[Any], floor: float) -> float:
    """The bar for these inputs: `floor`, or more for an ill-conditioned network.

    What the original itself loses in its own dtype (float32, when that is float64) tells how much it amplifies
    rounding; the same amplification of float64 rounding, times the number of roundings that a fold moves, is what two
    equal programs may differ by.
    """
    dtype = torch.float32 if original.dtype == torch.float64 else None
    own = evaluate(original, typed(original, values), dtype)
    loss = largest_difference(truth, own)
    eps = torch.finfo(torch.float64).eps / torch.finfo(dtype or original.dtype).eps
    return max(floor, ROUNDINGS * loss * eps) if math.isfinite(loss) else floor


def check_float64(
    original: Program, converted: Program, seed: int = 0, judge: Judge | None = None, lean: bool = False
) -> tuple[NetworkEvidence, list[Round]]:
    """Compares the converted program in float64 with the original, on random inputs of several sizes and batches.

    judge: the caller's own model, which then gives the truth; without it the captured original does. lean: whether most
    large images may be compared with the judge in the original's own dtype, beside some in float64.

    Returns the evidence so far and the rounds, whose truth the check in the emitted dtype uses again. Raises
    NotEquivalentError when the two differ, PathError when the captured original is not the model at sizes that are said
    to be free, InputError when the original gives no finite output to compare with.
    """
    check = _Check(original, converted, judge, seed, lean)
    check.compare_all(list(plans_of(original)))
    if not check.rounds:
        raise CaptureError("the model does not run on random inputs of the traced size, so nothing can be compared")
    own, trials = check.own_dtype, check.trials
    shapes = (*check.traced, *(r.shape for r in check.rounds), *check.of_one)
    shapes += own.shapes[len(check.traced) :] if own is not None else ()
    _log.info("judged: the same function on %d inputs, float64 difference %.3g", trials, check.largest)
    return NetworkEvidence(check.largest, trials=trials, seed=seed, shapes=shapes, own_dtype=own), check.rounds


class _Check:
    """The comparison of two programs under way."""

    def __init__(self, original: Program, converted: Program, judge: Judge | None, seed: int, lean: bool) -> None:
        self.original, self.converted, self.judge, self.lean = original, converted, judge, lean
        self.generator = torch.Generator().manual_seed(seed)
        self.floor = depth_limit(original)
        self.in_float64: bool | None = None  # whether the judge is run in float64; None before the first run
        self.sides = smaller_sides(original)  # of images, the next to try first
        self.volumes = axes_of_images(original) == 3
        self.rounds: list[Round] = []
        self.of_one: list[tuple[int, ...]] = []  # shapes with a free axis of one, beside those of the rounds
        self.largest, self.trials = 0.0, 0
        self.own_dtype: OwnDtypeEvidence | None = None

    def compare_all(self, plans: Sequence[Plan]) -> None:
        """One round for each plan. Raises PathError where the model calls other functions than at another free size.

        Those might compute the same; that some random inputs give the same does not say so.
        """
        large = shrinks_much(self.original, self.sides[0])
        first: tuple[Plan, tuple[str, ...]] | None = None
        small, others = ([p for p in plans[1:] if (p.small is None) == other] for other in (False, True))
        if large and self.lean and self.judge is not None and self._smaller_alone(self.judge, plans[0], small):
            first, plans = (plans[0], self.judge.path), others
        elif large:  # so few of them as will do
            plans = [plans[0], *sorted(small, key=lambda p: p.inputs), *others]
        for planned in plans:
            if large and first is not None and self._is_told(planned, first[1]):
                continue
            before = len(self.rounds)
            self.compare(planned)
            if self.judge is None or len(self.rounds) == before:
                continue
            plan = self.rounds[-1].plan  # of the sizes that the original runs on
            first = first or (plan, self.judge.path)
            if plan.sizes == first[0].sizes:
                continue
            if self.judge.path != first[1] and plan.small is not None:  # a smaller image may well take another path
                self._truth(feed(self.original, plan.sizes, self.generator))
            if self.judge.path != first[1]:
                raise self._other_calls(first[0], plan)

    @property
    def traced(self) -> tuple[tuple[int, ...], ...]:
        """The shape of the traced size, where that was compared in the original's own dtype alone."""
        return self.own_dtype.shapes[:1] if self.own_dtype is not None and self.rounds[0].unclaimed else ()

    def _is_told(self, plan: Plan, path: tuple[str, ...]) -> bool:
        """Whether a plan needs no float64 for a network of large images.

        These are far sizes, and smaller images where the network takes none. What was traced is compared: a model may
        do something else for that very batch. path: the functions that it calls at the traced size.
        """
        own = bool(plan.sizes) and all(self.original.traced_sizes[s] == n for s, n in plan.sizes.items())
        if not plan.far and (plan.small is None or self.sides):
            return False
        if not plan.far and self.trials >= ENOUGH and not own:
            return True
        values = feed(self.original, plan.sizes, self.generator)
        return self.lean and self.judge is not None and self._in_own_dtype(self.judge, path, [values], plan.inputs)

    def _smaller_alone(self, judge: Judge, traced: Plan, smaller: Sequence[Plan]) -> bool:
        """Compares some smaller images in float64, and other batches and the traced size in the original's own dtype.

        Whether that will do: all agree, and the model calls the same functions everywhere. If not, none of it is kept.
        """
        paths, left = set(), list(smaller)
        while left and self.trials < ENOUGH:
            found = next((f for f in self._at_sides(left[0]) if f.gap <= self.floor), None)
            if found is None:
                return bool(self.rounds) and self._start_again()
            self._judge(left.pop(0), found)
            paths.add(judge.path)
        feeds = [feed(self.original, traced.sizes, self.generator)]
        feeds += [feed(self.original, p.sizes, self.generator, self.sides[0]) for p in left]
        inputs = sum(p.inputs for p in (traced, *left))
        return (len(paths) == 1 and self._in_own_dtype(judge, paths.pop(), feeds, inputs)) or self._start_again()

    def _in_own_dtype(self, judge: Judge, path: tuple[str, ...], feeds: Sequence[Feed], inputs: int) -> bool:
        """Whether feeds need no float64, beside what has been compared in it. inputs: how many they are."""
        lost: list[tuple[int, float]] = []
        for i, r in enumerate(self.rounds):
            own = judge.own_where_it_runs(r.values) if r.own is None else r.own
            if own is None:
                return False
            self.rounds[i] = replace(r, own=own)
            lost.append((_values_of_one(r.values), largest_difference(r.truth, own)))
        found = same_in_own_dtype(
            self.original, self.converted, judge, path, feeds, _lost_at_most(min(map(_values_of_one, feeds)), lost)
        )
        if found is not None:
            self.own_dtype = found if self.own_dtype is None else self.own_dtype.beside(found)
            self.trials += inputs
        return found is not None

    def _start_again(self) -> bool:
        self.rounds, self.trials, self.largest, self.in_float64 = [], 0, 0.0, None
        self.sides = smaller_sides(self.original)
        return False

    def _at_sides(self, plan: Plan) -> Iterator[Try]:
        """One try after the other with smaller images; those that are given up are not tried again."""
        while self.sides:
            yield self._try(plan, self.sides[0])
            self.sides = self.sides[1:]
            if not self.rounds:
                self.in_float64 = None  # which is not found out where nothing agrees

    def compare(self, plan: Plan) -> None:
        """Adds one round; smaller images than the traced ones are tried first, and are no reason to refuse."""
        smaller = self.sides if plan.small is not None else ()
        sides: tuple[int | None, ...] = (*smaller, None)
        with warnings.catch_warnings() if plan.single else nullcontext():
            if plan.single:
                warnings.simplefilter("ignore")  # a variance of one number
            found = self._try(plan, sides[0])
        for i, small in enumerate(sides[1:], 1):
            if found.gap <= self.floor:
                break
            found = self._try(plan, small)
            self.sides = smaller[i:]
        if found.truth is None and plan.instead:
            self.compare(replace(plan, sizes=plan.instead[0], instead=plan.instead[1:]))
            return
        if found.truth is None:
            if not self.rounds and not plan.single:
                self._say_why(plan, found.values)
            return
        if not all_finite(found.truth):
            if plan.single:
                return
            raise not_finite(self.original, self._truth, plan.sizes, self.generator)
        self._judge(plan, found)

    def _say_why(self, plan: Plan, values: Feed) -> None:
        """Raises what the original raises where nothing runs: at the traced size, or in a batch of one."""
        try:
            evaluate(self.original, values)
        except ReparamError:
            raise
        except Exception as error:
            if plan.sizes:
                what = f"the model does not run on inputs of shape {shape_of_first(values)}: {first_line(error)}"
                raise path_error(self.original, what, plan.sizes) from error
            raise does_not_run(error) from error

    def _try(self, plan: Plan, small: int | None) -> Try:
        values = feed(self.original, plan.sizes, self.generator, small)
        unclaimed = small is not None and self.judge is not None  # there the traced path may be another
        if unclaimed and self.volumes and small == SMALL_SIZE and not takes_shapes(self.converted, values):
            return Try(values, None, None)  # a run, of most of it, would take long
        other = evaluate_where_it_runs(self.converted, values) if unclaimed else None
        if unclaimed and other is None:  # which tells that in the least time
            return Try(values, None, None)
        found = self._against(values, self._truth(values), other, unclaimed)
        if self.judge is not None and self.in_float64 is None:
            return self._settle(self.judge, found)
        return found

    def _against(self, values: Feed, truth: list[Any] | None, other: list[Any] | None, unclaimed: bool = False) -> Try:
        if other is None and truth is not None and all_finite(truth):
            other = evaluate_where_it_runs(self.converted, values)
        return Try(values, truth, other, unclaimed)

    def _truth(self, values: Feed) -> list[Any] | None:
        """What the judge gives; of the captured original where there is none."""
        if self.judge is None:
            return evaluate_where_it_runs(self.original, values)
        if self.in_float64 is not False:
            return self.judge.truth_where_it_runs(values)
        captured = evaluate_where_it_runs(self.original, values)
        if captured is None:
            return self.judge.own_where_it_runs(values)
        return self.judge.in_own_dtypes(values, captured)

    def _settle(self, judge: Judge, found: Try) -> Try:
        """Decides on the first inputs whether the model's results in float64 are the truth from here on.

        They cannot be where it does not run in float64, or does something else there although it agrees with the
        captured graph in its own dtypes. Returns the comparison with what is the truth.
        """
        self.in_float64 = True
        if found.gap <= self.floor:
            return found
        captured = evaluate_where_it_runs(self.original, found.values)
        if captured is None and found.truth is not None:
            return found
        if captured is None:
            own = judge.own_where_it_runs(found.values)
        else:
            limit = _limit(self.original, found.values, captured, self.floor)
            if found.truth is not None and largest_difference(found.truth, captured) <= limit:
                return found
            own = judge.in_own_dtypes(found.values, captured)
            if found.truth is not None and own is not captured:
                return found
        self.in_float64 = False
        return self._against(found.values, own, found.other)

    def _judge(self, plan: Plan, found: Try) -> None:
        assert found.truth is not None
        gap, limit = found.gap, self.floor
        if gap > limit:
            captured = found.truth if self.judge is None else evaluate_where_it_runs(self.original, found.values)
            if captured is not None:
                limit = _limit(self.original, found.values, found.truth, self.floor)
            if captured is None or largest_difference(found.truth, captured) > limit:
                raise self._other_path(plan, found, captured)
        if not gap <= limit:
            if found.other is None:
                self._refuse_stop(found.values)
            raise NotEquivalentError(
                f"the converted network differs from the original: float64 error {gap:.3g} exceeds {limit:.3g}"
            )
        self.largest, self.trials = max(self.largest, gap), self.trials + plan.inputs
        if plan.single:
            self.of_one.append(first_shape(found.values))
        else:
            self.rounds.append(Round(found.values, found.truth, plan, limit, found.unclaimed))

    def _refuse_stop(self, values: Feed) -> None:
        """Raises NotEquivalentError where the converted network stops, and the original does not."""
        try:
            evaluate(self.converted, values)
        except ReparamError:
            raise
        except Exception as error:
            shape = shape_of_first(values)
            text = f"the converted network does not run on inputs of shape {shape}: {first_line(error)}"
            raise NotEquivalentError(text) from error

    def _other_path(self, plan: Plan, found: Try, captured: list[Any] | None) -> PathError:
        """Where the captured original is not the model either, no rewrite is to blame."""
        if captured is None:
            self._refuse_float64(found.values)
            return captured_stops(self.original, found.values, plan.sizes)
        lines = self._where_they_part(self.original.traced_sizes, found.values)
        how = f"the captured graph computes something else there{lines}"
        return other_path(self.original, found.values, how, plan.sizes)

    def _refuse_float64(self, values: Feed) -> None:
        """Raises CaptureError where the captured graph runs in its own dtypes and not in float64."""
        try:
            evaluate(self.original, values)
        except ReparamError:
            raise
        except Exception as error:
            try:
                evaluate(self.original, typed(self.original, values), None)
            except Exception:  # it runs in no dtype
                return
            fake = any("obs_fq" in op_name(n) for n in self.original.calls())
            reason = _FAKE if fake else first_line(error)
            raise CaptureError(f"the network does not run in float64, in which it is checked: {reason}") from error

    def _other_calls(self, one: Plan, other: Plan) -> PathError:
        found = (*self.traced, *(r.shape for r in self.rounds if r.plan is one or r.plan is other))
        shapes = ["x".join(str(n) for n in shape) for shape in found]
        lines = self._where_they_part(one.sizes, feed(self.original, other.sizes, self.generator))
        return path_error(
            self.original,
            f"the model takes another path for inputs of shape {shapes[-1]} than for {shapes[0]}: it calls other "
            f"functions there{lines}",
            other.sizes,
        )

    def _where_they_part(self, sizes: dict[str, int], values: Feed) -> str:
        """The lines of the model with which it goes on at these sizes and on these inputs, where they differ."""
        assert self.judge is not None  # without it the captured graph is the model
        return where_paths_part(self.judge, feed(self.original, sizes, self.generator), values)


def agree_in_float64(original: Program, other: Program, seed: int) -> bool:
    """Whether `check_float64` finds no difference."""
    try:
        check_float64(original, other, seed)
    except NotEquivalentError:
        return False
    return True
