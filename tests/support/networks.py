"""Turns a `Spec` into an nn.Module with random weights."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.ir import aten
from support.specs import Const, Layer, Linear, Norm, Op, PReLU, Spec

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}
POOLS = {
    ("avg", 1): (F.avg_pool1d, aten.avg_pool1d.default),
    ("avg", 2): (F.avg_pool2d, aten.avg_pool2d.default),
    ("max", 1): (F.max_pool1d, aten.max_pool1d.default),
    ("max", 2): (F.max_pool2d, aten.max_pool2d.default),
}
ACTS: dict[str, tuple[Callable[..., Tensor], Any, tuple[Any, ...]]] = {
    "relu": (F.relu, aten.relu.default, ()),
    "relu6": (F.relu6, aten.relu6.default, ()),
    "leaky": (F.leaky_relu, aten.leaky_relu.default, ()),
    "gelu": (F.gelu, aten.gelu.default, ()),
    "silu": (F.silu, aten.silu.default, ()),
    "hardswish": (F.hardswish, aten.hardswish.default, ()),
    "sigmoid": (torch.sigmoid, aten.sigmoid.default, ()),
    "hardsigmoid": (F.hardsigmoid, aten.hardsigmoid.default, ()),
    "hardtanh": (F.hardtanh, aten.hardtanh.default, (-1.0, 1.0)),
    "elu": (F.elu, aten.elu.default, (1.0,)),
    "tanh": (torch.tanh, aten.tanh.default, ()),
    "abs": (torch.abs, aten.abs.default, ()),
    "clamp": (torch.clamp, aten.clamp.default, (-0.25, 2.0)),
}
CALLS: dict[str, tuple[Callable[..., Any], Any]] = {
    "flatten": (torch.flatten, aten.flatten.using_ints),
    "unflatten": (Tensor.unflatten, aten.unflatten.int),
    "transpose": (torch.transpose, aten.transpose.int),
    "permute": (torch.permute, aten.permute.default),
    "unsqueeze": (torch.unsqueeze, aten.unsqueeze.default),
    "select": (torch.select, aten.select.int),
    "unbind": (torch.unbind, aten.unbind.int),
    "roll": (torch.roll, aten.roll.default),
    "flip": (torch.flip, aten.flip.default),
    "repeat": (Tensor.repeat, aten.repeat.default),
    "pixel_shuffle": (F.pixel_shuffle, aten.pixel_shuffle.default),
    "pixel_unshuffle": (F.pixel_unshuffle, aten.pixel_unshuffle.default),
    "mean": (torch.mean, aten.mean.dim),
    "softmax": (torch.softmax, aten.softmax.int),
}
ARITHMETIC: dict[str, tuple[Callable[..., Any], Any]] = {
    "add": (operator.add, aten.add.Tensor),
    "sub": (operator.sub, aten.sub.Tensor),
    "mul": (operator.mul, aten.mul.Tensor),
    "div": (operator.truediv, aten.div.Tensor),
}


# ---- layers ----------------------------------------------------------------------------------------------------------


class Weight(nn.Module):
    """A bare parameter."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)


class Gained(nn.Module):
    """A convolution whose weight is computed whenever it runs."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.conv = conv
        self.gain = nn.Parameter(_numbers((conv.out_channels, *[1] * (conv.weight.dim() - 1)), "mixed"))

    def forward(self, x: Tensor) -> Any:
        return self.conv._conv_forward(x, self.conv.weight * self.gain, self.conv.bias)


def _numbers(shape: tuple[int, ...], values: str) -> Tensor:
    x = 0.5 + torch.rand(shape)
    if values == "ones":
        return torch.ones(shape)
    if values == "zeros":
        return torch.where(torch.rand(shape) < 0.4, 0.0, x)
    return x if values == "positive" else torch.where(torch.rand(shape) < 0.4, -x, x)


def _norm(spec: Norm) -> nn.Module:
    c, affine = spec.channels, spec.gamma != "none"
    norm: Any
    if spec.kind == "layer":
        norm = nn.LayerNorm(c)
    elif spec.kind == "instance":
        norm = (nn.InstanceNorm1d if spec.rank == 2 else nn.InstanceNorm2d)(c, affine=affine)
    elif spec.kind == "group":
        norm = nn.GroupNorm(spec.groups, c)
    else:
        norm = _NORMS[spec.rank](c, affine=affine)
        norm.running_mean.copy_(0.5 * torch.randn(c) if spec.shift else torch.zeros(c))
        norm.running_var.copy_(0.5 + torch.rand(c))
        if spec.tiny:
            norm.running_var[::2] = 1e-9
    if affine:
        norm.weight.copy_(_numbers((c,), spec.gamma))
        norm.bias.copy_(torch.randn(c) if spec.shift else torch.zeros(c))
    return nn.Module.eval(norm)


def _module(layer: Layer) -> nn.Module:
    if isinstance(layer, Norm):
        return _norm(layer)
    if isinstance(layer, Linear):
        return nn.Linear(layer.c_in, layer.c_out, layer.bias)
    if isinstance(layer, PReLU):
        return nn.PReLU(layer.count)
    if isinstance(layer, Const):
        return Weight(_numbers(layer.shape, layer.values))
    n = len(layer.kernel)
    options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    options |= {"groups": layer.groups, "bias": layer.bias, "padding_mode": layer.mode}
    if layer.gain:
        return Gained(_CONVS[n](layer.c_in, layer.c_out, layer.kernel, **options))
    if layer.transposed:
        return _TRANSPOSED[n](layer.c_in, layer.c_out, layer.kernel, output_padding=layer.extra, **options)
    return _CONVS[n](layer.c_in, layer.c_out, layer.kernel, **options)


# ---- as a module -----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """The network of a spec, with random weights from its seed."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        torch.manual_seed(spec.seed)
        with torch.no_grad():
            self.layers = nn.ModuleList(_module(layer) for layer in spec.layers)
        self.to(getattr(torch, spec.dtype)).eval()

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        values: list[Any] = list(inputs)
        for op in self.spec.ops:
            values.append(getattr(self, f"_{op.kind}")(op, *(values[i] for i in op.args)))
        return [values[i] for i in self.spec.outputs]

    def _layer(self, op: Op, x: Tensor) -> Any:
        return self.layers[op.how[0]](x)

    def _act(self, op: Op, x: Tensor) -> Tensor:
        call, _, rest = ACTS[op.how[0]]
        return call(x, *rest)

    def _act_(self, op: Op, x: Tensor) -> Tensor:
        return ACTS[op.how[0]][0](x, inplace=True)

    def _add(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return torch.add(x, y, alpha=op.how[0])

    def _sub(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return torch.sub(x, y, alpha=op.how[0])

    def _add_(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return x.add_(y, alpha=op.how[0])

    def _mul(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def _const(self, op: Op, x: Tensor) -> Any:
        name, k, flipped = op.how
        c = self.layers[k].value
        return ARITHMETIC[name][0](c, x) if flipped else ARITHMETIC[name][0](x, c)

    def _scalar(self, op: Op, x: Tensor) -> Any:
        name, c, flipped = op.how
        return ARITHMETIC[name][0](c, x) if flipped else ARITHMETIC[name][0](x, c)

    def _call(self, op: Op, x: Tensor) -> Any:
        name, *rest = op.how
        return CALLS[name][0](x, *rest)

    def _matmul(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    def _fill(self, op: Op, x: Tensor) -> Tensor:
        """The padded value, its border overwritten with the norm's value of zero."""
        norm = self.layers[op.how[0]]
        y = F.pad(x, [1, 1, 1, 1])
        v = (norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)).view(1, -1, 1, 1)
        y[:, :, 0:1, :] = v
        y[:, :, -1:, :] = v
        y[:, :, :, 0:1] = v
        y[:, :, :, -1:] = v
        return y

    def _cat(self, op: Op, *values: Tensor) -> Tensor:
        return torch.cat(values, op.how[0])

    def _avg(self, op: Op, x: Tensor) -> Tensor:
        return POOLS["avg", x.dim() - 2][0](x, *op.how)

    def _max(self, op: Op, x: Tensor) -> Tensor:
        kernel, stride, padding, ceil, _ = op.how
        return POOLS["max", x.dim() - 2][0](x, kernel, stride, padding, ceil_mode=ceil)

    def _gap(self, op: Op, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.dim()))
        if op.how[0] == "adaptive":
            return F.adaptive_avg_pool1d(x, 1) if len(axes) == 1 else F.adaptive_avg_pool2d(x, 1)
        return x.mean(axes, keepdim=op.how[0] == "mean")

    def _noop(self, op: Op, x: Tensor) -> Tensor:
        name = op.how[0]
        if name == "dropout":
            return F.dropout(x, 0.5, self.training)
        return x.to(x.dtype) if name == "cast" else getattr(x, name)()

    def _shuffle(self, op: Op, x: Tensor) -> Tensor:
        groups, unflatten = op.how
        if unflatten:
            return x.unflatten(1, (groups, x.shape[1] // groups)).transpose(1, 2).flatten(1, 2)
        n, c, *space = x.shape
        return x.reshape(n, groups, c // groups, *space).transpose(1, 2).reshape(n, c, *space)

    def _like(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], *y.shape[2:])

    def _to_batch(self, op: Op, x: Tensor) -> Tensor:
        return x.reshape(-1, 1, *x.shape[2:])

    def _from_batch(self, op: Op, x: Tensor, y: Tensor) -> Tensor:
        return x.reshape(-1, y.shape[1], *x.shape[2:])

    def _split(self, op: Op, x: Tensor) -> Any:
        name, how = op.how
        return x.chunk(how, 1) if name == "chunk" else x.split(list(how) if name == "sizes" else how, 1)

    def _item(self, op: Op, pieces: tuple[Tensor, ...]) -> Tensor:
        return pieces[op.how[0]]

    def _slice(self, op: Op, x: Tensor) -> Tensor:
        axis, start, stop = op.how
        return x[(slice(None),) * axis + (slice(start, stop),)]

    def _pad(self, op: Op, x: Tensor) -> Tensor:
        return F.pad(x, op.how[0], mode=op.how[1])

    def _upsample(self, op: Op, x: Tensor) -> Tensor:
        linear = "linear" if x.dim() == 3 else "bilinear"
        return F.interpolate(x, scale_factor=2.0, mode="nearest" if op.how[0] == "nearest" else linear)
