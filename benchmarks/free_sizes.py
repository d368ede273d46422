"""What free heights and widths cost: conversions with them beside conversions with fixed ones, in the same process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from common import Spread, answer, failed_row, options, ratios, record, repeated, short, subject, table

from reparam.conversion import convert

MODELS = (
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/mobilenet_v2",
    "timm/tf_mobilenetv3_small_100",  # pads as much as its input's size asks for
    "timm/tf_efficientnetv2_b0",
    "timm/fastvit_t8",
)
QUICK_MODELS = ("torchvision/resnet18",)
REPEATS, QUICK_REPEATS = 3, 1
PHASES = ("capture", "rewrite", "verify")
FIXED, FREE = ("batch",), ("batch", "height", "width")

TEXT = """\
## Free heights and widths

Processor time of `reparam.convert` with free heights and widths against that with fixed ones, the batch being free in
both, of networks traced at 224 x 224 or what is their own. With free sizes the network is compared at even, odd, prime
and small sizes, at one larger than was traced, and at those that break what torch took for granted when it traced.
Median of {repeats} fresh processes (interquartile range) of one thread, each of which converts both forms once before.
"""


def measure(arch: str) -> dict[str, float]:
    """Seconds of processor time of both forms, and of the phases of each."""
    torch.set_num_threads(1)
    network = subject(arch)
    found: dict[str, float] = {}
    for _ in range(2):
        for name, axes in (("fixed", FIXED), ("free", FREE)):
            start = time.process_time()
            report = convert(network.module, *network.inputs(2), dynamic=axes).report
            found[name] = time.process_time() - start
            found |= {f"{name} {phase}": report.seconds[phase] for phase in PHASES}
    return found


def _row(arch: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if failed := failed_row(arch, runs, 1 + len(PHASES)):
        return failed
    parts = [ratios([run[f"free {p}"] for run in runs], [run[f"fixed {p}"] for run in runs]) for p in PHASES]
    return [short(arch), *map(str, (_whole(runs), *parts))]


def _whole(runs: Sequence[Mapping[str, Any]]) -> Spread:
    """A conversion with free sizes over one with fixed ones."""
    return ratios([run["free"] for run in runs], [run["fixed"] for run in runs])


def main() -> None:
    args = options(__doc__, worker=True)
    if args.worker:
        answer(lambda: measure(args.worker))
        return
    models, repeats = (QUICK_MODELS, QUICK_REPEATS) if args.quick else (MODELS, REPEATS)
    runs = repeated(__file__, models, repeats)
    whole = {short(a): r for a, r in runs.items() if not any("error" in run for run in r)}
    record({f"free sizes, {a}": _whole(r).median for a, r in whole.items()})
    print(TEXT.format(repeats=repeats))
    print(table(["model", "free / fixed", *PHASES], [_row(arch, runs[arch]) for arch in models]))


if __name__ == "__main__":
    main()
