"""The command line: a thin skin over the Python API."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from reparam.utils import as_path, checked_call, leave_current_folder, seldom_looks

__all__ = ["apply", "main"]


def main() -> None:
    """The entry point `reparam`. Nothing that is installed is imported before the search path is what it should be."""
    leave_current_folder()
    seldom_looks()
    try:
        from .app import main as run

        run()
    except KeyboardInterrupt:  # in the seconds before a verb has begun, which tells by itself
        print("reparam: interrupted", file=sys.stderr)
        sys.exit(130)


@checked_call
def apply(recipe: str | Path, *, check: bool = False, trust: bool = False, force: bool = False) -> dict[str, Any]:
    """Runs the steps of a recipe, a deployment as a YAML file, like the command `reparam apply`.

    recipe: the file. All steps are checked before the first runs; samples that they name are arrays (N, ...), or what
        else the options of the verbs take. Paths in it begin in the current folder.
    check: whether it is only checked. trust: whether a recipe may run code that it names. force: whether outputs of the
        steps that exist are overwritten.

    Returns the report that the command writes with `--json`: `steps` with the verb, the line and the seconds of each.
    The steps print nothing; warnings go to standard error.

    Raises InputError with the line for what does not fit, UnsafeFileError for a recipe that runs code without `trust`,
    MachineError without the packages of the extra `recipe`, and what the first step that fails raises; what the steps
    before it wrote stays.

    >>> import pathlib, tempfile, reparam
    >>> step = ["recipe: 1", "steps:", "- convert:", "    arch: reparam/resnet_small", "    output: small.pt2"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "deploy.yaml")
    ...     _ = path.write_text(chr(10).join(step))
    ...     report = reparam.apply(path, check=True)
    >>> [(step["verb"], step["line"]) for step in report["steps"]], report["ran"]
    ([('convert', 3)], False)
    """
    from .app import run_verb

    path = as_path(recipe, "the recipe")
    flags = [f"--{name}" for name, given in (("check", check), ("trust", trust), ("force", force)) if given]
    report: dict[str, Any] = run_verb("apply", "--quiet", *flags, "--", str(path))
    return report
