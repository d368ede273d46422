"""Products of matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.onnx_input.call import Call


def _product(call: Call) -> Tensor:
    """A product with a matrix of weights is a linear layer."""
    x, w = call.tensor(0), call.tensor(1)
    if call.is_weight(1) and w.dim() == 2 and x.dim() > 1:
        return F.linear(x, w.t())
    return torch.matmul(x, w)


def _general(call: Call) -> Tensor:
    """alpha * A B + beta * C, with A and B as they are or transposed."""
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    a = a.t() if call.attribute("transA", 0) else a
    weight = b if call.attribute("transB", 0) else b.t()
    if c is not None and beta != 1.0:
        c = c * beta
    plain = c is not None and (c.dim() == 1 or (c.dim() == 2 and c.shape[0] == 1)) and c.numel() == weight.shape[0]
    if plain and c is not None:
        return F.linear(a, weight if alpha == 1.0 else weight * alpha, c.reshape(-1))
    product = F.linear(a, weight if alpha == 1.0 else weight * alpha)
    return product if c is None else product + c


def _einsum(call: Call) -> Tensor:
    equation = call.required("equation")
    if not isinstance(equation, str):
        raise call.node.refused("its equation is no text")
    return torch.einsum(equation, *call.tensors())


def _determinant(call: Call) -> Tensor:
    result: Tensor = torch.linalg.det(call.tensor(0))
    return result


OPERATORS = {"MatMul": _product, "Gemm": _general, "Einsum": _einsum, "Det": _determinant}
