"""The site's settings: `make docs` builds it with Sphinx from the Markdown of the whole repository.

The source folder is the root of the repository, so that a link between two pages is the same in the site, in a checkout
and where the repository is shown. `docs/decisions/0006-sphinx.md` says why it is Sphinx.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import reparam  # noqa: E402  # from this checkout

project = "reparam"
author = "The reparam maintainers"
copyright = author
version = release = reparam.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/*.md", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"]
exclude_patterns = [".*", "**/__pycache__", "build", "demo", "dist", "docs/site_root", "docs/site_static", "site"]
exclude_patterns += ["examples", "models", "passes", "reparam", "tests"]
nitpicky = True
default_role = "code"

myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_typehints = "none"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"reparam {version}"
html_extra_path = ["site_root"]
html_static_path = ["site_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style, pygments_dark_style = "friendly", "monokai"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e99", "color-brand-content": "#0b6e99"},
    "dark_css_variables": {"color-brand-primary": "#5ec1ee", "color-brand-content": "#5ec1ee"},
}


def fields(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A docstring of the project as reStructuredText: its `name: text` lines become a list of parameters.

    Names are those of the signature; one stands at the start of a line or behind a sentence.
    """
    del app, what, name, options
    try:
        known = [p for p in inspect.signature(obj).parameters if p != "self"] if callable(obj) else []
    except ValueError:
        known = []
    paragraphs = [_paragraph(p, known) for p in re.split(r"\n\s*\n", "\n".join(lines))]
    lines[:] = "\n\n".join(paragraphs).splitlines()


def _paragraph(text: str, known: list[str]) -> str:
    if text.lstrip().startswith(">>>"):
        return text
    text = text.replace("\\", "\\\\").replace("*", "\\*")
    if not known:
        return text
    names = "|".join(map(re.escape, known))
    found = re.split(rf"(?:^|(?<=[.;] ))((?:{names})(?:, (?:{names}))*): ", " ".join(text.split()))
    head, pairs = found[0], list(zip(found[1::2], found[2::2], strict=True))
    if not pairs:
        return text
    rows = [f":param {n}: {meaning.strip()}" for names, meaning in pairs for n in names.split(", ")]
    return "\n".join([*([head, ""] if head.strip() else []), *rows])


def setup(app: Any) -> dict[str, bool]:
    """Connects `fields`."""
    app.connect("autodoc-process-docstring", fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
