"""The most memory that a model takes: measured in a process of its own, which opens and runs it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reparam.compare import open_model
from reparam.engines import Runner
from reparam.engines.formats import recognise
from reparam.ir import InputSpec, random_input
from reparam.utils import dtype_name

from .entry import Entry, size_of_model

RUNS = 2
LARGE = 256 << 20
LONGEST = 300  # seconds, after which a model goes without
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_LIGHT = ("torch", "onnx", "onnx_ir", "onnxruntime", "openvino")  # what running takes, out of what formats need
_CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from reparam.measure.memory import child; child()"


def peak_memory(entry: Entry, inputs: Sequence[InputSpec], shapes: Sequence[Sequence[int]], threads: int) -> int | None:
    """Bytes of resident memory that opening and running a model adds to a process that has run such a model before.

    inputs: what it takes. shapes: of them, with the batch. The peak is counted from when the model is open, so that
    what only reading the file took is left out. The code of the runtime is left out too: the model is opened and run
    once before, but for files above `LARGE` bytes, of which one copy has to do.

    None for a model that lies in no file, where the system does not count (outside of Linux), and where the process
    fails.
    """
    if entry.path is None or not _RESET.exists():
        return None
    job = {
        "path": str(entry.path.absolute()),
        "arch": entry.arch,
        "arch_args": dict(entry.arch_args),
        "which": dict(entry.which),
        "trust": entry.trust,
        "inputs": [[s.name, list(shape), dtype_name(s.dtype)] for s, shape in zip(inputs, shapes, strict=True)],
        "threads": threads,
        "again": size_of_model(entry) <= LARGE,
    }
    words = [sys.executable, "-c", _CODE, json.dumps(sys.path)]
    try:
        text = json.dumps(job)
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=LONGEST, check=True)
        return int(done.stdout.splitlines()[-1])
    except (OSError, ValueError, TypeError, IndexError, subprocess.SubprocessError):
        return None


def child() -> None:
    """Measures the model that standard input describes, and prints the bytes."""
    job = json.loads(sys.stdin.read())
    out, sys.stdout = sys.stdout, sys.stderr  # the code of models prints as it likes
    torch.set_num_threads(job["threads"])
    format = recognise(Path(job["path"]))
    for name in (n for n in _LIGHT if format is None or n in ("torch", "onnx_ir", *format.needs)):
        if name == "torch" or format is not None:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    generator = torch.Generator().manual_seed(0)
    specs = [(InputSpec(name, tuple(shape), getattr(torch, dtype)), shape) for name, shape, dtype in job["inputs"]]
    values = [random_input(spec, shape, generator).to(spec.dtype) for spec, shape in specs]

    def opened() -> Runner:
        args = job["arch_args"] or None
        model = open_model(job["path"], arch=job["arch"], arch_args=args, trust=job["trust"], **job["which"])
        return Runner("the model", model)

    first = [opened()] if job["again"] else []
    for runner in first * RUNS:
        runner.outputs(values)
    before = _settled()
    runner = opened()
    _settled()
    with contextlib.suppress(OSError):
        _RESET.write_text("5")
    for _ in range(RUNS):
        runner.outputs(values)
    peak = _kilobytes("VmHWM") - before
    del first  # only now, so that nothing of it was used again
    os.write(out.fileno(), f"\n{max(peak, 0) << 10}\n".encode())


def _settled() -> int:
    """Kilobytes that are resident once what is free has gone back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return _kilobytes("VmRSS")


def _kilobytes(name: str) -> int:
    found: Any = re.search(rf"^{name}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(found[1])
