"""How a scale passes through an einsum, which is linear in each of its operands.

y_bnc = sum_m a_nm x_bmc:    s_c y_bnc = sum_m a_nm (s_c x_bmc), for any scale along labels that are not summed over
"""

from __future__ import annotations

import string
from collections.abc import Mapping

from torch import Tensor, fx

from reparam.ir import Program, Refusal, arguments, is_float, shape_of

from .channel_affine import Pair, times

DOTS = "..."


def einsum_backward(program: Program, node: fx.Node, wanted: Pair) -> tuple[fx.Node, Pair] | Refusal:
    """The operand that takes the scale, the first that has all labels along which it varies, and the scale there."""
    scale, labels = wanted.scale, _labels(node)
    if wanted.shift is not None or scale is None:
        return Refusal("a shift does not pass back through an einsum", node)
    if labels is None:
        return Refusal("the labels of this einsum are not followed", node)
    terms, out = labels
    operands: list[fx.Node] = list(arguments(node)["tensors"])
    varying = [label for label, size in zip(out, scale.shape, strict=True) if size > 1]
    for operand, term in zip(operands, terms, strict=True):
        taken = all(label in term and shape_of(operand)[term.index(label)] > 1 for label in varying)
        if taken and is_float(operand) and program.constant(operand) is None and operands.count(operand) == 1:
            return operand, Pair(_lie_along(scale, out, term))
    return Refusal("the scale lies along no one operand of this einsum", node)


def einsum_forward(node: fx.Node, known: Mapping[fx.Node, Pair]) -> Pair | Refusal:
    """The scale of the result: the product of those of the operands, none of which varies along what is summed over."""
    labels, scale = _labels(node), None
    if labels is None:
        return Refusal("the labels of this einsum are not followed", node)
    terms, out = labels
    for operand, term in zip(arguments(node)["tensors"], terms, strict=True):
        carried = known.get(operand, Pair())
        if carried.shift is not None:
            return Refusal("a shift does not pass through an einsum", node)
        if carried.scale is None:
            continue
        if any(size > 1 and label not in out for label, size in zip(term, carried.scale.shape, strict=True)):
            return Refusal("the scale varies along what this einsum sums over", node)
        scale = times(scale, _lie_along(carried.scale, term, out))
    return Pair(scale)


def _labels(node: fx.Node) -> tuple[list[str], str] | None:
    """Of the operands, and of the result; None where one repeats, or where dots stand for axes that are spread.

    Dots become letters that no axis has.
    """
    left, arrow, out = str(arguments(node)["equation"]).replace(" ", "").partition("->")
    terms = left.split(",")
    operands = arguments(node)["tensors"]
    dotted = {len(shape_of(o)) - len(t) + 3 for o, t in zip(operands, terms, strict=True) if DOTS in t}
    if len(dotted) > 1 or (dotted and not arrow):
        return None
    free = [c for c in string.ascii_letters if c not in left + out]
    letters = "".join(free[: max(dotted, default=0)])
    terms, out = [t.replace(DOTS, letters) for t in terms], out.replace(DOTS, letters)
    if not arrow:
        out = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    if any(len(set(t)) != len(t) for t in (*terms, out)):
        return None
    return terms, out


def _lie_along(value: Tensor, given: str, wanted: str) -> Tensor:
    """A scale along the labels `given`, as one along those `wanted`; along the others it is constant."""
    vectors = dict(zip(given, value.shape, strict=True))
    varying = [label for label in given if vectors[label] > 1]
    order = [given.index(label) for label in wanted if label in varying]
    rest = [d for d in range(len(given)) if d not in order]
    sizes = [vectors[label] if label in varying else 1 for label in wanted]
    return value.permute([*order, *rest]).reshape(sizes)
