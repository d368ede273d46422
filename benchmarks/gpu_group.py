"""One network in one precision in gpu.py, in a process of its own: prepared, then timed when a line is read.

What it finds is printed as JSON lines. AOTInductor packages are written beside it, each in a process of its own too.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from common import Subject, quiet, say, short, subject
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.engines import Runnable
from reparam.engines.formats import find_format
from reparam.errors import ReparamError
from reparam.loading import LoadedModel
from reparam.measure import Where, time_models
from reparam.measure.runtimes import CompiledModel, in_runtime
from reparam.measure.timing import call_of

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMS = ("original", "fused", "plain")
RUNTIMES = ("torch", "compile", "aoti")
CAPTURED = ("torch", "compile")  # what is timed as CUDA graphs too
AOTI = find_format("aoti")
SCRIPT = str(Path(__file__).resolve())


@dataclass(frozen=True)
class Group:
    """One network in one precision, and how it is timed.

    graphs: whether as CUDA graphs too. patience: seconds after which packages that are not there are left out.
    """

    arch: str
    precision: str
    batches: tuple[int, ...]
    rounds: int
    runtimes: tuple[str, ...]
    device: str
    graphs: bool
    patience: float | None = None

    @property
    def name(self) -> str:
        return f"{short(self.arch)} {self.precision}"


def as_json(group: Group) -> str:
    """The group as an argument of `begin`."""
    return json.dumps(asdict(group))


def from_json(text: str) -> Group:
    """The group of `as_json`."""
    values = json.loads(text)
    return Group(**values | {k: tuple(values[k]) for k in ("batches", "runtimes")})


def begin(*words: str, **options: Any) -> subprocess.Popen[str]:
    """This script in a process of its own."""
    return subprocess.Popen([sys.executable, SCRIPT, *words], text=True, **options)


class Kept(nn.Module):
    """A network that is on its device and is not copied for each timing, so that it stays compiled."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Tensor) -> Any:
        return self.module(*args)

    def __deepcopy__(self, memo: object) -> Self:
        return self


def converted(network: Subject, form: str, precision: str) -> LoadedModel:
    """The network in one of its forms, folded before it is cast."""
    dtype = DTYPES[precision]
    if form == "original":
        module = copy.deepcopy(network.module).to(dtype)
    else:
        module = convert(network.module, *network.inputs(2), to=form, dtype=dtype).module
    laid: nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a stub lacks it
    return LoadedModel(laid, input_shapes=network.shapes)


def package(group: Group, form: str, path: Path) -> int:
    """In a process of its own: writes an AOTInductor package of one form, `path` with the format's suffix."""
    with quiet():
        model = converted(subject(group.arch), form, group.precision)
        try:
            in_runtime("aoti", form, model, model.input_shapes, path, device=group.device, seed=0)
        except ReparamError as error:
            say(f"{group.name}, {form}: aoti: {error}")
            return 1
    return 0


def prepared(group: Group, folder: Path) -> dict[str, LoadedModel | Runnable]:
    """Every form in every runtime that takes it, tried at every batch. Packages are built beside, each in a process."""
    forms = FORMS if "aoti" in group.runtimes else ()
    building = {f: begin("--package", as_json(group), f, str(folder / f), stdout=subprocess.DEVNULL) for f in forms}
    start = time.monotonic()
    network = subject(group.arch)
    found: dict[str, LoadedModel | Runnable] = {}

    def take(name: str, model: LoadedModel | Runnable) -> None:
        try:
            for batch in group.batches:
                call_of(name, model, network.shapes, batch, 0, group.device)
            found[name] = model
        except Exception as error:
            say(f"{group.name}, {name}: {type(error).__name__}: {error}")

    for form in FORMS:
        placed = converted(network, form, group.precision).module.to(torch.device(group.device))
        compiled: Any = torch.compile(placed, dynamic=False)
        if "torch" in group.runtimes:
            take(f"{form}: torch", LoadedModel(Kept(placed), input_shapes=network.shapes))
        if "compile" in group.runtimes:
            take(f"{form}: compile", CompiledModel(Kept(compiled), input_shapes=network.shapes))
    for form, process in building.items():
        why = _failure(process, None if group.patience is None else start + group.patience - time.monotonic())
        if why:
            say(f"{group.name}, {form}: aoti: no package: {why}")
        else:
            take(f"{form}: aoti", AOTI.load(folder / f"{form}{AOTI.suffix}"))
    names = [f"{f}: {r}" for f in FORMS for r in group.runtimes]
    if names[0] not in found:
        raise RuntimeError(f"{names[0]} fails, which the others are compared with")
    return {n: found[n] for n in names if n in found}


def _failure(process: subprocess.Popen[str], seconds: float | None) -> str:
    """Waits for the process, and ends it when it takes longer. Returns "" for one that went well."""
    try:
        status = process.wait(None if seconds is None else max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "it took too long"
    return f"exit status {status}" if status else ""


def timed(group: Group, models: dict[str, LoadedModel | Runnable], batch: int, *, graphs: bool) -> list[dict[str, Any]]:
    """The figures of every model at one batch. What cannot be captured leaves no figures at all."""
    where = Where((), group.device, cuda_graphs=graphs)
    return [asdict(r) for r in time_models(models, batches=(batch,), rounds=group.rounds, where=where).rows]


def work(group: Group) -> None:
    """In a worker: prepares the group, says so, waits for a line, and prints a JSON object for each row."""
    answers = sys.stdout

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    with quiet(), tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        models = prepared(group, Path(folder))
        say(f"{group.name}: prepared in {time.perf_counter() - start:.0f} s")
        answer(ready=True)
        if not sys.stdin.readline():
            return
        captured = {n: m for n, m in models.items() if n.partition(": ")[2] in CAPTURED}
        for graphs in (False, True) if group.graphs else (False,):
            for batch in group.batches:
                try:
                    figures = timed(group, captured if graphs else models, batch, graphs=graphs)
                except Exception as error:
                    answer(error=f"batch {batch}{', graphs' if graphs else ''}: {type(error).__name__}: {error}")
                    continue
                answer(batch=batch, graphs=graphs, figures=figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--worker", metavar="GROUP", help="prepare a group, and time it")
    how.add_argument("--package", nargs=3, metavar=("GROUP", "FORM", "PATH"), help="write the package of one form")
    args = parser.parse_args()
    if args.package:
        return package(from_json(args.package[0]), args.package[1], Path(args.package[2]))
    work(from_json(args.worker))
    return 0


if __name__ == "__main__":
    sys.exit(main())
