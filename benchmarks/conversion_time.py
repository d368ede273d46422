"""How long `reparam.convert` takes, phase by phase, beside torch's ONNX exporter and onnxsim on the same network.

Beside them stands what nothing that captures with torch.export and compares in float64 can leave out. Every repetition
is a fresh process, in which a network of one convolution first goes through all of it.
"""

from __future__ import annotations

import copy
import io
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
    failed_row,
    onnxsim_clean,
    options,
    ratios,
    record,
    repeated,
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
    "torchvision/mobilenet_v2",
    "torchvision/densenet121",
    "timm/swin_tiny_patch4_window7_224",
)
QUICK_MODELS = ("torchvision/resnet18", "timm/repvgg_a0")
REPEATS, QUICK_REPEATS = 3, 1
PHASES = ("capture", "rewrite", "verify", "emit")

TEXT = """\
## Conversion time

Seconds of the phases of `reparam.convert(model, x, to="fused")` and of `.save()`, as ratios to the capture
(`torch.export` and normalisation of the graph). *verify* holds every check: of each rewrite, of the whole network in
float64, and in the dtype that is emitted. The bar is *(rewrite + verify) / capture* below 4 for resnet50.

The last two columns are processor time against that of `torch.onnx.export(dynamo=True)` followed by `onnxsim.simplify`
of the original network in the same process, which check nothing; all with a free batch axis. *reparam* is the whole
conversion and `.save()`. *least* is what can be left out of none that captures with `torch.export`, writes a `.pt2` and
compares in float64 at the traced size: `torch.export` and `torch.export.save` of the original, one run of it and one
of the result in float64, and one of the result in its own dtype; no rewrite, and no other check. Median of
{repeats} fresh processes (interquartile range) of one thread, each warmed up with a network of one convolution.
"""


def measure(arch: str) -> dict[str, float | None]:
    """Seconds of each phase; processor time of the whole, of its least, and of the export (None where that fails)."""
    torch.set_num_threads(1)
    _both(Subject(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), ((3, 16, 16),)))
    return _both(subject(arch))


def _both(network: Subject) -> dict[str, float | None]:
    spent = time.process_time()
    conversion = convert(network.module, *network.inputs(2))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        conversion.save(Path(folder) / "fused.pt2")
    phases = {phase: conversion.report.seconds[phase] for phase in PHASES}
    phases["emit"] += time.perf_counter() - start
    spent = time.process_time() - spent
    return {**phases, "whole": spent, "least": _least(network, conversion.module), "onnx": _onnx_seconds(network)}


def _least(network: Subject, result: nn.Module) -> float:
    """Processor time of what no conversion that is checked in float64 can leave out."""
    inputs, axes = network.inputs(2), tuple({0: torch.export.Dim.AUTO} for _ in network.shapes)
    wide = [v.double() if v.is_floating_point() else v for v in inputs]
    unchecked = copy.deepcopy(result)
    unchecked._forward_pre_hooks.clear()  # which refuse float64 to a network of float32
    start = time.process_time()
    with torch.no_grad():
        torch.export.save(torch.export.export(network.module, inputs, dynamic_shapes=axes, strict=False), io.BytesIO())
        result(*inputs)
        copy.deepcopy(network.module).double()(*wide)
        unchecked.double()(*wide)
    return time.process_time() - start


def _onnx_seconds(network: Subject) -> float | None:
    start = time.process_time()
    try:
        with torch.no_grad():
            onnxsim_clean(export_onnx(network.module, network.inputs(2), dynamic_batch=True))
    except Exception as error:
        say(f"the original cannot be exported to ONNX ({type(error).__name__})")
        return None
    return time.process_time() - start


def _row(arch: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if failed := failed_row(arch, runs, 6):
        return failed
    seconds = {phase: [run[phase] for run in runs] for phase in (*PHASES, "onnx")}
    capture = seconds["capture"]
    work = [run["rewrite"] + run["verify"] for run in runs]
    against = [MISSING] * 2 if None in seconds["onnx"] else [str(_against_export(runs, k)) for k in ("whole", "least")]
    parts = [str(ratios(seconds[phase], capture)) for phase in PHASES[1:]]
    return [short(arch), *parts, str(ratios(work, capture)), *against]


def main() -> None:
    args = options(__doc__, worker=True)
    if args.worker:
        answer(lambda: measure(args.worker))
        return
    models, repeats = (QUICK_MODELS, QUICK_REPEATS) if args.quick else (MODELS, REPEATS)
    runs = repeated(__file__, models, repeats, _seconds)
    header = (
        "model",
        *(f"{p} / capture" for p in PHASES[1:]),
        "(rewrite + verify) / capture",
        "reparam / (export + onnxsim)",
        "least / (export + onnxsim)",
    )
    whole = [r for r in runs.items() if all(run.get("onnx") for run in r[1])]
    record({f"conversion time, {short(a)}": _against_export(r, "whole").median for a, r in whole})
    print(TEXT.format(repeats=repeats))
    print(table(header, [_row(arch, runs[arch]) for arch in models]))


def _against_export(runs: Sequence[Mapping[str, Any]], what: str) -> Spread:
    """The whole conversion, or the least, over the export of the original with its clean-up."""
    return ratios([run[what] for run in runs], [run["onnx"] for run in runs])


def _seconds(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v:.2f} s" if isinstance(v, float) else f"{k} {v}" for k, v in run.items())


if __name__ == "__main__":
    main()
