"""Programs built call by call: milliseconds where a capture takes a good part of a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from reparam.ir import InputSpec, Program, Refusal, evaluate
from reparam.rewrite import Match, Rewrite

Make = Callable[["ByHand", fx.Node], fx.Node]


class ByHand:
    """Appends inputs, weights and ATen calls to `program`; `returns` names its outputs."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        graph = fx.Graph()
        self._output = graph.output(())
        self._output.meta = {"val": None, "module": "", "data": True}
        mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False))
        self.program = Program(graph, {}, (), None, None, mode, dtype)

    def input(self, *shape: int, free: Sequence[int] = (), dtype: torch.dtype | None = None) -> fx.Node:
        """free: the axes whose sizes are not fixed."""
        dtype, name = dtype or self.program.dtype, f"x{len(self.program.inputs)}"
        sizes = [DimDynamic.DYNAMIC if i in free else DimDynamic.STATIC for i in range(len(shape))]
        with torch.no_grad():
            value = self.program.fake_mode.from_tensor(
                torch.empty(shape, dtype=dtype),
                source=ConstantSource(name),
                symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes),
            )
        with self.program.graph.inserting_before(self._output):
            node = self.program.graph.placeholder(name)
        node.meta = {"val": value, "module": "", "data": True}
        names = tuple(s if isinstance(s, int) else str(s.node.expr) for s in value.shape)
        self.program.inputs += (InputSpec(name, names, dtype),)
        return node

    def weight(self, value: Tensor, name: str = "weight", *, trainable: bool = True, module: str = "") -> fx.Node:
        dtype = value.dtype if value.is_floating_point() else None
        node = self.program.weight(value, name, dtype=dtype, trainable=trainable, like=self._output)
        node.meta["module"] = module
        return node

    def call(self, target: Any, /, *args: Any, module: str = "", **kwargs: Any) -> fx.Node:
        node = self.program.call(target, args, kwargs, like=self._output)
        node.meta["module"] = module
        return node

    def returns(self, *nodes: fx.Node) -> Program:
        self._output.args = (nodes,)
        return self.program


def call(target: Any, *options: Any, **named: Any) -> Make:
    """A call of a value, with tensors among the options as weights."""
    return lambda g, x: g.call(target, x, *(g.weight(o) if isinstance(o, Tensor) else o for o in options), **named)


def behind(target: Any, *options: Any) -> Make:
    """The same with the value as the last operand."""
    return lambda g, x: g.call(target, *(g.weight(o) if isinstance(o, Tensor) else o for o in options), x)


def then(*calls: Make) -> Make:
    """One call after the other."""

    def make(graph: ByHand, x: fx.Node) -> fx.Node:
        for one in calls:
            x = one(graph, x)
        return x

    return make


def rewritten(
    rule: Any, graph: ByHand, root: fx.Node, *inputs: Tensor, bound: float = 1e-12
) -> Rewrite | Refusal | None:
    """What `rule` makes of `root`, the only output: the same numbers, in a program without the old calls."""
    graph.returns(root)
    plan = rule.check(graph.program, Match(root, {}))
    if plan is None or isinstance(plan, Refusal):
        return plan
    made: Rewrite = rule.rewrite(graph.program, plan)
    [before], [after] = (evaluate(graph.returns(n), inputs) for n in (root, made.replace[root]))
    assert before.shape == after.shape and before.dtype == after.dtype
    assert float((before - after).abs().max()) <= bound * float(before.abs().max())
    graph.program.graph.eliminate_dead_code()
    graph.program.graph.lint()
    return made
