"""Small random networks as plain data.

A `Spec` lists layers (with weights) and operations, each of which reads earlier values by their index: the inputs come
first, then one value for each operation. `networks.py` makes an nn.Module of it and `direct.py` a Program.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """A convolution. padding: a number for each axis, or "same"; mode: as padding_mode of nn.Conv2d.

    gain: its weight is multiplied by a gain for each output channel whenever it runs.
    """

    c_in: int
    c_out: int
    kernel: Shape
    stride: Shape
    padding: Shape | str
    dilation: Shape
    groups: int = 1
    bias: bool = True
    mode: str = "zeros"
    transposed: bool = False
    extra: Shape = ()
    gain: bool = False


@dataclass(frozen=True)
class Norm:
    """A norm: "batch", "group", "layer" or "instance".

    gamma: mixed signs, positive, some zeros, or none. tiny: some variances are far below eps. shift: False sets mean
    and beta to zero. groups: for "group". rank: of the value it takes, without the batch.
    """

    kind: str
    channels: int
    rank: int
    gamma: str = "mixed"
    tiny: bool = False
    shift: bool = True
    groups: int = 1


@dataclass(frozen=True)
class Linear:
    c_in: int
    c_out: int
    bias: bool = True


@dataclass(frozen=True)
class PReLU:
    count: int


@dataclass(frozen=True)
class Const:
    """A weight for arithmetic. values: "mixed" signs, "positive", "zeros" (some entries), "ones"."""

    shape: Shape
    values: str = "mixed"


Layer = Conv | Norm | Linear | PReLU | Const


@dataclass(frozen=True)
class Op:
    """One operation: what it does, which values it reads, and its options."""

    kind: str
    args: tuple[int, ...]
    how: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A network as data. shape: of one sample; low, high: the range that the inputs are promised to lie in."""

    shape: Shape
    layers: tuple[Layer, ...]
    ops: tuple[Op, ...]
    outputs: tuple[int, ...]
    inputs: int = 1
    dtype: str = "float64"
    dynamic: tuple[str, ...] = ("batch",)
    low: float = -math.inf
    high: float = math.inf
    seed: int = 0
