"""The weights of a model under way: read through the captured program, set in the model's own parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from reparam.algebra import read_layer
from reparam.errors import InputError
from reparam.ir import (
    MATMULS,
    WEIGHTED,
    Program,
    arguments,
    aten,
    is_call,
    shape_of,
    upstream,
)
from reparam.signal import moved_alone
from reparam.utils import dtype_name

from .report import LeftWeight, SetWeight

NOT_SET = "it is no weight that the method sets"
FROZEN = "it is frozen: it takes no gradient, and other parameters do"
BUFFER = "it is a buffer, such as a fixed filter, and no parameter"
COMPLEX = "its numbers are complex"
BESIDE = "it is the bias of a layer whose weight is left"
UNREAD = "the network does not read it in evaluation mode"
COMPUTED = (
    "the weight that its layer reads is computed from it, as weight norms and standardisation do, so that setting it "
    "need not set the scale of the layer"
)
PICKED = "layers read it in parts, or turned, and the method sets whole weights"
RECURRENT = "a recurrent layer packs all its gates in it, and its state passes it at each step: no rule fits that"
EINSUM = "einsum contracts it, along axes of its own choice, and no method takes that for a linear layer"
BILINEAR = "a bilinear layer multiplies it by two values, and the rules are for one"
PRODUCT = "a product that is no linear layer reads it: it is a matrix for each part, stands on the left, or moves"
_CELLS = [getattr(aten, name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
_LEFT_READERS = (  # calls whose weights no method sets
    (frozenset(p for cell in _CELLS for p in (cell.input, cell.data)), RECURRENT),
    (frozenset({aten.einsum.default}), EINSUM),
    (frozenset({aten.bilinear.default}), BILINEAR),
    (MATMULS - {aten.einsum.default}, PRODUCT),
)
LOST = 0.05  # of the size of a weight, by rounding to its dtype
TRUNCATED_AT = 2.0  # standard deviations, of the truncated normal distribution
_PRODUCTS = frozenset({aten.matmul.default, aten.mm.default, aten.addmm.default})


@dataclass(frozen=True)
class Part:
    """One weighted call with a weight of its own: a convolution, transposed convolution, linear layer or product with a
    matrix.

    x: what it reads. weight, bias: their names in the program; bias may be None.
    shape: of the weight. groups, stride: of a convolution. kind: conv, transposed, linear, or matrix, which is
    (in, out).
    """

    node: fx.Node
    x: fx.Node
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    groups: int
    kind: str
    stride: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return math.prod(self.shape[2:])

    @property
    def outputs(self) -> int:
        """Channels of the result, of each group."""
        return self.shape[1] if self.kind in ("transposed", "matrix") else self.shape[0] // self.groups

    @property
    def inputs(self) -> int:
        """Channels that one result reads."""
        if self.kind == "transposed":
            return self.shape[0] // self.groups
        return self.shape[0] if self.kind == "matrix" else self.shape[1]

    @property
    def fan_in(self) -> float:
        """The products that one result sums, away from the border: on average over places, where they differ.

        A tap of a transposed convolution meets one result in each stride.
        """
        return self.inputs * self.taps / (math.prod(self.stride) if self.kind == "transposed" else 1)

    @property
    def fan_out(self) -> float:
        """The results that one value goes into, in the same way: of a convolution, a tap meets one in each stride."""
        return self.outputs * self.taps / (math.prod(self.stride) if self.kind == "conv" else 1)


class Weights:
    """The weights of one model. program: captured from `module`, with which it shares its weights."""

    def __init__(self, program: Program, module: nn.Module, generator: torch.Generator) -> None:
        self.program, self.module, self.generator = program, module, generator
        self.before = {n: _size(c.value) for n, c in program.constants.items()}
        self.changed: dict[str, str] = {}
        self.why: dict[str, str] = {}
        self._biases: dict[str, list[str]] | None = None  # of each weight, once they are asked for
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._own = {**dict(module.named_buffers(remove_duplicate=False)), **parameters}
        learned = {n for n, p in parameters.items() if p.requires_grad} or set(parameters)
        read = {id(self._own[c.origin]) for c in program.constants.values() if c.origin in self._own}
        self._unread = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in read]
        self._fixed = {n: FROZEN if n in parameters else BUFFER for n in self._own if n not in learned}

    # ---- reading -------------------------------------------------------------------------------------------

    def parts(self) -> Iterator[Part]:
        """The weighted calls that can be set, in execution order. A weight that is read twice comes with each call."""
        for node in self.program.calls():
            if not node.meta["data"]:
                continue
            part = self._part(node)
            if part is not None and (why := self._fixed.get(self.name(part.weight))):
                self.leave(part.weight, why)
            elif part is not None:
                yield part
            elif part is None:
                self._explain(node)

    def first_parts(self) -> Iterator[Part]:
        """The same, each weight once, with the first call that reads it."""
        seen: set[str] = set()
        for part in self.parts():
            if part.weight not in seen:
                seen.add(part.weight)
                yield part

    def _part(self, node: fx.Node) -> Part | None:
        layer = read_layer(self.program, node)
        if layer is not None:
            bias = None if layer.bias is None else str(layer.bias.target)
            name, shape, geometry = str(layer.weight.target), shape_of(layer.weight), layer.geometry
            return Part(node, layer.x, name, bias, shape, geometry.groups, layer.kind, geometry.stride)
        if not is_call(node, _PRODUCTS):
            return None
        held = list(arguments(node).values())
        bias_node, x, weight = held[:3] if is_call(node, {aten.addmm.default}) else (None, *held[:2])
        plain = self.program.constant(weight) is not None and (
            bias_node is None or self.program.constant(bias_node) is not None
        )
        if not plain or len(shape_of(weight)) != 2 or not x.meta["data"]:
            return None
        bias = None if bias_node is None else str(bias_node.target)
        return Part(node, x, str(weight.target), bias, shape_of(weight), 1, "matrix")

    def _explain(self, node: fx.Node) -> None:
        """Why the weights that a call reads are left, where no method sets those of its kind."""
        own = next((why for targets, why in _LEFT_READERS if is_call(node, targets)), None)
        if own is None and not is_call(node, WEIGHTED):
            return
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" and own is not None:
                self.leave(str(operand.target), own)
            if operand.meta["data"] or operand.op == "get_attr":
                continue
            for above in upstream([operand]):
                if above.op == "get_attr":
                    picked = own is None and moved_alone(upstream([operand]))
                    self.leave(str(above.target), PICKED if picked else own or COMPUTED)

    def value(self, name: str) -> Tensor:
        """A weight in float64."""
        return self.program.constants[name].value.detach().to(torch.float64)

    def name(self, name: str) -> str:
        """What the model calls a weight of the program."""
        return self.program.constants[name].origin

    # ---- setting -------------------------------------------------------------------------------------------

    def put(self, name: str, value: Tensor, what: str) -> None:
        """Sets a weight, in the model's own parameter, unless that is frozen or a buffer. what: in words.

        Raises InputError where there is none, and for entries that its dtype does not hold.
        """
        constant = self.program.constants[name]
        if why := self._fixed.get(constant.origin):
            self.leave(name, why)
            return
        own = self._own.get(constant.origin)
        if own is None or own.shape != constant.value.shape:
            raise InputError(f"the model has no parameter '{constant.origin}' of the shape that its graph reads")
        if own.dtype.is_complex:
            self.leave(name, COMPLEX)
            return
        typed = value.to(own.dtype)
        before, after = _size(value), _size(typed)
        if not bool(torch.isfinite(typed).all()) or (before > 0 and not abs(after / before - 1) < LOST):
            kind = dtype_name(own.dtype)
            raise InputError(f"the weight '{constant.origin}' would have entries beyond the numbers of {kind} ({what})")
        with torch.no_grad():
            own.copy_(typed)
        self.program.constants[name] = replace(constant, value=own.detach())
        self.changed[name] = what
        self.why.pop(name, None)

    def clear_bias(self, part: Part) -> None:
        """Sets the biases of all calls that read this weight to zero, where they have some."""
        if self._biases is None:
            self._biases = {}
            for other in self.parts():
                self._biases.setdefault(other.weight, []).extend([] if other.bias is None else [other.bias])
        for bias in self._biases.get(part.weight, ()):
            self.put(bias, torch.zeros(self.program.constants[bias].value.shape), "zero")

    def leave(self, name: str, why: str) -> None:
        """Notes why a weight stays as it is, unless it is set."""
        if name not in self.changed:
            self.why.setdefault(name, why)

    def draw(self, part: Part, variance: float, distribution: str) -> Tensor:
        """Weights of mean zero with that variance, in the shape of the part."""
        return draw(part.shape, variance, distribution, self.generator, _matrix_rows(part))

    # ---- telling -------------------------------------------------------------------------------------------

    def set_weights(self) -> tuple[SetWeight, ...]:
        """What was set, in the order in which it was."""
        return tuple(
            SetWeight(self.name(n), tuple(c.value.shape), _size(c.value), self.before.get(n, math.nan), what)
            for n, what in self.changed.items()
            if (c := self.program.constants[n]) is not None
        )

    def left_weights(self) -> tuple[LeftWeight, ...]:
        """Every other trainable weight, and what could have been set, with the reason; none that the method put in."""
        found, beside = [], self._biases_of_left()
        for name, constant in self.program.constants.items():
            if name in self.before and name not in self.changed and (constant.trainable or name in self.why):
                usual = BESIDE if name in beside else NOT_SET
                found.append(LeftWeight(constant.origin, self.why.get(name) or self._fixed.get(constant.origin, usual)))
        return (*found, *(LeftWeight(name, UNREAD) for name in self._unread))

    def _biases_of_left(self) -> set[str]:
        """Biases of layers whose weights are not set."""
        found = set()
        for node in self.program.calls():
            args = arguments(node) if is_call(node, WEIGHTED) else {}
            bias, weight = args.get("bias"), args.get("weight")
            if isinstance(bias, fx.Node) and bias.op == "get_attr" and isinstance(weight, fx.Node):
                names = {str(n.target) for n in upstream([weight]) if n.op == "get_attr"}
                found |= set() if names & self.changed.keys() else {str(bias.target)}
        return found


def _size(value: Tensor) -> float:
    """The root of the mean square."""
    if not value.is_floating_point() or not value.numel():
        return math.nan
    return float(value.detach().to(torch.float64).square().mean().sqrt())


def _matrix_rows(part: Part) -> int:
    """How many axes of the weight, from the first, count results: where it is an orthogonal matrix's rows."""
    return 0 if part.kind in ("transposed", "matrix") else 1


def draw(
    shape: tuple[int, ...], variance: float, distribution: str, generator: torch.Generator, rows: int = 1
) -> Tensor:
    """Random numbers of mean zero and that variance, in float64.

    distribution: normal, uniform, truncated (normal, cut at two deviations, wider so that the variance is kept), or
    orthogonal: rows or columns of one matrix are orthogonal and of one length. rows: 0 where the first axis is that of
    what is read.
    """
    deviation = math.sqrt(variance)
    if distribution == "uniform":
        return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * math.sqrt(3) * deviation
    if distribution == "truncated":
        x = torch.empty(shape, dtype=torch.float64)
        edge = math.erf(TRUNCATED_AT / math.sqrt(2))
        x.uniform_(-edge, edge, generator=generator).erfinv_().mul_(math.sqrt(2))
        density = math.exp(-(TRUNCATED_AT**2) / 2) / math.sqrt(2 * math.pi)
        return x * (deviation / math.sqrt(1 - 2 * TRUNCATED_AT * density / edge))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if distribution == "normal" or len(shape) < 2:
        return x * deviation
    flat = x.flatten(1) if rows else x.flatten(1).t()
    tall = flat.shape[0] >= flat.shape[1]
    q, r = torch.linalg.qr(flat if tall else flat.t())
    q = q * torch.sign(torch.diagonal(r))
    q = q if tall else q.t()
    made: Tensor = (q if rows else q.t()).reshape(shape)
    return made * (deviation / float(made.square().mean().sqrt()))


def refuse_unset(weights: Weights, method: str) -> None:
    """Raises InputError where a method found nothing to set."""
    if not weights.changed:
        reasons = sorted({left.why for left in weights.left_weights()} - {NOT_SET})
        why = f": {reasons[0]}" if reasons else ""
        raise InputError(f"the method {method} finds no weight to set in this network{why}")
