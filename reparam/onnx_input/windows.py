"""Where the windows of convolutions and pools lie: paddings, as they are given or as `auto_pad` has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Call


@dataclass(frozen=True)
class Windows:
    """Of each spatial axis: the size, step and spacing of a window, and what is added before and behind.

    The paddings may be sizes of free axes.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[Any, ...]
    behind: tuple[Any, ...]

    @property
    def even(self) -> bool:
        """Whether the same is added before and behind, of whole numbers."""
        pairs = zip(self.before, self.behind, strict=True)
        return all(isinstance(b, int) and isinstance(a, int) and b == a >= 0 for b, a in pairs)

    def span(self, axis: int) -> int:
        """From the first to the last position of a window, both included."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1

    def padded(self, x: Tensor, value: float = 0.0, behind: Sequence[Any] | None = None) -> Tensor:
        """x with all the padding. behind: what is added there instead."""
        ends = self.behind if behind is None else behind
        pairs = list(zip(self.before, ends, strict=True))
        if all(isinstance(n, int) and n == 0 for pair in pairs for n in pair):
            return x
        return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=value)


def windows(call: Call, x: Tensor, kernel: Sequence[int]) -> Windows:
    """The windows of a call over x, whose first two axes are samples and channels."""
    rank = x.dim() - 2
    if rank not in (1, 2, 3) or len(kernel) != rank:
        raise call.node.refused(f"its windows have {len(kernel)} axes over a value with {x.dim()}")
    stride = _positive(call, "strides", rank)
    dilation = _positive(call, "dilations", rank)
    kind = call.attribute("auto_pad", "NOTSET")
    bare = Windows(tuple(int(k) for k in kernel), stride, dilation, (0,) * rank, (0,) * rank)
    if kind == "NOTSET":
        pads = call.attribute("pads", (0,) * (2 * rank))
        if len(pads) != 2 * rank or not all(isinstance(p, int) for p in pads):
            raise call.node.refused("its pads are not two whole numbers for each axis")
        return Windows(bare.kernel, stride, dilation, tuple(pads[:rank]), tuple(pads[rank:]))
    if kind == "VALID":
        return bare
    if kind not in ("SAME_UPPER", "SAME_LOWER"):
        raise call.node.refused("its auto_pad is unknown")
    totals = [_same(x.shape[i + 2], stride[i], bare.span(i)) for i in range(rank)]
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    before, behind = (less, more) if kind == "SAME_UPPER" else (more, less)
    return Windows(bare.kernel, stride, dilation, tuple(before), tuple(behind))


def _same(size: Any, stride: int, span: int) -> Any:
    """What has to be added so that there are size / stride windows, rounded up."""
    if stride == 1:
        return span - 1
    count = (size + stride - 1) // stride
    return torch.sym_max((count - 1) * stride + span - size, 0)


def _positive(call: Call, name: str, rank: int) -> tuple[int, ...]:
    found = call.attribute(name, (1,) * rank)
    if len(found) != rank or not all(isinstance(n, int) and n > 0 for n in found):
        raise call.node.refused(f"its {name} are not one positive number for each axis")
    return tuple(found)
