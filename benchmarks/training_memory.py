"""The memory that training MoCapsNet's momentum blocks takes, reversible against stored, from 1 to 16 blocks.

Writes a plot, training_memory.svg, beside the table. Every measurement is a fresh process.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import answer, in_fresh_process, options, peak_memory, quiet, resident_memory, say, spread, table
from torch import nn

from reparam.models.capsules import RoutingCapsules, margin_loss
from reparam.models.mocapsnet import ResidualBlocks
from reparam.models.momentum import saved_bytes
from reparam.utils import write_atomically

DEPTHS, QUICK_DEPTHS = (1, 2, 4, 8, 16), (1, 4)
REPEATS, QUICK_REPEATS = 3, 1
BATCH = 1024
CAPSULES, DIM, CLASSES = 32, 8, 10  # as published
MIB = 2**20
PLOT = Path(__file__).with_suffix(".svg")
WAYS: Mapping[str, Mapping[str, Any]] = {
    "stored": {"reversible": False},
    "reversible, a velocity for each block": {"velocity": "block"},
    "reversible, one velocity": {"velocity": "stack"},
}

TEXT = """\
## Training memory of MoCapsNet

One training step of the momentum blocks of MoCapsNet in float32 ({capsules} capsules of {dim}, two layers of three
routings a block, a batch of {batch}), with a class layer and the margin loss behind them. *saved*: MiB that autograd
keeps between the passes. *peak*: MiB of resident memory above what the process held before the step, whose weights
had gradients already; median of {repeats} processes (interquartile range).

Reversible blocks rebuild their activations exactly, from three 64-bit integers for each number of the stream. With one
velocity nothing is added by a block but the gradients of its weights ({weights:.1f} MiB), which are all handed over
at the end. A velocity that starts at zero in each block, as published, leaves one more integer a block, since a
velocity that is thrown away cannot be computed from what is kept.

![Training memory](training_memory.svg)
"""


def build(blocks: int, way: str) -> nn.Module:
    """The blocks and the class layer, with published sizes and random weights."""
    torch.manual_seed(0)
    inner = [RoutingCapsules(CAPSULES, DIM, CAPSULES, DIM, std=0.1) for _ in range(2 * blocks)]
    return nn.Sequential(ResidualBlocks(inner, **WAYS[way]), RoutingCapsules(CAPSULES, DIM, CLASSES, 2 * DIM, std=0.1))


def measure(blocks: int, way: str) -> dict[str, int]:
    """Bytes saved between the passes, and the peak of a step above what is there before it."""
    torch.set_num_threads(1)
    model = build(blocks, way)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    labels = torch.arange(BATCH) % CLASSES

    def step(batch: int) -> torch.Tensor:
        x = torch.rand(batch, CAPSULES, DIM)
        return margin_loss(model(x).norm(dim=-1), labels[:batch])

    step(2).backward()  # what torch allocates once
    before = resident_memory()
    step(BATCH).backward()
    peak = peak_memory() - before
    return {"saved": saved_bytes(lambda: step(BATCH), model.parameters()), "peak": peak}


# ---- the plot --------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 360, 60, 50, 20
COLOURS = ("#c0392b", "#2471a3", "#1e8449")


def plot(depths: Sequence[int], curves: Mapping[str, Sequence[float]]) -> str:
    """An SVG of MiB over blocks, a line for each curve, both axes from zero."""
    tick = 25 * math.ceil(max(max(values) for values in curves.values()) / 100)
    top = 4 * tick
    right = max(depths)

    def place(blocks: float, mib: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 20) * blocks / right
        return round(x, 1), round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - mib / top), 1)

    (x0, y0), (x1, _), (_, y1) = place(0, 0), place(right, 0), place(0, top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{x0} {y1}V{y0}H{x1}" fill="none" stroke="black"/>',
        f'<text x="{(x0 + x1) / 2}" y="{HEIGHT - 12}" text-anchor="middle">blocks</text>',
        f'<text x="16" y="{(y0 + y1) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {(y0 + y1) / 2})">peak of a training step, MiB</text>',
    ]
    for blocks in depths:
        x, y = place(blocks, 0)
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{blocks}</text>')
    for i in range(5):
        x, y = place(0, tick * i)
        parts.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{tick * i}</text>')
    for i, ((name, values), colour) in enumerate(zip(curves.items(), COLOURS, strict=True)):
        points = [place(b, v) for b, v in zip(depths, values, strict=True)]
        line = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(f'<text x="{LEFT + 12}" y="{TOP + 14 + 16 * i}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    args = options(__doc__, worker=True)
    if args.worker:
        answer(lambda: measure(**json.loads(args.worker)))
        return
    depths, repeats = (QUICK_DEPTHS, QUICK_REPEATS) if args.quick else (DEPTHS, REPEATS)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MIB // 16)  # glibc: what is freed leaves the process at once
    rows: list[list[str]] = []
    curves: dict[str, list[float]] = {way: [] for way in WAYS}
    with quiet():
        for blocks in depths:
            row = [str(blocks)]
            for way in WAYS:
                runs = [in_fresh_process(__file__, json.dumps({"blocks": blocks, "way": way})) for _ in range(repeats)]
                say(f"training_memory {blocks} blocks, {way}: {runs}")
                peak = spread([run["peak"] / MIB for run in runs])
                curves[way].append(peak.median)
                row += [f"{runs[0]['saved'] / MIB:.1f}", f"{peak.median:.1f} ({peak.iqr:.1f})"]
            rows.append(row)
    if not args.quick:
        content = plot(depths, curves).encode()
        write_atomically(PLOT, lambda file: file.write(content), force=True)
    header = ["blocks", *(f"{way}: {what}" for way in WAYS for what in ("saved", "peak"))]
    weights = 2 * 4 * (CAPSULES * DIM) ** 2 / MIB
    print(TEXT.format(capsules=CAPSULES, dim=DIM, batch=BATCH, repeats=repeats, weights=weights))
    print(table(header, rows))


if __name__ == "__main__":
    main()
