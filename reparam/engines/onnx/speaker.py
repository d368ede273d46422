"""Calls that are written in the place of one, in words that ONNX has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from reparam.ir import Program, arguments, aten, is_tensor

FAR = 2.0**60  # beyond it 1 + x is x, also in double precision
_MEAN, _SUM = 1, 2  # how a loss is reduced


class Speaker:
    """Writes calls in the place of one: its arguments as tensors of the dtype that it gives."""

    def __init__(self, program: Program, node: fx.Node) -> None:
        self.program, self.node, self.args = program, node, arguments(node)
        self.dtype: torch.dtype = node.meta["val"].dtype

    @property
    def floats(self) -> bool:
        return self.dtype.is_floating_point

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        return self.program.call(target, args, like=self.node)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> fx.Node:
        """An argument, also where it is a number or a size, in the dtype of the result or another."""
        value, dtype = self.args[name], dtype or self.dtype
        if isinstance(value, int) and not self.floats:
            value = torch.tensor(value).to(self.dtype).item()  # as it wraps around in that of the result
        if not isinstance(value, fx.Node) or not is_tensor(value):
            return self.number(value, dtype)
        return value if value.meta["val"].dtype is dtype else self(aten.to.dtype, value, dtype)

    def number(self, value: Any, dtype: torch.dtype | None = None) -> fx.Node:
        """A number or a size as a tensor. The exporter rounds numbers to single precision, and no weights."""
        dtype = dtype or self.dtype
        if dtype is torch.float64 and not isinstance(value, fx.Node):
            number = torch.tensor(value, dtype=dtype)
            origin = f"{self.node.name}_number"
            return self.program.weight(number, origin, dtype=dtype, trainable=False, like=self.node)
        return self.program.call(aten.scalar_tensor.default, (value,), {"dtype": dtype}, like=self.node)

    def reduced(self, value: fx.Node) -> fx.Node:
        """A loss, as its call reduces it."""
        how = self.args["reduction"]
        weight = self.args.get("weight")
        value = value if weight is None else self(aten.mul.Tensor, value, self.tensor("weight"))
        if how == _MEAN:
            return self(aten.mean.default, value)
        return self(aten.sum.default, value) if how == _SUM else value

    def softplus(self, x: fx.Node) -> fx.Node:
        """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), which runtimes have as one operator, not in float64."""
        if self.dtype is not torch.float64:
            return self(aten.softplus.default, x)
        less = self(aten.exp.default, self(aten.neg.default, self(aten.abs.default, x)))
        return self(aten.add.Tensor, self(aten.relu.default, x), self.log1p(less))

    def log1p(self, x: fx.Node) -> fx.Node:
        """log(1 + x) = log(u) x / (u - 1) of u = 1 + x as it is rounded: its error is that of u as well.

        Where u is one it is x.
        """
        u = self(aten.add.Tensor, x, 1.0)
        near, above = (self(aten.clamp.default, v, None, self._far) for v in (x, u))  # else OpenVINO folds (x + 1) - 1
        ratio = self(aten.div.Tensor, near, self(aten.sub.Tensor, above, 1.0))
        product = self(aten.mul.Tensor, self(aten.log.default, u), ratio)
        return self(aten.where.self, self(aten.eq.Scalar, u, 1.0), x, product)

    @property
    def _far(self) -> float:
        return min(FAR, torch.finfo(self.dtype).max / 2)

    def is_negative(self, x: fx.Node) -> fx.Node:
        """Of zeros the one whose reciprocal is -inf."""
        zero = self(aten.eq.Scalar, x, 0.0)
        told = self(aten.where.self, zero, self(aten.reciprocal.default, x), x)
        return self(aten.lt.Scalar, told, 0.0)

    def left_over(self, a: fx.Node, b: fx.Node) -> tuple[fx.Node, fx.Node]:
        """r = fmod(a, b), which is exact, and whether its sign is not that of b."""
        rest = self(aten.fmod.Tensor, a, b)
        signs = [self(aten.lt.Scalar, v, 0) for v in (rest, b)]
        other = self(aten.logical_xor.default, *signs)
        return rest, self(aten.logical_and.default, other, self(aten.ne.Scalar, rest, 0))


def log_of_sums(say: Speaker, x: fx.Node, axes: Sequence[int]) -> fx.Node:
    """m + log(sum exp(x - m)) of the largest number m, or of 0 where that is infinite, as it is behind a mask.

    The axes stay, with a size of one.
    """
    largest = say(aten.amax.default, x, axes, True)
    infinite = say(aten.eq.Scalar, say(aten.abs.default, largest), math.inf)
    largest = say(aten.where.ScalarSelf, infinite, 0.0, largest)
    powers = say(aten.exp.default, say(aten.sub.Tensor, x, largest))
    return say(aten.add.Tensor, say(aten.log.default, say(aten.sum.dim_IntList, powers, axes, True)), largest)
