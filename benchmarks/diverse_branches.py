"""How long folding a ResNet-18 of diverse branch blocks takes, beside a converter that is written for that block.

The block's own arithmetic (Ding, Zhang, Han, Ding 2021, arXiv 2103.13425, transforms I to VI) knows the structure and
checks nothing: it folds each batch norm, composes 1x1 with 3x3 by a convolution, writes the average pool as a kernel,
and adds the kernels up, in float32. `reparam.convert` finds the structure in the graph and checks every rewrite. Both
are whole processes, from the checkpoint to the file that they write.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import answer, in_fresh_process, options, quiet, ratios, say, table
from diverse_branches_own import loaded, network
from torch import nn

from reparam import convert

REPEATS, QUICK_REPEATS = 3, 1
IMAGE, QUICK_IMAGE = 224, 64
PARTS = ("start and files", "capture", "rewrite", "verify", "emit")
OWN = Path(__file__).with_name("diverse_branches_own.py")

TEXT = """\
## Diverse branch blocks

CPU seconds from the checkpoint of a ResNet-18, whose sixteen 3x3 layers are diverse branch blocks of four branches
each, to the file of the folded network: of a process that calls `convert`, with the start of the process, its imports
and the files as "start and files", as ratios to a process that does nothing but the arithmetic that is written for that
block. That one takes {own:.2f} s; its arithmetic alone, without start and files, {folding:.2f} s. Median of {repeats}
fresh processes (interquartile range).
"""


def write_checkpoint(to: Path) -> None:
    """Random weights and statistics."""
    torch.manual_seed(0)
    model = network()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            nn.init.normal_(norm.running_mean, 0.0, 0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    torch.save(model.state_dict(), to)


def measure(checkpoint: str, kernels: str, image: int) -> Mapping[str, Any]:
    """CPU seconds of this process, by phase. Raises AssertionError where the kernels are not those of the file."""
    torch.manual_seed(0)
    model = loaded(Path(checkpoint))
    start = time.process_time()
    done = convert(model, torch.randn(2, 3, image, image))
    spent = time.process_time() - start
    done.save(Path(checkpoint).with_suffix(".pt2"), force=True)
    whole = time.process_time()
    theirs = torch.load(kernels, weights_only=True)
    ours = [p for p in done.module.parameters() if p.dim() == 4 and p.shape[2] == 3]
    assert len(ours) == len(theirs) == 16
    assert all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
        for a, (b, _) in zip(ours, theirs, strict=True)
    )
    seconds = done.report.seconds
    told = sum(seconds.values())
    return {
        "start and files": whole - spent,
        **{phase: spent * seconds[phase] / told for phase in seconds},
        "macs": done.report.after.macs / done.report.before.macs,
    }


def fold(checkpoint: str, kernels: str) -> Mapping[str, float]:
    """CPU seconds of the process that is written for the block, and of its arithmetic alone."""
    command = [sys.executable, str(OWN), checkpoint, kernels]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Mapping[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    args = options(__doc__, worker=True)
    if args.worker:
        answer(lambda: measure(*json.loads(args.worker)))
        return
    repeats, image = (QUICK_REPEATS, QUICK_IMAGE) if args.quick else (REPEATS, IMAGE)
    runs: list[Mapping[str, Any]] = []
    with quiet(), tempfile.TemporaryDirectory() as folder:
        checkpoint, kernels = f"{folder}/weights.pt", f"{folder}/kernels.pt"
        write_checkpoint(Path(checkpoint))
        for repeat in range(repeats):
            own_time = fold(checkpoint, kernels)
            runs.append({**own_time, **in_fresh_process(__file__, json.dumps([checkpoint, kernels, image]))})
            say(f"diverse_branches {repeat + 1}/{repeats}: {runs[-1]}")
    own, folding, macs = (statistics.median(r[key] for r in runs) for key in ("own", "folding", "macs"))
    print(TEXT.format(repeats=repeats, own=own, folding=folding))
    bases = [r["own"] for r in runs]
    row = [str(ratios([r[part] for r in runs], bases)) for part in PARTS]
    whole = str(ratios([sum(r[part] for part in PARTS) for r in runs], bases))
    print(table(("network", *PARTS, "whole", "MACs after / before"), [["DBB-ResNet-18", *row, whole, f"{macs:.2f}"]]))


if __name__ == "__main__":
    main()
