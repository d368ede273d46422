"""Messages name an option as their reader writes it: `--max-drop` on the command line, `max_drop` in Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from reparam.errors import ReparamError

_COMMAND_LINE = ContextVar("_COMMAND_LINE", default=False)
_OPTION = re.compile(r"(?<![\w-])--([a-z]\w*(?:-\w+)*)")
_IMAGES = re.compile(r"--mean, --std and --size(,? or (with )?--config)?")
_KEYWORDS = {"trust": "trust=True", "force": "force=True", "input-shape": "input_shapes", "calibrate": "data"}
_OF_FUNCTIONS = {
    ("bench", "batch"): "batches",
    ("bench", "device"): "where.device",
    ("bench", "runtime"): "where.runtimes",
    ("convert", "input-shape"): "example inputs",
    ("explain", "input-shape"): "example inputs",
    ("export", "calibrate"): "calibration",
    ("export", "input-shape"): "example inputs",
}


@contextmanager
def on_the_command_line() -> Iterator[None]:
    """Inside, errors keep the names of the command line."""
    token = _COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _COMMAND_LINE.reset(token)


@contextmanager
def in_words_of_python(function: str) -> Iterator[None]:
    """Inside, an error of ours names the keywords of the function, unless the command line has called it."""
    try:
        yield
    except ReparamError as error:
        if not _COMMAND_LINE.get():
            error.args = (keywords(str(error), function),)
        raise


def keywords(text: str, function: str) -> str:
    """The text with keywords in place of options: `give some with --data` becomes `give some with data`."""
    text = _IMAGES.sub("preprocessing", text).replace("--arch module:name", 'arch="module:name"')
    return _OPTION.sub(lambda found: _keyword(found[1], function), text)


def _keyword(option: str, function: str) -> str:
    return _OF_FUNCTIONS.get((function, option)) or _KEYWORDS.get(option) or option.replace("-", "_")
