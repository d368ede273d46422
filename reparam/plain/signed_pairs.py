"""x = relu(x) - relu(-x): signed channels pass a ReLU as pairs that are never negative, so that no PReLU is needed.

From the layer on where a signed value would meet a ReLU beside it, the register holds a twin in its place: twice the
channels, [relu(x); relu(-x)].

    computed there        rows [f; -f]
    carried from there    rows [I; -I]
    carried on            the identity on both halves
    read                  W*x = W*relu(x) - W*relu(-x)

Only ReLU makes such pairs: a LeakyReLU or PReLU beside carried channels still becomes a PReLU with a slope for each
channel, and ELU still lets no signed value pass. A value that a pool or a gate reads stays in one piece, and keeps its
PReLU too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from reparam.ir import Refusal

from .activation import LINEAR, ChannelRun, Joint, fit_activation
from .linear_form import LinearForm, Map, Numbers, RegisterValue, Shift, numbers_of, reference
from .register_value import SpanValues

if TYPE_CHECKING:
    from .stage import Stage


@dataclass
class SignedPairs:
    """Puts twins into the layers of one network; what was made once is kept, so that equal layers stay one object."""

    span_values: SpanValues
    _twins: dict[int, RegisterValue] = field(default_factory=dict)
    _made: dict[tuple[int, frozenset[int]], Stage] = field(default_factory=dict)

    def fit(self, register: Sequence[RegisterValue], slots: Sequence[ChannelRun]) -> Joint | Refusal:
        """The joint activation of a register whose signed channels may become twins."""
        fitted = fit_activation(slots)
        if isinstance(fitted, Joint) and not fitted.parametric:
            return fitted
        whole = {u for v in self.span_values.values if v.kind in ("pool", "gate") for u in v.operands}
        parts = [s if v in whole else replace(s, low=max(s.low, 0.0)) for v, s in zip(register, slots, strict=True)]
        split = fit_activation(parts)
        return split if isinstance(split, Joint) and _makes_pairs(split) else fitted

    def split(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """The layers in order, with twins from where they are needed."""
        twins: frozenset[int] = frozenset()
        made = []
        for stage in stages:
            key = (stage.serial, twins)
            if key not in self._made:
                self._made[key] = self._rebuilt(stage, twins)
            made.append(self._made[key])
            kept = frozenset(v.index for v in stage.after) & twins
            twins = kept | {v.index for v in _met(stage) if v.index not in twins}
        return tuple(made)

    def _rebuilt(self, stage: Stage, twins: frozenset[int]) -> Stage:
        """The layer over a register in which the values of `twins` are held as such."""
        fresh = {v for v in _met(stage) if v.index not in twins}
        if not fresh and not any(v.index in twins for v in stage.before):
            return stage
        assert self.span_values.result not in fresh, "the result is alone in its register"
        created = {v for v, _ in stage.forms}
        forms = [(v, self._over(form, twins)) for v, form in stage.forms]
        forms = [(self.twin(v), _both(form)) if v in fresh else (v, form) for v, form in forms]
        forms += [(self.twin(v), _both(reference(v))) for v in stage.after if v in fresh - created]
        after = tuple(self.twin(v) if v in fresh or v.index in twins else v for v in stage.after)
        own = {v for v, _ in stage.forms}
        slots = tuple(ChannelRun(v.act if v in own else LINEAR, v.channels, v.low) for v in after)
        return replace(
            stage,
            before=tuple(self.twin(v) if v.index in twins else v for v in stage.before),
            after=after,
            forms=tuple(forms),
            joint=replace(stage.joint, slots=slots),
            serial=-1 - len(self._made),
        )

    def twin(self, value: RegisterValue) -> RegisterValue:
        """[relu(x); relu(-x)], one for each value."""
        if value.index not in self._twins:
            index = len(self.span_values.values) + value.index
            made = replace(value, index=index, channels=2 * value.channels, low=0.0, form=None, act=LINEAR)
            self._twins[value.index] = made
        return self._twins[value.index]

    def _over(self, form: LinearForm, twins: frozenset[int]) -> LinearForm:
        """The form with twins read as the difference of their halves."""
        maps: list[tuple[RegisterValue, Map]] = []
        for v, m in form.maps:
            if v.index not in twins:
                maps.append((v, m))
                continue
            second = replace(m, cols=m.cols + v.channels, numbers=_negative(m))
            maps += [(self.twin(v), m), (self.twin(v), second)]
        return replace(form, maps=tuple(maps))


def _met(stage: Stage) -> list[RegisterValue]:
    """The signed values that are to pass this layer's ReLU."""
    if not _makes_pairs(stage.joint):
        return []
    created = {v for v, _ in stage.forms}
    return [v for v in stage.after if v.low < 0.0 and (v not in created or v.act.family == "linear")]


def _makes_pairs(joint: Joint) -> bool:
    return joint.kind == "relu" and not joint.parametric


def _both(form: LinearForm) -> LinearForm:
    """[f; -f]"""
    c = form.channels
    maps = [(v, replace(m, rows=m.rows + c, numbers=_negative(m))) for v, m in form.maps]
    shifts = [Shift(s.rows + c, s.n, _opposite(s.numbers)) for s in form.shifts]
    return LinearForm(2 * c, (*form.maps, *maps), (*form.shifts, *shifts))


def _negative(m: Map) -> Numbers:
    return lambda: -numbers_of(m)


def _opposite(numbers: Numbers) -> Numbers:
    def negated() -> Tensor:
        return -numbers()

    return negated
