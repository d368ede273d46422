"""Figures of systems whose claim is an exact rewrite, or an initialiser without a figure, measured as in systems.py.

An error is the largest difference in float64 between the original and what it is converted to, over the largest value,
as the report of the conversion has it; weights are random, and statistics of norms those of a random batch, disturbed.
"""

from __future__ import annotations

import argparse
import functools
import itertools

import torch
from published_systems import healthy
from systems import Figure, print_table
from torch import nn

import reparam
from reparam.ir import draw_examples
from reparam.loading import build_architecture
from reparam.models.registry import entries
from reparam.report import Report

IMAGE = (3, 16, 16)


@functools.cache
def converted(name: str, to: str) -> Report:
    shapes = entries()[name].inputs
    x = draw_examples(healthy(name, shapes).module, shapes, batch=2, seed=1)
    return reparam.convert(healthy(name, shapes).module, *x, to=to).report


def error(name: str, to: str = "plain") -> float:
    evidence = converted(name, to).evidence
    assert evidence is not None
    return evidence.float64_max_rel


# ---- 2: GradInit -----------------------------------------------------------------------------------------------------


@functools.cache
def gradinit() -> tuple[float, float, float]:
    """Of 150 steps on a perceptron whose last layer is 20 times too large: the largest distance of a tensor from a
    multiple of itself, relative; the norm of the gradient, and the loss behind a step of training, last over first."""
    torch.manual_seed(0)
    first, second, last = (nn.Linear(*sizes) for sizes in itertools.pairwise((16, 32, 32, 4)))
    last.weight.data *= 20
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
    x = torch.randn(256, 16)
    data = [(x, x[:, :4].argmax(1))]
    made = reparam.init(net, x[:2], method="gradinit", data=data, optimizer="sgd", steps=150, batch=64)
    away = []
    for name, now in made.module.state_dict().items():
        drawn = net.state_dict()[name]
        factor = (now * drawn).sum() / drawn.square().sum()
        away.append(float((now - factor * drawn).abs().max() / now.abs().max()))
    norms, losses = made.figures["norms"], made.figures["objectives"]
    return max(away), norms[-1] / norms[0], losses[-1] / losses[0]


# ---- 9, 10: batch norms ----------------------------------------------------------------------------------------------


def means_behind_batch_norms() -> float:
    """The largest share of the power of channel means behind a batch norm, as `analyze` finds it in training mode."""
    net = build_architecture("reparam/resnet_small").module
    torch.manual_seed(0)
    table = reparam.analyze(net, torch.randn(16, *IMAGE), what="norm", training=True)["norm"]
    return max(table.series["in channel means"])


def recalibrated() -> float:
    """The largest distance of the first batch norm's statistics from those of what it reads."""
    net = healthy("resnet_small", entries()["resnet_small"].inputs).module
    torch.manual_seed(0)
    x = torch.randn(64, *IMAGE)
    made = reparam.recalibrate(net, x[:2], data=x).module
    conv = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in made.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        y = conv(x)
    assert norm.running_mean is not None and norm.running_var is not None
    gaps = norm.running_mean - y.mean((0, 2, 3)), norm.running_var - y.var((0, 2, 3))
    return float(torch.stack(gaps).abs().max())


@functools.cache
def bn_scale() -> tuple[float, float, float]:
    """The scale of the norms, that of the input's norm, and the learning rate of scales over that of weights."""
    net = build_architecture("reparam/input_bn_resnet_small").module
    made = reparam.init(net, torch.randn(2, *IMAGE), method="bn-scale")
    sizes = {w.name: w.deviation for w in made.weights}
    first = sizes.pop("input_bn.weight")
    groups = made.parameter_groups(0.1, 1e-4)
    return max(sizes.values()), first, groups[-1]["lr"] / groups[0]["lr"]


# ---- 11, 18: depth ---------------------------------------------------------------------------------------------------


def layers(name: str) -> int:
    """Convolutions outside of shortcuts, and linear layers: the depth that the paper counts."""
    net = build_architecture(f"reparam/{name}").module
    counted = (nn.Conv2d, nn.Linear)
    return sum(isinstance(m, counted) and "shortcut" not in n for n, m in net.named_modules())


FIGURES = (
    Figure(2, "distance of a tensor from a multiple of what was drawn", 0, 1e-6, lambda: gradinit()[0]),
    Figure(2, "norm of the gradient, last step over first", 1, 0, lambda: gradinit()[1], below=True),
    Figure(2, "loss behind a step of training, last over first", 1, 0, lambda: gradinit()[2], below=True),
    Figure(9, "batch norms left, fused", 0, 0, lambda: converted("resnet_small", "fused").after.norms),
    Figure(9, "error, fused", 0, 1e-12, lambda: error("resnet_small", "fused")),
    Figure(9, "power in channel means behind batch norms, training", 0, 1e-9, means_behind_batch_norms),
    Figure(9, "statistics after recalibration, against the batch's", 0, 1e-5, recalibrated),
    Figure(10, "scale of norms, bn-scale", 0.1, 1e-6, lambda: bn_scale()[0]),
    Figure(10, "scale of the input's norm, bn-scale", 0.058, 1e-6, lambda: bn_scale()[1]),
    Figure(10, "learning rate of scales over that of weights", 0.01, 1e-6, lambda: bn_scale()[2]),
    Figure(10, "error, plain, with the input's norm folded", 0, 1e-12, lambda: error("input_bn_resnet_small")),
    Figure(11, "layers of the published network", 1202, 0, lambda: layers("stochastic_depth_resnet")),
    Figure(11, "error of 1,202 layers, plain", 0, 1e-9, lambda: error("stochastic_depth_resnet")),
    Figure(13, "sums left, ResNet, plain", 0, 0, lambda: converted("resnet_small", "plain").after.merges),
    Figure(13, "sums left, MobileNetV2, plain", 0, 0, lambda: converted("mobilenet_v2_small", "plain").after.merges),
    Figure(13, "error, ResNet, plain", 0, 1e-12, lambda: error("resnet_small")),
    Figure(13, "error, MobileNetV2, plain", 0, 1e-12, lambda: error("mobilenet_v2_small")),
    Figure(18, "layers of the published network", 1001, 0, lambda: layers("preact_resnet")),
    Figure(18, "error of 1,001 layers, plain", 0, 1e-9, lambda: error("preact_resnet")),
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print_table(FIGURES)


if __name__ == "__main__":
    main()
