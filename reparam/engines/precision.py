"""A program of low precision that takes and gives float32, by casts in its graph; one without bfloat16 parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.emit import retyped
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


def without_bfloat16_parts(program: Program) -> Program:
    """A copy whose bfloat16 parts are float32, with the same weights; itself if it has none or is all bfloat16."""
    narrow, wide = torch.bfloat16, torch.float32
    values = (n.meta.get("val") for n in program.graph.nodes)
    if program.dtype == narrow or not any(isinstance(v, Tensor) and v.dtype == narrow for v in values):
        return program
    copy = program.copy()
    for name, c in program.constants.items():
        if c.dtype == narrow:
            copy.constants[name] = replace(c, value=c.value.to(wide), dtype=wide)
    return retyped(copy, narrow, wide)


def _is(specs: Any, node: fx.Node, dtype: torch.dtype) -> bool:
    spec = specs.get(str(node.target))
    return spec is not None and spec.dtype == dtype


def _redirect(node: fx.Node, cast: fx.Node) -> None:
    cast.meta["module"] = ""
    node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
