"""Attention whose results lie in memory in one order, however they are computed.

torch's fast forms of `scaled_dot_product_attention` give their results in another order than the form that is spelled
out. A reshape behind them that is right for the one is none for the other, and the exporter goes from the one to the
other. A copy in between settles the order; it is nothing in ONNX.
"""

from __future__ import annotations

from reparam.ir import Program, aten, is_call, module_of

_ATTENTION = frozenset({aten.scaled_dot_product_attention.default})


def with_settled_attention(program: Program) -> Program:
    """The program with a copy behind each attention; itself where there is none."""
    if not any(is_call(n, _ATTENTION) for n in program.calls()):
        return program
    made = program.copy()
    for node in list(made.calls()):
        if is_call(node, _ATTENTION):
            settled = made.call(aten.contiguous.default, (node,), like=node.next)
            settled.meta["module"] = module_of(node)
            for reader in [n for n in node.users if n is not settled]:
                reader.replace_input_with(node, settled)
    return made
