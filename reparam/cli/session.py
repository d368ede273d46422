"""One run of the command line: where it prints, what it has written, and which exit code each failure gives.

Results go to standard output; everything else (progress, warnings, the one error sentence) to standard error. Exit
codes: 0 done and equivalent; 1 not equivalent; 2 bad input or usage; 3 the environment; 4 an internal error;
130 interrupted.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import logging
import os
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import typer

from reparam.errors import MachineError, ReparamError, RuleError
from reparam.utils import (
    Interrupted,
    describe_error,
    is_out_of_memory,
    on_the_command_line,
    one_line,
    own_stream,
    place_of_error,
    refused_exits,
    silence,
    visible_lines,
)

from .recipe import check_target, write_recipe

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_WIDTH = 160  # columns of tables that do not go to a terminal
INTERRUPTED = 128 + signal.SIGINT
LATER = 0.1  # seconds after which an interruption that was lost comes once more
Tell = Callable[[str, int, int], None]


class Terminated(Interrupted):
    """SIGTERM or SIGHUP arrived: clean up as after Ctrl-C. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class Session:
    """The streams and the state of one run. out, err: the true standard streams, also while others are redirected.

    begun: whether the words were read and the work has begun; from then on, nothing but the end of the work is success.
    recipe: writes the recipe that was asked for, with the outputs.
    """

    out: TextIO
    err: TextIO
    quiet: bool = False
    debug: bool = False
    begun: bool = False
    recipe: Callable[[], None] | None = None
    written: list[Path] = field(default_factory=list)

    # ---- printing ------------------------------------------------------------------------------------------

    def show(self, *renderables: RenderableType) -> None:
        """Prints results to standard output."""
        from rich.console import Console
        from rich.text import Text

        class Results(Console):
            def on_broken_pipe(self) -> None:
                raise BrokenPipeError  # rich would end the program with exit code 1

        with self._delivering():
            console = Results(file=self.out, width=self.width, markup=False, highlight=False, emoji=False)
            for part in map(printable, renderables):
                console.print(part, soft_wrap=isinstance(part, Text))  # a terminal wraps lines by itself

    @property
    def width(self) -> int:
        """Columns of the terminal, or what tables get that go elsewhere."""
        known = self.out.isatty() or "COLUMNS" in os.environ
        return shutil.get_terminal_size((PIPE_WIDTH, 25)).columns if known else PIPE_WIDTH

    def print(self, text: str) -> None:
        """Prints `text` to standard output as it is."""
        with self._delivering():
            self.out.write(f"{text}\n")

    @contextlib.contextmanager
    def _delivering(self) -> Iterator[None]:
        """A reader that went away (`| head`) is no error; a full disk is."""
        try:
            yield
            self.out.flush()
        except BrokenPipeError:
            silence(self.out)
        except OSError as error:
            silence(self.out)
            raise MachineError(f"cannot write to standard output: {error.strerror}") from error

    def error(self, text: str) -> None:
        """One sentence on standard error."""
        with contextlib.suppress(OSError, ValueError):
            self.err.write(f"reparam: {one_line(text)}\n")
            self.err.flush()

    def warn(self, text: str) -> None:
        """Something that may change what the result means; shown with --quiet too."""
        self.error(f"warning: {text}")

    def note(self, text: str) -> None:
        """Something worth knowing, unless --quiet."""
        if not self.quiet:
            self.error(f"note: {text}")

    # ---- working -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def working(self) -> Iterator[Tell]:
        """Long work: what it prints goes to standard error, with progress bars when that is a terminal."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(_printed_to(self.err))
            if self.debug:
                stack.enter_context(_logged_to(self.err))
            else:
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                stack.enter_context(_only_errors_logged())
            yield stack.enter_context(self._bars())

    @contextlib.contextmanager
    def _bars(self) -> Iterator[Tell]:
        if self.quiet or not self.err.isatty():
            yield lambda stage, done, total: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=Console(file=self.err), transient=True, redirect_stdout=False, redirect_stderr=False
        ) as bars:
            tasks: dict[str, Any] = {}

            def tell(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total)
                bars.update(tasks[stage], completed=done, total=total)

            yield tell


def printable(part: RenderableType) -> RenderableType:
    """Text and tables with what is not printed replaced, wherever it came from: the last look before the terminal."""
    from rich.table import Table
    from rich.text import Text

    if isinstance(part, str):
        return _replaced(part)
    if isinstance(part, Text) and _replaced(part.plain) != part.plain:
        part = part.copy()
        part.plain = _replaced(part.plain)
    if isinstance(part, Table):
        for column in part.columns:
            column._cells[:] = map(printable, column._cells)
    return part


def _replaced(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


@contextlib.contextmanager
def _printed_to(stream: TextIO) -> Iterator[None]:
    """What is printed goes to where the stream leads, and by another one, which the code of a model may close."""
    other = own_stream(stream)
    with contextlib.redirect_stdout(other):
        yield
    with contextlib.suppress(OSError, ValueError):
        other.flush()


@contextlib.contextmanager
def _logged_to(stream: TextIO) -> Iterator[None]:
    """What `reparam` logs goes to the stream, details too."""
    logger, handler = logging.getLogger("reparam"), logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


# ---- failures ----------------------------------------------------------------------------------------------------


def run_guarded(body: Callable[[], object], session: Session) -> int:
    """Runs `body` and returns the exit code; a failure becomes one sentence on standard error."""
    try:
        with on_the_command_line(), _terminations(), refused_exits(), _asides_kept_quiet(session):
            body()
            with session._delivering():
                pass
    except BaseException as error:
        code, message = explain_failure(error, begun=session.begun)
        if session.debug and message:
            session.err.write(visible_lines("".join(traceback.format_exception(error))))
        if message:
            session.error(f"{message}{_left_behind(session, error)}")
        return code
    return 0


@contextlib.contextmanager
def _asides_kept_quiet(session: Session) -> Iterator[None]:
    """What the code of a model raises where nobody can catch it (in `__del__`, a thread) is told with --debug alone."""
    before = sys.unraisablehook, threading.excepthook

    def again(words: Any) -> None:
        """An interruption that came there, which Python would forget, comes once more."""
        if isinstance(words.exc_value, KeyboardInterrupt):
            number = getattr(words.exc_value, "number", signal.SIGINT)
            threading.Timer(LATER, _thread.interrupt_main, [number]).start()
        else:
            tell(words)

    def tell(words: Any) -> None:
        if session.debug and words.exc_value is not None:
            session.err.write(visible_lines("".join(traceback.format_exception(words.exc_value))))

    sys.unraisablehook, threading.excepthook = again, tell
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = before


def _left_behind(session: Session, error: BaseException) -> str:
    were = "were" if len(session.written) > 1 else "was"
    names = ", ".join(str(p) for p in session.written)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return f", after {names} {were} written" if names else ", nothing was written"
    return f"; {names} {were} written before" if names else ""


def explain_failure(error: BaseException, *, begun: bool = False) -> tuple[int, str]:
    """`_explain`, also where the code of an error that others wrote fails itself."""
    try:
        return _explain(error, begun)
    except BaseException:
        return 4, f"internal error: {type(error).__name__}, which cannot be described"


def _explain(error: BaseException, begun: bool) -> tuple[int, str]:
    """The exit code of `error` and its sentence; an empty one when there is nothing to say.

    begun: whether the work had begun, which an exit then left undone. An error of a model's code is never success.
    """
    strange = not isinstance(error, Exception | SystemExit | KeyboardInterrupt)
    if strange or (begun and isinstance(error, typer.Exit | SystemExit)):
        place = place_of_error(error)
        return 2, f"{describe_error(error)}{f' at {place}' if place else ''} ended the work before it was done"
    if isinstance(error, typer.Exit | SystemExit):
        code = error.exit_code if isinstance(error, typer.Exit) else error.code
        return (code if isinstance(code, int) else int(code is not None)), ""
    if isinstance(error, Terminated):
        return 128 + error.number, "terminated"
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED, "interrupted"
    if hasattr(error, "format_message"):  # a usage error: typer brings its own copy of click, or uses click's
        return 2, _usage(error)
    if isinstance(error, ReparamError) and not isinstance(error, RuleError):
        return error.exit_code or 4, str(error)
    return _explain_system(error)


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "reparam"
    text = error.format_message().replace("Value error, ", "").strip().rstrip(".?")
    return f"{text}; see {command} --help"


def _explain_system(error: BaseException) -> tuple[int, str]:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if is_out_of_memory(error):
        return 3, f"not enough memory{f' ({text})' if text else ''}"
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE, ""
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return 2, f"no file can have this name ({error.strerror}): {str(error.filename)[:60]}"
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or text
        return 3, f"the system refused: {reason}{where}"
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "torch":
        return 3, f"torch cannot be imported ({text}); reparam doctor lists what is installed"
    return 4, f"internal error: {type(error).__name__}: {text}; run again with --debug and report it"


@contextlib.contextmanager
def _terminations() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated, so that temporary files are removed; one under nohup stays ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [n for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n)]
    before = {s: signal.getsignal(s) for s in (getattr(signal, n) for n in names)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begin(context: typer.Context, *, quiet: bool = False, debug: bool) -> Session:
    """The session of the verb that runs, with what all verbs share set."""
    session = context.obj
    assert isinstance(session, Session)
    session.quiet, session.debug, session.begun = quiet, debug, True
    path = check_target(context)
    session.recipe = None if path is None else lambda: write_recipe(context, path)
    return session


def open_session() -> Session:
    """A session on copies of the process's streams, which nobody else closes."""
    return Session(own_stream(sys.stdout), own_stream(sys.stderr))
