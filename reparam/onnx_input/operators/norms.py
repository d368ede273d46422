"""Normalisations. A batch norm becomes torch's own, with the statistics of the file, so that passes know it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.onnx_input.call import Call
from reparam.onnx_input.known import Results


def _only_first(call: Call) -> None:
    if any(call.node.read[1:]):
        raise call.node.refused("its statistics are read as results, which is not supported")


def _batch(call: Call) -> Tensor:
    if not call.attribute("spatial", 1):  # of the opsets before 9
        raise call.node.refused("it has statistics for each position, which is not supported")
    if call.attribute("training_mode", 0):
        raise call.node.refused("it normalises by its batch, as in training; export the network in evaluation mode")
    _only_first(call)
    x, scale, shift, mean, variance = (call.tensor(i) for i in range(5))
    scale, shift, mean, variance = (v.to(x.dtype) for v in (scale, shift, mean, variance))
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, call.attribute("epsilon", 1e-5))


def _instance(call: Call) -> Tensor:
    x = call.tensor(0)
    if all(isinstance(n, int) and n == 1 for n in x.shape[2:]):  # of a single position, which torch does not take
        scale, shift = (call.tensor(i).reshape(-1, *[1] * (x.dim() - 2)) for i in (1, 2))
        return (x - x) * scale + shift
    return F.instance_norm(x, weight=call.tensor(1), bias=call.tensor(2), eps=call.attribute("epsilon", 1e-5))


def _layer(call: Call) -> Results:
    """Over the axes from one on. The mean and the inverse of the deviation are results as well."""
    x, eps = call.tensor(0), call.attribute("epsilon", 1e-5)
    axis = call.axis(call.attribute("axis", -1), x.dim())
    result = _scaled_layer(call, x, list(x.shape[axis:]), eps)
    if not any(call.node.read[1:]):
        return result
    axes, exact = list(range(axis, x.dim())), x.float() if x.dtype != torch.float64 else x
    mean, variance = exact.mean(axes, keepdim=True), exact.var(axes, unbiased=False, keepdim=True)
    return (result, mean, (variance + eps).rsqrt())[: call.node.results]


def _scaled_layer(call: Call, x: Tensor, shape: list[Any], eps: float) -> Tensor:
    scale, shift = call.tensor(1), call.optional(2)
    if list(scale.shape) == shape and (shift is None or list(shift.shape) == shape):
        return F.layer_norm(x, shape, scale, shift, eps)
    scaled = F.layer_norm(x, shape, None, None, eps) * scale
    return scaled if shift is None else scaled + shift


def _root_mean_square(call: Call) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * scale, over the axes from one on."""
    x, scale = call.tensor(0), call.tensor(1)
    shape = list(x.shape[call.axis(call.attribute("axis", -1), x.dim()) :])
    eps = call.attribute("epsilon", 1e-5)
    if list(scale.shape) == shape and scale.dtype == x.dtype:
        return F.rms_norm(x, shape, scale, eps)
    return F.rms_norm(x, shape, None, eps) * scale


def _group(call: Call) -> Tensor:
    """Its scale and shift are one number for each group before opset 21, and for each channel from there on."""
    x, scale, shift, groups = call.tensor(0), call.tensor(1), call.tensor(2), call.required("num_groups")
    if call.node.version < 21:
        each = x.shape[1] // groups
        scale, shift = scale.repeat_interleave(each), shift.repeat_interleave(each)
    return F.group_norm(x, groups, scale, shift, call.attribute("epsilon", 1e-5))


def _local_response(call: Call) -> Tensor:
    size = call.required("size")
    if size % 2 == 0:
        raise call.node.refused("an even number of channels is not supported")
    numbers = [call.attribute(n, d) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))]
    return F.local_response_norm(call.tensor(0), size, *numbers)


def _unit(call: Call) -> Tensor:
    """x / |x| along an axis, zero where |x| is."""
    x, order = call.tensor(0), call.attribute("p", 2)
    axis = call.axis(call.attribute("axis", -1), x.dim())
    size = torch.linalg.vector_norm(x, order, axis, keepdim=True)
    return x / torch.where(size == 0, torch.ones_like(size), size)


def _mean_and_variance(call: Call) -> Tensor:
    """(x - mean) / (deviation + 1e-9), over samples and positions where no axes are told."""
    x = call.tensor(0)
    axes = [call.axis(a, x.dim()) for a in call.attribute("axes", (0, 2, 3))]
    centred = x - x.mean(axes, keepdim=True)
    return centred / ((centred * centred).mean(axes, keepdim=True).sqrt() + 1e-9)


OPERATORS = {
    "BatchNormalization": _batch,
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
    "RMSNormalization": _root_mean_square,
    "GroupNormalization": _group,
    "LRN": _local_response,
    "LpNormalization": _unit,
    "MeanVarianceNormalization": _mean_and_variance,
}
