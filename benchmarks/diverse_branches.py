"""How long folding a ResNet-18 of diverse branch blocks takes, beside the arithmetic that is written for that block.

The block's own arithmetic (Ding, Zhang, Han, Ding 2021, arXiv 2103.13425, transforms I to VI) knows the structure and
checks nothing: it folds each batch norm, composes 1x1 with 3x3 by a convolution, writes the average pool as a kernel,
and adds the kernels up, in float32. `reparam.convert` finds the structure in the graph and checks every rewrite.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from common import answer, in_fresh_process, options, quiet, ratios, say, table
from torch import Tensor, nn
from torch.nn import functional

from reparam.conversion import convert
from reparam.loading import randomize_statistics
from reparam.models.multi_branch import dbb

REPEATS, QUICK_REPEATS = 3, 1
IMAGE, QUICK_IMAGE = 224, 64
PHASES = ("capture", "rewrite", "verify", "emit")
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))

TEXT = """\
## Diverse branch blocks

CPU seconds that `convert` takes for a ResNet-18 whose sixteen 3x3 layers are diverse branch blocks of four branches
each, to fused, by phase, as ratios to the arithmetic that is written for that block. Median of {repeats} fresh
processes (interquartile range).
"""


class Residual(nn.Module):
    """relu(dbb(relu(dbb(x))) + shortcut(x)): (N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = dbb(c_in, c_out, stride)
        self.second = dbb(c_out, c_out, 1)[0]
        same = stride == 1 and c_in == c_out
        norm = nn.BatchNorm2d(c_out)
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(x)) + self.short(x))


def network() -> nn.Module:
    """ResNet-18 with diverse branch blocks: images (N, 3, H, W) -> (N, 1000)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    c_in = 64
    for c_out, stride in STAGES:
        layers += [Residual(c_in, c_out, stride), Residual(c_out, c_out, 1)]
        c_in = c_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 1000)).eval()


def folded(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The kernel (C_out, C_in, k, k) and bias (C_out,) of a convolution and the batch norm behind it."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return weight * scale.reshape(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


def composed(first: tuple[Tensor, Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """A kernel (C_out, C_mid, 3, 3) after a 1x1 layer, whose bias is what its padding holds."""
    kernel, bias = first
    return functional.conv2d(weight, kernel.transpose(0, 1)), (weight * bias.reshape(1, -1, 1, 1)).sum((1, 2, 3))


def of_block(block: nn.Module) -> tuple[Tensor, Tensor]:
    """The one 3x3 kernel and bias of a diverse branch block."""
    full, point, sequence, pooled = (list(branch) for branch in block.branches)  # type: ignore[union-attr, arg-type]
    parts = [folded(full[0].weight, full[1])]
    kernel, bias = folded(point[0].weight, point[1])
    parts.append((functional.pad(kernel, (1, 1, 1, 1)), bias))
    kernel, bias = composed(folded(sequence[0].weight, sequence[1].bn), sequence[2].weight)
    kernel, more = folded(kernel, sequence[3])
    scale = sequence[3].weight / (sequence[3].running_var + sequence[3].eps).sqrt()
    parts.append((kernel, bias * scale + more))
    channels = pooled[0].weight.shape[0]
    average = torch.eye(channels).reshape(channels, channels, 1, 1).expand(-1, -1, 3, 3) / 9
    kernel, bias = composed(folded(pooled[0].weight, pooled[1].bn), average)
    kernel, more = folded(kernel, pooled[3])
    scale = pooled[3].weight / (pooled[3].running_var + pooled[3].eps).sqrt()
    parts.append((kernel, bias * scale + more))
    return sum(k for k, _ in parts), sum(b for _, b in parts)  # type: ignore[return-value]


def written_for_it(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The kernels of all diverse branch blocks of `network`, first one first."""
    blocks = [b for m in model if isinstance(m, Residual) for b in (m.first[0], m.second)]  # type: ignore[attr-defined, index]
    with torch.no_grad():
        return [of_block(b) for b in blocks]


def measure(image: int) -> Mapping[str, Any]:
    """CPU seconds of both. Raises AssertionError where they give different kernels."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, image, image)
    convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.randn(2, 3, 8, 8))
    model = randomize_statistics(network(), [torch.zeros(2, 3, image, image)], 0)
    start = time.process_time()
    kernels = written_for_it(model)
    own = time.process_time() - start
    start = time.process_time()
    done = convert(model, x)
    spent = time.process_time() - start
    ours = [p for p in done.module.parameters() if p.dim() == 4 and p.shape[2] == 3]
    assert len(ours) == len(kernels) == 16
    assert all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
        for a, (b, _) in zip(ours, kernels, strict=True)
    )
    seconds = done.report.seconds
    whole = sum(seconds.values())
    return {
        "own": own,
        **{phase: spent * seconds[phase] / whole for phase in PHASES},
        "macs": done.report.after.macs / done.report.before.macs,
    }


def main() -> None:
    args = options(__doc__, worker=True)
    if args.worker:
        answer(lambda: measure(json.loads(args.worker)))
        return
    repeats, image = (QUICK_REPEATS, QUICK_IMAGE) if args.quick else (REPEATS, IMAGE)
    runs = []
    with quiet():
        for repeat in range(repeats):
            runs.append(in_fresh_process(__file__, json.dumps(image)))
            say(f"diverse_branches {repeat + 1}/{repeats}: {runs[-1]}")
    own = [r["own"] for r in runs]
    print(TEXT.format(repeats=repeats))
    macs = statistics.median(r["macs"] for r in runs)
    row = [str(ratios([r[phase] for r in runs], own)) for phase in PHASES]
    whole = str(ratios([sum(r[phase] for phase in PHASES) for r in runs], own))
    print(table(("network", *PHASES, "whole", "MACs after / before"), [["DBB-ResNet-18", *row, whole, f"{macs:.2f}"]]))


if __name__ == "__main__":
    main()
