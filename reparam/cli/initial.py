"""The verb `init`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from reparam.errors import InputError

from . import options as opt
from . import which_weights as which
from .outputs import STANDARD_OUTPUT, check_folder, check_report, delivering, plan_checkpoint, plan_outputs
from .processes import place_in_group, process_group
from .session import begin


class Method(StrEnum):
    """What `init --method` offers."""

    he = "he"
    autoinit = "autoinit"
    zero = "zero"
    residual_scale = "residual-scale"
    depth_scale = "depth-scale"
    bn_scale = "bn-scale"
    normalised_act = "normalised-act"
    gaussian = "gaussian"
    point_variance = "point-variance"
    lsuv = "lsuv"
    gradinit = "gradinit"


WITH_DATA = (Method.point_variance, Method.lsuv, Method.gradinit)
REWRITING = (Method.residual_scale, Method.normalised_act, Method.gaussian)


def init(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    model: opt.Model = None,
    method: Annotated[Method, typer.Option("--method", help="How weights are set; docs/initial-weights.md.")],
    options: Annotated[
        str | None,
        typer.Option("--options", metavar="JSON", help="Options of the method, such as '{\"beta\": 1.0}'."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="DATA", help="Samples, for point-variance, lsuv and gradinit."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="y.npy", help="For gradinit: classes, or `folders`: one folder a class."),
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
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="A .pt or .safetensors; a .pt2 where the method puts parts in. Default: MODEL-METHOD beside MODEL.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--source", metavar="DIR", help="Where the method puts parts in: also write readable source."),
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
    """Set initial weights of MODEL by a published method, write a checkpoint.

    With --arch alone, the network is built first. What was set, to which scale, and what was left is told.
    residual-scale, normalised-act and gaussian put parts in that the architecture does not have: they write a .pt2.
    Under torchrun, gradinit shares the samples out among the processes; the first one prints and writes.
    """
    rank, size_of_group = place_in_group()
    quiet = quiet or rank > 0
    session = begin(ctx, quiet=quiet, debug=debug)
    if rank > 0 and method != Method.gradinit:
        return  # the first process does what there is to do
    weights = which.Weights(key, prefix, pretrained)
    shapes, axes, arguments = opt.read_shapes(input_shape), opt.read_dynamic(dynamic), opt.read_arguments(arch_args)
    reading = {"--config": config, "--mean": mean, "--std": std, "--size": size, "--interpolation": interpolation}
    _refuse_idle(method, reading)
    given = opt.read_arguments(options, "--options") or {}
    if method in REWRITING:
        path = plan_outputs(model, arch, output, source, method.value, force=force).model
    else:
        if source is not None:
            raise InputError(f"--source is for methods that put parts in; {method.value} writes a checkpoint alone")
        path = plan_checkpoint(model, arch, output, method.value, (calibrate, config), force=force)
    if source is not None:
        check_folder(source, force=force)
    read = [calibrate, config, Path(model) if model else None]
    check_report(json, [path, source, *read], force=force)

    from reparam.engines import card_of

    from . import initial_work, render
    from . import work as cli_work

    loaded = cli_work.load(session, model, arch, arguments, weights, trust=trust, seed=seed)
    how = opt.read_preprocessing(card_of(loaded.model), config, mean, std, size, interpolation, data=calibrate)
    share = (rank, size_of_group)
    wanted = initial_work.InitRequest(method.value, given, calibrate, labels, shapes, axes, how, seed, share)
    with process_group(size_of_group if method == Method.gradinit else 1):
        if rank > 0:
            initial_work.join_in(session, loaded, wanted)
            return
        with delivering(session, json) as deliver:
            report = initial_work.init_loaded(session, loaded, wanted, path, source, force=force)
            deliver(report)
    if not quiet and json != STANDARD_OUTPUT:
        session.show(*initial_work.describe(report, cli_work.describe_arch(loaded.model)))
        if report["notes"]:
            session.show(*(render.line(f"note: {text}") for text in report["notes"]))


def _refuse_idle(method: Method, given: Mapping[str, object]) -> None:
    """Raises InputError for options about samples, where the method looks at none."""
    named = next((name for name, value in given.items() if value is not None), None)
    if named is not None and method not in WITH_DATA:
        raise InputError(f"{named} is about samples, and the method {method.value} looks at none; leave it out")
