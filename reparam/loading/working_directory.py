"""The user's own modules: found beside where the command runs, and behind everything that is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def working_directory_on_path() -> Iterator[None]:
    """The current folder is looked into last, so that nothing in it takes the place of an installed package."""
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        last = len(sys.path) - 1 - sys.path[::-1].index(here) if here in sys.path else None
        if last is not None:
            del sys.path[last]
