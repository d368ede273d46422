"""What the benchmarks share: networks with random statistics, ONNX clean-up, interleaved timing, Markdown tables."""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import json
import logging
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import InputError
from reparam.loading import build_architecture, randomize_statistics

GIB = 2**30
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxsim", "onnxslim", "onnxruntime")
STATISTICS_BATCH = 16
MISSING = "—"
FIGURES = "REPARAM_FIGURES"  # the variable that names the file to record figures in
WORSE = 0.1


# ---- the machine -------------------------------------------------------------------------------------------------


def machine() -> str:
    """One line: processor, cores, torch's threads, Python and the versions of the packages that are measured."""
    cores = os.cpu_count() or 1
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return (
        f"{_cpu_name()}, {cores} cores, {torch.get_num_threads()} torch threads; "
        f"{platform.system()}, Python {platform.python_version()}; {versions}"
    )


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


# ---- what was written --------------------------------------------------------------------------------------------


def network_of(folder: Path) -> nn.Module:
    """The network of a folder of source."""
    found = importlib.util.spec_from_file_location("written", folder / "model.py")
    assert found is not None and found.loader is not None
    code = importlib.util.module_from_spec(found)
    found.loader.exec_module(code)
    model: nn.Module = code.load(folder)
    return model


# ---- networks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A network to measure, in evaluation mode, with the shapes of its inputs (without the batch)."""

    module: nn.Module
    shapes: tuple[tuple[int, ...], ...]

    def inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs of shape (batch, ...)."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn((batch, *shape), generator=generator) for shape in self.shapes)


def subject(arch: str, seed: int = 0) -> Subject:
    """Builds `arch` with random weights and with normalisation statistics that a wrong fold would not survive.

    Raises InputError for an unknown architecture, or one whose inputs are not known.
    """
    built = build_architecture(arch, seed=seed)
    if built.input_shapes is None:
        raise InputError(f"the input shapes of {arch} are not known, so its statistics cannot be estimated")
    example = [torch.zeros(STATISTICS_BATCH, *shape) for shape in built.input_shapes]
    return Subject(randomize_statistics(built.module, example, seed), built.input_shapes)


def short(arch: str) -> str:
    """timm/repvgg_a0 -> repvgg_a0"""
    return arch.rpartition("/")[2]


def failed_row(arch: str, runs: Iterable[Mapping[str, Any]], columns: int) -> list[str]:
    """The row of a table for a network of which a run failed, with so many columns behind its name; [] otherwise."""
    failed = next((run["error"] for run in runs if "error" in run), None)
    return [short(arch), f"failed: {failed}", *[MISSING] * (columns - 1)] if failed is not None else []


# ---- ONNX --------------------------------------------------------------------------------------------------------


def export_onnx(module: nn.Module, inputs: tuple[Tensor, ...], *, dynamic_batch: bool = False) -> Any:
    """The onnx.ModelProto of `module`, by torch's own exporter."""
    free = tuple({0: torch.export.Dim.AUTO} for _ in inputs) if dynamic_batch else None
    program = torch.onnx.export(module, inputs, dynamo=True, verbose=False, dynamic_shapes=free)
    assert program is not None
    return program.model_proto


def onnxsim_clean(model: Any) -> Any:
    """`model` after onnxsim; the argument is left as it is."""
    import onnxsim

    return onnxsim.simplify(copy.deepcopy(model))[0]


def onnxslim_clean(model: Any) -> Any:
    """`model` after onnxslim; the argument is left as it is."""
    import onnxslim

    return onnxslim.slim(copy.deepcopy(model))


# ---- data --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits. images: (N, 1, size, size) in 0 .. 1. train, test: rows, 80 to 20."""

    images: Tensor
    labels: Tensor
    train: Tensor
    test: Tensor


def digits(size: int = 28) -> Digits:
    """The 8 x 8 images, enlarged bilinearly, and a fixed stratified split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    small = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(small, size=(size, size), mode="bilinear")
    rows = train_test_split(range(len(images)), test_size=0.2, random_state=0, stratify=data.target)
    return Digits(images, torch.tensor(data.target), *(torch.tensor(sorted(r)) for r in rows))


# ---- timing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements and their interquartile range (0 for a single one)."""

    median: float
    iqr: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.iqr:.2f})" if self.count > 1 else f"{self.median:.2f}"


def spread(values: Sequence[float]) -> Spread:
    """Median and interquartile range of `values`, of which there must be at least one."""
    if len(values) < 2:
        return Spread(values[0], 0.0, len(values))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, high - low, len(values))


def ratios(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The spread of over[i] / under[i], for measurements that were taken side by side."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


@dataclass
class Timing:
    """Seconds of one call in each round: CPU time, and by the clock on the wall.

    The first does not count what other processes take from the machine. `time.thread_time`, its clock unless told,
    counts neither what runs on other threads; `time.process_time` does.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def add(self, function: Callable[[], object], calls: int, clock: Callable[[], float] = time.thread_time) -> None:
        """Times `calls` calls in a row."""
        wall, cpu = time.perf_counter(), clock()
        for _ in range(calls):
            function()
        self.cpu.append((clock() - cpu) / calls)
        self.wall.append((time.perf_counter() - wall) / calls)


def interleaved(
    callables: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    at_least: float = 0.03,
    seed: int = 0,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, Timing]:
    """Times each callable in each of `rounds` rounds.

    Every round runs all of them in a new random order, so that a drift of the machine meets all alike. A callable that
    is quicker than `at_least` seconds is called several times in a row. One call warms up, the next sets how many.
    """
    calls: dict[str, int] = {}
    for name, function in callables.items():
        function()
        trial = Timing()
        trial.add(function, 1, clock)
        calls[name] = max(1, math.ceil(at_least / max(trial.cpu[0], 1e-6)))
    timings = {name: Timing() for name in callables}
    order = list(callables)
    shuffle = random.Random(seed).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            timings[name].add(callables[name], calls[name], clock)
    return timings


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean, NaN of nothing."""
    logs = [math.log(v) for v in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


# ---- memory ------------------------------------------------------------------------------------------------------


def resident_memory() -> int:
    """Bytes that the process holds now; on Linux its peak starts again from here."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or peak_memory()


def peak_memory() -> int:
    """Bytes. What `getrusage` says on Linux may be the parent's peak from before exec, so it is the second choice."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


# ---- output ------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def record(figures: Mapping[str, float]) -> None:
    """Figures of which a larger one is worse, by what they measure, for `run_all`, which keeps and compares them."""
    if path := os.environ.get(FIGURES):
        known = json.loads(Path(path).read_text(encoding="utf-8"))
        Path(path).write_text(json.dumps(known | dict(figures)), encoding="utf-8")


def regressions(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """A line for each figure that became worse by more than a tenth."""
    both = [(name, before[name], after[name]) for name in before if name in after]
    return [f"{name}: {new:.2f}, was {old:.2f}" for name, old, new in both if new > (1 + WORSE) * old]


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings or log lines of other packages, and nothing of theirs on standard output."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---- command lines and fresh processes ---------------------------------------------------------------------------


def options(description: str | None, *, worker: bool) -> argparse.Namespace:
    """`--quick` and, for a benchmark that starts itself again, `--worker ARGUMENT`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer models and rounds: a trial, not a measurement")
    if worker:
        parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def in_fresh_process(script: str, argument: str) -> dict[str, Any]:
    """Runs `script --worker argument` and returns the JSON object of its last line; {"error": kind} when it fails."""
    command = [sys.executable, script, "--worker", argument]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"error": f"exit status {done.returncode}"}
    result = json.loads(lines[-1])
    assert isinstance(result, dict)
    return result


def repeated(
    script: str, models: Sequence[str], repeats: int, told: Callable[[Mapping[str, Any]], str] = str
) -> dict[str, list[Mapping[str, Any]]]:
    """The results of a script for each model, in fresh processes, one model after the other in every repeat."""
    runs: dict[str, list[Mapping[str, Any]]] = {arch: [] for arch in models}
    with quiet():
        for repeat in range(repeats):
            for arch in models:
                runs[arch].append(in_fresh_process(script, arch))
                say(f"{Path(script).stem} {repeat + 1}/{repeats} {short(arch)}: {told(runs[arch][-1])}")
    return runs


def answer(work: Callable[[], Mapping[str, Any]]) -> None:
    """In a worker: prints the JSON object that `work` returns, or the kind of error that it raised."""
    with quiet():
        try:
            result = work()
        except Exception as error:
            say(f"{type(error).__name__}: {error}")
            result = {"error": type(error).__name__}
    print(json.dumps(result))
