"""The verb `view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reparam.errors import InputError

from . import options as opt
from . import which_weights as which
from .outputs import check_apart
from .session import begin

Second = Annotated[
    str | None, typer.Argument(metavar="[B]", help="Another model, shown beside A; - for random weights of --arch-b.")
]
To = Annotated[
    opt.Target | None,
    typer.Option("--to", help="Show A as it is and as it would be rewritten, with the error of every rewrite."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.json", help="Write the graphs and overlays as JSON and start nothing."),
]
Port = Annotated[
    int, typer.Option("--port", min=0, max=65535, help="The port on this machine; 0 for any that is free.")
]
Browser = Annotated[
    bool, typer.Option("--browser/--no-browser", help="Open the page, or only print its address.")
]  # fmt: skip


def view(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    a: opt.First,
    b: Second = None,
    arch_a: opt.ArchA = None,
    arch_args_a: opt.ArchArgsA = None,
    arch_b: opt.ArchB = None,
    arch_args_b: opt.ArchArgsB = None,
    key_a: which.KeyA = None,
    prefix_a: which.PrefixA = None,
    pretrained_a: which.PretrainedA = None,
    key_b: which.KeyB = None,
    prefix_b: which.PrefixB = None,
    pretrained_b: which.PretrainedB = None,
    to: To = None,
    input_shape: opt.InputShape = None,
    out: Out = None,
    port: Port = 0,
    browser: Browser = True,
    seed: opt.Seed = 0,
    trust: opt.Trust = False,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Show the graph of A, or those of A and B, in Google's Model Explorer.

    With --to, A before and after a rewrite, and the measured error of every rewrite. The page comes from the package
    ai-edge-model-explorer and is served to this machine alone, until Ctrl-C; nothing is asked of the network.
    """
    session = begin(ctx, quiet=quiet, debug=debug)
    shapes = opt.read_shapes(input_shape)
    chosen = which.Weights(key_a, prefix_a, pretrained_a), which.Weights(key_b, prefix_b, pretrained_b)
    if b is None and (arch_b is not None or arch_args_b is not None or chosen[1] != which.ANY):
        raise InputError("--arch-b and its kin are for a second model; name one, or - for random weights")
    if b is not None and to is not None:
        raise InputError("--to shows A before and after a rewrite; leave out B, or --to")
    first, second = opt.read_sides((a, arch_a, arch_args_a), (b or "", arch_b, arch_args_b), chosen)

    from . import view_work

    app = view_work.find_app() if out is None else None
    if out is not None:
        for path in view_work.planned(out):
            check_apart(path, [Path(p) for p in (a, b) if p is not None], force=force)
    sides = [first] if b is None else [first, second]
    found = view_work.explore_sides(
        session, sides, to=None if to is None else to.value, shapes=shapes, seed=seed, trust=trust
    )
    if out is not None:
        view_work.write(session, found, out, force=force)
    elif app is not None:
        view_work.serve(session, found, app, port, browser=browser)
