"""Original, fused and plain networks in onnxruntime, OpenVINO and AOTInductor: latency side by side on the CPU."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import (
    MISSING,
    Subject,
    Timing,
    geometric_mean,
    interleaved,
    options,
    quiet,
    ratios,
    say,
    short,
    spread,
    subject,
    table,
)
from torch import Tensor

from reparam.engines import ExportOptions, Runnable, export
from reparam.engines.formats import find_format
from reparam.errors import ReparamError

MODELS = (
    "torchvision/resnet18",
    "torchvision/resnet50",
    "timm/repvgg_a0",
    "timm/repvgg_b1g4",
    "timm/mobileone_s1",
    "timm/fastvit_t8",
    "timm/repvit_m1",
    "torchvision/mobilenet_v2",
)
QUICK_MODELS = ("torchvision/resnet18",)
ROUNDS, QUICK_ROUNDS = 15, 3
RUNTIMES = {"onnxruntime": "onnx", "OpenVINO": "openvino", "AOTInductor": "aoti"}
TARGETS = {"original": "as-is", "fused": "fused", "plain": "plain"}
BASE = ("onnxruntime", "original")

TEXT = """\
## Engines

How many times as fast as the original in onnxruntime each form of a network runs in each engine: as it is, converted to
`fused`, and converted to `plain`, all written by `reparam export`, which compares each file with the float64 outputs
of the original before it is kept. CPU, one thread, batch 1, 224 x 224, float32. Median of {rounds} interleaved
rounds, of the ratio within a round (interquartile range). Each engine folds batch norms itself: what `fused` adds is
the merging of branches.

The time is the CPU time of all threads of the process, which leaves out what other processes take. The time on the
wall was {idle:.2f} times as long (median).
"""


def engines(network: Subject, folder: Path) -> dict[tuple[str, str], Runnable]:
    """(runtime, form) -> the verified engine; those that cannot be built are left out, with the reason on stderr."""
    made: dict[tuple[str, str], Runnable] = {}
    for runtime, name in RUNTIMES.items():
        format = find_format(name)
        for form, target in TARGETS.items():
            path = folder / f"{form}{format.suffix}"
            try:
                export(network.module, *network.inputs(2), path=path, options=ExportOptions(name), to=target)
            except ReparamError as error:
                say(f"  {form} for {runtime}: {error}")
                continue
            made[runtime, form] = format.load(path)
    return made


def measure(arch: str, rounds: int) -> dict[tuple[str, str], Timing]:
    """(runtime, form) -> the seconds of one run on one sample."""
    network = subject(arch)
    x = network.inputs(1)
    with tempfile.TemporaryDirectory() as folder:
        found = engines(network, Path(folder))
        timed = {" ".join(key): _on(engine, x) for key, engine in found.items()}
        timings = interleaved(timed, rounds, clock=time.process_time)
    return {key: timings[" ".join(key)] for key in found}


def _on(engine: Runnable, x: tuple[Tensor, ...]) -> Callable[[], object]:
    return lambda: engine.run(x)


def main() -> None:
    args = options(__doc__, worker=False)
    models, rounds = (QUICK_MODELS, QUICK_ROUNDS) if args.quick else (MODELS, ROUNDS)
    torch.set_num_threads(1)
    keys = [(runtime, form) for runtime in RUNTIMES for form in TARGETS]
    rows: list[list[str]] = []
    speeds: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    waits: list[float] = []
    with quiet():
        for arch in models:
            say(f"engines {short(arch)}")
            timings = measure(arch, rounds)
            row = [short(arch)]
            for key in keys:
                if not {key, BASE} <= timings.keys():
                    row.append(MISSING)
                    continue
                speed = ratios(timings[BASE].cpu, timings[key].cpu)
                speeds[key].append(speed.median)
                row.append(str(speed))
                say(f"  {' '.join(key)}: {1e3 * spread(timings[key].cpu).median:.2f} ms")
            rows.append(row)
            waits += [w / c for t in timings.values() for w, c in zip(t.wall, t.cpu, strict=True)]
            gc.collect()
    means = [f"{geometric_mean(speeds[key]):.2f}" for key in keys]
    print(TEXT.format(rounds=rounds, idle=spread(waits).median))
    print(table(("model", *(f"{r}: {f}" for r, f in keys)), [*rows, ["geometric mean", *means]]))


if __name__ == "__main__":
    main()
