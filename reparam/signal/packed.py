"""Layers that are several in one, such as queries, keys and values: what reads their results, part by part."""

from __future__ import annotations

from torch import Tensor, fx

from reparam.ir import LINEARS, MOVEMENTS, SPLITS, Program, aten, is_call, op_name, shape_of

from .boxes import Span, joined
from .functions import PASSIVE
from .reach import reach_of
from .roles import TURNS


def packed_parts(program: Program, node: fx.Node) -> int:
    """How many layers of equal width a layer stands for: each of its readers takes the channels of one of them. 1 for
    a layer of one part, and where parts differ in width."""
    axis = -1 if is_call(node, LINEARS) else 1
    channels = shape_of(node)[axis]
    found: set[tuple[float, float]] = set()
    stack = [node]
    while stack:
        at = stack.pop()
        for user in at.users:
            several = is_call(user, SPLITS | {aten.unbind.int})
            if is_call(user, PASSIVE | TURNS) and user.users and (several or isinstance(user.meta["val"], Tensor)):
                stack.append(user)
            elif at is node and op_name(user) == "glu" and channels % 2 == 0:
                found |= {(0, channels // 2 - 1), (channels // 2, channels - 1)}
            elif not isinstance(at.meta["val"], Tensor) or at is node:
                return 1
            else:
                box = reach_of(program, at, tuple((Span(n, 0, n - 1),) for n in shape_of(at)), node)
                if isinstance(box, str):
                    return 1
                span = joined(box[axis])
                found.add((span.low, span.high))
    whole = {s for s in found if not any(s != t and t[0] <= s[0] and s[1] <= t[1] for t in found)}
    return _equal(sorted(whole), channels)  # a part may be read in halves as well, as rotary positions do


def _equal(spans: list[tuple[float, float]], channels: int) -> int:
    count = len(spans)
    if count < 2 or channels % count:
        return 1
    width = channels // count
    return count if spans == [(i * width, (i + 1) * width - 1) for i in range(count)] else 1


def moved_alone(nodes: list[fx.Node]) -> bool:
    """Whether calls only take parts of a weight, or turn it."""
    return all(is_call(n, MOVEMENTS) for n in nodes if n.op == "call_function")
