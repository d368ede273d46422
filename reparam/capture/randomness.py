"""Which calls of a graph draw random numbers: a network with one is not a function of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from reparam.errors import CaptureError
from reparam.ir import arguments, op_name

from .functionalize import module_path
from .places import line_of

SHOWN = 3
_SWITCHES = ("train", "training")
_SHARES = ("dropout_p", "dropout")


def refuse_random_calls(graph: fx.Graph) -> None:
    """Raises CaptureError naming the operators whose random results reach the outputs, their layers and lines."""
    found = [node for node in _alive(graph) if _draws(node)]
    if not found:
        return
    places = [describe_call(node) for node in found[:SHOWN]]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise CaptureError(
        f"the model draws random numbers while it runs, by {', '.join(places)}{more}, so it is not a function of its "
        "inputs; switch that off in evaluation mode"
    )


def _alive(graph: fx.Graph) -> Iterator[fx.Node]:
    """The calls that an output depends on, or that write, in order."""
    stack = [n for n in graph.nodes if n.op == "output" or _writes(n.target)]
    needed = set(stack)
    while stack:
        for operand in stack.pop().all_input_nodes:
            if operand not in needed:
                needed.add(operand)
                stack.append(operand)
    return (n for n in graph.nodes if n in needed and n.op == "call_function")


def _writes(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and bool(target._schema.is_mutable)


def _draws(node: fx.Node) -> bool:
    """Whether a call draws random numbers as it is called: a dropout that is off, or drops nothing, does not."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    given = arguments(node)
    dropout = "dropout" in op_name(node)
    able = torch.Tag.nondeterministic_seeded in node.target.tags or "generator" in given or "dropout_p" in given
    if not (able or dropout) or any(given.get(s) is False for s in _SWITCHES):
        return False
    shares = [given[s] for s in (*_SHARES, *(("p",) if dropout else ())) if s in given]
    return not (shares and all(isinstance(s, int | float) and s == 0 for s in shares))


def describe_call(node: fx.Node) -> str:
    """`dropout in 'head.drop' (net.py:12 `return self.drop(x)`)`."""
    path, line = module_path(node), line_of(node)
    layer = f" in '{path}'" if path else ""
    return f"{op_name(node)}{layer}" + (f" ({line})" if line is not None else "")
