"""Predicted moments of single operators against Monte Carlo, on small values (few channels, few places).

E y^2 of each operator is predicted from the power of its operands, and measured as the mean over many random tensors of
that power. `exact` operators have an integral; `drawn` ones are run on random tensors by the prediction itself, and
`error` is the standard error that it tells. Where the measured mean is itself uncertain, its standard error stands
beside it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.capture import capture
from reparam.signal import Power, predict
from reparam.signal.power import drawn

POWER = Power(0.4, 0.3, 0.5, 0.8)
ROLES = tuple(map(frozenset, ("n", "c", "p", "p")))
Function = Callable[..., Tensor]


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *xs: Tensor) -> Tensor:
        return self.function(*xs)


def tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H*W, C)."""
    return x.flatten(2).transpose(1, 2)


def last(function: Function) -> Function:
    """A function of channels that come last."""
    return lambda x: function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def spelled_norm(x: Tensor) -> Tensor:
    d = x - x.mean(1, keepdim=True)
    return d / torch.sqrt(d.pow(2).mean(1, keepdim=True) + 1e-5)


def by_var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt()


def halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return a * b.sigmoid()


def itself(x: Tensor) -> Tensor:
    t = tokens(x)
    return torch.softmax(t @ t.transpose(1, 2) / 2, -1) @ t


POINTWISE: Mapping[str, Function] = {
    f.__name__: f
    for f in (
        *(F.relu, F.gelu, F.silu, F.elu, F.selu, F.celu, F.mish, F.softplus, F.hardswish, F.hardsigmoid, F.relu6),
        *(F.leaky_relu, F.hardtanh, F.hardshrink, F.softshrink, F.softsign, F.logsigmoid, F.tanhshrink),
        *(torch.tanh, torch.sigmoid, torch.erf, torch.abs, torch.square, torch.sin, torch.neg, torch.atan),
    )
}
ONE: Mapping[str, Function] = {
    **POINTWISE,
    "prelu": lambda x: F.prelu(x, torch.linspace(0, 0.5, x.shape[1], dtype=x.dtype)),
    "x*x": lambda x: x * x,
    "x*sigmoid(x)": lambda x: x * x.sigmoid(),
    "x - relu(x)": lambda x: x - F.relu(x),
    "where(x > 0, x, x/10)": lambda x: torch.where(x > 0, x, 0.1 * x),
    "x + x": lambda x: x + x,
    "stack of x, 2x, relu(x), mean": lambda x: torch.stack([x, 2 * x, x.relu()], 1).mean(1),
    "cat of x, x, mean": lambda x: torch.cat([x, x], 2).mean(2),
    "lerp(x, relu(x))": lambda x: torch.lerp(x, x.relu(), 0.3),
    "x*mean(x)": lambda x: x * x.mean((2, 3), keepdim=True),
    "x - mean(x)": lambda x: x - x.mean((2, 3), keepdim=True),
    "avg_pool(x) - x": lambda x: F.avg_pool2d(x, 3, 1, 1) - x,
    "x + x turned": lambda x: x + x.transpose(2, 3),
    "x*sigmoid(mean over channels)": lambda x: x * x.mean(1, keepdim=True).sigmoid(),
    "layer norm": last(lambda x: F.layer_norm(x, x.shape[-1:])),
    "layer norm, spelled out": spelled_norm,
    "layer norm by var_mean": by_var_mean,
    "rms norm": last(lambda x: F.rms_norm(x, x.shape[-1:])),
    "rms norm, spelled out": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "normalize": lambda x: F.normalize(x, dim=1),
    "x/max |x|": lambda x: x / x.abs().max(),
    "group norm": lambda x: F.group_norm(x, 2),
    "instance norm": F.instance_norm,
    "avg_pool 2": lambda x: F.avg_pool2d(x, 2),
    "avg_pool 3, padded": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "max_pool 2": lambda x: F.max_pool2d(x, 2),
    "max_pool 3, stride 2": lambda x: F.max_pool2d(x, 3, 2, 1),
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 1),
    "mean over places": lambda x: x.mean((2, 3)),
    "sum over places": lambda x: x.sum((2, 3)),
    "mean over channels": lambda x: x.mean(1),
    "amax": lambda x: x.amax((2, 3)),
    "max over channels": lambda x: x.max(1).values,
    "logsumexp": lambda x: x.logsumexp(1),
    "var": lambda x: x.var(1),
    "std": lambda x: x.std((2, 3)),
    "norm": lambda x: x.norm(dim=1),
    "cumsum": lambda x: x.cumsum(1),
    "softmax over places": lambda x: x.flatten(2).softmax(-1),
    "softmax over channels": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "glu": lambda x: F.glu(x, 1),
    "halves, one a gate": halves,
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest, mean": lambda x: F.interpolate(x, scale_factor=2).mean((2, 3)),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "zeros around": lambda x: F.pad(x, (1, 1, 1, 1)),
    "reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "unfold": lambda x: F.unfold(x, 2),
    "fft, real part": lambda x: torch.fft.fft2(x).real,
    "attention of tokens with themselves": itself,
    "x @ x turned": lambda x: tokens(x) @ x.flatten(2),
}
TWO: Mapping[str, Function] = {
    "x + y": lambda x, y: x + y,
    "2x - y": lambda x, y: 2 * x - y,
    "x*y": lambda x, y: x * y,
    "cat along channels": lambda x, y: torch.cat((x, 2 * y), 1),
    "cat along places": lambda x, y: torch.cat((x, 2 * y), 2),
    "stack, mean": lambda x, y: torch.stack((x, y)).mean(0),
    "x/(1 + |y|)": lambda x, y: x / (1 + y.abs()),
    "maximum": torch.maximum,
    "where(x > y, x, y)": lambda x, y: torch.where(x > y, x, y),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "x + (x + y)": lambda x, y: x + (x + y),
    "(x + y) - y": lambda x, y: (x + y) - y,
    "(x + y)*x": lambda x, y: (x + y) * x,
    "addcmul": lambda x, y: torch.addcmul(x, y, y, value=0.3),
    "hypot": torch.hypot,
    "x*mean(y)": lambda x, y: x * y.mean((2, 3), keepdim=True),
    "x @ y": lambda x, y: tokens(x) @ y.flatten(2),
    "attention": lambda x, y: F.scaled_dot_product_attention(tokens(x), tokens(y), tokens(x)),
    "attention, spelled out": lambda x, y: torch.softmax(tokens(x) @ y.flatten(2) / 2, -1) @ tokens(y),
}


def monte_carlo(function: Function, count: int, shape: tuple[int, ...], draws: int) -> tuple[float, float]:
    """E y^2 over random tensors, and its standard error over itself."""
    generator = torch.Generator().manual_seed(7)
    seconds = [
        float(function(*(drawn(POWER, ROLES, shape, generator) for _ in range(count))).square().mean())
        for _ in range(draws)
    ]
    found = torch.tensor(seconds, dtype=torch.float64)
    mean = float(found.mean())
    return mean, float(found.std()) / math.sqrt(draws) / mean if mean else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=4, default=(8, 16, 4, 4), help="N C H W")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--only", default="", help="a part of the names")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = tuple(arguments.shape)
    print("| operator | kind | predicted | measured | off | error told | error of the measure |")
    print("|---|---|---|---|---|---|---|")
    for count, functions in ((1, ONE), (2, TWO)):
        for name, function in functions.items():
            if arguments.only not in name:
                continue
            xs = [drawn(POWER, ROLES, shape, torch.Generator().manual_seed(i)) for i in range(count)]
            program = capture(Of(function).eval(), tuple(xs)).program
            found = predict(program, inputs={s.name: POWER for s in program.inputs})
            (end,) = program.output.all_input_nodes
            power = found.power(end)
            measure, scatter = monte_carlo(function, count, shape, arguments.draws)
            if power is None:
                print(f"| {name} | unknown | - | {measure:.4g} | - | - | {scatter:.2%} |")
                continue
            told = f"{found.drawn[end]:.2%}" if end in found.drawn else "-"
            kind = "drawn" if found.drawn else "exact"
            off = power.second / measure - 1
            print(f"| {name} | {kind} | {power.second:.4g} | {measure:.4g} | {off:+.2%} | {told} | {scatter:.2%} |")


if __name__ == "__main__":
    main()
