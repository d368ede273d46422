"""Latency of models side by side: warmed up, measured in interleaved rounds, with the spread.

In each round every model runs for about the same time, in an order that turns from round to round, so that a machine
that grows slower meanwhile grows slower for all. A figure is the median over the rounds; the spread is that of the
middle half of them.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reparam._version import __version__
from reparam.engines import Runnable
from reparam.errors import InputError
from reparam.ir import check_shapes
from reparam.loading import LoadedModel
from reparam.rewrite import Progress
from reparam.utils import foreign_code

from .runtimes import check_runtimes, in_runtime, name_of, text_of
from .timing import CPU, Call, Sample, call_of, check_device

Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Timing:
    """One model at one batch. Times in milliseconds for one run: the median, and the quartiles of the rounds.

    by: the runtime in one word; runtime: with its version. throughput: samples per second. speed: how many times as
    fast as the first model, by the medians. host_ms, device_ms: on a GPU, the medians until the run is enqueued and of
    its time on the device; None on the CPU.
    """

    model: str
    by: str
    runtime: str
    batch: int
    median_ms: float
    low_ms: float
    high_ms: float
    throughput: float
    speed: float
    host_ms: float | None = None
    device_ms: float | None = None


@dataclass(frozen=True)
class BenchResult:
    """The rows, model by model within each batch, and what they were measured on."""

    rows: tuple[Timing, ...]
    machine: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "schema": 1,
            "reparam": __version__,
            "machine": dict(self.machine),
            "shapes": [list(s) for s in self.shapes],
            "rounds": self.rounds,
            "rows": [dict(vars(r)) for r in self.rows],
        }


@dataclass(frozen=True)
class _Entry:
    """A model under a name of the caller's, in one runtime."""

    name: str
    model: LoadedModel | Runnable

    def row(self, batch: int, samples: Sequence[Sample], first: float) -> Timing:
        low, median, high = statistics.quantiles([s.total for s in samples], n=4, method="inclusive")
        hosts = [1e3 * s.host for s in samples if s.host is not None]
        devices = [1e3 * s.device for s in samples if s.device is not None]
        return Timing(
            model=self.name,
            by=name_of(self.model),
            runtime=text_of(self.model),
            batch=batch,
            median_ms=1e3 * median,
            low_ms=1e3 * low,
            high_ms=1e3 * high,
            throughput=batch / median,
            speed=first / median,
            host_ms=statistics.median(hosts) if hosts else None,
            device_ms=statistics.median(devices) if devices else None,
        )


@dataclass(frozen=True)
class Where:
    """What runs the models.

    runtimes: out of `runtimes.RUNTIMES`, each of which runs every model; without any, each model is run by what it is
    for. device: cpu or cuda, of networks in torch. cuda_graphs: whether what runs on a GPU is captured and replayed.
    """

    runtimes: Sequence[str] = ()
    device: str = CPU
    cuda_graphs: bool = False


def time_models(
    models: Mapping[str, LoadedModel | Runnable],
    *,
    input_shapes: Shapes | None = None,
    batches: Sequence[int] = (1,),
    rounds: int = 20,
    where: Where | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchResult:
    """Times `models`, each under its name, on the same random inputs; the first is what the others are compared with.

    input_shapes: of one sample. where: what runs them, in torch on the CPU unless told.

    Raises InputError for models that do not take the inputs, or that a runtime does not run; MachineError for a runtime
    that is not installed and for a GPU that is not there.
    """
    if not models or rounds < 3 or min(batches, default=0) < 1:
        raise InputError("name at least one model, three rounds and batches of one or more")
    where = where or Where()
    check_runtimes(list(where.runtimes))
    check_device(where.device)
    shapes = input_shapes or known_shapes(list(models.values()))
    if shapes is None:
        raise InputError("the input's shape is not known; pass it with --input-shape, for example 3,224,224")
    check_shapes(shapes, max(batches))
    tell = progress or (lambda stage, done, total: None)
    rows: list[Timing] = []
    with tempfile.TemporaryDirectory() as folder:
        entries = [_Entry(name, model) for name, model in models.items()]
        if where.runtimes:
            entries = _in_runtimes(entries, where, shapes, Path(folder), seed, tell)
        for batch in batches:
            calls = [call_of(e.name, e.model, shapes, batch, seed, where.device) for e in entries]
            if where.cuda_graphs:
                calls = _captured(calls)
            samples = _rounds(calls, rounds, f"batch {batch}", tell)
            first = statistics.median(s.total for s in samples[0])
            rows += [e.row(batch, found, first) for e, found in zip(entries, samples, strict=True)]
    machine = describe_machine(gpu=any(r.device_ms is not None for r in rows))
    return BenchResult(tuple(rows), machine, tuple(tuple(s) for s in shapes), rounds)


def _in_runtimes(
    entries: Sequence[_Entry], where: Where, shapes: Shapes, folder: Path, seed: int, tell: Progress
) -> list[_Entry]:
    """Every model in every runtime. What is not built yet is built in `folder`."""
    fixed = tuple(tuple(s) for s in shapes)
    wanted = [(e, runtime) for e in entries for runtime in where.runtimes]
    found: list[_Entry] = []
    for i, (entry, runtime) in enumerate(wanted):
        tell("build", i, len(wanted))
        path = folder / str(i)
        model = in_runtime(runtime, entry.name, entry.model, fixed, path, device=where.device, seed=seed)
        found.append(_Entry(entry.name, model))
    tell("build", len(wanted), len(wanted))
    return found


def _captured(calls: Sequence[Call]) -> list[Call]:
    if not any(c.gpu for c in calls):
        raise InputError("CUDA graphs are of what runs on a GPU, and none of these models does; see --device")
    return [c.captured() if c.gpu else c for c in calls]


def _rounds(calls: Sequence[Call], rounds: int, stage: str, tell: Progress) -> list[list[Sample]]:
    """The samples of each call, taken in turns."""
    with foreign_code("timing the models"):
        runs = [c.warm() for c in calls]
    samples: list[list[Sample]] = [[] for _ in calls]
    for i in range(rounds):
        tell(stage, i, rounds)
        order = list(range(len(calls)))
        for k in order[i % len(order) :] + order[: i % len(order)]:
            with foreign_code(f"timing {calls[k].name}"):
                samples[k].append(calls[k].time(runs[k]))
    tell(stage, rounds, rounds)
    return samples


def known_shapes(models: Sequence[LoadedModel | Runnable]) -> Shapes | None:
    """Without the batch: the fixed ones of an engine, else what an architecture or a program tells."""
    for model in models:
        if isinstance(model, Runnable):
            sizes = [p.shape[1:] for p in model.inputs]
            if all(isinstance(n, int) for s in sizes for n in s):
                return [[int(n) for n in s] for s in sizes]
    return next((m.input_shapes for m in models if isinstance(m, LoadedModel) and m.input_shapes), None)


def describe_machine(*, gpu: bool = False) -> dict[str, Any]:
    """What figures depend on: the processor, its cores, the threads in use, the GPU if one is, and the versions."""
    card = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if gpu else {}
    return card | {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _cpu() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
