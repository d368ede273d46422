"""How long `reparam.convert` takes, phase by phase, beside torch's ONNX exporter and onnxsim on the same network.

Every repetition is a fresh process, in which a network of one convolution first goes through both.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    MISSING,
    Spread,
    Subject,
    answer,
    export_onnx,
    in_fresh_process,
    onnxsim_clean,
    options,
    quiet,
    ratios,
    record,
    say,
    short,
    subject,
    table,
)
from torch import nn

from reparam.conversion import convert

MODELS = (
    "torchvision/resnet18",
    "torchvision/resnet50",
    "timm/repvgg_a0",
    "timm/mobileone_s0",
    "timm/fastvit_t8",
    "timm/swin_tiny_patch4_window7_224",
)
QUICK_MODELS = ("torchvision/resnet18", "timm/repvgg_a0")
REPEATS, QUICK_REPEATS = 3, 1
PHASES = ("capture", "rewrite", "verify", "emit")

TEXT = """\
## Conversion time

Seconds of the phases of `reparam.convert(model, x, to="fused")` and `.save()`, as ratios to the capture
(`torch.export` and normalisation of the graph). *verify* holds every check: of each rewrite, of the whole network in
float64, and in the dtype that is emitted. The bar is *(rewrite + verify) / capture* below 4 for resnet50. The last
column is the whole conversion against `torch.onnx.export(dynamo=True)` followed by `onnxsim.simplify` of the original
network in the same process, which check nothing; both with a free batch axis. Median of {repeats} fresh processes
(interquartile range), each warmed up with a network of one convolution.
"""


def measure(arch: str) -> dict[str, float | None]:
    """Seconds of each phase and of the ONNX export with its clean-up (None where that fails)."""
    _both(Subject(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), ((3, 16, 16),)))
    return _both(subject(arch))


def _both(network: Subject) -> dict[str, float | None]:
    conversion = convert(network.module, *network.inputs(2))
    with tempfile.TemporaryDirectory() as folder:
        conversion.save(Path(folder) / "fused.pt2")
    return {**{phase: conversion.report.seconds[phase] for phase in PHASES}, "onnx": _onnx_seconds(network)}


def _onnx_seconds(network: Subject) -> float | None:
    start = time.perf_counter()
    try:
        with torch.no_grad():
            onnxsim_clean(export_onnx(network.module, network.inputs(2), dynamic_batch=True))
    except Exception as error:
        say(f"the original cannot be exported to ONNX ({type(error).__name__})")
        return None
    return time.perf_counter() - start


def _row(arch: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    failed = next((run["error"] for run in runs if "error" in run), None)
    if failed is not None:
        return [short(arch), f"failed: {failed}", *[MISSING] * 4]
    seconds = {phase: [run[phase] for run in runs] for phase in (*PHASES, "onnx")}
    capture = seconds["capture"]
    work = [run["rewrite"] + run["verify"] for run in runs]
    against = MISSING if None in seconds["onnx"] else str(_against_export(runs))
    parts = [str(ratios(seconds[phase], capture)) for phase in PHASES[1:]]
    return [short(arch), *parts, str(ratios(work, capture)), against]


def main() -> None:
    args = options(__doc__, worker=True)
    if args.worker:
        answer(lambda: measure(args.worker))
        return
    models, repeats = (QUICK_MODELS, QUICK_REPEATS) if args.quick else (MODELS, REPEATS)
    runs: dict[str, list[Mapping[str, Any]]] = {arch: [] for arch in models}
    with quiet():
        for repeat in range(repeats):
            for arch in models:
                runs[arch].append(in_fresh_process(__file__, arch))
                say(f"conversion_time {repeat + 1}/{repeats} {short(arch)}: {_seconds(runs[arch][-1])}")
    header = (
        "model",
        *(f"{p} / capture" for p in PHASES[1:]),
        "(rewrite + verify) / capture",
        "reparam / (export + onnxsim)",
    )
    whole = [r for r in runs.items() if all(run.get("onnx") for run in r[1])]
    record({f"conversion time, {short(a)}": _against_export(r).median for a, r in whole})
    print(TEXT.format(repeats=repeats))
    print(table(header, [_row(arch, runs[arch]) for arch in models]))


def _against_export(runs: Sequence[Mapping[str, Any]]) -> Spread:
    """The whole conversion, over the export of the original with its clean-up."""
    return ratios([sum(run[phase] for phase in PHASES) for run in runs], [run["onnx"] for run in runs])


def _seconds(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v:.2f} s" if isinstance(v, float) else f"{k} {v}" for k, v in run.items())


if __name__ == "__main__":
    main()
