"""Operators whose values torch's exporter loses, in words that keep them: logarithms beside one, what is left over of a
division and its whole part, angles, and bits of narrow numbers.

The exporter's own words are right near one and for small numbers, which is what random inputs are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from reparam.ir import Program, aten

from .exact_sums import diagonal, diagonal_of_matrix, running_log_of_sums, scattered_mean, trace
from .speaker import Speaker, log_of_sums

LONGEST = 63  # bits that a number of 64 can be shifted by
_NARROW = frozenset({torch.int8, torch.int16, torch.uint8})  # runtimes lack arithmetic of these
_UNKNOWN = frozenset({aten.__lshift__.Tensor, aten.__rshift__.Tensor})  # to the exporter
_FLOOR, _MEAN, _SUM = "floor", 1, 2
_LEAST_LOG = -100.0  # of torch's cross entropy, below which no logarithm counts


def in_exact_words(program: Program) -> Program:
    """The program with these operators in words that are right for all numbers; itself where there is none."""
    if not any(n.target in _WORDS for n in program.calls()):
        return program
    made = program.copy()
    for node in list(made.calls()):
        words = _WORDS.get(node.target)
        value = words(Speaker(made, node)) if words is not None else None
        if value is not None:
            node.replace_all_uses_with(value)
            made.erase([node])
    return made


def _log_sigmoid(say: Speaker) -> fx.Node:
    """log 1/(1 + exp(-x)) = -softplus(-x)."""
    return _of_sigmoid(say, say.tensor("self"))


def _of_sigmoid(say: Speaker, x: fx.Node) -> fx.Node:
    return say(aten.neg.default, say.softplus(say(aten.neg.default, x)))


def _log(say: Speaker) -> fx.Node | None:
    """The logarithm of a sigmoid, which runtimes take for zero from -18 on, is that of `_log_sigmoid`."""
    inner = say.args["self"]
    if inner.target is not aten.sigmoid.default or inner.meta["val"].dtype is not say.dtype:
        return None
    x = inner.args[0]
    return _of_sigmoid(say, x if x.meta["val"].dtype is say.dtype else say(aten.to.dtype, x, say.dtype))


def _log1p(say: Speaker) -> fx.Node | None:
    return say.log1p(say.tensor("self")) if say.floats else None


def _expm1(say: Speaker) -> fx.Node | None:
    """exp(x) - 1 = tanh(x/2) (exp(x) + 1): no two numbers are subtracted."""
    if not say.floats:
        return None
    x = say.tensor("self")
    half = say(aten.tanh.default, say(aten.mul.Tensor, x, 0.5))
    return say(aten.mul.Tensor, half, say(aten.add.Tensor, say(aten.exp.default, x), 1.0))


def _xlog1py(say: Speaker) -> fx.Node | None:
    """x log(1 + y), and 0 where x is 0."""
    if not say.floats:
        return None
    x = say.tensor("self")
    product = say(aten.mul.Tensor, x, say.log1p(say.tensor("other")))
    return say(aten.where.ScalarSelf, say(aten.eq.Scalar, x, 0.0), 0.0, product)


def _apart(say: Speaker) -> tuple[fx.Node, fx.Node]:
    """The larger of two numbers, and -|a - b|: 0 where they are equal, also where both are infinite."""
    a, b = say.tensor("self"), say.tensor("other")
    between = say(aten.where.ScalarSelf, say(aten.eq.Tensor, a, b), 0.0, say(aten.sub.Tensor, a, b))
    return say(aten.maximum.default, a, b), say(aten.neg.default, say(aten.abs.default, between))


def _logaddexp(say: Speaker) -> fx.Node:
    """log(exp(a) + exp(b)) = max(a, b) + softplus(-|a - b|)."""
    larger, apart = _apart(say)
    return say(aten.add.Tensor, larger, say.softplus(apart))


def _logaddexp2(say: Speaker) -> fx.Node:
    """log2(2^a + 2^b) = max(a, b) + softplus(-|a - b| ln 2) / ln 2."""
    larger, apart = _apart(say)
    more = say.softplus(say(aten.mul.Tensor, apart, say.number(math.log(2.0))))
    return say(aten.add.Tensor, larger, say(aten.mul.Tensor, more, say.number(1.0 / math.log(2.0))))


def _logsumexp(say: Speaker) -> fx.Node | None:
    axes = say.args["dim"]
    axes = axes if isinstance(axes, (list, tuple)) else [axes]
    if not say.floats or not axes or not say.args["self"].meta["val"].dim():
        return None
    value = log_of_sums(say, say.tensor("self"), axes)
    return value if say.args.get("keepdim") else say(aten.squeeze.dims, value, axes)


def _cross_entropy_of_logits(say: Speaker) -> fx.Node:
    """(1 - t) x + (1 + (p - 1) t) softplus(-x), with the weight p of what is true."""
    x, target = say.tensor("self"), say.tensor("target")
    loss = say.softplus(say(aten.neg.default, x))
    if say.args.get("pos_weight") is not None:
        more = say(aten.mul.Tensor, say(aten.sub.Tensor, say.tensor("pos_weight"), 1.0), target)
        loss = say(aten.mul.Tensor, say(aten.add.Tensor, more, 1.0), loss)
    return say.reduced(say(aten.add.Tensor, say(aten.mul.Tensor, say(aten.rsub.Scalar, target, 1.0), x), loss))


def _cross_entropy(say: Speaker) -> fx.Node:
    """(t - 1) log(1 - x) - t log(x), of which no logarithm is below -100."""
    x, target = say.tensor("self"), say.tensor("target")
    logs = (say.log1p(say(aten.neg.default, x)), say(aten.log.default, x))
    no, yes = (say(aten.clamp.default, v, _LEAST_LOG) for v in logs)
    first = say(aten.mul.Tensor, say(aten.sub.Tensor, target, 1.0), no)
    return say.reduced(say(aten.sub.Tensor, first, say(aten.mul.Tensor, target, yes)))


def _soft_margin(say: Speaker) -> fx.Node:
    """log(1 + exp(-t x))."""
    product = say(aten.mul.Tensor, say(aten.neg.default, say.tensor("self")), say.tensor("target"))
    return say.reduced(say.log1p(say(aten.exp.default, product)))


def _remainder(say: Speaker) -> fx.Node | None:
    """fmod(a, b), and b more where its sign is not that of b."""
    if not say.floats:
        return None
    b = say.tensor("other")
    rest, other = say.left_over(say.tensor("self"), b)
    return say(aten.where.self, other, say(aten.add.Tensor, rest, b), rest)


def _divided(say: Speaker) -> fx.Node | None:
    mode = say.args.get("rounding_mode", _FLOOR)
    if say.dtype is torch.bool or mode is None:
        return None
    if say.floats:
        return _floor(say) if mode == _FLOOR else None
    known = "rounding_mode" not in say.args and isinstance(say.args["self"], fx.Node)
    return None if known and say.dtype not in _NARROW else _whole(say, mode)


def _floor(say: Speaker) -> fx.Node:
    """q = (a - r) / b for r of `_remainder`, to the nearest whole number; a / b where b is 0. As torch has it."""
    a, b = say.tensor("self"), say.tensor("other")
    rest, other = say.left_over(a, b)
    quotient = say(aten.div.Tensor, say(aten.sub.Tensor, a, rest), b)
    quotient = say(aten.where.self, other, say(aten.sub.Tensor, quotient, 1.0), quotient)
    below = say(aten.floor.default, quotient)
    over = say(aten.gt.Scalar, say(aten.sub.Tensor, quotient, below), 0.5)
    whole = say(aten.where.self, over, say(aten.add.Tensor, below, 1.0), below)
    return say(aten.where.self, say(aten.eq.Scalar, b, 0.0), say(aten.div.Tensor, a, b), whole)


def _whole(say: Speaker, mode: str) -> fx.Node:
    """In whole numbers: floor(a / b), and (a - fmod(a, b)) / b towards zero, of which nothing is left over."""
    wide = torch.int32 if say.dtype in _NARROW else say.dtype
    a, b = say.tensor("self", wide), say.tensor("other", wide)
    a = a if mode == _FLOOR else say(aten.sub.Tensor, a, say(aten.fmod.Tensor, a, b))
    value = say(aten.floor_divide.default, a, b)
    return value if wide is say.dtype else say(aten.to.dtype, value, say.dtype)


def _angle(say: Speaker) -> fx.Node | None:
    """The angle of (|x|, |y|) is atan(|y| / |x|), 1 for equal ones and 0 for zeros; pi less it where x is negative."""
    if not say.floats:
        return None
    y, x = say.tensor("self"), say.tensor("other")
    up, along = (say(aten.abs.default, v) for v in (y, x))
    ratio = say(aten.where.ScalarSelf, say(aten.eq.Tensor, up, along), 1.0, say(aten.div.Tensor, up, along))
    none = say(aten.eq.Scalar, say(aten.add.Tensor, up, along), 0.0)
    ratio = say(aten.where.ScalarSelf, none, 0.0, ratio)
    angle = say(aten.atan.default, ratio)
    angle = say(aten.where.self, say.is_negative(x), say(aten.sub.Tensor, say.number(math.pi), angle), angle)
    sign = say(aten.where.Scalar, say.is_negative(y), -1.0, 1.0)  # a product keeps the sign of zero, as no Where does
    return say(aten.mul.Tensor, angle, say(aten.to.dtype, sign, say.dtype))


def _sign_bit(say: Speaker) -> fx.Node | None:
    x = say.args["self"]
    return say.is_negative(x) if x.meta["val"].is_floating_point() else None


def _shifted(say: Speaker, target: Any) -> fx.Node | None:
    """Narrow numbers in 64 bits, and the last bits of these; others by the operator that the exporter knows."""
    if say.dtype not in _NARROW and say.node.target not in _UNKNOWN:
        return None
    wide = torch.int64 if say.dtype in _NARROW else say.dtype
    a, by = say.tensor("self", wide), say.tensor("other", wide)
    value = say(target, a, by if wide is say.dtype else say(aten.clamp.default, by, None, LONGEST))
    if say.dtype is torch.uint8:
        value = say(aten.bitwise_and.Scalar, value, 0xFF)
    return value if wide is say.dtype else say(aten.to.dtype, value, say.dtype)


def _left(say: Speaker) -> fx.Node | None:
    return _shifted(say, aten.bitwise_left_shift.Tensor)


def _right(say: Speaker) -> fx.Node | None:
    return _shifted(say, aten.bitwise_right_shift.Tensor)


def _filled(say: Speaker) -> fx.Node | None:
    """Complex numbers of one value, as real and imaginary parts of one value each."""
    number = say.args.get("fill_value", "ones" in str(say.node.target))
    if not say.dtype.is_complex or isinstance(number, fx.Node):
        return None
    value = complex(number)

    def part(number: float) -> fx.Node:
        like = {"dtype": say.dtype.to_real()}
        if "size" in say.args:
            return say.program.call(aten.full.default, (say.args["size"], number), like, like=say.node)
        return say.program.call(aten.full_like.default, (say.args["self"], number), like, like=say.node)

    return say(aten.complex.default, part(value.real), part(value.imag))


def _each(names: str, words: Callable[[Speaker], fx.Node | None]) -> dict[Any, Callable[[Speaker], fx.Node | None]]:
    """The words of all overloads of these operators."""
    packets = [getattr(aten, name) for name in names.split()]
    return {getattr(p, o): words for p in packets for o in p.overloads() if o != "out" and not o.endswith("_out")}


_WORDS: dict[Any, Callable[[Speaker], fx.Node | None]] = {
    **_each("log_sigmoid", _log_sigmoid),
    aten.log.default: _log,
    **_each("log1p special_log1p", _log1p),
    **_each("expm1 special_expm1", _expm1),
    **_each("special_xlog1py", _xlog1py),
    **_each("logaddexp", _logaddexp),
    **_each("logaddexp2", _logaddexp2),
    **_each("logsumexp special_logsumexp", _logsumexp),
    **_each("binary_cross_entropy_with_logits", _cross_entropy_of_logits),
    **_each("binary_cross_entropy", _cross_entropy),
    **_each("soft_margin_loss", _soft_margin),
    **_each("remainder", _remainder),
    **_each("floor_divide", _divided),
    aten.div.Tensor_mode: _divided,
    aten.div.Scalar_mode: _divided,
    aten.divide.Tensor_mode: _divided,
    aten.divide.Scalar_mode: _divided,
    **_each("atan2 arctan2", _angle),
    **_each("signbit", _sign_bit),
    **_each("zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full", _filled),
    **_each("bitwise_left_shift __lshift__", _left),
    **_each("bitwise_right_shift __rshift__", _right),
    **_each("diagonal diagonal_copy", diagonal),
    **_each("diag", diagonal_of_matrix),
    **_each("trace", trace),
    **_each("logcumsumexp", running_log_of_sums),
    **_each("scatter_reduce", scattered_mean),
}
