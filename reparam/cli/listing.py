"""The verbs that make nothing: `passes` and `doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as opt
from .outputs import STANDARD_OUTPUT, check_report, deliver_json
from .session import begin


def passes(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="RULE", help="Show all that is said about one rule.")] = None,
    json: opt.Json = None,
    force: opt.Force = False,
    debug: opt.Debug = False,
) -> None:
    """List the rules with their equations and options."""
    session = begin(ctx, debug=debug)
    check_report(json, [], force=force)
    with session.working():
        from .tables import find_rule, list_rules, rules_table

        rules = list_rules()
    if name is not None:
        rules = [find_rule(rules, name)]
    if json != STANDARD_OUTPUT:
        session.show(rules_table(rules) if name is None else rules[0].doc)
    deliver_json(session, [r.as_dict() for r in rules], json)


def doctor(ctx: typer.Context, json: opt.Json = None, force: opt.Force = False, debug: opt.Debug = False) -> None:
    """Report what is installed and what can be done here."""
    session = begin(ctx, debug=debug)
    check_report(json, [], force=force)
    with session.working():
        from .doctor import diagnose
        from .tables import diagnosis_parts

        found = diagnose()
    if json != STANDARD_OUTPUT:
        session.show(*diagnosis_parts(found))
    deliver_json(session, found.as_dict(), json)
