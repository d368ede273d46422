"""What becomes of networks of many libraries: captured, fused, plain, in ONNX; or the reason why not.

They are all networks of timm and torchvision, and those of other libraries that zoos.py lists. Each is tried in a
process of its own, with random weights and random statistics of its norms. What was found is appended to coverage.jsonl
as it comes, so that a run that was stopped goes on where it was; docs/coverage.md is written from that file. A network
is tried again when its line is deleted there.
"""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import itertools
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import zoos
from common import GIB, peak_memory, say
from coverage_page import FOUND, PAGE, page, plainly, rows_of
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from shortened import HUGE, IMAGE, KEPT, LARGE, Made, shortened
from torch import Tensor, nn

from reparam.conversion import Conversion, convert
from reparam.engines import ExportOptions, export_conversion
from reparam.errors import CaptureError, InputError, MachineError, NotEquivalentError
from reparam.loading import randomize_statistics
from reparam.utils import one_line, write_atomically
from reparam.utils.torchvision_ops import register_missing_torchvision_ops

SECONDS = 900  # of processor time for one network
MEMORY = 12 * GIB
SEEDS = 4  # of statistics, until outputs are of an ordinary size
TIMES = 6  # what the original loses by rounding, which some networks with random weights amplify
TOLERANCE = 1e-3
LEFT_OUT = ("detection", "quantization")  # torchvision's detectors give boxes, its quantised networks have no weights
EXPECTED = (InputError, CaptureError, MachineError)
PROCESSES = multiprocessing.get_context("forkserver")  # which imports once what all networks need, five seconds of it
SHARED = ["coverage", "timm", "onnxscript.function_libs.torch_lib.ops", "onnxruntime", "onnxsim"]

register_missing_torchvision_ops()  # before anything imports torchvision, in every process

# ---- the networks ------------------------------------------------------------------------------------------------


def networks() -> list[str]:
    """The names of all networks, as `--arch` takes them: the first of each family, then the second of each, ...."""
    import timm
    import torchvision

    others = [n for library in zoos.LIBRARIES if not zoos.missing(library) for n in zoos.names(library)]
    theirs = [n for n in torchvision.models.list_models() if _family(f"torchvision/{n}") not in LEFT_OUT]
    families: dict[str, list[str]] = collections.defaultdict(list)
    for name in (*(f"torchvision/{n}" for n in theirs), *(f"timm/{n}" for n in timm.list_models())):
        families[f"{name.partition('/')[0]} {_family(name)}"].append(name)
    layers = itertools.zip_longest(*families.values())
    return others + [name for layer in layers for name in layer if name is not None]


def _family(arch: str) -> str:
    """The module that a network comes from: resnet, segmentation, ...."""
    library, _, name = arch.partition("/")
    if library in zoos.LIBRARIES:
        return zoos.family(arch)
    if library == "timm":
        import timm

        return str(timm.models.model_entrypoint(name).__module__.rpartition(".")[2])
    import torchvision

    return str(torchvision.models.get_model_builder(name).__module__.split(".")[2])


def built(arch: str) -> Made:
    """The network, a batch of inputs for it, and what was changed of its size ("" for nothing)."""
    if arch.partition("/")[0] in zoos.LIBRARIES:
        return *_of_zoos(arch), ""
    return shortened(arch, _family(arch))


def _of_zoos(arch: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    module, inputs = zoos.build(arch)
    for seed in range(SEEDS):
        try:
            return randomize_statistics(module, inputs, seed), inputs
        except InputError:  # of its outputs' range; the statistics are set all the same
            continue
    return module, inputs  # where outputs count pixels, they are that large


# ---- one network -------------------------------------------------------------------------------------------------


def measure(arch: str) -> Mapping[str, Any]:
    """What becomes of one network: its size, and for each form its outcome, processor time, and what is left."""
    torch.set_num_threads(1)
    row: dict[str, Any] = {"name": arch, "family": _family(arch)}
    module, inputs, how = built(arch)
    row |= {"changed": how, "shapes": [list(x.shape[1:]) for x in inputs]}
    row["fused"], fused = _outcome(lambda: convert(module, *inputs), module, inputs)
    if fused is not None and fused.report.after.merges:
        row["plain"], _ = _outcome(lambda: convert(module, *inputs, to="plain"), module, inputs)
    if fused is not None:
        row["onnx"] = _onnx(fused)
    return row | {"peak": peak_memory()}


def _outcome(
    work: Callable[[], Conversion], module: nn.Module, inputs: Sequence[Tensor]
) -> tuple[dict[str, Any], Conversion | None]:
    start = time.process_time()
    try:
        done = work()
    except Exception as error:
        return {**_failure(error), "seconds": time.process_time() - start}, None
    report = done.report
    row: dict[str, Any] = {"outcome": "verified", "seconds": time.process_time() - start}
    for count in ("merges", "norms", "macs", "convs"):
        row[count] = [getattr(report.before, count), getattr(report.after, count)]
    row["left"] = collections.Counter(plainly(r.message) for r in report.remarks if r.kind == "missed")
    if not _agree(done.module, module, inputs):
        row["outcome"] = "wrong"
    return row, done


def _failure(error: Exception) -> dict[str, Any]:
    kind = (
        "refused" if isinstance(error, EXPECTED) else "rejected" if isinstance(error, NotEquivalentError) else "crashed"
    )
    return {"outcome": kind, "why": _reason(error)[:400]}


def _reason(error: Exception) -> str:
    """An error in a line; where libraries and temporary files lie is of no interest."""
    text = one_line(f"{type(error).__name__}: {error}")
    for folder in filter(None, sys.path):
        text = text.replace(f"{folder}/", "")
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^/\s]+/", "", text)


def _agree(new: nn.Module, old: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether two modules give about the same on other inputs than those that the checks drew."""
    generator = torch.Generator().manual_seed(12)
    drawn = [torch.rand(x.shape, generator=generator) if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        theirs, ours = _tensors(old(*drawn)), _tensors(new(*drawn))
        if all(_gap(a, b) <= TOLERANCE for a, b in zip(ours, theirs, strict=True)):
            return True
        wide = [x.double() if x.is_floating_point() else x for x in drawn]
        truth = _tensors(copy.deepcopy(old).double()(*wide))
    each = zip(ours, theirs, truth, strict=True)
    return all(_gap(a, b) <= TOLERANCE + TIMES * _gap(b, t) for a, b, t in each)


def _gap(new: Tensor, old: Tensor) -> float:
    """How far two outputs lie apart, relative to `old`; infinite where they are not finite in the same places."""
    finite = old.isfinite()
    if not torch.equal(new.isfinite(), finite):
        return math.inf
    a, b = new[finite], old[finite]
    return float((a - b).norm()) / (float(b.norm()) + 1e-3)


def _tensors(value: Any) -> list[Tensor]:
    return [
        v.double() for v in torch.utils._pytree.tree_leaves(value) if isinstance(v, Tensor) and v.is_floating_point()
    ]


def _onnx(fused: Conversion) -> dict[str, Any]:
    start, options = time.process_time(), ExportOptions()
    try:
        with tempfile.TemporaryDirectory() as folder:
            export_conversion(fused, Path(folder) / "network.onnx", options.check(), options)
    except Exception as error:
        return {**_failure(error), "seconds": time.process_time() - start}
    return {"outcome": "verified", "seconds": time.process_time() - start}


# ---- all of them -------------------------------------------------------------------------------------------------


def run(names: Iterable[str], jobs: int, file: Path) -> None:
    """Tries those networks that the file does not have yet, `jobs` at a time."""
    rows = rows_of(file)
    known = {row["name"] for row in rows}
    left = [n for n in names if n not in known]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))  # without a last line that was cut
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with file.open("a") as out, Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("networks", total=len(left))
        pool = ThreadPoolExecutor(jobs)
        try:
            for done in as_completed([pool.submit(_alone, name) for name in left]):
                row = done.result()
                out.write(json.dumps(row) + "\n")
                out.flush()
                bar.update(task, advance=1, description=row["name"])
        finally:  # when it is stopped, what has not begun does not begin
            pool.shutdown(cancel_futures=True)


def _alone(name: str) -> dict[str, Any]:
    """One network in a process of its own, whose end is told as such."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_worker, args=(name, theirs))
    process.start()
    theirs.close()
    try:
        row = ours.recv()
    except EOFError:
        row = {}
    process.join()
    if process.exitcode == -signal.SIGXCPU:
        return {"name": name, "failed": f"takes longer than {SECONDS // 60} minutes of processor time"}
    if "fused" in row:
        return {**row, "on": datetime.date.today().isoformat()}
    return {"name": name, "failed": row.get("error") or f"ends with exit status {process.exitcode}"}


def _worker(name: str, answer_to: Connection) -> None:
    """Sends the row of one network, or the error that it ended with. What libraries print is nobody's."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 10))
    try:
        answer_to.send(measure(name))
    except Exception as error:
        answer_to.send({"error": _reason(error)[:200]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks, as --arch takes them, or whole libraries (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time")
    parser.add_argument("--found", type=Path, default=FOUND, help="the file of JSON lines that is gone on with")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that is written")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # for the server, which does not look beside this file
    PROCESSES.set_forkserver_preload(SHARED)
    known = networks()
    run(zoos.chosen(args.names, known), args.jobs, args.found)
    counts = collections.Counter(name.partition("/")[0] for name in known)
    limits = {"image": IMAGE, "kept": KEPT, "minutes": SECONDS // 60, "gib": MEMORY // GIB}
    limits |= {"large": LARGE // 1_000_000, "huge": HUGE // 1_000_000}
    listed = {library: counts[library] for library in ("torchvision", "timm", *zoos.LIBRARIES)}
    content = page(rows_of(args.found), listed, limits).encode()
    write_atomically(args.page, lambda file: file.write(content), force=True)
    say(f"{args.page} is written")


if __name__ == "__main__":
    main()
