"""A program of low precision that takes and gives float32: the casts are part of its graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from reparam.ir import Program, aten, is_float

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


def with_wide_ports(program: Program) -> Program:
    """A copy whose floating inputs and outputs are float32 while it computes in its own dtype; itself if that is wide.

    Each input is cast where it enters and each output where it leaves.
    """
    if program.dtype.itemsize >= torch.float32.itemsize:
        return program
    wide = program.copy()
    narrow, specs = wide.dtype, {s.name: s for s in wide.inputs}
    nodes = [n for n in wide.placeholders if n.users and _is(specs, n, narrow)]
    for node in nodes:
        with wide.fake_mode:
            node.meta["val"] = node.meta["val"].to(torch.float32)
        _redirect(node, wide.call(aten._to_copy.default, (node,), {"dtype": narrow}, like=node.next))
    casts: dict[fx.Node, fx.Node] = {}

    def cast(node: fx.Node) -> fx.Node:
        if not is_float(node):
            return node
        if node not in casts:
            kwargs = {"dtype": torch.float32}
            casts[node] = wide.call(aten._to_copy.default, (node,), kwargs, like=wide.output)
            casts[node].meta["module"] = ""
        return casts[node]

    wide.output.args = fx.node.map_arg(wide.output.args, cast)
    inputs = tuple(replace(s, dtype=torch.float32) if s.dtype == narrow else s for s in wide.inputs)
    return replace(wide, inputs=inputs)


def _is(specs: Any, node: fx.Node, dtype: torch.dtype) -> bool:
    spec = specs.get(str(node.target))
    return spec is not None and spec.dtype == dtype


def _redirect(node: fx.Node, cast: fx.Node) -> None:
    cast.meta["module"] = ""
    node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
