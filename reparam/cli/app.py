"""The command line: a thin skin over the Python API. `reparam --help` imports neither torch nor any model zoo."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from reparam._version import __version__
from reparam.errors import InputError, NotEquivalentError
from reparam.options import DEFAULTS, PlainOptions
from reparam.utils import drop_broken_streams, ignore_exits

from . import export_run_bench as cli_engines
from . import options as opt
from . import recalibrate as cli_training
from . import which_weights as which
from .analyze import analyze
from .applying import apply
from .initial import init
from .listing import doctor, passes
from .outputs import STANDARD_OUTPUT, check_page, check_report, delivering, plan_outputs
from .prune import prune
from .session import begin, open_session, run_guarded
from .view import view

PROGRAM = "reparam"


class Commands(TyperGroup):
    """The verbs, run so that every failure is one sentence and one exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parses `args` and runs the verb; always ends with SystemExit."""
        words = which.spelled_out(sys.argv[1:] if args is None else args)
        session = open_session()

        def body() -> None:
            _refuse_unreadable(words)
            with self.make_context(PROGRAM, words or ["--help"], obj=session) as context:
                self.invoke(context)

        raise SystemExit(run_guarded(body, session))


def _refuse_unreadable(words: Sequence[str]) -> None:
    """Raises InputError for words that no file name and no text can hold, and for empty ones."""
    for before, word in zip(["", *words], words, strict=False):
        try:
            os.fsencode(word)
            readable = "\0" not in word
        except UnicodeError:
            readable = False
        if not readable:
            raise InputError(f"the word {word[:60]!r} holds characters that no name can have; write it without them")
        option = before if not word else word if word.startswith("--") and word.endswith("=") else None
        if option is not None:
            named = f"the value of {option[:60]} is empty" if option.startswith("-") else "one of the words is empty"
            raise InputError(f"{named}; write what it stands for, or leave it out")


app = typer.Typer(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Runs the verb that the command line names."""
    atexit.register(drop_broken_streams)  # the first, and so the last to be called
    try:
        app()
    finally:
        ignore_exits()  # what the code of a model left for the end does not change the exit code
        with contextlib.suppress(ValueError):  # outside of the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done, and what is left is the end of Python


def run_verb(*words: str) -> Any:
    """What a verb returns; errors are raised as they are."""
    command = typer.main.get_command(app)
    with command.make_context(PROGRAM, list(words), obj=open_session()) as context:
        return command.invoke(context)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A compiler for trained networks: rewrites a network into a simpler one, and checks that it is the same one."""


@app.command()
def convert(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    model: opt.Model = None,
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: which.Key = None,
    prefix: which.Prefix = None,
    pretrained: which.Pretrained = None,
    to: opt.To = opt.Target.fused,
    carry: opt.CarryOption = DEFAULTS.carry,
    max_pool: opt.MaxPoolOption = opt.MAX_POOL,
    signed: opt.SignedOption = opt.SIGNED,
    max_cost: opt.MaxCostOption = DEFAULTS.max_cost,
    outputs: opt.OutputsOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.pt2", help="Default: MODEL-TARGET.pt2 beside MODEL.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="DIR", help="Also write readable source and its weights.")
    ] = None,
    input_shape: opt.InputShape = None,
    dynamic: opt.Dynamic = None,
    dtype: opt.DtypeOption = None,
    seed: opt.Seed = 0,
    trust: opt.Trust = False,
    json: opt.Json = None,
    html: opt.Html = None,
    remarks: opt.Remarks = None,
    remarks_filter: opt.RemarksFilter = None,
    write_recipe: opt.WriteRecipe = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Rewrite MODEL, check that it is still the same function, write a .pt2.

    With --arch alone the network has random weights. Nothing is written unless the result was verified.
    """
    session = begin(ctx, quiet=quiet, debug=debug)
    shapes, axes = opt.read_shapes(input_shape), opt.read_dynamic(dynamic)
    plain = PlainOptions(carry, max_pool.value, signed.value, max_cost)
    arguments, choice = opt.read_arguments(arch_args), opt.read_remarks(remarks, remarks_filter)
    weights = which.Weights(key, prefix, pretrained)
    planned = plan_outputs(model, arch, output, source, to.value, force=force)
    others = [planned.model, source, Path(model) if model else None]
    check_report(json, others, force=force)
    check_page(html, json, others, force=force)

    from . import render
    from . import work as cli_work

    loaded = cli_work.load(session, model, arch, arguments, weights, trust=trust, seed=seed)
    options = cli_work.ConvertOptions(to.value, shapes, axes, seed, plain, opt.read_outputs(outputs))
    with delivering(session, json) as deliver:
        found = cli_work.convert_loaded(session, loaded, options, dtype.value if dtype else None, planned, force=force)
        report = found.report.as_dict()
        kept = [r for r in report["remarks"] if choice.keeps(r)]
        if html is not None:
            cli_work.write_conversion(html, found, report, loaded, force=force)
        deliver(report | {"remarks": kept})
    if not quiet and json != STANDARD_OUTPUT:
        listed = kept if choice.kinds else []
        session.show(*render.render_conversion(report, cli_work.describe_arch(loaded.model), listed=listed))


@app.command()
def explain(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    model: opt.Model = None,
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: which.Key = None,
    prefix: which.Prefix = None,
    pretrained: which.Pretrained = None,
    to: opt.To = opt.Target.fused,
    carry: opt.CarryOption = DEFAULTS.carry,
    max_pool: opt.MaxPoolOption = opt.MAX_POOL,
    signed: opt.SignedOption = opt.SIGNED,
    max_cost: opt.MaxCostOption = DEFAULTS.max_cost,
    outputs: opt.OutputsOption = None,
    input_shape: opt.InputShape = None,
    dynamic: opt.Dynamic = None,
    seed: opt.Seed = 0,
    graph: Annotated[
        bool, typer.Option("--graph", help="Also show the graph as text, as it is and as it would become.")
    ] = False,
    trust: opt.Trust = False,
    json: opt.Json = None,
    html: opt.Html = None,
    remarks: opt.Remarks = None,
    remarks_filter: opt.RemarksFilter = None,
    write_recipe: opt.WriteRecipe = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Dry run: what would be rewritten, what not and why, the price."""
    session = begin(ctx, quiet=quiet, debug=debug)
    shapes, axes = opt.read_shapes(input_shape), opt.read_dynamic(dynamic)
    plain = PlainOptions(carry, max_pool.value, signed.value, max_cost)
    arguments, choice = opt.read_arguments(arch_args), opt.read_remarks(remarks, remarks_filter)
    weights = which.Weights(key, prefix, pretrained)
    which.refuse_missing(model)
    check_report(json, [Path(model) if model else None], force=force)
    check_page(html, json, [Path(model) if model else None], force=force)

    from . import render
    from . import work as cli_work

    loaded = cli_work.load(session, model, arch, arguments, weights, trust=trust, seed=seed)
    options = cli_work.ConvertOptions(to.value, shapes, axes, seed, plain, opt.read_outputs(outputs))
    found = cli_work.explain_loaded(session, loaded, options, graphs=graph or html is not None)
    report = (found if graph else found.with_(graphs=None)).as_dict()
    kept = [r for r in report["remarks"] if choice.keeps(r)]
    if not quiet and json != STANDARD_OUTPUT:
        missed = [r for r in kept if r["kind"] == "missed"]
        listed = kept if choice.kinds else []
        arch_text = cli_work.describe_arch(loaded.model)
        session.show(*render.render_explanation(report, arch_text, listed=listed, missed=[] if listed else missed))
    with delivering(session, json) as deliver:
        if html is not None:
            cli_work.write_explanation(html, found, loaded, force=force)
        deliver(report | {"remarks": kept})


@app.command()
def verify(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    a: opt.First,
    b: opt.Second,
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
    input_shape: opt.InputShape = None,
    trials: Annotated[int, typer.Option("--trials", min=2, help="Number of random inputs.")] = 8,
    adversarial: Annotated[
        bool, typer.Option("--adversarial/--no-adversarial", help="Also search for inputs on which they differ.")
    ] = True,
    data: opt.Data = None,
    config: opt.Config = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    interpolation: opt.Interpolation = None,
    seed: opt.Seed = 0,
    trust: opt.Trust = False,
    json: opt.Json = None,
    html: opt.Html = None,
    write_recipe: opt.WriteRecipe = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Test whether A and B are the same function.

    They may be of any two formats. With --data, the samples that they differ on are named. Exit code 0: the same
    function; 1: not the same.
    """
    session = begin(ctx, quiet=quiet, debug=debug)
    shapes = opt.read_shapes(input_shape)
    chosen = which.Weights(key_a, prefix_a, pretrained_a), which.Weights(key_b, prefix_b, pretrained_b)
    sides = opt.read_sides((a, arch_a, arch_args_a), (b, arch_b, arch_args_b), chosen)
    read = [Path(a), Path(b), *(Path(p) for p in (data, config) if p is not None)]
    check_report(json, read, force=force)
    check_page(html, json, read, force=force)

    from . import graphs as cli_graphs
    from . import render
    from . import work as cli_work

    first, second = (cli_work.load_side(session, s, trust=trust, seed=seed) for s in sides)
    images = (config, mean, std, size, interpolation)
    opened = {s.name: s.model for s in (first, second)}
    how = cli_work.preprocessing_for(opened, images, data) if data is not None else None
    sized = cli_work.sized_for(opened, shapes, how, images)
    start = time.perf_counter()
    with session.working() as tell:
        from reparam import verify as compare

        verdict = compare(
            first.model,
            second.model,
            input_shapes=cli_work.shapes_for([first.model, second.model], sized),
            trials=trials,
            seed=seed,
            adversarial=adversarial,
            data=data,
            preprocessing=how,
            progress=tell,
        )
    seconds = {"load": first.seconds + second.seconds, "verify": time.perf_counter() - start}
    shown = not quiet and json != STANDARD_OUTPUT
    if shown:
        session.show(*map(render.line, [f"{first.name} and {second.name}:", *verdict.sentences()]))
    report = {"schema": 1, "reparam": __version__, "a": first.name, "b": second.name, **verdict.as_dict()}
    report["seconds"] = {k: round(v, 3) for k, v in seconds.items()}
    with delivering(session, json) as deliver:
        if html is not None:
            cli_graphs.write_verdict(session, html, report, (first, second), shapes, force=force)
        deliver(report)
    if verdict.reason:
        reason = "" if shown else f": {verdict.reason}"
        raise NotEquivalentError(f"{first.name} and {second.name} are not the same function{reason}")


@app.command()
def diff(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    a: opt.First,
    b: opt.Second,
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
    input_shape: opt.InputShape = None,
    full: Annotated[bool, typer.Option("--full", help="Show runs of unchanged calls too.")] = False,
    seed: opt.Seed = 0,
    trust: opt.Trust = False,
    json: opt.Json = None,
    html: opt.Html = None,
    write_recipe: opt.WriteRecipe = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Show the graphs of A and B side by side.

    Structure and weights are compared; verify compares functions.
    """
    session = begin(ctx, quiet=quiet, debug=debug)
    shapes = opt.read_shapes(input_shape)
    chosen = which.Weights(key_a, prefix_a, pretrained_a), which.Weights(key_b, prefix_b, pretrained_b)
    sides = opt.read_sides((a, arch_a, arch_args_a), (b, arch_b, arch_args_b), chosen)
    check_report(json, [Path(a), Path(b)], force=force)
    check_page(html, json, [Path(a), Path(b)], force=force)

    from . import graphs as cli_graphs
    from . import render
    from . import work as cli_work

    first, second = (cli_work.load_side(session, s, trust=trust, seed=seed) for s in sides)
    found, graphs = cli_graphs.diff_loaded(session, first, second, shapes)
    if not quiet and json != STANDARD_OUTPUT:
        header = render.line(f"{first.name} and {second.name}:")
        session.show(header, found.text(session.width, full=full), render.line(found.counted()))
    report = {"schema": 1, "reparam": __version__, "a": first.name, "b": second.name, **found.as_dict()}
    with delivering(session, json) as deliver:
        if html is not None:
            cli_graphs.write_diff(html, report, found, graphs, force=force)
        deliver(report)


app.command()(cli_engines.export)
app.command()(cli_engines.run)
app.command()(cli_engines.bench)
app.command()(prune)
app.command()(cli_training.recalibrate)
app.command()(apply)
app.command()(init)
app.command()(analyze)
app.command()(view)
app.command()(passes)
app.command()(doctor)
