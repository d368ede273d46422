"""The contract between the plan and what is known of single operators: facts, requests, and how a call is rebuilt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from reparam.ir import Program, aten, place_of, shape_of

from .value import Channels, positions

# A reader that is spared less than this share of what its operand holds reads all of it: a gather costs time too.
SPARED = 0.25
# A sum is made in parts where that spares this many multiply-accumulates for each of its elements. Measured in
# onnxruntime on one thread, the parts and the concatenation cost as much as 30 (1x1) to 100 (3x3) of them.
PAYS = 64


@dataclass(frozen=True)
class Request:
    """Channels that a reader needs of an operand. ordered: it is spared a gather if they come in this order."""

    ids: Tensor
    ordered: bool = False


@dataclass(frozen=True)
class Ask:
    """What a call keeps of its channels, and what it needs of its operands to make it.

    kept: the channels in their new order, in the shape of the axes that they lie along. unread: operands without
    channels that it does without.
    """

    kept: Tensor
    requests: Mapping[fx.Node, Request] = field(default_factory=dict)
    unread: frozenset[fx.Node] = frozenset()


class Conflict(Exception):
    """A call cannot be rebuilt from what its operands keep.

    value: the node that has to keep more. ids: which channels of it; None for all of them, of its operands as well.
    """

    def __init__(self, value: fx.Node, ids: Tensor | None = None) -> None:
        super().__init__(f"'{place_of(value)}' has to keep more channels")
        self.value = value
        self.ids = ids


class Known:
    """The program, and what is known of its values so far. A value without an entry has no channels to speak of."""

    def __init__(self, program: Program, pays: float = PAYS) -> None:
        self.program = program
        self.pays = pays
        self.facts: dict[fx.Node, Channels] = {}
        self.memo: dict[fx.Node, Any] = {}  # what a family found out about a call
        self.traces: dict[Any, Any] = {}  # and about all calls that do the same
        self.results: dict[fx.Node, Any] = {}  # what calls with several results make of the numbers of channels
        self.direct: set[fx.Node] = set()  # movements that are made of a value further up

    def of(self, node: Any) -> Channels | None:
        """The channels of a value, None when they are unknown."""
        return self.facts.get(node) if isinstance(node, fx.Node) else None

    def along(self, node: Any, axis: int) -> Channels | None:
        """The channels of a value if they lie along this one axis, else None."""
        facts = self.of(node)
        return facts if facts is not None and facts.axes == (axis,) else None


class Builder:
    """Makes the new calls. A dry one makes none: it finds out whether the calls can be made."""

    def __init__(self, known: Known, kept: Mapping[fx.Node, Tensor], *, dry: bool) -> None:
        self.known = known
        self.kept = kept
        self.dry = dry
        self.new: dict[fx.Node, fx.Node] = {}
        self.shared: dict[fx.Node, fx.Node] = {}  # calls with several results, made once for all that pick from them

    def held(self, x: fx.Node) -> fx.Node:
        """The new value of an operand with all that it keeps; itself where it was not made anew."""
        return self.new.get(x, x)

    def whole(self, x: fx.Node, *, like: fx.Node) -> Any:
        """The new value of an operand with all its channels in their own order. Raises Conflict."""
        facts = self.known.of(x)
        return self.held(x) if facts is None else self.take(x, facts.everything, like=like)

    def call(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, like: fx.Node) -> Any:
        """A new call before `like`, which it takes its module path from."""
        return like if self.dry else self.known.program.call(target, args, kwargs, like=like)

    def weight(self, value: Tensor, origin: str, *, like: fx.Node, source: fx.Node | None = None) -> Any:
        """A new weight before `like`, of the dtype of the weight `source` if there is one."""
        if self.dry:
            return like
        constant = self.known.program.constant(source) if source is not None else None
        dtype, trainable = (constant.dtype, constant.trainable) if constant is not None else (None, False)
        return self.known.program.weight(value, origin, dtype=dtype, trainable=trainable, like=like)

    def take(self, x: fx.Node, ids: Tensor, *, like: fx.Node, source: Tensor | None = None, bound: float = 0.0) -> Any:
        """The channels `ids` of an operand in this order and shape, for the call `like`.

        source: which channel of the operand each channel of the call is made from, where it is not the same. bound: the
        share of the operand that has to be left out to be worth picking; 0 where the call cannot keep more.

        Raises Conflict when the operand lacks some; and when it has more, and they cannot be picked, or picking them
        does not pay: then the call has to keep more too.
        """
        facts, kept = self.known.facts[x], self.kept[x]
        if torch.equal(kept, ids):
            return self.held(x)
        place = positions(ids.flatten(), kept.flatten())
        if place is None:
            raise Conflict(x, ids.flatten())
        if len(facts.axes) > 1 or (1 - bound) * len(kept) < len(place) < len(kept):
            surplus = kept.flatten() if source is None else torch.isin(source, kept).nonzero().flatten()
            raise Conflict(like, surplus)
        return self.pick(self.held(x), facts.axes[0], place, len(kept), like=like)

    def pick(self, x: Any, axis: int, place: Tensor, size: int, *, like: fx.Node) -> Any:
        """The entries at `place` along an axis of this size: all, a slice, or a gather."""
        if self.dry or torch.equal(place, torch.arange(size)):
            return x
        start = int(place[0])
        if torch.equal(place, torch.arange(start, start + len(place))):
            return self.call(aten.slice.Tensor, (x, axis, start, start + len(place)), like=like)
        index = self.weight(place, f"{place_of(like)}.kept", like=like)
        return self.call(aten.index_select.default, (x, axis, index), like=like)


class Family(Protocol):
    """What is known of a family of operators."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        """Where the channels of the result lie, and the facts on them; None when nothing can be said."""

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        """What the call keeps, at least `wanted`, in this order where that is free, and what it needs for that."""

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        """The call that makes the channels `kept`, from what its operands keep. Raises Conflict."""


def size_along(node: fx.Node, axes: Sequence[int]) -> tuple[int, ...]:
    """The sizes of a value along some of its axes, at the traced sizes."""
    shape = shape_of(node)
    return tuple(shape[a] for a in axes)
