"""Attention as the exporter and ONNX take it: of four axes, and with results that lie in memory in one order.

torch takes queries (..., L, E) with any axes in front, and ONNX (batch, heads, L, E). Fewer axes get one more in front;
of more axes the first become one.

torch's fast forms of `scaled_dot_product_attention` give their results in another order than the form that is spelled
out. A reshape behind them that is right for the one is none for the other, and the exporter goes from the one to the
other. A copy in between settles the order; it is nothing in ONNX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from reparam.ir import Program, arguments, aten, fixed_size, is_call, module_of

_ATTENTION = frozenset({aten.scaled_dot_product_attention.default})
AXES = 4


def with_settled_attention(program: Program) -> Program:
    """The program with attention of four axes, and a copy behind each; itself where there is none."""
    if not any(is_call(n, _ATTENTION) for n in program.calls()):
        return program
    made = program.copy()
    for node in list(made.calls()):
        if is_call(node, _ATTENTION):
            readers, after = list(node.users), node.next
            result = _of_four_axes(made, node)
            settled = made.call(aten.contiguous.default, (result,), like=after)
            settled.meta["module"] = module_of(node)
            for reader in readers:
                reader.replace_input_with(node, settled)
            if result is not node and not node.users:
                made.erase([node])
    return made


def _of_four_axes(program: Program, node: fx.Node) -> fx.Node:
    """The same attention of four axes; itself where it has them, or where its operands differ in the first axes."""
    given = arguments(node)
    operands = [given[k] for k in ("query", "key", "value")]
    mask = given["attn_mask"]
    ranks = {_rank(v) for v in operands}
    rank = ranks.pop()
    if ranks or rank == AXES or not _alike(operands, mask, rank):
        return node

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return program.call(target, args, kwargs, like=node)

    more = {k: given[k] for k in ("dropout_p", "is_causal", "scale", "enable_gqa")}
    if rank < AXES:
        for _ in range(AXES - rank):
            operands = [call(aten.unsqueeze.default, v, 0) for v in operands]
        result = call(aten.scaled_dot_product_attention.default, *operands, mask, **more)
        for _ in range(AXES - rank):
            result = call(aten.squeeze.dim, result, 0)
        return result
    last = rank - AXES
    joined = [call(aten.flatten.using_ints, v, 0, last) for v in operands]
    if mask is not None and _rank(mask) > AXES:
        mask = call(aten.flatten.using_ints, mask, 0, last)
    result = call(aten.scaled_dot_product_attention.default, *joined, mask, **more)
    return call(aten.unflatten.int, result, 0, [-1, *_sizes(operands[0], last, call)])


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].dim())


def _alike(operands: list[fx.Node], mask: fx.Node | None, rank: int) -> bool:
    """Whether the axes that are joined are of the same sizes in all operands, and in a mask that has them."""
    count = max(0, rank - AXES + 1)
    fronts = [tuple(map(str, v.meta["val"].shape[:count])) for v in operands]
    if mask is not None and _rank(mask) >= AXES and rank > AXES:
        fronts.append(tuple(map(str, mask.meta["val"].shape[:count])) if _rank(mask) == rank else ())
    return len(set(fronts)) == 1


def _sizes(node: fx.Node, last: int, call: Callable[..., fx.Node]) -> list[Any]:
    """Those of the axes 1 to `last`."""
    shape = node.meta["val"].shape
    return [fixed_size(shape[i]) or call(aten.sym_size.int, node, i) for i in range(1, last + 1)]
