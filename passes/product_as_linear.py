"""x W is linear(x, W'): y_o = sum_i W_io x_i + b_o, with the weights of a layer, W'_oi = W_io.

Turns products with a matrix of weights (`x @ w`, `mm`, `addmm`, `einsum`) into linear layers, which fold norms.

Fires on matmul, mm and addmm whose second operand is a matrix of weights, and on einsum of a value and such a matrix
that sums over the last axis of the value and puts the result in its place. The matrix may have no other reader: it
would be kept twice.

Refuses nothing: products with the matrix on the left, or of another axis, are left alone.

Source: the definition of a linear layer.

    batch_norm(x @ w)        becomes        batch_norm(linear(x, w'))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from reparam.ir import EINSUMS, Program, arguments, aten, is_call, op_name, shape_of
from reparam.rewrite import Match, Pattern, Rewrite, op

_PRODUCTS = frozenset({aten.matmul.default, aten.mm.default})
_SUMS = frozenset({aten.addmm.default})


@dataclass(frozen=True)
class Plan:
    """The call, what it reads, the matrix, whether that has its outputs in front, and the bias."""

    node: fx.Node
    x: fx.Node
    matrix: fx.Node
    outputs_first: bool = False
    bias: fx.Node | None = None


@dataclass(frozen=True)
class ProductAsLinear:
    """Calls a product with a matrix of weights a linear layer."""

    name: ClassVar[str] = "product-as-linear"
    pattern: ClassVar[Pattern] = op(_PRODUCTS | _SUMS | EINSUMS)

    def check(self, program: Program, match: Match) -> Plan | None:
        """What is multiplied by what, where one side is a value and the other a matrix that nobody else reads."""
        plan = _read(program, match.root)
        if plan is None or program.constant(plan.x) is not None or not _is_weight(program, plan.matrix, 2):
            return None
        return plan if len(plan.matrix.users) == 1 and plan.x.meta["val"].dim() > 1 else None

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The layer."""
        constant = program.constants[str(plan.matrix.target)]
        value = constant.value.detach()
        weight = program.weight(
            value if plan.outputs_first else value.t(),
            constant.origin,
            dtype=constant.dtype,
            trainable=constant.trainable,
            like=plan.node,
        )
        made = program.call(aten.linear.default, (plan.x, weight, plan.bias), like=plan.node)
        return Rewrite({plan.node: made}, f"{op_name(plan.node)} by a matrix of weights became a linear layer")


def _read(program: Program, node: fx.Node) -> Plan | None:
    args = arguments(node)
    if is_call(node, _PRODUCTS):
        x, matrix = args.values()
        return Plan(node, x, matrix)
    if is_call(node, EINSUMS):
        return _einsum(program, node, args)
    bias, x, matrix = (args[n] for n in ("self", "mat1", "mat2"))
    whole = args["beta"] == args["alpha"] == 1 and _is_weight(program, bias, 1)
    fits = whole and shape_of(bias)[0] == shape_of(node)[1]
    return Plan(node, x, matrix, bias=bias) if fits else None


def _einsum(program: Program, node: fx.Node, args: dict[str, Any]) -> Plan | None:
    """`bti,io->bto`, `...i,oi->...o` and the like, with the operands in either order."""
    terms, _, result = str(args["equation"]).replace(" ", "").partition("->")
    names, operands = terms.split(","), list(args["tensors"])
    if len(operands) != 2:
        return None
    if _is_weight(program, operands[0], 2):
        names, operands = names[::-1], operands[::-1]
    (value, letters), (x, matrix) = names, operands
    i, o = value[-1:], result[-1:]
    if result[:-1] != value[:-1] or i in value[:-1] or o in value or letters not in (i + o, o + i):
        return None
    return Plan(node, x, matrix, letters == o + i)


def _is_weight(program: Program, x: Any, rank: int) -> bool:
    constant = program.constant(x)
    return constant is not None and constant.value.is_floating_point() and constant.value.dim() == rank


PASS = ProductAsLinear
PHASE = "clean"
