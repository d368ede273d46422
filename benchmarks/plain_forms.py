"""Residual, fused and plain networks side by side in four runtimes: time at batch 1 and 16, and memory of activations.

Each form is written by `reparam.export`, which compares the file with the float64 outputs of the original.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import MISSING, Subject, Timing, interleaved, quiet, ratios, say, spread, table
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import reparam
from reparam.engines import Runnable
from reparam.engines.formats import find_format
from reparam.errors import ReparamError
from reparam.loading import build_architecture, randomize_statistics

RESNET_20 = {"block": "basic", "layers": (3, 3, 3), "width": 16, "num_classes": 10, "stem": "small"}
MODELS: Mapping[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "resnet20": ("reparam/resnet", RESNET_20, (3, 32, 32)),
    "resnet18": ("torchvision/resnet18", {}, (3, 64, 64)),
    "repvgg_a0": ("timm/repvgg_a0", {}, (3, 64, 64)),
}
FORMS: Mapping[str, dict[str, Any]] = {
    "residual": {"to": "as-is"},
    "fused": {"to": "fused"},
    "plain auto": {"to": "plain"},
    "plain split=8": {"to": "plain", "carry": "split=8"},
    "plain dense": {"to": "plain", "carry": "dense"},
}
RUNTIMES = {"onnxruntime": "onnx", "OpenVINO": "openvino", "AOTInductor": "aoti"}
COMPILE = "torch.compile"
BATCHES = (1, 16)
FEW, MANY = 1, 15  # batches whose peaks are subtracted
ROUNDS, QUICK_ROUNDS = 9, 3

TEXT = """\
# Plain forms in four runtimes

Time of each form over that of the residual one, in the same runtime at the same batch, so that below 1 is faster;
median of {rounds} interleaved rounds, of the ratio within a round (interquartile range). *residual* is the network as
it is; *fused* has its batch norms folded and its branches merged; *plain* is a chain, whose layers carry the skips in
groups (auto), in partial sums (split=8) or as full layers (dense). CPU, one thread, float32. resnet20: 3 x 32 x 32;
resnet18 and repvgg_a0: 3 x 64 x 64. A plain form that is another form once more, call by call, is left out. The time is
CPU time of all threads of the process; the time on the wall was {waits:.2f} times as long (median). The machine has
{cores} x86 cores, and did other work too.
"""
MEMORY = """\
Peak memory of activations for each sample, in KiB. *torch*: the most bytes that are alive at once while the exported
program runs eagerly, weights and input left out; every value is freed after its last use. Runtimes: the peak of
resident memory with a batch of {many}, less that with a batch of {few}, divided by {difference}; each in a process of
its own. —: not measured.
"""


@dataclass
class Made:
    """The forms of one network. engines, files: by form and runtime."""

    network: Subject
    conversions: dict[str, reparam.Conversion] = field(default_factory=dict)
    engines: dict[tuple[str, str], Runnable] = field(default_factory=dict)
    files: dict[tuple[str, str], Path] = field(default_factory=dict)


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that calls make: how many are alive now, and how many were at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()
        self.given: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keys = {v.untyped_storage()._cdata for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)}
        self.given |= keys - self.seen  # weights and inputs, which live on
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.seen or key in self.given:
            return
        self.seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def subject_of(name: str) -> Subject:
    """The network with random weights, and statistics that a wrong fold would not survive."""
    arch, args, shape = MODELS[name]
    module = build_architecture(arch, args).module
    return Subject(randomize_statistics(module, [torch.zeros(16, *shape)], 0), (shape,))


def make(name: str, folder: Path, runtimes: Mapping[str, str]) -> Made:
    """Converts and exports every form; what a runtime does not take is left out, with the reason on standard error."""
    made = Made(subject_of(name))
    x, texts = made.network.inputs(2), set()
    for form, how in FORMS.items():
        conversion = reparam.convert(made.network.module, *x, **how)
        text = conversion.program.graph.python_code("self").src
        shapes = str([tuple(c.value.shape) for c in conversion.program.constants.values()])
        if form.startswith("plain") and text + shapes in texts:
            continue
        texts.add(text + shapes)
        made.conversions[form] = conversion
        for runtime, kind in runtimes.items():
            format = find_format(kind)
            path = folder / f"{form.replace(' ', '-').replace('=', '')}{format.suffix}"
            try:
                reparam.export(made.network.module, *x, path=path, options=reparam.ExportOptions(kind), **how)
            except ReparamError as error:
                say(f"  {form} for {runtime}: {error}")
                continue
            say(f"  {form} for {runtime}")
            made.files[form, runtime], made.engines[form, runtime] = path, format.load(path)
    return made


def timed(made: Made, batch: int, rounds: int) -> dict[tuple[str, str], Timing]:
    """(form, runtime) -> the seconds of one run."""
    x = made.network.inputs(batch)
    calls: dict[str, Callable[[], object]] = {}
    for (form, runtime), engine in made.engines.items():
        call = _run(engine, x)
        try:
            call()
        except ReparamError as error:
            say(f"  {form}, {runtime}, batch {batch}: {error}")
        else:
            calls[f"{form}|{runtime}"] = call
    for form, conversion in made.conversions.items():
        torch._dynamo.reset()
        calls[f"{form}|{COMPILE}"] = _compiled(conversion.module, x)
    with torch.inference_mode():
        timings = interleaved(calls, rounds, clock=time.process_time)
    return {tuple(k.split("|")): t for k, t in timings.items()}  # type: ignore[misc]


def _run(engine: Runnable, x: tuple[Tensor, ...]) -> Callable[[], object]:
    return lambda: engine.run(x)


def _compiled(module: nn.Module, x: tuple[Tensor, ...]) -> Callable[[], object]:
    compiled: Any = torch.compile(module, dynamic=False)
    with torch.inference_mode():
        compiled(*x)
    return lambda: compiled(*x)


def alive(conversion: reparam.Conversion, x: tuple[Tensor, ...]) -> int:
    """Bytes of values that are alive at once while the program runs, at most."""
    with torch.inference_mode(), Alive() as counted:
        conversion.module(*x)
    return counted.peak


def peaks(path: Path, network: Subject) -> float | None:
    """Bytes for each sample: peaks at two batches, subtracted."""
    found = []
    for batch in (FEW, MANY):
        options = reparam.BenchOptions(input_shapes=network.shapes, batches=(batch,), rounds=3, threads=1)
        (fact,) = reparam.bench([path], options=options).models
        if fact.peak is None:
            return None
        found.append(fact.peak)
    return (found[1] - found[0]) / (MANY - FEW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one network and few rounds: a trial, not a measurement")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="default: all")
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES), help="beside torch's")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    args = parser.parse_args()
    names = args.models or (["resnet20"] if args.quick else list(MODELS))
    rounds = QUICK_ROUNDS if args.quick else ROUNDS
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    memory: list[list[str]] = []
    waits: list[float] = []
    for name in names:
        say(name)
        with tempfile.TemporaryDirectory() as folder, quiet():
            made = make(name, Path(folder), {r: RUNTIMES[r] for r in args.runtimes})
            base = made.conversions["residual"].report.after
            for batch in args.batches:
                timings = timed(made, batch, rounds)
                waits += [w / c for t in timings.values() for w, c in zip(t.wall, t.cpu, strict=True)]
                for form, conversion in made.conversions.items():
                    cost = conversion.report.after
                    cells = [f"{cost.macs / base.macs:.2f}", f"{cost.params / base.params:.2f}"]
                    for runtime in (*RUNTIMES, COMPILE):
                        here, there = timings.get((form, runtime)), timings.get(("residual", runtime))
                        cells.append(MISSING if here is None or there is None else str(ratios(here.cpu, there.cpu)))
                    rows.append([f"{name}, {form}", str(batch), *cells])
                    say(f"  {rows[-1]}")
            for form, conversion in made.conversions.items():
                row = [f"{name}, {form}", f"{alive(conversion, made.network.inputs(1)) / 1024:,.0f}"]
                for runtime in RUNTIMES:
                    path = made.files.get((form, runtime))
                    peak = None if path is None else peaks(path, made.network)
                    row.append(MISSING if peak is None else f"{peak / 1024:,.0f}")
                memory.append(row)
                say(f"  {row}")
        gc.collect()
    print(TEXT.format(rounds=rounds, waits=spread(waits).median, cores=os.cpu_count()))
    print(table(("network, form", "batch", "MACs", "parameters", *RUNTIMES, COMPILE), rows))
    print()
    print(MEMORY.format(few=FEW, many=MANY, difference=MANY - FEW))
    print(table(("network, form", "torch", *RUNTIMES), memory))


if __name__ == "__main__":
    main()
