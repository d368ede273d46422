"""Schedules: at which layer of the chain each value comes into being, and what the register holds in between.

A schedule gives each value a level, or none when it is inlined into its readers. Walking back from the result, a layer
holds what is read behind it: values that come into being there, and values that are carried past it. `lay_out` does
this walk; `schedule_search.search` looks for the levels that cost least.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from reparam.algebra import identity_window, uncropped, unite
from reparam.ir import Refusal, arguments, op_name

from .activation import LINEAR, ChannelRun, Joint, fit_activation
from .linear_form import LinearForm, Map, RegisterValue, apply_map
from .register_value import SpanValues
from .signed_pairs import SignedPairs
from .stage import Infeasible, Levels, Register, Schedule, Stage, carry


@dataclass
class Planner:
    """Lays out schedules of one network; what was computed once is kept.

    signed: "relu" lets signed values pass ReLUs as twins (see `signed_pairs`), "prelu" by slopes.
    """

    span_values: SpanValues
    signed: str = "prelu"
    _forms: dict[tuple[int, frozenset[int]], LinearForm | Refusal] = field(default_factory=dict)
    _reach: dict[int, frozenset[int]] = field(default_factory=dict)
    _stages: dict[tuple[object, ...], Stage | Refusal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._signs = SignedPairs(self.span_values)

    # ---- forms -------------------------------------------------------------------------------------------------------

    def reach(self, value: RegisterValue) -> frozenset[int]:
        """The values that can turn up in the expanded form of `value`."""
        if value.index not in self._reach:
            found: set[int] = set()
            for u in value.operands:
                found.add(u.index)
                if u.optional:
                    found |= self.reach(u)
            self._reach[value.index] = frozenset(found)
        return self._reach[value.index]

    def expand(self, value: RegisterValue, held: frozenset[int]) -> LinearForm | Refusal:
        """The form of `value` over the values of `held`, optional ones that are missing inlined; or why not."""
        key = (value.index, held & self.reach(value))
        if key not in self._forms:
            self._forms[key] = self._expand(value, key[1])
        return self._forms[key]

    def _expand(self, value: RegisterValue, held: frozenset[int]) -> LinearForm | Refusal:
        assert value.form is not None
        maps: list[tuple[RegisterValue, Map]] = []
        shifts = list(value.form.shifts)
        for u, m in value.form.maps:
            if u.index in held:
                maps.append((u, m))
                continue
            if not u.optional:
                return Refusal(f"it needs '{u.node.name}' earlier")
            inner = self.expand(u, held)
            if isinstance(inner, Refusal):
                return inner
            made = apply_map(m, inner)
            if isinstance(made, Refusal):
                return made
            maps += made.maps
            shifts += made.shifts
        return LinearForm(value.form.channels, tuple(maps), tuple(shifts))

    # ---- layers ------------------------------------------------------------------------------------------------------

    def lay_out(self, levels: Levels) -> Schedule | Infeasible:
        """The layers of a schedule, last one first found; or what is wrong with it."""
        inputs = self.span_values.inputs
        faults: list[Refusal] = []
        register: tuple[RegisterValue, ...] = (self.span_values.result,)
        stages: list[Stage] = []
        times = sorted({t for t in levels.values() if t is not None and t > 0}, reverse=True)
        for time in times:
            created = [v for v in register if levels[v.index] == time]
            if not created:
                continue
            held = frozenset(i for i, t in levels.items() if t is not None and t < time)
            stage = self._stage(register, created, held, time == times[-1])
            if isinstance(stage, Refusal):
                faults.append(stage)
                register = self._operands(register, created, held, levels)
            else:
                stages.append(stage)
                register = stage.before
        if register != inputs:
            faults.append(Refusal("a value is read before it exists"))
        if faults:
            return Infeasible(tuple(faults))
        layers = tuple(reversed(stages))
        return Schedule(tuple(sorted(levels.items())), self._signs.split(layers) if self.signed == "relu" else layers)

    def _register(self, indices: Iterable[int]) -> Register:
        """Values in the order of their channels: the newest first.

        A carried sum comes behind the branch that is added to it. A layer that adds up its columns in order then
        rounds the sum once, as the block did, and not once for every column of the branch.
        """
        return tuple(self.span_values.values[i] for i in sorted(indices, reverse=True))

    def _operands(
        self, register: Iterable[RegisterValue], created: list[RegisterValue], held: frozenset[int], levels: Levels
    ) -> tuple[RegisterValue, ...]:
        needed = {v.index for v in register if v not in created}
        for v in created:
            form = self.expand(v, held)
            needed |= {u.index for u in v.operands} if isinstance(form, Refusal) else {u.index for u, _ in form.maps}
        return self._register(i for i in needed if levels[i] is not None)

    def _stage(
        self, register: Register, created: list[RegisterValue], held: frozenset[int], first: bool
    ) -> Stage | Refusal:
        forms: list[tuple[RegisterValue, LinearForm]] = []
        for v in created:
            form = self.expand(v, held)
            if isinstance(form, Refusal):
                return form
            forms.append((v, form))
        key = (
            first,
            tuple(v.index for v in register),
            tuple((v.index, tuple((u.index, m) for u, m in f.maps)) for v, f in forms),
        )
        if key not in self._stages:
            self._stages[key] = self._build(register, forms, first)
        return self._stages[key]

    def _build(
        self, register: tuple[RegisterValue, ...], forms: list[tuple[RegisterValue, LinearForm]], first: bool
    ) -> Stage | Refusal:
        created = {v for v, _ in forms}
        carried = [v for v in register if v not in created]
        operands = {u.index for _, f in forms for u, _ in f.maps} | {v.index for v in carried}
        before = self._register(operands)
        if first and all(v.kind == "input" for v in before):
            before = self.span_values.inputs
        if not before:
            return Refusal("a value depends on no input")
        if len({v.space for v in before}) > 1 or len({v.space for v in register}) > 1:
            return Refusal("values of different resolutions would have to share a register")
        kinds = {v.kind for v in created}
        if "pool" in kinds or "gate" in kinds:
            return self._whole(register, before, forms, carried)
        blocks = [m for _, f in forms for _, m in f.maps] + [carry(v) for v in carried]
        window = blocks[0].window
        for m in blocks[1:]:
            joint = unite(window, m.window, before[0].space)
            if isinstance(joint, Refusal):
                return joint
            window = joint
        window = uncropped(window)
        slots = [ChannelRun(v.act if v in created else LINEAR, v.channels, v.low) for v in register]
        fitted = self._signs.fit(register, slots) if self.signed == "relu" else fit_activation(slots)
        if isinstance(fitted, Refusal):
            return fitted
        if fitted.parametric and fitted.family == "slopes" and self.span_values.axis != 1:
            pairs = self._signs.fit(register, slots)
            able = isinstance(pairs, Joint) and not pairs.parametric
            return Refusal("PReLU has slopes along axis 1 only" + ("; --signed relu needs none" if able else ""))
        return Stage(before, register, tuple(forms), window, fitted, len(self._stages))

    def _whole(
        self,
        register: Register,
        before: Register,
        forms: list[tuple[RegisterValue, LinearForm]],
        carried: list[RegisterValue],
    ) -> Stage | Refusal:
        """A pool of the whole register, or one gate; neither is a convolution, and both keep the order of values."""
        created = [v for v, _ in forms]
        first = created[0]
        window = identity_window(len(first.space))
        joint = Joint("linear", "linear", None, tuple(ChannelRun(LINEAR, v.channels, v.low) for v in register))
        if any(v.kind == "gate" for v in created):
            alone = len(created) == 1
            if not alone or tuple(first.operands[0] if v is first else v for v in register) != before:
                return Refusal("a gate leaves no room for another value of its layer")
            return Stage(before, register, tuple(forms), window, joint, len(self._stages))
        if carried or any(v.kind != "pool" or not _same_call(v, first) for v in created):
            pool = next(v for v in created if v.kind == "pool")
            return Refusal(
                f"{op_name(pool.node)} takes the largest of several positions, so that nothing can be carried past "
                "it; --max-pool relu spells it with ReLUs"
            )
        if tuple(f.bare for _, f in forms) != before:
            return Refusal("a pool reads a value that no register holds")
        return Stage(before, register, tuple(forms), window, joint, len(self._stages))


def _same_call(a: RegisterValue, b: RegisterValue) -> bool:
    left, right = arguments(a.node), arguments(b.node)
    return a.node.target is b.node.target and all(left[k] == right[k] for k in left if k != "self")
