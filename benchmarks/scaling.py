"""How the time of a conversion grows with the network: layers in a row, sums, concatenations, branches.

Writes a plot, scaling.svg, beside the table. Every measurement is a fresh process.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import MISSING, answer, in_fresh_process, options, quiet, record, say, table
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.loading import randomize_statistics
from reparam.models.stochastic_depth_resnet import StochasticDepthResNet
from reparam.signal import line_picture
from reparam.utils import write_atomically

PLOT = Path(__file__).with_suffix(".svg")
CHANNELS = 4
TEXT = """\
## Growth

Processor time of rewriting and checking (`convert` without the capture and without the file), for each node of the
captured graph, against that of the smallest network of the row: 1 is linear. Nodes in brackets.

![Growth](scaling.svg)
"""


def conv_bn(outputs: int = CHANNELS, kernel: int = 1) -> nn.Module:
    """A convolution without bias, and a batch norm with statistics of its own."""
    norm = nn.BatchNorm2d(outputs)
    assert norm.running_mean is not None and norm.running_var is not None
    nn.init.normal_(norm.running_mean, 0.0, 0.1)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return nn.Sequential(nn.Conv2d(CHANNELS, outputs, kernel, padding=kernel // 2, bias=False), norm)


class Sums(nn.Module):
    """Activations of one value, added one after the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(conv_bn(), nn.Tanh()) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for part in self.parts:
            y = y + part(x)
        return y


class Joined(nn.Module):
    """Activations of one value, side by side, and a layer that reads all of them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(conv_bn(2), nn.ReLU()) for _ in range(count))
        self.last = nn.Conv2d(2 * count, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.cat([part(x) for part in self.parts], 1))
        return found


class Branches(nn.Module):
    """Linear branches of one value, added: all become one layer."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(conv_bn(kernel=3) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.parts[0](x)
        for part in list(self.parts)[1:]:
            y = y + part(x)
        return torch.relu(y)


class Steps(nn.Module):
    """Calls without weights: y becomes relu(y + x), again and again."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(self.count):
            y = torch.relu(y + x)
        return y


def _residual(depth: int) -> nn.Module:
    """With statistics of a random batch: with those of a new network values double in each block."""
    network = StochasticDepthResNet(depth).eval()
    return randomize_statistics(network, [torch.randn(16, 3, 16, 16)])


def _row_of_layers(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Sequential(conv_bn(), nn.ReLU()) for _ in range(count)))


# Each network by how many parts it has, and the target.
KINDS: Mapping[str, tuple[Callable[[int], nn.Module], str, tuple[int, ...]]] = {
    "residual, to plain": (_residual, "plain", (110, 302, 602, 1202)),
    "layers in a row": (_row_of_layers, "fused", (110, 302, 602, 1202)),
    "sum of activations": (Sums, "fused", (156, 625, 2500)),
    "concatenation": (Joined, "fused", (208, 833, 3333)),
    "branches": (Branches, "fused", (62, 250, 1000)),
    "calls without weights": (Steps, "fused", (312, 1250, 5000)),
}
QUICK = 2  # sizes of each kind


def measure(kind: str, count: int) -> dict[str, float]:
    """Seconds of processor time, and nodes of the captured graph."""
    torch.set_num_threads(1)
    make, to, _ = KINDS[kind]
    torch.manual_seed(0)
    network = make(count).eval()
    shape = (2, 3, 16, 16) if to == "plain" else (2, CHANNELS, 6, 6)
    marks: dict[str, float] = {}

    def watched(stage: str, done: int, total: int) -> None:
        if stage == "capture" and done == total:
            marks["captured"] = time.process_time()

    convert(_small(network, to), torch.randn(shape), to=to, progress=watched)  # imports, and what torch compiles once
    report = convert(network, torch.randn(shape), to=to, progress=watched).report
    return {"seconds": time.process_time() - marks["captured"], "nodes": float(report.before.nodes)}


def _small(network: nn.Module, to: str) -> nn.Module:
    return StochasticDepthResNet(8).eval() if to == "plain" else _row_of_layers(2).eval()


def main() -> None:
    args = options(__doc__, worker=True)
    if args.worker:
        answer(lambda: measure(**json.loads(args.worker)))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: list[list[str]] = []
    curves: dict[str, list[float]] = {}
    figures: dict[str, float] = {}
    with quiet():
        for kind, (_, _, counts) in KINDS.items():
            base, cells, curve = math.nan, [], []
            for count in counts[:QUICK] if args.quick else counts:
                run: Mapping[str, Any] = in_fresh_process(__file__, json.dumps({"kind": kind, "count": count}))
                say(f"scaling {kind}, {count}: {run}")
                if "error" in run:
                    cells.append(MISSING)
                    continue
                each = run["seconds"] / run["nodes"]
                base = each if math.isnan(base) else base
                curve.append(each / base)
                cells.append(f"{each / base:.2f} ({run['nodes']:,.0f})")
            rows.append([kind, *cells, *[""] * (4 - len(cells))])
            curves[kind] = curve
            if len(curve) > 1:
                figures[f"growth, {kind}"] = curve[-1]
    record(figures)
    if not args.quick:
        content = line_picture("time of a node against the smallest network, by size", curves).encode()
        write_atomically(PLOT, lambda file: file.write(content), force=True)
    print(TEXT)
    print(table(("network", "smallest", "", "", "largest"), rows))


if __name__ == "__main__":
    main()
