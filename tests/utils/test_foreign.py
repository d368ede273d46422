"""The code of others: what would end the process is an error that names the line, and an interruption stays one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reparam.errors import CaptureError, InputError, MachineError, ReparamError
from reparam.utils import Interrupted, first_line, foreign_code


class Odd(BaseException):
    """Of no kind that anybody catches."""


def raising(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


ENDS = [
    (sys.exit, "SystemExit(None)"),
    (lambda: sys.exit(0), "SystemExit(0)"),
    (lambda: sys.exit("bye"), "SystemExit('bye')"),
    (quit, "SystemExit(None)"),
    (lambda: os._exit(0), "os._exit(0)"),
    (lambda: sys.modules["posix"]._exit(7), "os._exit(7)"),
    (lambda: os.execv("/bin/true", ["true"]), "os.execv('/bin/true', ['true'])"),
    (lambda: os.execlp("true", "true"), "os.execv("),
    (lambda: os.execle("/bin/true", "true", {}), "os.execve('/bin/true'"),
    (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    (raising(GeneratorExit()), "GeneratorExit"),
    (raising(Odd("of no kind")), "Odd: of no kind"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="posix")
@pytest.mark.parametrize(("end", "name"), ENDS, ids=[name for _, name in ENDS])
@pytest.mark.parametrize("kind", [InputError, CaptureError, MachineError])
def test_an_end_becomes_an_error_that_names_the_line(
    end: Callable[[], None], name: str, kind: type[ReparamError]
) -> None:
    real = os._exit
    with pytest.raises(kind) as raised, foreign_code("building a net", kind):
        end()
    message = str(raised.value)
    assert message.startswith(f"building a net was ended by {name}")
    assert message.endswith("; the code of a model must return")
    assert "test_foreign.py:" in message
    assert os._exit is real


def test_ordinary_errors_pass_unless_they_are_asked_for() -> None:
    with pytest.raises(ZeroDivisionError), foreign_code("building"):
        raise ZeroDivisionError
    line = r"^building failed at .*test_foreign\.py:\d+ in test_ord\w+ `raise Z"
    with pytest.raises(InputError, match=line), foreign_code("building", errors=True):
        raise ZeroDivisionError
    with pytest.raises(MachineError, match=r"^ours$"), foreign_code("building", errors=True):
        raise MachineError("ours")


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=4))
def test_blocks_nest(names: list[str]) -> None:
    def run(rest: list[str]) -> None:
        with foreign_code(rest[0] if rest else "the innermost"):
            run(rest[1:]) if rest else sys.exit(0)

    real = os._exit
    with pytest.raises(InputError, match=r"^the innermost was ended"):
        run(names)
    assert os._exit is real


# ---- interruptions -----------------------------------------------------------------------------------------------


@pytest.fixture
def keyboard() -> None:
    """Ctrl-C as Python has it, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)
    threading.Event().wait(5)


def pressed_and_swallowed() -> None:
    try:
        press()
    except KeyboardInterrupt:
        sys.exit(0)


def pressed_and_wrapped() -> None:
    try:
        press()
    except KeyboardInterrupt as error:
        raise ValueError("wrapped") from error


@pytest.mark.usefixtures("keyboard")
@pytest.mark.parametrize("run", [press, pressed_and_swallowed, pressed_and_wrapped])
def test_ctrl_c_stays_an_interruption(run: Callable[[], None]) -> None:
    with pytest.raises(KeyboardInterrupt) as raised, foreign_code("outer"), foreign_code("inner", errors=True):
        run()
    assert isinstance(raised.value, Interrupted)


@pytest.mark.usefixtures("keyboard")
def test_a_handler_of_ones_own_is_asked_and_kept() -> None:
    calls = []
    signal.signal(signal.SIGINT, lambda *words: calls.append(words))
    with foreign_code("running"):
        signal.raise_signal(signal.SIGINT)
    assert len(calls) == 1
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_in_a_thread_there_is_no_keyboard() -> None:
    found: list[BaseException] = []

    def work() -> None:
        try:
            with foreign_code("running"):
                raise KeyboardInterrupt
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(found[0], InputError)


# ---- processes ---------------------------------------------------------------------------------------------------

FORKS = """
import os, sys
from reparam.utils import foreign_code

with foreign_code("running"):
    child = os.fork()
    if child == 0:
        {end}
_, status = os.waitpid(child, 0)
print("went on", os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no copies of processes here")
@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("sys.exit(3)", 3), ("os._exit(4)", 4), ("1 / 0", 1)])
def test_a_copy_of_the_process_does_not_go_on_with_the_work(end: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", FORKS.format(end=end)], capture_output=True, text=True, check=True)
    assert done.stdout == f"went on {code}\n"


def test_an_error_whose_own_code_fails_is_described() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise SystemExit(0)

    assert first_line(Silent()) == "Silent"


@given(st.integers(0, 5000), st.sampled_from([ValueError, RuntimeError, OSError]))
def test_of_a_long_message_the_beginning_is_told(length: int, kind: type[Exception]) -> None:
    told = first_line(kind("Sizes: " + "1, " * length))
    assert told.startswith("Sizes:") and len(told) <= 401
    assert len(told) < 401 or told.endswith("…")


@pytest.mark.parametrize("raises", [False, True])
def test_the_current_folder_is_that_of_before(raises: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written afterwards lies where it was asked for, whatever the code of a model does."""
    (tmp_path / "asked").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "asked")
    with contextlib.suppress(ValueError), foreign_code("running a net"), foreign_code("copying it"):
        os.chdir(tmp_path / "other")
        if raises:
            raise ValueError
    assert Path.cwd() == tmp_path / "asked"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    with foreign_code("running a net"):
        (tmp_path / "gone").rmdir()
