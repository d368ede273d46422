"""Activations, each in the form that torch names it, and dropout, which does nothing in a trained network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.onnx_input.call import Call, number_of
from reparam.onnx_input.known import Known, Results, Value

SIXTH = float(np.float32(1.0 / 6.0))
SELU = (1.67326319217681884765625, 1.05070102214813232421875)


def _clip(call: Call) -> Tensor:
    """min(max(x, low), high), each of the two where it is given."""
    x = call.tensor(0)
    bounds = [_bound(call, 1), _bound(call, 2)]
    low, high = bounds
    if low is None and high is None:
        return x
    if not isinstance(low, Tensor) and low == 0.0 and x.is_floating_point():
        if high is None:
            return F.relu(x)
        if not isinstance(high, Tensor) and high == 6.0:
            return F.relu6(x)
    if any(isinstance(b, Tensor) for b in bounds):
        tensors = [b if b is None or isinstance(b, Tensor) else torch.full((), b, dtype=x.dtype) for b in bounds]
        return torch.clamp(x, *tensors)
    return torch.clamp(x, low, high)


def _bound(call: Call, index: int) -> Any:
    if not call.given(index):
        return None
    number = number_of(call.value(index))
    infinite = isinstance(number, float) and number == (-np.inf if index == 1 else np.inf)
    if infinite:
        return None
    return call.tensor(index) if number is None else number


def _hard_sigmoid(call: Call) -> Tensor:
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    x = call.tensor(0)
    if float(np.float32(alpha)) == SIXTH and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def _selu(call: Call) -> Tensor:
    alpha, gamma = call.attribute("alpha", SELU[0]), call.attribute("gamma", SELU[1])
    x = call.tensor(0)
    return F.selu(x) if (alpha, gamma) == SELU else gamma * F.elu(x, alpha)


def _prelu(call: Call) -> Tensor:
    """x for x >= 0, slope * x below. A slope for each channel, or a single one, is torch's own PReLU."""
    x, slope = call.tensor(0), call.tensor(1)
    wanted = [1] * (x.dim() - slope.dim()) + list(slope.shape) if slope.dim() <= x.dim() else None
    if slope.numel() == 1:
        return F.prelu(x, slope.reshape(1))
    if wanted is not None and x.dim() > 1 and all(n == 1 for i, n in enumerate(wanted) if i != 1):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, slope * x, x)


def _softmax(call: Call) -> Tensor:
    """Along one axis; before opset 13 over all axes from that one on."""
    function = torch.log_softmax if call.node.op == "LogSoftmax" else torch.softmax
    x, new = call.tensor(0), call.node.version >= 13
    axis = call.axis(call.attribute("axis", -1 if new else 1), x.dim())
    if new or axis == x.dim() - 1:
        return function(x, axis)
    return function(x.flatten(axis), axis).reshape(x.shape)


def _dropout(call: Call) -> Results:
    mode = call.value(2) if call.given(2) else None
    if mode is not None and number_of(mode) not in (False, 0):
        raise call.node.refused("it drops values, as in training; export the network in evaluation mode")
    x: Value = call.value(0)
    if call.is_read(1):
        raise call.node.refused("its mask is read, which says nothing in a trained network")
    return x.tensor() if isinstance(x, Known) else x


def _shrink(call: Call) -> Tensor:
    x, bias, bound = call.tensor(0), call.attribute("bias", 0.0), call.attribute("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, zero))


def _gelu(call: Call) -> Tensor:
    kind = call.attribute("approximate", "none")
    if kind not in ("none", "tanh"):
        raise call.node.refused("its approximation is unknown")
    return F.gelu(call.tensor(0), approximate=kind)


def _swish(call: Call) -> Tensor:
    """x sigmoid(alpha x)."""
    x, alpha = call.tensor(0), call.attribute("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


OPERATORS = {
    "Relu": lambda call: F.relu(call.tensor(0)),
    "LeakyRelu": lambda call: F.leaky_relu(call.tensor(0), call.attribute("alpha", 0.01)),
    "Elu": lambda call: F.elu(call.tensor(0), call.attribute("alpha", 1.0)),
    "Celu": lambda call: F.celu(call.tensor(0), call.attribute("alpha", 1.0)),
    "Selu": _selu,
    "Sigmoid": lambda call: torch.sigmoid(call.tensor(0)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda call: F.hardswish(call.tensor(0)),
    "Tanh": lambda call: torch.tanh(call.tensor(0)),
    "Gelu": _gelu,
    "Swish": _swish,
    "Mish": lambda call: F.mish(call.tensor(0)),
    "Softplus": lambda call: F.softplus(call.tensor(0)),
    "Softsign": lambda call: F.softsign(call.tensor(0)),
    "ThresholdedRelu": lambda call: F.threshold(call.tensor(0), call.attribute("alpha", 1.0), 0.0),
    "Shrink": _shrink,
    "PRelu": _prelu,
    "Clip": _clip,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Dropout": _dropout,
    "Identity": lambda call: call.tensor(0),
}
