"""Interruptions, full disks, closed and broken streams: what is left behind and what the exit code says."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from reparam.cli.outputs import to_json
from reparam.cli.session import Session, open_session, run_guarded
from reparam.errors import InputError
from reparam.utils import one_line
from support.choice import mostly_in_sweeps
from support.cli_helpers import TINY, failing_save, files, prepare_folder, refuse, run
from support.warm_process import WarmProcess

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@pytest.fixture
def warm(warm: WarmProcess, monkeypatch: pytest.MonkeyPatch) -> WarmProcess:
    """Its commands end as a whole process does."""
    monkeypatch.setattr(warm, "whole_end", True)
    return warm


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network and its checkpoint."""
    return prepare_folder(tmp_path, monkeypatch)


# ---- interruptions -----------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "save", failing_save(KeyboardInterrupt()))
    assert refuse(130, "convert", *TINY, "--source", "source") == "interrupted, nothing was written"


@pytest.mark.parametrize("name", ["tiny-fused.pt2", "model.py", "model.safetensors", "report.json"])
def test_ctrl_c_between_the_outputs_leaves_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        os, "replace", lambda a, b, real=os.replace: interrupted() if Path(b).name == name else real(a, b)
    )
    words = ("convert", *TINY, "--quiet", "--source", "source", "--json", "report.json")
    assert refuse(130, *words) == "interrupted, nothing was written"


def test_ctrl_c_while_the_result_is_shown_says_what_there_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "show", interrupted)
    before = files(folder)
    result = run("convert", *TINY, "--json", "report.json")
    assert result.exit_code == 130
    assert result.stderr == "reparam: interrupted, after tiny-fused.pt2, report.json were written\n"
    assert files(folder) == before | {"tiny-fused.pt2", "report.json"}


# A shell has the programs that it runs in the background, these tests perhaps, ignore Ctrl-C: the child must not.
FOREGROUND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
"""

SLOW = f"""{FOREGROUND}
import sys, time, torch

def save(program, target, **options):
    file = target if hasattr(target, "write") else open(target, "wb")
    file.write(b"half")
    file.flush()
    print("writing", file=sys.stderr, flush=True)
    time.sleep(100)

torch.export.save = save
from reparam.cli import main
main()
"""


@pytest.mark.parametrize("number", mostly_in_sweeps([signal.SIGINT, signal.SIGTERM], signal.SIGTERM))
def test_a_signal_while_the_output_is_written(folder: Path, number: signal.Signals, warm: WarmProcess) -> None:
    before = files(folder)
    child = warm.start(SLOW, ["convert", *TINY])
    child.wait_for("writing")
    (temporary,) = files(folder) - before
    assert temporary.startswith(".reparam-")
    child.send_signal(number)
    done = child.wait()
    assert done.returncode == 128 + number
    assert done.stdout == ""
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert done.stderr == f"writing\nreparam: {word}, nothing was written\n"
    assert files(folder) == before


SIGNALLED = f"""{FOREGROUND}
import os, resource, sys, torch
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from reparam.emit import exported
from reparam.cli import main

class File:
    def __init__(self, file):
        self.file = file

    def write(self, data):
        signal.raise_signal(signal.SIGINT)
        return self.file.write(data)

make = exported._Sink.__init__
exported._Sink.__init__ = lambda self, file: make(self, File(file))
main()
"""


def test_ctrl_c_inside_the_archive_writer(folder: Path, warm: WarmProcess) -> None:
    before = files(folder)
    done = warm.run(SIGNALLED, "convert", *TINY)
    assert files(folder) == before
    assert (done.returncode, done.stderr) == (130, "reparam: interrupted, nothing was written\n")


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as on a disk that is nearly full
from reparam.cli import main
main()
"""


def test_a_disk_that_fills_up_while_the_output_is_written(folder: Path, warm: WarmProcess) -> None:
    before = files(folder)
    done = warm.run(LIMITED, "convert", *TINY)
    assert files(folder) == before
    assert done.returncode == 3
    (sentence,) = done.stderr.splitlines()
    assert sentence.endswith("nothing was written")


# ---- streams -----------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "reparam", "passes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


@needs_full
def test_standard_output_on_a_full_disk() -> None:
    for words in (["passes"], ["--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "reparam", *words], stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert done.returncode == 3
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith("reparam: ")


def test_closed_streams() -> None:
    for words, code in ((["--version"], 0), (["convert"], 2)):
        command = " ".join([sys.executable, "-m", "reparam", *words, ">&-", "2>&-"])
        assert subprocess.run(["sh", "-c", command], check=False).returncode == code


def test_a_broken_standard_error_does_not_hide_the_exit_code() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EPIPE, "Broken pipe")

    def body() -> None:
        raise InputError("bad")

    assert run_guarded(body, Session(io.StringIO(), Broken())) == 2


def test_signals_are_as_they_were_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run_guarded(lambda: None, Session(io.StringIO(), io.StringIO())) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_json_has_no_infinities() -> None:
    assert json.loads(to_json({"a": [float("inf"), 1.5], "b": (float("nan"),)})) == {"a": [None, 1.5], "b": [None]}


def test_a_report_replaces_an_older_one_as_a_whole(folder: Path) -> None:
    (folder / "r.json").write_text("older")
    assert "exists already" in refuse(2, "passes", "--json", "r.json")
    with contextlib.chdir(folder):
        assert run("passes", "--json", "r.json", "--force").exit_code == 0
    assert json.loads((folder / "r.json").read_text())[0]["name"]
    assert (folder / "r.json").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bars_are_drawn_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stream, quiet, drawn in ((Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)):
        out = io.StringIO()
        with Session(out, stream, quiet=quiet).working() as tell:
            tell("capture", 0, 2)
            tell("capture", 2, 2)
            print("noise of a model")
        assert ("capture" in stream.getvalue()) is drawn
        assert "noise of a model" in stream.getvalue()
        assert out.getvalue() == ""


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert one_line("a\x1b[2Jb\n c\x07\udcff") == "a\\x1b[2Jb c\\x07\\udcff"
    stream = io.StringIO()
    Session(io.StringIO(), stream).error("\x1b]0;title\x07")
    assert stream.getvalue() == "reparam: \\x1b]0;title\\x07\n"


def test_tables_survive_a_stream_that_is_not_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    from reparam.cli.render import line, table

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    made = table("max |Δ|")
    made.add_row("0")
    open_session().show(made, line("a → b"))
    text = stream.buffer.getvalue().decode("ascii")
    assert "max |\\u0394|\n-" in text
    assert text.endswith("a \\u2192 b\n")
