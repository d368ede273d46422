"""The peak memory of `reparam convert`, against the size of the checkpoint. Every repetition is a fresh process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import (
    GIB,
    MISSING,
    answer,
    in_fresh_process,
    options,
    peak_memory,
    quiet,
    resident_memory,
    say,
    short,
    spread,
    table,
)

MODELS = ("torchvision/resnet50", "timm/repvgg_b1g4", "timm/vit_base_patch16_224")
QUICK_MODELS = ("torchvision/resnet50",)
REPEATS, QUICK_REPEATS = 3, 1

TEXT = """\
## Peak memory

The highest resident memory of a fresh process that loads a checkpoint, infers its architecture, converts it to
`fused` and writes the `.pt2`, less what it held after its imports: relative to the size of the checkpoint, and to the
bar of 3 checkpoints + 1 GiB, which is met below 1. Median of {repeats} processes (interquartile range).
"""


def measure(checkpoint: Path) -> dict[str, int]:
    """Bytes of the checkpoint and of the peak above the imports."""
    import torch

    from reparam.conversion import convert
    from reparam.load import load_model
    from reparam.utils.torchvision_ops import register_missing_torchvision_ops

    register_missing_torchvision_ops()
    import timm  # noqa: F401
    import torchvision.models  # noqa: F401

    before = resident_memory()
    loaded = load_model(checkpoint)
    assert loaded.input_shapes is not None
    conversion = convert(loaded.module, *(torch.randn(2, *shape) for shape in loaded.input_shapes))
    conversion.save(checkpoint.with_suffix(".pt2"), force=True)
    return {"checkpoint": checkpoint.stat().st_size, "peak": peak_memory() - before}


def _row(arch: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    failed = next((run["error"] for run in runs if "error" in run), None)
    if failed is not None:
        return [short(arch), f"failed: {failed}", MISSING]
    of_checkpoint = spread([run["peak"] / run["checkpoint"] for run in runs])
    of_bar = spread([run["peak"] / (3 * run["checkpoint"] + GIB) for run in runs])
    return [short(arch), str(of_checkpoint), str(of_bar)]


def main() -> None:
    args = options(__doc__, worker=True)
    if args.worker:
        answer(lambda: measure(Path(args.worker)))
        return
    models, repeats = (QUICK_MODELS, QUICK_REPEATS) if args.quick else (MODELS, REPEATS)
    rows = []
    with quiet(), tempfile.TemporaryDirectory() as folder:
        for arch in models:
            checkpoint = Path(folder) / f"{short(arch)}.pt"
            maker = str(Path(__file__).with_name("make_checkpoint.py"))
            subprocess.run([sys.executable, maker, arch, str(checkpoint)], check=True, stdout=subprocess.DEVNULL)
            runs = [in_fresh_process(__file__, str(checkpoint)) for _ in range(repeats)]
            say(f"peak_memory {short(arch)}: {runs}")
            rows.append(_row(arch, runs))
            checkpoint.unlink()
    print(TEXT.format(repeats=repeats))
    print(table(("model", "peak / checkpoint", "peak / (3 checkpoints + 1 GiB)"), rows))


if __name__ == "__main__":
    main()
