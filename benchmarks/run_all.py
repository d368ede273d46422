"""Runs every benchmark, one after the other, each in its own process, and writes benchmarks/README.md."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from common import machine, say

from reparam.utils import write_atomically

HERE = Path(__file__).parent
SCRIPTS = (
    "conversion_time.py",
    "diverse_branches.py",
    "peak_memory.py",
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer models and rounds: a trial, not a measurement")
    parser.add_argument("--output", type=Path, default=HERE / "README.md", help="default: benchmarks/README.md")
    args = parser.parse_args()
    parts = [TEXT.format(machine=machine())]
    if args.quick:
        parts.append(QUICK)
    for script in SCRIPTS:
        start = time.perf_counter()
        command = [sys.executable, str(HERE / script), *(["--quick"] if args.quick else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            say(f"{script} failed with exit status {done.returncode}; {args.output.name} is left as it was")
            return 1
        say(f"{script}: {time.perf_counter() - start:.0f} s")
        parts.append(done.stdout)

    content = "\n".join(parts).encode()
    write_atomically(args.output, lambda file: file.write(content), force=True)
    say(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
