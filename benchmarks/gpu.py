"""Original, fused and plain networks on a GPU: torch, torch.compile and AOTInductor, in three precisions.

Needs a CUDA device; `--device cpu` takes the same steps on the CPU, to try them.
"""

from __future__ import annotations

import argparse
import copy
import sys

import torch
from common import MISSING, Subject, quiet, say, short, subject, table
from torch import nn

from reparam.conversion import convert
from reparam.errors import ReparamError
from reparam.load import LoadedModel
from reparam.measure import BenchResult, Where, bench

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
BATCHES, QUICK_BATCHES = (1, 16, 64, 128), (1,)
ROUNDS, QUICK_ROUNDS = 20, 3
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
RUNTIMES = ("torch", "compile", "aoti")

TEXT = """\
## On a GPU

{device}, torch {torch}. How many times as fast as the original in torch, eagerly, each form of a network runs at the
same precision and batch: by torch, by torch.compile, and by AOTInductor; channels last, the calls of torch captured as
CUDA graphs where it says *graphs*. In brackets: milliseconds on the device. Medians of {rounds} interleaved rounds.
"""


def forms(network: Subject, dtype: torch.dtype) -> dict[str, LoadedModel]:
    """The network and what it converts to, folded before it is cast."""
    modules: dict[str, nn.Module] = {"original": copy.deepcopy(network.module).to(dtype)}
    for target in ("fused", "plain"):
        modules[target] = convert(network.module, *network.inputs(2), to=target, dtype=dtype).module
    last = torch.channels_last
    return {n: LoadedModel(m.to(memory_format=last), input_shapes=network.shapes) for n, m in modules.items()}


def rows(arch: str, kind: str, where: Where, batches: tuple[int, ...], rounds: int) -> list[list[str]]:
    """One row for each batch: every form in every runtime."""
    models = forms(subject(arch), DTYPES[kind])
    try:
        found = bench(models, batches=batches, rounds=rounds, where=where)
    except ReparamError as error:
        say(f"  {error}")
        return [[short(arch), kind, str(b), *[MISSING] * (len(models) * len(where.runtimes))] for b in batches]
    return [[short(arch), kind, str(batch), *_cells(found, batch)] for batch in batches]


def _cells(found: BenchResult, batch: int) -> list[str]:
    of_batch = [r for r in found.rows if r.batch == batch]
    return [f"{r.speed:.2f}" + (f" ({r.device_ms:.2f})" if r.device_ms is not None else "") for r in of_batch]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer models and rounds: a trial, not a measurement")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("## On a GPU\n\nNot measured: there was no CUDA device. `gpu.py` measures where there is one.\n")
        return 0
    models, batches = (QUICK_MODELS, QUICK_BATCHES) if args.quick else (MODELS, BATCHES)
    rounds = QUICK_ROUNDS if args.quick else ROUNDS
    kinds = [k for k in DTYPES if args.device == "cuda" or k == "fp32"]
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(TEXT.format(device=name, torch=torch.__version__, rounds=rounds))
    plans = [Where(RUNTIMES, args.device)]
    if args.device == "cuda":
        plans.append(Where(("torch", "compile"), args.device, cuda_graphs=True))
    for where in plans:
        columns = [f"{form}: {r}" for form in ("original", "fused", "plain") for r in where.runtimes]
        lines: list[list[str]] = []
        with quiet():
            for arch in models:
                for kind in kinds:
                    say(f"gpu {short(arch)} {kind}{', graphs' if where.cuda_graphs else ''}")
                    lines += rows(arch, kind, where, batches, rounds)
        print(("graphs:\n\n" if where.cuda_graphs else "") + table(("model", "precision", "batch", *columns), lines))
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
