"""Progress in a Jupyter notebook: bars below the cell, drawn by rich, which go when the work is done."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Tell = Callable[[str, int, int], None]
PATIENCE, EVERY = 0.5, 0.1  # seconds of work that shows nothing, and between two pictures


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "ipykernel" not in sys.modules or "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def notebook_bars() -> Iterator[Tell]:
    """Gives what shows a bar for each stage; for the kernel of a notebook."""
    bars = _Bars()
    try:
        yield bars.tell
    finally:
        bars.clear()


class _Bars:
    """One output of a cell, which is replaced from time to time."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, auto_refresh=False)
        self._tasks: dict[str, Any] = {}
        self._output: Any = None
        self._shown = time.monotonic() + PATIENCE - EVERY

    def tell(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)
        now = time.monotonic()
        if now - self._shown >= EVERY:
            self._shown = now
            self._show(self._progress.make_tasks_table(self._progress.tasks))

    def clear(self) -> None:
        """Leaves nothing of what was shown."""
        if self._output is not None:
            self._output.update(_ipython().HTML(""))

    def _show(self, picture: Any) -> None:
        if self._output is not None:
            self._output.update(picture)
            return
        self._output = _ipython().display(picture, display_id=True)


def _ipython() -> Any:
    return importlib.import_module("IPython.display")
