"""Messages name an option as their reader writes it: `--max-drop` on the command line, `max_drop` in Python."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from reparam.errors import ReparamError

_COMMAND_LINE = ContextVar("_COMMAND_LINE", default=False)
_INSIDE = ContextVar("_INSIDE", default=False)  # of a function that words its errors
_ARCHITECTURE = re.compile(r"--arch (\w+(?:\.\w+)*:\w+)")
_CHOSEN = re.compile(r"--(key|prefix) (?!(?:and|choose)\b)(?:'([^']+)'|([\w.-]+))")
_BOTH = re.compile(r'(\bkey="[^"]*") (?=prefix=")')
_ARGUMENTS = re.compile(r"--arch-args '(\{[^']*\})'")
_OPTION = re.compile(r"(?<![\w-])--([a-z]\w*(?:-\w+)*)")
_IMAGES = re.compile(r"--mean, --std and --size(,? or (with )?--config)?")
_OF_LOAD = ("arch", "arch-args", "key", "prefix", "pretrained", "trust")
_KEYWORDS = {"trust": "trust=True", "force": "force=True", "input-shape": "input_shapes", "calibrate": "data"}
_OF_FUNCTIONS = {
    ("bench", "batch"): "batches",
    ("bench", "device"): "where.device",
    ("bench", "runtime"): "where.runtimes",
    ("convert", "input-shape"): "example inputs",
    ("explain", "input-shape"): "example inputs",
    ("export", "calibrate"): "calibration",
    ("export", "force"): "options=ExportOptions(force=True)",
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
def in_words_of_python(function: str, parameters: Collection[str]) -> Iterator[None]:
    """Inside, an error of ours names the keywords of the function, unless the command line has called it.

    parameters: those that the function has. Of functions that call each other, the outermost one is that which was
    called, and words the error.
    """
    if _INSIDE.get():
        yield
        return
    token = _INSIDE.set(True)
    try:
        yield
    except ReparamError as error:
        if not _COMMAND_LINE.get():
            error.args = (keywords(str(error), function, parameters),)
        raise
    finally:
        _INSIDE.reset(token)


def keywords(text: str, function: str, parameters: Collection[str]) -> str:
    """The text with keywords in place of options: `give some with --data` becomes `give some with data`.

    How a file is opened is said to `reparam.load`, where the function has no parameter for it.
    """
    text = _ARCHITECTURE.sub(r'arch="\1"', _IMAGES.sub("preprocessing", text))
    text = _CHOSEN.sub(lambda found: f'{found[1]}="{found[2] or found[3]}"', _ARGUMENTS.sub(_arguments, text))
    text = _BOTH.sub(r"\1, ", text)
    return _OPTION.sub(lambda found: _keyword(found[1], function, parameters), text)


def _arguments(found: re.Match[str]) -> str:
    try:
        return f"arch_args={json.loads(found[1])!r}"
    except ValueError:  # a file of that name
        return found[0]


def _keyword(option: str, function: str, parameters: Collection[str]) -> str:
    plain = option.replace("-", "_")
    word = _OF_FUNCTIONS.get((function, option)) or _KEYWORDS.get(option) or plain
    return f"{word} of reparam.load" if option in _OF_LOAD and plain not in parameters else word
