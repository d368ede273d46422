"""The verb `analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reparam.errors import InputError

from . import options as opt
from . import which_weights as which
from .outputs import STANDARD_OUTPUT, check_page, check_report, check_writable_folder, delivering
from .session import begin


def analyze(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    model: opt.Model = None,
    b: Annotated[
        str | None, typer.Argument(metavar="[B]", help="Another model, shown side by side; - for random weights.")
    ] = None,
    what: Annotated[
        str,
        typer.Option(
            "--what",
            metavar="NAMES",
            help="Which analyses: moments,gradients,erf,rank,gaussianity,depth,norm,dead,sensitivity; or all.",
        ),
    ] = "moments,gradients",
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", metavar="DATA", help="Samples; random numbers when left out.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples in a batch.")] = 8,
    batches: Annotated[int, typer.Option("--batches", min=1, help="Number of batches.")] = 1,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit", metavar="MODULE", help="For erf: the module whose value is looked at; the last one when left out."
        ),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Batch norms take the statistics of the batch, as in training.")
    ] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="DIR", help="Also draw pictures, into this folder.")
    ] = None,
    config: opt.Config = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    interpolation: opt.Interpolation = None,
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: which.Key = None,
    prefix: which.Prefix = None,
    pretrained: which.Pretrained = None,
    arch_b: opt.ArchB = None,
    arch_args_b: opt.ArchArgsB = None,
    key_b: which.KeyB = None,
    prefix_b: which.PrefixB = None,
    pretrained_b: which.PretrainedB = None,
    input_shape: opt.InputShape = None,
    dynamic: opt.Dynamic = None,
    seed: opt.Seed = 0,
    trust: opt.Trust = False,
    json: opt.Json = None,
    html: opt.Html = None,
    write_recipe: opt.WriteRecipe = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Show what values and gradients do in MODEL: their size by depth, receptive fields, dead units.

    Nothing is changed. With B, both are shown side by side: before and after a conversion, or two initialisations.
    """
    session = begin(ctx, quiet=quiet, debug=debug)
    weights = which.Weights(key, prefix, pretrained)
    shapes, axes, arguments = opt.read_shapes(input_shape), opt.read_dynamic(dynamic), opt.read_arguments(arch_args)
    arguments_b, chosen_b = (
        opt.read_arguments(arch_args_b, "--arch-args-b"),
        which.Weights(key_b, prefix_b, pretrained_b),
    )
    side = None if b is None else opt.Side("b", b, arch_b, arguments_b, chosen_b)
    if b is None and (arch_b is not None or arch_args_b is not None or chosen_b != which.ANY):
        raise InputError("--arch-b is for a second model; name one, or - for random weights")
    if svg is not None:
        check_writable_folder(svg, "--svg")
    which.refuse_missing(model, b)
    read = [Path(p) for p in (model, b) if p is not None]
    check_report(json, [*read, calibrate, config], force=force)
    check_page(html, json, [*read, calibrate, config], force=force)

    from reparam.engines import card_of

    from . import analyze_work
    from . import work as cli_work

    loaded = cli_work.load(session, model, arch, arguments, weights, trust=trust, seed=seed)
    how = opt.read_preprocessing(card_of(loaded.model), config, mean, std, size, interpolation, data=calibrate)
    models = [(loaded.name, loaded.model)]
    if side is not None:
        models.append(analyze_work.second(session, side, trust=trust, seed=seed))
    wanted = analyze_work.AnalyzeOptions(
        what, calibrate, batch, batches, unit, training, shapes, axes, how, seed, svg, force
    )
    with delivering(session, json) as deliver:
        found = analyze_work.analyze_loaded(session, models, wanted)
        if html is not None:
            analyze_work.save_page(found, html, force=force)
        deliver(found.report)
    if not quiet and json != STANDARD_OUTPUT:
        session.show(*analyze_work.describe(found))
