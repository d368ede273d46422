"""x W is linear(x, W'): y_o = sum_i W_io x_i + b_o, with the weights of a layer, W'_oi = W_io; W x is a conv1x1 of x.

Turns products with a matrix of weights (`x @ w`, `w @ x`, `mm`, `addmm`, `einsum`) into layers, which fold norms.

Fires on matmul, mm and addmm whose second operand is a matrix of weights, on matmul of such a matrix and a batch of
matrices (N, C, L), and on einsum of a value and such a matrix that sums over the last axis of the value, or over the
channels of an (N, C, ...), and puts the result in its place. The matrix may have no other reader: it would be kept
twice.

Refuses nothing: products over another axis are left alone.

Source: the definitions of a linear layer and of a convolution of one position.

    batch_norm(x @ w)        becomes        batch_norm(linear(x, w'))
    batch_norm(w @ x)        becomes        batch_norm(conv1x1(x))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from reparam.ir import EINSUMS, Program, arguments, aten, is_call, op_name, shape_of
from reparam.rewrite import Match, Pattern, Rewrite, op

_PRODUCTS = frozenset({aten.matmul.default, aten.mm.default})
_SUMS = frozenset({aten.addmm.default})
_CONVS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}  # by the axes beside the channels


@dataclass(frozen=True)
class Plan:
    """The call, what it reads, the matrix, whether that has its outputs in front, and the bias.

    channels: whether axis 1 of what it reads is multiplied, and not the last one.
    """

    node: fx.Node
    x: fx.Node
    matrix: fx.Node
    outputs_first: bool = False
    bias: fx.Node | None = None
    channels: bool = False


@dataclass(frozen=True)
class ProductAsLinear:
    """Calls a product with a matrix of weights a linear layer, or a convolution of one position."""

    name: ClassVar[str] = "product-as-linear"
    pattern: ClassVar[Pattern] = op(_PRODUCTS | _SUMS | EINSUMS)

    def check(self, program: Program, match: Match) -> Plan | None:
        """What is multiplied by what, where one side is a value and the other a matrix that nobody else reads."""
        plan = _read(program, match.root)
        if plan is None or program.constant(plan.x) is not None or not _is_weight(program, plan.matrix, 2):
            return None
        return plan if len(plan.matrix.users) == 1 and plan.x.meta["val"].dim() > 1 else None

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The layer, with the matrix as its weight."""
        constant = program.constants[str(plan.matrix.target)]
        value = constant.value.detach()
        value = value if plan.outputs_first else value.t()
        rank = len(shape_of(plan.x)) - 2 if plan.channels else 0
        weight = program.weight(
            value.reshape(*value.shape, *[1] * rank),
            constant.origin,
            dtype=constant.dtype,
            trainable=constant.trainable,
            like=plan.node,
        )
        layer = _CONVS[rank] if plan.channels else aten.linear.default
        made = program.call(layer, (plan.x, weight, plan.bias), like=plan.node)
        became = "a convolution of one position" if plan.channels else "a linear layer"
        return Rewrite({plan.node: made}, f"{op_name(plan.node)} by a matrix of weights became {became}")


def _read(program: Program, node: fx.Node) -> Plan | None:
    args = arguments(node)
    if is_call(node, _PRODUCTS):
        x, matrix = args.values()
        if _is_weight(program, x, 2) and len(shape_of(matrix)) == 3:
            return Plan(node, matrix, x, outputs_first=True, channels=True)
        return Plan(node, x, matrix)
    if is_call(node, EINSUMS):
        return _einsum(program, node, args)
    bias, x, matrix = (args[n] for n in ("self", "mat1", "mat2"))
    whole = args["beta"] == args["alpha"] == 1 and _is_weight(program, bias, 1)
    fits = whole and shape_of(bias)[0] == shape_of(node)[1]
    return Plan(node, x, matrix, bias=bias) if fits else None


def _einsum(program: Program, node: fx.Node, args: dict[str, Any]) -> Plan | None:
    """`bti,io->bto`, `...i,oi->...o`, `bihw,oi->bohw` and the like, with the operands in either order."""
    terms, _, result = str(args["equation"]).replace(" ", "").partition("->")
    names, operands = terms.split(","), list(args["tensors"])
    if len(operands) != 2:
        return None
    if _is_weight(program, operands[0], 2):
        names, operands = names[::-1], operands[::-1]
    (value, letters), (x, matrix) = names, operands
    for channels in (False, True):
        place = slice(1, 2) if channels else slice(-1, None)
        i, o = value[place], result[place]
        rest = value.replace(i, "", 1)
        if channels and ("." in value or len(shape_of(x)) - 2 not in _CONVS or len(shape_of(x)) != len(value)):
            continue
        if value.replace(i, o) == result and i not in rest and o not in value and letters in (i + o, o + i):
            return Plan(node, x, matrix, letters == o + i, channels=channels)
    return None


def _is_weight(program: Program, x: Any, rank: int) -> bool:
    constant = program.constant(x)
    return constant is not None and constant.value.is_floating_point() and constant.value.dim() == rank


PASS = ProductAsLinear
PHASE = "clean"
