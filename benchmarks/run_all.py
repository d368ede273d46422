"""Runs every benchmark, one after the other, each in its own process, and writes benchmarks/README.md.

Its main figures are kept beside it, in figures.json. One that became worse by more than a tenth is told, on standard
error and at the top of the page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import FIGURES, machine, regressions, say

from reparam.utils import write_atomically

HERE = Path(__file__).parent
KEPT = HERE / "figures.json"
SCRIPTS = (
    "conversion_time.py",
    "free_sizes.py",
    "diverse_branches.py",
    "peak_memory.py",
    "scaling.py",
    "ort_latency.py",
    "engines.py",
    "plain_cost.py",
    "sums_in_parts.py",
    "pruning.py",
    "gpu.py",
    "training_memory.py",
    "train_mocapsnet.py",
    "int8_equalized.py",
)

TEXT = """\
# Benchmarks

Written by `make bench`, which measures everything again (`make bench ARGS=--quick` for a trial). All figures are
ratios of measurements taken side by side on one machine, with their spread; weights are random, and normalisation
layers have the statistics of a random batch, disturbed (`make_checkpoint.py`).

Machine: {machine}.
"""
QUICK = "**A trial run, with few rounds and few models: not figures to rely on.**\n"


def _compared(figures: dict[str, float]) -> list[str]:
    """What to say of figures that became worse; they take the place of those that were kept."""
    before = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    worse = regressions(before, figures)
    for line in worse:
        say(f"worse by more than a tenth: {line}")
    content = (json.dumps(dict(sorted(figures.items())), indent=1) + "\n").encode()
    write_atomically(KEPT, lambda file: file.write(content), force=True)
    return (
        ["Worse by more than a tenth than in the run before:\n", *(f"- {line}" for line in worse), ""] if worse else []
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer models and rounds: a trial, not a measurement")
    parser.add_argument("--output", type=Path, default=HERE / "README.md", help="default: benchmarks/README.md")
    args = parser.parse_args()
    parts = [TEXT.format(machine=machine())]
    if args.quick:
        parts.append(QUICK)
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "figures.json"
        recorded.write_text("{}", encoding="utf-8")
        for script in SCRIPTS:
            start = time.perf_counter()
            command = [sys.executable, str(HERE / script), *(["--quick"] if args.quick else [])]
            environment = os.environ | {FIGURES: str(recorded)}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
            if done.returncode:
                say(f"{script} failed with exit status {done.returncode}; {args.output.name} is left as it was")
                return 1
            say(f"{script}: {time.perf_counter() - start:.0f} s")
            parts.append(done.stdout)
        figures = json.loads(recorded.read_text(encoding="utf-8"))
    if not args.quick:
        parts[1:1] = _compared(figures)
    content = "\n".join(parts).encode()
    write_atomically(args.output, lambda file: file.write(content), force=True)
    say(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
