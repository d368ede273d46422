"""Latency of models side by side: warmed up, measured in interleaved rounds, with the spread.

In each round every model runs for about the same time, in an order that turns from round to round, so that a machine
that grows slower meanwhile grows slower for all. A figure is the median over the rounds; the spread is that of the
middle half of them.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._version import __version__
from .engine import Runnable
from .engine_verify import specs_of
from .errors import InputError
from .inputs import draw_examples
from .load import LoadedModel
from .network import random_input
from .pipeline import Progress

WARM_SECONDS, WARM_RUNS = 0.3, 3
ROUND_SECONDS = 0.05  # what one model runs for in one round, or one run of it
Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Timing:
    """One model at one batch. Times in milliseconds for one run: the median, and the quartiles of the rounds.

    throughput: samples per second. speed: how many times as fast as the first model, by the medians.
    """

    model: str
    runtime: str
    batch: int
    median_ms: float
    low_ms: float
    high_ms: float
    throughput: float
    speed: float


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


def bench(
    models: Mapping[str, LoadedModel | Runnable],
    *,
    input_shapes: Shapes | None = None,
    batches: Sequence[int] = (1,),
    rounds: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchResult:
    """Times `models`, each under its name, on the same random inputs; the first is what the others are compared with.

    input_shapes: of one sample. Raises InputError for models that do not take them.
    """
    if not models or rounds < 3 or min(batches, default=0) < 1:
        raise InputError("name at least one model, three rounds and batches of one or more")
    shapes = input_shapes or _shapes(list(models.values()))
    tell = progress or (lambda stage, done, total: None)
    rows: list[Timing] = []
    for batch in batches:
        calls = {name: _call(name, m, shapes, batch, seed) for name, m in models.items()}
        runs = {name: _warm(call) for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for i in range(rounds):
            tell(f"batch {batch}", i, rounds)
            names = list(calls)
            for name in names[i % len(names) :] + names[: i % len(names)]:
                times[name].append(_time(calls[name], runs[name]))
        tell(f"batch {batch}", rounds, rounds)
        first = statistics.median(times[next(iter(models))])
        rows += [_row(name, models[name], batch, found, first) for name, found in times.items()]
    return BenchResult(tuple(rows), describe_machine(), tuple(tuple(s) for s in shapes), rounds)


def _row(name: str, model: LoadedModel | Runnable, batch: int, times: list[float], first: float) -> Timing:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    runtime = model.runtime if isinstance(model, Runnable) else f"torch {torch.__version__}"
    return Timing(name, runtime, batch, 1e3 * median, 1e3 * low, 1e3 * high, batch / median, first / median)


def _shapes(models: Sequence[LoadedModel | Runnable]) -> Shapes:
    """Without the batch: the fixed ones of an engine, else what an architecture or a program tells."""
    for model in models:
        if isinstance(model, Runnable):
            sizes = [p.shape[1:] for p in model.inputs]
            if all(isinstance(n, int) for s in sizes for n in s):
                return [[int(n) for n in s] for s in sizes]
    known = next((m.input_shapes for m in models if isinstance(m, LoadedModel) and m.input_shapes), None)
    if known is None:
        raise InputError("the input's shape is not known; pass it with --input-shape, for example 3,224,224")
    return known


def _call(name: str, model: LoadedModel | Runnable, shapes: Shapes, batch: int, seed: int) -> Callable[[], object]:
    """One run of the model on inputs of its own dtype."""
    if isinstance(model, Runnable):
        engine, values = model, _engine_inputs(name, model, shapes, batch, seed)
        _try(name, lambda: engine.run(values))
        return lambda: engine.run(values)
    module, examples = model.module, draw_examples(model.module, shapes, batch=batch, seed=seed)

    def run() -> object:
        with torch.inference_mode():
            return module(*examples)

    _try(name, run)
    return run


def _engine_inputs(name: str, engine: Runnable, shapes: Shapes, batch: int, seed: int) -> list[Tensor]:
    sizes = [(batch, *s) for s in shapes]
    fits = len(sizes) == len(engine.inputs) and all(
        len(s) == len(p.shape) and all(isinstance(q, str) or q == n for n, q in zip(s, p.shape, strict=True))
        for s, p in zip(sizes, engine.inputs, strict=True)
    )
    if not fits or not engine.takes(sizes):
        ports = ", ".join(str(p.shape) for p in engine.inputs)
        raise InputError(
            f"{name} takes inputs of {ports}, not {', '.join(map(str, sizes))}; see --batch, --input-shape"
        )
    generator = torch.Generator().manual_seed(seed)
    return [
        random_input(spec, size, generator).to(spec.dtype)
        for spec, size in zip(specs_of(engine.inputs), sizes, strict=True)
    ]


def _try(name: str, run: Callable[[], object]) -> None:
    try:
        run()
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{name} does not run on these inputs: {first}") from error


def _warm(run: Callable[[], object]) -> int:
    """Runs it until it is warm; returns the number of runs that a round takes."""
    start, count, last = time.perf_counter(), 0, 0.0
    while count < WARM_RUNS or time.perf_counter() - start < WARM_SECONDS:
        before = time.perf_counter()
        run()
        last = time.perf_counter() - before
        count += 1
    return max(1, round(ROUND_SECONDS / max(last, 1e-9)))


def _time(run: Callable[[], object], runs: int) -> float:
    """Seconds for one run, the mean of `runs`."""
    start = time.perf_counter()
    for _ in range(runs):
        run()
    return (time.perf_counter() - start) / runs


def describe_machine() -> dict[str, Any]:
    """What figures depend on: the processor, its cores, the threads in use, and the versions."""
    return {
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
