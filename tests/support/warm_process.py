"""Commands in processes of their own, without the seconds that each would take to import torch.

A server imports what most commands need, converts one small network, which fills what torch looks up once, and is
copied for each command. What a copy does to itself, to its streams or to its end stays its own, as it does in a process
that starts afresh. A copy ends as Python ends but for taking itself apart, which takes a third of a second, unless
`whole_end` asks for that as well.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

SERVER = """
import atexit, gc, json, os, sys, threading
import numpy, sympy, torch, torch._dynamo, torch._functorch.aot_autograd
import torch.export, torch.onnx, torch._export, torch._inductor, rich.progress, rich.table
import reparam.cli.app, reparam.cli.render, reparam.conversion, reparam.engines, reparam.passes
from reparam.utils.torchvision_ops import register_missing_torchvision_ops
if torch.version.cuda is None:  # as conftest.py
    register_missing_torchvision_ops()
import torchvision
from torch import nn
from reparam.conversion import convert
layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
convert(nn.Sequential(*layers).eval(), torch.randn(2, 3, 8, 8))
end = os._exit  # which a command of ours takes away at its end
gc.freeze()  # a copy that ends need not look for garbage here

def next_order():
    # In a copy: what it has to run. In the server, at the end: None.
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return order
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None

def end_early(code):
    # What Python does at its end, in its order, but for taking modules and objects apart.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    end(code)

order = next_order()
if order is not None:
    for stream, path in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), stream)
    os.chdir(order["folder"])
    sys.argv = order["argv"]
    sys.path[0] = order["path"]
    try:
        exec(compile(order["code"], "<string>", "exec"))
        if not order["whole_end"]:
            end_early(0)
    except SystemExit as error:
        if order["whole_end"] or not isinstance(error.code, int):
            raise
        end_early(error.code)
"""
RUN_MODULE = "import runpy; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"
RUN_SCRIPT = "import runpy; runpy.run_path({!r}, run_name='__main__')"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Child:
    """A command that runs."""

    def __init__(self, server: WarmProcess, pid: int, out: Path, err: Path) -> None:
        self.server, self.pid, self.out, self.err = server, pid, out, err

    def wait_for(self, line: str, seconds: float = 60) -> None:
        """Until this is the first line of its standard error."""
        end = time.monotonic() + seconds
        while not self.err.exists() or "\n" not in self.err.read_text():
            assert time.monotonic() < end, f"nothing was said within {seconds} s"
            time.sleep(0.01)
        assert self.err.read_text().splitlines()[0] == line

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Done:
        """Until it has ended."""
        code = int(self.server.answer())
        self.server.running = None
        done = Done(code, *(p.read_text() if p.exists() else "" for p in (self.out, self.err)))
        for path in (self.out, self.err):
            path.unlink(missing_ok=True)
        return done


class WarmProcess:
    """The server. It runs one command at a time, in the working folder of the caller.

    whole_end: whether commands end as a whole process does, for tests of that.
    """

    def __init__(self) -> None:
        self.whole_end = False
        self.folder = tempfile.TemporaryDirectory()
        self.running: Child | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.communicate(timeout=60)
        self.folder.cleanup()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def start(self, code: str, words: Sequence[str] = (), *, name: str = "-c", path: str = "") -> Child:
        """As `python -c code words`. A command that a failed test left behind is ended first."""
        if self.running is not None:
            self.running.send_signal(signal.SIGKILL)
            self.running.wait()
        out, err = (Path(self.folder.name) / n for n in ("out", "err"))
        order = {
            "code": code, "argv": [name, *words], "path": path,
            "folder": os.getcwd(), "out": str(out), "err": str(err), "whole_end": self.whole_end,
        }  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.running = Child(self, int(self.answer()), out, err)
        return self.running

    def run(self, code: str, *words: str) -> Done:
        """As `python -c code words`, until it has ended."""
        return self.start(code, words).wait()

    def module(self, module: str, *words: str) -> Done:
        """As `python -m module words`."""
        return self.start(RUN_MODULE.format(module), words, name=module, path=os.getcwd()).wait()

    def script(self, script: Path, *words: str) -> Done:
        """As `python script words`."""
        return self.start(RUN_SCRIPT.format(str(script)), words, name=str(script), path=str(script.parent)).wait()
