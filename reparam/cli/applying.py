"""The verb `apply`: the steps of a recipe, one after the other."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from reparam._version import __version__
from reparam.errors import ReparamError

from . import options as opt
from .outputs import STANDARD_OUTPUT, check_report, deliver_json
from .recipe import NOT_STEPS, read_recipe
from .recipe_steps import check_files
from .session import begin


def apply(  # the parameters are the options
    ctx: typer.Context,
    *,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file: `recipe: 1`, and `steps:`.")],
    check: Annotated[bool, typer.Option("--check", help="Only check the recipe and list its steps.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run a recipe that runs code: trust, or Python of your own.")
    ] = False,
    json: opt.Json = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite outputs of the steps that exist.")] = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> dict[str, Any]:
    """Run the steps of RECIPE, a deployment as a file; stop at the first that fails.

    A step is a verb with its options, without their dashes. Before the first runs, all are checked, and whether the
    files that they read are there or made by a step before; an error names the line. --write-recipe of the other verbs
    writes such a file. Paths begin in the current folder.
    """
    session = begin(ctx, quiet=quiet, debug=debug)
    check_report(json, [recipe], force=force)

    from .render import line

    found = read_recipe(recipe, _verbs(ctx), trust=trust)
    check_files(found)
    rows: list[dict[str, Any]] = []
    piped = STANDARD_OUTPUT in (json, *(step.values.get("json") for step in found.steps))  # nothing else goes there
    shown = not quiet and not piped
    for i, step in enumerate(found.steps):
        if shown:
            session.show(line(f"step {i + 1} of {len(found.steps)}, line {step.line}: {step.describe()}", "bold"))
        start = time.perf_counter()
        if not check:
            shared = {"force": force, "quiet": not shown, "debug": debug}
            _run(ctx, step.call, dict(step.values), shared, f"{recipe}, line {step.line}, {step.verb}")
        rows.append({"verb": step.verb, "line": step.line, "seconds": round(time.perf_counter() - start, 3)})
    report = {"schema": 1, "reparam": __version__, "recipe": str(recipe), "ran": not check, "steps": rows}
    deliver_json(session, report, json)
    return report


def _verbs(ctx: typer.Context) -> Mapping[str, Callable[..., Any]]:
    """The verbs that can be steps, by their names."""
    root: Any = ctx.find_root().command
    return {n: inspect.unwrap(c.callback) for n, c in root.commands.items() if n not in NOT_STEPS}


def _run(
    ctx: typer.Context, verb: Callable[..., Any], values: dict[str, Any], shared: dict[str, bool], where: str
) -> None:
    """Runs one step; an error of it says where it stands. shared: options of all steps, for those that have them."""
    taken = inspect.signature(verb).parameters
    try:
        verb(ctx, **values, **{n: v for n, v in shared.items() if n in taken})
    except ReparamError as error:
        error.args = (f"{where}: {error}",)
        raise
