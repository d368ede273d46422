"""A converter for diverse branch blocks alone: `python diverse_branches_own.py WEIGHTS KERNELS` folds a checkpoint.

The arithmetic of Ding, Zhang, Han, Ding 2021 (arXiv 2103.13425, transforms I to VI), which `diverse_branches.py` holds
against a conversion. It imports one block of reparam and no more: the process is as short as that of such a converter.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from reparam.models.multi_branch import PadWithBorder, dbb

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))


class Bordered(PadWithBorder):
    """A batch norm with a border, which is written with slice assignments, as the published block does."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.bn.running_mean, self.bn.running_var
        assert mean is not None and var is not None
        border = self.bn.bias.detach() - mean * self.bn.weight.detach() / torch.sqrt(var + self.bn.eps)
        y = functional.pad(self.bn(x), (1, 1, 1, 1))
        for edge in (slice(0, 1), slice(-1, None)):
            y[:, :, edge, :] = border.reshape(1, -1, 1, 1)
            y[:, :, :, edge] = border.reshape(1, -1, 1, 1)
        return y


def block(c_in: int, c_out: int, stride: int) -> nn.Module:
    """The branches of a diverse branch block, without the activation behind them."""
    branches: nn.Module = dbb(c_in, c_out, stride)[0]  # type: ignore[index]
    for branch in branches.branches:  # type: ignore[union-attr]
        if isinstance(branch[1], PadWithBorder):
            branch[1] = Bordered(branch[1].bn.num_features)
    return branches


class Residual(nn.Module):
    """relu(dbb(relu(dbb(x))) + shortcut(x)): (N, c_in, H, W) -> (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = block(c_in, c_out, stride)
        self.second = block(c_out, c_out, 1)
        same = stride == 1 and c_in == c_out
        norm = nn.BatchNorm2d(c_out)
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.short(x))


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
    branches = block.get_submodule("branches").children()
    full, point, sequence, pooled = (list(branch.children()) for branch in branches)
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
    blocks = [b for m in model if isinstance(m, Residual) for b in (m.first, m.second)]
    with torch.no_grad():
        return [of_block(b) for b in blocks]


def loaded(checkpoint: Path) -> nn.Module:
    """The network with the weights of a file."""
    model = network()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return model


def main() -> None:
    """Prints the CPU seconds of this process, and of the arithmetic alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="a state dict of the network")
    parser.add_argument("kernels", type=Path, help="where the kernels and biases go")
    args = parser.parse_args()
    model = loaded(args.weights)
    start = time.process_time()
    kernels = written_for_it(model)
    folding = time.process_time() - start
    torch.save(kernels, args.kernels)
    print(json.dumps({"own": time.process_time(), "folding": folding}))


if __name__ == "__main__":
    main()
