"""Activations of a register whose channels are computed here and carried there.

A layer of a plain network ends in one activation over all channels. A carried channel must come out as it went in, so
the activation gets a parameter for each channel: a slope, a pair of bounds, or a gate. `fit_activation` says which
activation serves a set of channels, `emit_activation` writes it.

    slopes  prelu(x) = max(x, 0) + a*min(x, 0)      a = 0 for ReLU, 1 for a carried channel
    bounds  clamp(x, lo, hi)                        (0, 6) for ReLU6, (-inf, inf) for a carried channel
    gates   x*g(b*x + c)                            (b, c) = (1, 0) for SiLU, (0, c) with g(c) = 1 for a carried channel
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from reparam.ir import FOLD_DTYPE, Program, Refusal, arguments, aten, is_call, module_of, op_name, place_of, shape_of

Family = Literal["linear", "slopes", "bounds", "gates", "fixed"]

# g(c) == 1 in float64 and below, with room: sigmoid(40), Phi(10), tanh(softplus(40)), relu6(c + 3)/6 for c >= 3.
_OPEN = {"silu": 40.0, "gelu": 10.0, "gelu_tanh": 10.0, "mish": 40.0, "hardswish": 40.0}
_FIXED = frozenset(
    {
        aten.sigmoid.default,
        aten.tanh.default,
        aten.hardsigmoid.default,
        aten.softplus.default,
        aten.elu.default,
        aten.selu.default,
        aten.celu.default,
        aten.abs.default,
    }
)
# Their positive half is the identity times a constant, so that a channel that is never negative passes.
_POSITIVE_HALF = frozenset({aten.elu.default, aten.selu.default, aten.celu.default, aten.abs.default})
SELU_SCALE = 1.0507009873554804934193349852946  # Klambauer et al. 2017


@dataclass(frozen=True)
class Activation:
    """What is applied to the channels of one value.

    family: how other channels can pass beside it. kind: the function. node: a call of it, for its arguments.
    slope: one number or (C,) for `slopes`. low, high: for `bounds`. ends: weights for `bounds`, where they are not
    numbers.
    """

    family: Family
    kind: str
    node: fx.Node | None = None
    slope: float = 0.0
    slopes: fx.Node | None = None
    low: float = -math.inf
    high: float = math.inf
    ends: tuple[fx.Node, fx.Node] | None = None

    @property
    def alike(self) -> bool:
        """Whether it does the same to every channel."""
        return self.slopes is None and self.ends is None

    @property
    def signature(self) -> tuple[Any, ...]:
        return (self.family, self.kind, self.slope, self.low, self.high)


LINEAR = Activation("linear", "linear", slope=1.0)


def read_activation(program: Program, node: fx.Node) -> Activation | None:
    """The activation that the call `node` is; None for anything else."""
    if node.op != "call_function":
        return None
    args = arguments(node)
    if node.target is aten.relu.default:
        return Activation("slopes", "relu", node, slope=0.0, low=0.0)
    if node.target is aten.leaky_relu.default:
        return Activation("slopes", "leaky_relu", node, slope=float(args["negative_slope"]))
    if node.target is aten.prelu.default and program.constant(args["weight"]) is not None:
        return Activation("slopes", "prelu", node, slopes=args["weight"])
    if node.target is aten.relu6.default:
        return Activation("bounds", "clamp", node, low=0.0, high=6.0)
    if node.target is aten.clamp.Tensor:
        return _read_bounds(program, node)
    if node.target is aten.hardtanh.default:
        return Activation("bounds", "clamp", node, low=float(args["min_val"]), high=float(args["max_val"]))
    if is_call(node, frozenset({aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default})):
        ends = (args.get("min"), args.get("max"))
        if not all(e is None or isinstance(e, (int, float)) for e in ends):
            return None
        low, high = (float(e) if e is not None else d for e, d in zip(ends, (-math.inf, math.inf), strict=True))
        return Activation("bounds", "clamp", node, low=low, high=high)
    return _read_gated(node) or (Activation("fixed", str(node.target), node) if node.target in _FIXED else None)


def _read_bounds(program: Program, node: fx.Node) -> Activation | None:
    """A clamp between weights that have one value for each channel."""
    rank, channels = node.meta["val"].dim(), shape_of(node)[1] if node.meta["val"].dim() > 1 else 0
    for end in node.args[1:3]:
        value = program.tensor(end)
        if value is None or value.numel() not in (1, channels):
            return None
        if value.numel() > 1 and (1,) * (rank - value.dim()) + tuple(value.shape) != (1, channels, *[1] * (rank - 2)):
            return None
    if len(node.args) < 3 or rank < 3:
        return None
    low, high = node.args[1:3]
    assert isinstance(low, fx.Node) and isinstance(high, fx.Node)
    return Activation("bounds", "clamp", node, ends=(low, high))


def _read_gated(node: fx.Node) -> Activation | None:
    names = {aten.silu.default: "silu", aten.mish.default: "mish", aten.hardswish.default: "hardswish"}
    if node.target in names:
        return Activation("gates", names[node.target], node)
    if node.target is aten.gelu.default:
        return Activation("gates", "gelu" if arguments(node)["approximate"] == "none" else "gelu_tanh", node)
    return None


@dataclass(frozen=True)
class ChannelRun:
    """Channels of a register behind a layer: `count` of them under `act`, their pre-activation at least `low`."""

    act: Activation
    count: int
    low: float


@dataclass(frozen=True)
class Joint:
    """One activation over a whole register. uniform: a call of it serves every channel as it is."""

    family: Family
    kind: str
    uniform: fx.Node | None
    slots: tuple[ChannelRun, ...]
    parametric: bool = False

    @property
    def gain(self) -> float:
        """What a carried channel is multiplied by; SELU scales its positive half."""
        return SELU_SCALE if self.uniform is not None and self.uniform.target is aten.selu.default else 1.0


def fit_activation(slots: Sequence[ChannelRun]) -> Joint | Refusal:
    """The activation that does to every slot what it wants, or why there is none."""
    active = [s for s in slots if s.act.family != "linear"]
    passing = [s for s in slots if s.act.family == "linear"]
    if not active:
        return Joint("linear", "linear", None, tuple(slots))
    first = active[0].act
    if all(s.act.signature == first.signature and _same_weights(s.act, first) for s in active):
        if not passing and first.alike:
            return Joint(first.family, first.kind, first.node, tuple(slots))
        if all(s.low >= 0.0 for s in passing) and _keeps_positive(first):
            return Joint(first.family, first.kind, first.node, tuple(slots))
    families = {s.act.family for s in active}
    if families <= {"slopes"}:
        return Joint("slopes", "prelu", None, tuple(slots), parametric=True)
    if all(s.act.family == "bounds" or s.act.kind == "relu" for s in active):
        return Joint("bounds", "clamp", None, tuple(slots), parametric=True)
    if families == {"gates"} and len({s.act.kind for s in active}) == 1:
        return Joint("gates", first.kind, None, tuple(slots), parametric=True)
    if len({s.act.signature for s in active}) > 1:
        return Refusal(f"{' and '.join(sorted({_named(s.act) for s in active}))} share no activation that also carries")
    return Refusal(f"{_named(first)} changes every value, so that nothing can be carried past it")


def _same_weights(a: Activation, b: Activation) -> bool:
    return a.slopes is b.slopes and a.ends == b.ends


def _named(act: Activation) -> str:
    """`elu at 'layer1.0.act'`"""
    if act.node is None:
        return act.kind
    place = module_of(act.node)
    return f"{op_name(act.node)} at '{place}'" if place else op_name(act.node)


def _keeps_positive(act: Activation) -> bool:
    if act.kind == "relu":
        return True
    return act.node is not None and act.node.target in _POSITIVE_HALF


def emit_activation(program: Program, joint: Joint, x: fx.Node, order: Tensor, axis: int, *, like: fx.Node) -> fx.Node:
    """Writes `joint` on the register `x`. order: (C,) the position among the slots' channels of each channel of `x`.

    A position of -1 is a padding channel, which is zero and stays so.
    """
    if joint.family == "linear":
        return x
    if joint.uniform is not None:
        args = fx.node.map_arg(joint.uniform.args, lambda n: n)
        return program.call(joint.uniform.target, (x, *args[1:]), joint.uniform.kwargs, like=like)
    if joint.kind == "relu":
        return program.call(aten.relu.default, (x,), like=like)
    stem = place_of(like)

    def weight(values: Tensor, name: str, *, flat: bool = False, trainable: bool = True) -> fx.Node:
        padded = torch.cat([values, values.new_zeros(1)])[order]
        rank = x.meta["val"].dim()
        shape = [-1] if flat else [-1, *[1] * (rank - 1 - axis)]
        return program.weight(padded.reshape(shape), f"{stem}.{name}", trainable=trainable, like=like)

    if joint.family == "slopes":
        return program.call(aten.prelu.default, (x, weight(_slopes(program, joint), "slopes", flat=True)), like=like)
    if joint.family == "bounds":
        # infinite bounds are no damaged weights: they are buffers
        low, high = (
            weight(v, n, trainable=False) for v, n in zip(_bounds(program, joint), ("low", "high"), strict=True)
        )
        return program.call(aten.clamp.Tensor, (x, low, high), like=like)
    scale, shift = _gates(joint)
    inner = program.call(aten.mul.Tensor, (x, weight(scale, "gate_scale")), like=like)
    inner = program.call(aten.add.Tensor, (inner, weight(shift, "gate_shift")), like=like)
    return _emit_gated(program, joint.kind, x, inner, like)


def _emit_gated(program: Program, kind: str, x: fx.Node, inner: fx.Node, like: fx.Node) -> fx.Node:
    """x*g(inner); relu6(v + 3)/6 is hardsigmoid."""
    if kind == "silu":
        gate = program.call(aten.sigmoid.default, (inner,), like=like)
    elif kind == "hardswish":
        gate = program.call(aten.hardsigmoid.default, (inner,), like=like)
    elif kind == "mish":
        gate = program.call(aten.softplus.default, (inner,), like=like)
        gate = program.call(aten.tanh.default, (gate,), like=like)
    elif kind == "gelu":  # Phi(v) = (1 + erf(v/sqrt 2))/2
        gate = program.call(aten.mul.Tensor, (inner, math.sqrt(0.5)), like=like)
        gate = program.call(aten.erf.default, (gate,), like=like)
        gate = program.call(aten.mul.Tensor, (gate, 0.5), like=like)
        gate = program.call(aten.add.Tensor, (gate, 0.5), like=like)
    else:  # (1 + tanh(sqrt(2/pi)*(v + 0.044715 v^3)))/2 = sigmoid(2*sqrt(2/pi)*v*(1 + 0.044715 v^2))
        gate = program.call(aten.mul.Tensor, (inner, inner), like=like)
        gate = program.call(aten.mul.Tensor, (gate, 0.044715), like=like)
        gate = program.call(aten.add.Tensor, (gate, 1.0), like=like)
        gate = program.call(aten.mul.Tensor, (gate, inner), like=like)
        gate = program.call(aten.mul.Tensor, (gate, 2.0 * math.sqrt(2.0 / math.pi)), like=like)
        gate = program.call(aten.sigmoid.default, (gate,), like=like)
    return program.call(aten.mul.Tensor, (x, gate), like=like)


def _slopes(program: Program, joint: Joint) -> Tensor:
    parts = []
    for slot in joint.slots:
        own = program.tensor(slot.act.slopes) if slot.act.slopes is not None else None
        if own is None:
            own = torch.tensor([slot.act.slope], dtype=FOLD_DTYPE)
        parts.append(own.reshape(-1).expand(slot.count))
    return torch.cat(parts)


def _bounds(program: Program, joint: Joint) -> tuple[Tensor, Tensor]:
    ends = []
    for i, pick in enumerate(("low", "high")):
        parts = []
        for slot in joint.slots:
            own = program.tensor(slot.act.ends[i]) if slot.act.ends is not None else None
            if own is None:
                own = torch.tensor([getattr(slot.act, pick)], dtype=FOLD_DTYPE)
            parts.append(own.reshape(-1).expand(slot.count))
        ends.append(torch.cat(parts))
    return ends[0], ends[1]


def _gates(joint: Joint) -> tuple[Tensor, Tensor]:
    opened = _OPEN[joint.kind]
    scale = [torch.full((s.count,), float(s.act.family != "linear"), dtype=FOLD_DTYPE) for s in joint.slots]
    shift = [torch.full((s.count,), 0.0 if s.act.family != "linear" else opened, dtype=FOLD_DTYPE) for s in joint.slots]
    return torch.cat(scale), torch.cat(shift)
