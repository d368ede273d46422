"""A program run on samples with what analyses look at: values, and gradients of a random function of the result.

Everything is float64. Values that nobody asks for are freed as soon as they have been read.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from reparam.errors import InputError
from reparam.ir import (
    BATCH_NORMS,
    DROPOUTS,
    NORMS,
    RRELUS,
    WEIGHTED,
    Program,
    arguments,
    aten,
    call_node,
    default_dtype,
    feed,
    filled,
    is_call,
    is_floating,
    last_uses,
    place_of,
    tensors_of,
    weight_value,
)
from reparam.utils import foreign_code

Inputs = Sequence[Tensor]
PRODUCTS = frozenset({aten.matmul.default, aten.mm.default, aten.addmm.default})


@dataclass(frozen=True)
class Sampled:
    """What analyses run on. batches: of inputs. training: whether batch norms take the statistics of the batch.

    random: whether the inputs are random numbers. seed: of what analyses draw.
    """

    program: Program
    batches: Sequence[Inputs]
    training: bool
    random: bool
    seed: int

    def run(self, observe: Callable[[fx.Node, Any], None]) -> list[list[Any]]:
        """Runs all batches; `observe` is called with each call and its value. Returns the outputs of each batch."""
        with torch.no_grad():
            return [run(self.program, batch, observe=observe, training=self.training) for batch in self.batches]


@dataclass(frozen=True)
class Differentiable:
    """A run that can be differentiated. values: of the nodes that were asked for, and of all weights that were.

    leaves: the inputs of the network, in order of the placeholders. outputs: floating ones that depend on the inputs.
    """

    values: Mapping[fx.Node, Tensor]
    leaves: Sequence[Any]
    outputs: Sequence[Tensor]

    def cotangents(self, generator: torch.Generator) -> list[Tensor]:
        """Random numbers from N(0, 1) for each output."""
        return [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in self.outputs]

    def gradients(self, wanted: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
        """Of the sum of the outputs, weighted by the cotangents; zero where nothing depends on a value."""
        pairs = [(y, g) for y, g in zip(self.outputs, cotangents, strict=True) if y.requires_grad]
        if not pairs or not wanted:
            return [torch.zeros_like(w) for w in wanted]
        ys, gs = zip(*pairs, strict=True)
        found = torch.autograd.grad(ys, wanted, gs, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def random_batches(program: Program, size: int, count: int, generator: torch.Generator) -> Iterator[Inputs]:
    """`count` batches of inputs from N(0, 1), whole numbers where they are no floating ones; `size` samples in each
    where the size of a batch is free."""
    sizes = {s.shape[0]: size for s in program.inputs if s.shape and isinstance(s.shape[0], str)}
    for _ in range(count):
        yield tensors_of(program, feed(program, sizes, generator))


def run(
    program: Program,
    inputs: Inputs,
    *,
    observe: Callable[[fx.Node, Any], None] | None = None,
    training: bool = False,
) -> list[Any]:
    """The outputs of the program on one batch, in float64."""
    return _run(program, inputs, observe, training, frozenset(), {}, [], weights=False)


def differentiable(
    program: Program, inputs: Inputs, keep: Container[fx.Node], *, training: bool = False, weights: bool = False
) -> Differentiable:
    """A run whose values `keep` can be differentiated by; weights: whether weights can be, too."""
    values: dict[fx.Node, Tensor] = {}
    leaves: list[Any] = []
    with torch.enable_grad():
        outputs = _run(program, inputs, None, training, keep, values, leaves, weights=weights)
    kept = [y for y in outputs if isinstance(y, Tensor) and y.is_floating_point() and y.requires_grad]
    return Differentiable(values, leaves, kept)


def _run(
    program: Program,
    inputs: Inputs,
    observe: Callable[[fx.Node, Any], None] | None,
    training: bool,
    keep: Container[fx.Node],
    values: dict[fx.Node, Tensor],
    leaves: list[Any],
    *,
    weights: bool,
) -> list[Any]:
    env: dict[fx.Node, Any] = {}
    feed: Iterator[Any] = iter(filled(program, inputs))
    frees = last_uses(program.graph.nodes)
    tracked = torch.is_grad_enabled()
    with default_dtype(torch.float64), foreign_code("running the network"):
        for node in program.graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                value = next(feed)
                value = value.to(torch.float64) if is_floating(value) else value
                value = value.detach().requires_grad_() if tracked and is_floating(value) else value
                leaves.append(value)
            elif node.op == "get_attr":
                value = weight_value(program, node, torch.float64)
                trained = program.constants[str(node.target)].trainable
                value = value.clone().requires_grad_() if tracked and weights and trained else value
            else:
                value = _call(node, env, training)
                _refuse_broken(node, value)
                if tracked and node in keep and is_floating(value) and not value.requires_grad:
                    value = value.requires_grad_()  # behind a table, whose indices have no gradient
                if observe is not None:
                    observe(node, value)
            env[node] = value
            if node in keep and isinstance(value, Tensor):
                values[node] = value
            for dead in frees.get(node, ()):
                if dead.op != "output":
                    env.pop(dead, None)
        result = fx.node.map_aggregate(program.output.args[0], lambda a: env[a] if isinstance(a, fx.Node) else a)
    return list(result) if isinstance(result, list | tuple) else [result]


def _refuse_broken(node: fx.Node, value: Any) -> None:
    """Raises InputError for a layer or a norm whose result is not finite; masks may hold infinities."""
    if is_call(node, WEIGHTED | NORMS | PRODUCTS) and is_floating(value) and not bool(torch.isfinite(value).all()):
        raise InputError(
            f"what '{place_of(node)}' gives on these inputs is not finite, in float64 too; the weights are too large, "
            "or a value in front of it is not defined"
        )


def _call(node: fx.Node, env: Mapping[fx.Node, Any], training: bool) -> Any:
    if not training or not is_call(node, BATCH_NORMS):
        return call_node(node, env, torch.float64)
    return norm_of_batch(node, env)


def in_training(node: fx.Node, env: Mapping[fx.Node, Any], generator: torch.Generator) -> Any:
    """A call in training: norms take the statistics of the batch, dropouts drop, slopes of an RReLU are drawn.

    A dropout that lets nothing through is left out. Raises InputError as `norm_of_batch` does.
    """
    if is_call(node, BATCH_NORMS):
        return norm_of_batch(node, env)
    if not is_call(node, DROPOUTS | RRELUS):
        return call_node(node, env, torch.float64)
    args, x = arguments(node), env[node.all_input_nodes[0]]
    if is_call(node, RRELUS):
        low, high = float(args["lower"]), float(args["upper"])
        return torch.where(x >= 0, x, x * (low + (high - low) * _uniform(x, generator)))
    rate = float(args.get("p") or 0.0)
    return x * (_uniform(x, generator) >= rate) / (1 - rate) if rate < 1 else x


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, dtype=torch.float64)


def norm_of_batch(node: fx.Node, env: Mapping[fx.Node, Any]) -> Tensor:
    """A batch norm with the statistics of the batch, as in training. Raises InputError for one value in a channel."""
    args = arguments(node)
    x: Tensor = env[args["input"]]
    if x.numel() == x.shape[1]:
        raise InputError(f"'{place_of(node)}' takes statistics of one value in each channel; give a larger batch")
    weight, bias = (None if args[n] is None else env[args[n]] for n in ("weight", "bias"))
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, float(args["eps"]))
