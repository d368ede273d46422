"""Original, fused and plain networks on a GPU: torch, torch.compile and AOTInductor, in three precisions.

Each network in each precision is a group, prepared and timed in a process of its own: one that fails takes no other
with it. Groups are timed one after the other, while nothing else is prepared; `--jobs` of them are prepared at once.
Needs a CUDA device; `--device cpu` takes the same steps on the CPU, to try them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch
from common import MISSING, say, short, table
from gpu_group import CAPTURED, DTYPES, FORMS, RUNTIMES, Group, as_json, begin

from reparam.utils import write_atomically

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
SLICE = 1800.0  # seconds that the preparation of a group may take, where no end is set

TEXT = """\
## On a GPU

{device}, torch {torch}. How many times as fast as the original in torch, eagerly, each form of a network runs at the
same precision and batch: by torch, by torch.compile (for each batch anew), and by AOTInductor (with a free batch);
weights in channels last, and torch's own settings, by which convolutions in fp32 use TF32. The second table is of the
same calls captured as CUDA graphs, against the original in torch so captured. In brackets: milliseconds between two
events on the device. Medians of {rounds} interleaved rounds.
"""


class Worker:
    """The process of a group. Its answers are read as they come."""

    def __init__(self, group: Group, threads: int) -> None:
        names = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
        environment = {n: str(threads) for n in names if threads} | dict(os.environ)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.group = group
        self.process = begin("--worker", as_json(group), env=environment, start_new_session=True, **pipes)
        self.answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        assert self.process.stdout is not None
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                self.answers.put(json.loads(line))
        self.answers.put(None)

    def ready(self, seconds: float) -> bool:
        """Waits until the group is prepared, for `seconds` at most."""
        try:
            answer = self.answers.get(timeout=max(seconds, 0.1))
        except queue.Empty:
            say(f"{self.group.name}: not prepared in time")
            return False
        if answer is None:
            say(f"{self.group.name}: failed with exit status {self.process.wait()}")
        return answer is not None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Lets it time; each row as it is there."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        while (answer := self.answers.get()) is not None:
            yield answer

    def stop(self) -> None:
        """Ends the process and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Tables:
    """The rows so far, in the order of the groups, whatever the order of their measurement."""

    title: str
    groups: Sequence[Group]
    out: Path | None
    rows: dict[tuple[bool, str, int], list[dict[str, Any]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def add(self, group: Group, row: dict[str, Any]) -> None:
        """Takes in an answer of a worker, says it and writes what there is."""
        if "error" in row:
            say(f"{group.name}, {row['error']}")
            return
        key = (bool(row["graphs"]), group.name, int(row["batch"]))
        self.rows[key] = row["figures"]
        say(" | ".join([group.name, str(key[2]), *(["graphs"] if key[0] else []), *map(_said, row["figures"])]))
        if self.out is not None:
            record = {"network": group.arch, "precision": group.precision, "graphs": key[0], "figures": row["figures"]}
            with self.out.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.write()

    def write(self) -> None:
        """Writes the tables as they are."""
        if self.out is not None:
            content = self.text().encode()
            write_atomically(self.out, lambda file: file.write(content), force=True)

    def text(self) -> str:
        """The section: both tables, and what is not in them."""
        parts = [self.title, self._table(graphs=False)]
        if any(g.graphs for g in self.groups):
            parts.append("Captured as CUDA graphs:\n\n" + self._table(graphs=True))
        if self.missing:
            parts.append(f"Not measured, for want of time or after an error: {', '.join(self.missing)}.\n")
        return "\n".join(parts)

    def _table(self, *, graphs: bool) -> str:
        used = self.groups[0].runtimes if self.groups else RUNTIMES
        columns = [f"{form}: {r}" for form in FORMS for r in used if not graphs or r in CAPTURED]
        order = sorted(self.groups, key=lambda g: [h.arch for h in self.groups].index(g.arch))
        lines = []
        for group in order:
            for batch in group.batches:
                figures = self.rows.get((graphs, group.name, batch))
                if figures is not None:
                    cells = {f["model"]: _cell(f) for f in figures}
                    start = [short(group.arch), group.precision, batch]
                    lines.append([*start, *(cells.get(c, MISSING) for c in columns)])
        return table(("model", "precision", "batch", *columns), lines) + "\n"


def _cell(figures: dict[str, Any]) -> str:
    device = figures["device_ms"]
    return f"{figures['speed']:.2f}" + (f" ({device:.2f})" if device is not None else "")


def _said(figures: dict[str, Any]) -> str:
    return f"{figures['model']} {_cell(figures)}"


def measure(groups: Sequence[Group], tables: Tables, jobs: int, seconds: float | None) -> None:
    """Prepares `jobs` groups at a time and times them in order. None is begun after `seconds`."""
    end = time.monotonic() + seconds if seconds is not None else None
    threads = max(1, (os.cpu_count() or 1) // (4 * jobs)) if jobs > 1 else 0
    for i in range(0, len(groups), jobs):
        now = time.monotonic()
        if end is not None and now >= end:
            break
        share = SLICE * jobs if end is None else 0.6 * (end - now)
        wave = [Worker(replace(g, patience=0.85 * share), threads) for g in groups[i : i + jobs]]
        try:
            ready = [w for w in wave if w.ready(now + share - time.monotonic())]
            for worker in [w for w in wave if w not in ready]:
                worker.stop()
            for worker in ready:
                if end is not None and time.monotonic() >= end:
                    break
                for row in worker.rows():
                    tables.add(worker.group, row)
        finally:
            for worker in wave:
                worker.stop()
    tables.missing = [g.name for g in groups if not any((False, g.name, b) in tables.rows for b in g.batches)]
    tables.write()


def chosen(args: argparse.Namespace) -> list[Group]:
    """The groups that are asked for, in the order of the precisions, then of the models."""
    gpu = args.device == "cuda"
    known = {short(m): m for m in MODELS}
    models = args.models or (QUICK_MODELS if args.quick else MODELS)
    kinds = args.precisions or [k for k in DTYPES if gpu or k == "fp32"]
    batches = tuple(map(int, args.batches or (QUICK_BATCHES if args.quick else BATCHES)))
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    runtimes = tuple(args.runtimes or RUNTIMES)
    captured = models[: args.graphs] if gpu else ()
    return [
        Group(known.get(m, m), kind, batches, rounds, runtimes, args.device, m in captured)
        for kind in kinds
        for m in models
    ]


def _words(text: str) -> list[str]:
    return [w for w in text.split(",") if w]


def _out_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def words(text: str) -> list[str]:
        unknown = [w for w in _words(text) if w not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of {', '.join(known)}")
        return _words(text)

    return words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer models and rounds: a trial, not a measurement")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--models", type=_words, metavar="A,B", help="default: all, or one for --quick")
    parser.add_argument(
        "--precisions", type=_out_of([*DTYPES]), metavar="A,B", help=f"of {', '.join(DTYPES)}; default: all"
    )
    parser.add_argument("--batches", type=_words, metavar="N,N", help=f"default: {', '.join(map(str, BATCHES))}")
    parser.add_argument(
        "--runtimes", type=_out_of(RUNTIMES), metavar="A,B", help=f"of {', '.join(RUNTIMES)}; default: all"
    )
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, or {QUICK_ROUNDS} for --quick")
    parser.add_argument("--graphs", type=int, metavar="N", help="CUDA graphs of the first N models; default: of all")
    parser.add_argument("--jobs", type=int, default=1, help="groups that are prepared at once; default: 1")
    parser.add_argument("--minutes", type=float, help="no group is begun after them; default: no end")
    parser.add_argument("--out", type=Path, help="written anew after each row; all figures beside it as .jsonl")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("## On a GPU\n\nThere was no CUDA device here. [gpu.md](gpu.md) holds what `gpu.py` measured on one.\n")
        return 0
    groups = chosen(args)
    if args.out is not None:
        args.out.with_suffix(".jsonl").unlink(missing_ok=True)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    tables = Tables(TEXT.format(device=name, torch=torch.__version__, rounds=groups[0].rounds), groups, args.out)
    measure(groups, tables, args.jobs, None if args.minutes is None else 60 * args.minutes)
    print(tables.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
