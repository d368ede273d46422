"""A page as HTML: one template, whose every text is escaped, with its own style sheet and script and nothing from afar.

The page says itself that no other script or style may run in it, by their digests, and that nothing may be fetched.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from reparam._version import __version__
from reparam.utils import write_atomically

from .parts import Page

SCRIPTS = ("names.js", "pane.js", "page.js")  # in one element, in this order


def render(page: Page) -> str:
    """The page as text, which holds all that it needs. Every text of it is escaped."""
    style, script = _asset("page.css"), _script()
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            style=Markup(style),
            style_hash=_digest(style),
            script=Markup(script),
            script_hash=_digest(script),
            version=__version__,
        )
    )


def write_page(page: Page, path: Path, *, force: bool = False) -> None:
    """Writes the page, whole or not at all, together with other outputs where there are some (`utils.together`).

    Raises InputError when `path` exists and `force` is false, MachineError when it cannot be written.
    """
    content = render(page).encode("utf-8", errors="backslashreplace")  # a half of a surrogate pair has no encoding
    write_atomically(path, lambda file: file.write(content), force=force)


def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@functools.cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


@functools.cache
def _script() -> str:
    """All scripts as one, which keeps its names to itself."""
    return "\n".join(['(() => {\n"use strict";', *(_asset(name) for name in SCRIPTS), "})();"])


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
