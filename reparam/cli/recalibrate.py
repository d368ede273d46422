"""The verb `recalibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as opt
from . import which_weights as which
from .outputs import STANDARD_OUTPUT, check_report, delivering, plan_checkpoint
from .session import begin


def recalibrate(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A checkpoint (.pt, .pth, .safetensors) or folder of source.")
    ] = None,
    calibrate: opt.Calibrate,
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: which.Key = None,
    prefix: which.Prefix = None,
    pretrained: which.Pretrained = None,
    batch: Annotated[int, typer.Option("--batch", min=2, help="Samples that are normalised together.")] = 64,
    config: opt.Config = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    interpolation: opt.Interpolation = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="OUT", help="A .pt or .safetensors; default: MODEL-recalibrated beside MODEL."
        ),
    ] = None,
    input_shape: opt.InputShape = None,
    dynamic: opt.Dynamic = None,
    seed: opt.Seed = 0,
    trust: opt.Trust = False,
    json: opt.Json = None,
    write_recipe: opt.WriteRecipe = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure the statistics of MODEL's batch norms again on samples, write a checkpoint.

    All other weights stay as they are. For a network whose weights were changed after its training, or that sees other
    samples than those that it was trained on.
    """
    session = begin(ctx, quiet=quiet, debug=debug)
    weights = which.Weights(key, prefix, pretrained)
    shapes, axes, arguments = opt.read_shapes(input_shape), opt.read_dynamic(dynamic), opt.read_arguments(arch_args)
    path = plan_checkpoint(model, arch, output, "recalibrated", (calibrate, config), force=force)
    check_report(json, [path, calibrate, config, Path(model) if model else None], force=force)

    from reparam.engines import card_of

    from . import recalibrate_work, render
    from . import work as cli_work

    loaded = cli_work.load(session, model, arch, arguments, weights, trust=trust, seed=seed)
    how = opt.read_preprocessing(card_of(loaded.model), config, mean, std, size, interpolation, data=calibrate)
    options = recalibrate_work.RecalibrateOptions(calibrate, shapes, axes, batch, how, seed)
    with delivering(session, json) as deliver:
        report = recalibrate_work.recalibrate_loaded(session, loaded, options, path, force=force)
        deliver(report)
    if not quiet and json != STANDARD_OUTPUT:
        session.show(*map(render.line, recalibrate_work.describe(report, cli_work.describe_arch(loaded.model))))
