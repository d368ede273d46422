"""The code of a model that ends the process: never exit code 0 without the work done, and never a word of equality."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import reparam
from reparam.errors import CaptureError, InputError
from reparam.loading import load
from support.choice import crossed, mostly_in_sweeps
from support.cli_helpers import files, prepare_folder, refuse, run
from support.warm_process import WarmProcess


@pytest.fixture
def warm(warm: WarmProcess, monkeypatch: pytest.MonkeyPatch) -> WarmProcess:
    """Its commands end as a whole process does."""
    monkeypatch.setattr(warm, "whole_end", True)
    return warm


NETS = """
import atexit, os, sys
import torch
from torch import nn

class Odd(BaseException):
    pass

class Net(nn.Module):
    input_shapes = ((4,),)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)

class InForward(Net):
    def forward(self, x):
        {end}
        return self.layer(x)

class InEval(Net):
    def eval(self):
        {end}

class InShapes(Net):
    @property
    def input_shapes(self):
        {end}

class InStateDict(Net):
    def state_dict(self, *words, **options):
        {end}

def in_factory():
    {end}
"""
IMPORTED = "import os, sys\nfrom good import Odd\n{end}\n"
ENDS = (
    "sys.exit(0)",
    "sys.exit()",
    "quit()",
    "os._exit(0)",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "raise Odd",
)
WORDS = {
    "import": ["convert", "--arch", "imported:make"],
    "factory": ["convert", "--arch", "ends:in_factory"],
    "eval": ["convert", "--arch", "ends:InEval"],
    "shapes": ["convert", "--arch", "ends:InShapes"],
    "state dict": ["convert", "net.pt", "--arch", "ends:InStateDict"],
    "forward": ["convert", "net.pt", "--arch", "ends:InForward"],
    "explain": ["explain", "net.pt", "--arch", "ends:InForward"],
    "export": ["export", "net.pt", "--arch", "ends:InForward", "--format", "onnx"],
    "diff": ["diff", "net.pt", "net.pt", "--arch-a", "good:Net", "--arch-b", "ends:InForward"],
    "verify": ["verify", "net.pt", "net.pt", "--arch-a", "good:Net", "--arch-b", "ends:InForward"],
    "source": ["verify", "net.pt", "source", "--arch-a", "good:Net", "--trust"],
    "run": ["run", "net.pt", "--arch", "ends:InForward", "-i", "x.npy", "-o", "y.npy"],
    "bench": ["bench", "net.pt", "--arch", "ends:InForward"],
    "module": ["convert", "module.pt", "--trust", "--input-shape", "4"],
}


def write(folder: Path, end: str) -> None:
    """The modules whose code ends by `end`, and a sound one."""
    import numpy as np

    (folder / "good.py").write_text(NETS.format(end="pass"))
    (folder / "ends.py").write_text(NETS.format(end=end))
    (folder / "imported.py").write_text(IMPORTED.format(end=end))
    (folder / "source").mkdir(exist_ok=True)
    (folder / "source" / "model.py").write_text(IMPORTED.format(end=end))
    torch.save({"layer.weight": torch.eye(4), "layer.bias": torch.zeros(4)}, folder / "net.pt")
    np.save(folder / "x.npy", np.ones((1, 4), np.float32))
    for name in ("good", "ends", "imported"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder, which is importable, and a keyboard that interrupts."""
    monkeypatch.syspath_prepend(tmp_path)
    return prepare_folder(tmp_path, monkeypatch)


@pytest.mark.parametrize("end", ENDS)
def test_wherever_the_code_ends_the_process_exit_code_2_names_the_line(end: str, folder: Path) -> None:
    write(folder, end)
    import ends

    torch.save(ends.InForward(), folder / "module.pt")
    before = files(folder)
    for place, words in WORDS.items():
        result = run(*words)
        assert result.exit_code == 2, (place, result.stderr)
        assert result.stdout == "" and files(folder) == before, place
        sentence = result.stderr.splitlines()[-1]
        assert "was ended by" in sentence and f"`{end}`" in sentence, (place, sentence)
        assert any(f"{file}:" in sentence for file in ("ends.py", "imported.py", "source/model.py"))


@pytest.mark.parametrize("end", ENDS)
def test_the_python_api_says_the_same(end: str, folder: Path) -> None:
    write(folder, end)
    import ends

    x = torch.ones(1, 4)
    for work in (
        lambda: reparam.convert(ends.InForward(), x),
        lambda: reparam.explain(ends.InForward(), x),
        lambda: reparam.export(ends.InForward(), x, path=folder / "net.onnx"),
        lambda: reparam.verify(ends.Net(), ends.InForward(), x),
    ):
        with pytest.raises(CaptureError, match=r"capturing InForward was ended by .* at ends\.py:\d+ in forward"):
            work()
    with pytest.raises(InputError, match=r"building ends:in_factory was ended by"):
        load(None, arch="ends:in_factory")


LAST = (
    "atexit.register(lambda: os._exit(0))",
    "atexit.register(sys.exit, 0)",
    "import signal; signal.signal(2, signal.default_int_handler); atexit.register(os.kill, os.getpid(), 2)",
)


@pytest.mark.parametrize("last", LAST)
def test_what_is_left_for_the_end_does_not_change_the_exit_code(last: str, folder: Path, warm: WarmProcess) -> None:
    write(folder, f"{last}; raise ValueError('of the net')")
    done = warm.module("reparam", "convert", "--arch", "ends:in_factory")
    assert done.returncode == 2
    assert "could not be built (ValueError: of the net)" in done.stderr
    assert "KeyboardInterrupt" not in done.stderr  # Ctrl-C comes too late then


STREAMS = (
    "sys.stdout.close(); sys.stderr.close()",
    "sys.__stdout__.close(); sys.__stderr__.close()",
    "os.close(1)",
    "os.close(1); os.close(2)",
    "os.closerange(1, 100)",
    "os.dup2(os.open('stolen', os.O_WRONLY | os.O_CREAT), 1)",
    "sys.stdout = sys.stderr = None",
    "del sys.stdout, sys.stderr",
    "atexit.register(sys.__stdout__.detach)",
    "sys.exit = print",
)


@pytest.mark.parametrize("takes", mostly_in_sweeps(STREAMS, STREAMS[4], STREAMS[9]))
def test_code_that_takes_the_streams_away_changes_neither_the_words_nor_the_exit_code(
    takes: str, folder: Path, warm: WarmProcess
) -> None:
    """Whether the work is done, or fails behind it."""
    try_it = f"\n    try:\n        {takes}\n    except (AttributeError, OSError):\n        pass\n"
    write(folder, "pass")
    for where, name in (("forward", "Closing"), ("__init__", "Closing")):
        text = f"from good import Net, sys, os, atexit\n\ndef take():{try_it}\nclass {name}(Net):\n"
        text += f"    def {where}(self, *x):\n        take()\n        return super().{where}(*x)\n"
        text += f"\nclass Failing({name}):\n    def forward(self, x):\n        take()\n        return x[5, 5, 5]\n"
        (folder / "streams.py").write_text(text)
        done = warm.module("reparam", "convert", "net.pt", "--arch", "streams:Closing", "--force")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("net.pt")
        failed = warm.module("reparam", "convert", "net.pt", "--arch", "streams:Failing", "--force")
        assert failed.returncode == 2
        assert "does not run on the input shape 4" in failed.stderr
        (folder / "net-fused.pt2").unlink()
    assert not (folder / "stolen").exists() or (folder / "stolen").read_bytes() == b""


ASIDE = """
import os, sys, threading
from good import Net

class Falls:
    def __del__(self):
        1 / 0

class Aside(Net):
    def forward(self, *x):
        Falls()
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        return super().forward(*x)
"""


def test_what_is_raised_where_nobody_can_catch_it_is_no_traceback(folder: Path, warm: WarmProcess) -> None:
    """As Python writes it for `__del__` and for threads; --debug tells."""
    write(folder, "pass")
    (folder / "aside.py").write_text(ASIDE)
    words = ("convert", "net.pt", "--arch", "aside:Aside", "--force")
    done = warm.module("reparam", *words)
    assert (done.returncode, done.stderr) == (0, "")
    told = warm.module("reparam", *words, "--debug").stderr
    assert "ZeroDivisionError" in told and "in __del__" in told and "in <lambda>" in told


def test_the_process_itself_is_ended_by_nobody(folder: Path, warm: WarmProcess) -> None:
    write(folder, "os._exit(0)")
    for place in ("import", "factory", "forward", "verify"):
        done = warm.module("reparam", *WORDS[place])
        assert done.returncode == 2 and "os._exit(0) at" in done.stderr, done.stderr


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from reparam.cli import main
main()
"""


@pytest.mark.parametrize(
    "handler, number",
    crossed(["raise", "sys.exit(0)", "os._exit(0)", "raise ValueError('no')"], [signal.SIGINT, signal.SIGTERM]),
)
def test_a_signal_is_one_whatever_the_code_makes_of_it(
    number: signal.Signals, handler: str, folder: Path, warm: WarmProcess
) -> None:
    body = f"""
import os, sys, time
from good import Net

def make():
    try:
        print("building", file=sys.stderr, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        {handler}
    return Net()
"""
    write(folder, "pass")
    (folder / "slow.py").write_text(body)
    child = warm.start(CHILD, ["convert", "--arch", "slow:make"])
    child.wait_for("building")
    child.send_signal(number)
    done = child.wait()
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.endswith("ed, nothing was written\n")


EARLY = """
import sys
sys.modules.pop("reparam.cli.app")

class Pressed:
    def find_spec(name, *rest):
        if name == "reparam.cli.app":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Pressed)
from reparam.cli import main
main()
"""


def test_ctrl_c_while_the_command_is_imported_is_no_traceback(folder: Path, warm: WarmProcess) -> None:
    done = warm.run(EARLY, "convert", "net.pt")
    assert (done.returncode, done.stderr) == (130, "reparam: interrupted\n")


LOST = """
import os, time
from good import Net

class Falls:
    def __del__(self):
        os.kill(os.getpid(), {number})
        time.sleep(0.01)

class Lost(Net):
    def forward(self, *x):
        Falls()
        time.sleep(1)
        return super().forward(*x)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_where_python_forgets_it_is_not_lost(
    number: signal.Signals, folder: Path, warm: WarmProcess
) -> None:
    """What is raised in `__del__`, or while a weak reference ends, reaches nobody."""
    write(folder, "pass")
    (folder / "lost.py").write_text(LOST.format(number=int(number)))
    done = warm.run(CHILD, "convert", "net.pt", "--arch", "lost:Lost", "--force")
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.endswith("ed, nothing was written\n") and "Traceback" not in done.stderr


def test_an_operator_of_others_that_ends_the_process(folder: Path) -> None:
    """Its shape is known to the capture, and its code runs in the checks alone."""

    @torch.library.custom_op("exits_test::leaves", mutates_args=())
    def leaves(x: torch.Tensor) -> torch.Tensor:
        os._exit(0)

    @leaves.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.exits_test.leaves(x)

    with pytest.raises(InputError, match=r"running Net was ended by os\._exit\(0\) at .*test_exits\.py"):
        reparam.convert(Net(), torch.ones(2, 3))
    with pytest.raises(InputError, match=r"was ended by os\._exit"):
        reparam.verify(Net(), Net(), torch.ones(2, 3))


def test_an_exit_of_the_command_itself_is_none_of_these() -> None:
    assert run("--version").exit_code == run("convert", "--help").exit_code == run("--help").exit_code == 0
    assert "nothing to convert" in refuse(2, "convert")
