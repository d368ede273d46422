"""The verb `prune`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from reparam.errors import InputError

from . import options as opt
from . import which_weights as which
from .outputs import STANDARD_OUTPUT, check_page, check_report, delivering, plan_outputs
from .session import begin


class Form(StrEnum):
    """What `prune --form` offers."""

    auto = "auto"
    residual = "residual"
    plain = "plain"


class Score(StrEnum):
    """What `prune --score` offers."""

    fisher = "fisher"
    taylor = "taylor"
    activation = "activation"
    magnitude = "magnitude"
    fpgm = "fpgm"
    scale = "scale"
    random = "random"


class Streams(StrEnum):
    """What `prune --streams` offers."""

    coupled = "coupled"
    per_depth = "per-depth"


class TrainForm(StrEnum):
    """What `prune --train-form` offers."""

    folded = "folded"
    bn = "bn"


class Engine(StrEnum):
    """What `prune --engine` offers."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"
    tensorrt = "tensorrt"
    torch = "torch"


_SHARE = "SHARE"


def prune(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    model: opt.Model = None,
    calibrate: opt.Calibrate,
    macs: Annotated[
        float | None, typer.Option("--macs", metavar=_SHARE, help="Budget: the multiply-accumulates that may be left.")
    ] = None,
    params: Annotated[
        float | None, typer.Option("--params", metavar=_SHARE, help="Budget: parameters that may be left.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option("--latency", metavar=_SHARE, help="Budget: time in --engine that may be left.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="y.npy", help="For the accuracy: classes, or `folders`: one folder a class."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option("--engine", help="The engine that will run the result; times are measured in it.")
    ] = Engine.onnxruntime,
    form: Annotated[
        Form, typer.Option("--form", help="Residual, plain, or auto: the one that is faster in --engine.")
    ] = Form.auto,
    score: Annotated[Score, typer.Option("--score", help="How channels are chosen.")] = Score.fisher,
    streams: Annotated[
        Streams,
        typer.Option("--streams", help="Whether channels of a stream go at all depths together, or at each alone."),
    ] = Streams.coupled,
    round_to: Annotated[
        int | None,
        typer.Option(
            "--round",
            metavar="N",
            min=1,
            help="Widths become multiples of this (8 for --latency if it can be, else 1).",
        ),
    ] = None,
    floor: Annotated[
        float, typer.Option("--floor", metavar=_SHARE, help="The least share of a layer's channels that stays.")
    ] = 0.1,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="REGEX", help="Layers with such a name lose no channels.")
    ] = None,
    refit: Annotated[bool, typer.Option("--refit/--no-refit", help="Whether weights are refitted.")] = True,
    joint: Annotated[
        int | None,
        typer.Option("--joint", metavar="N", min=0, help="Steps of the refit of all layers at once (by their time)."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar=_SHARE,
            help="Refuse a larger loss of accuracy or, without labels, of agreement; .01 is one point.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, help="The most samples to make choices on.")
    ] = 512,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="DIR", help="Keep the state in this folder, and go on from it.")
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
        Path | None, typer.Option("-o", "--output", metavar="OUT.pt2", help="Default: MODEL-pruned.pt2 beside MODEL.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="DIR", help="Also write readable source and its weights.")
    ] = None,
    train_form: Annotated[
        TrainForm,
        typer.Option("--train-form", help="Form of --source: bn has batch norms with the statistics of DATA."),
    ] = TrainForm.folded,
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
    """Make MODEL cheaper: channels that are missed least go, the weights of the others are refitted on DATA.

    Give one budget. The result is another function; how close it is to MODEL is measured on samples held out of DATA.
    """
    session = begin(ctx, quiet=quiet, debug=debug)
    weights = which.Weights(key, prefix, pretrained)
    shapes, axes = opt.read_shapes(input_shape), opt.read_dynamic(dynamic)
    arguments = opt.read_arguments(arch_args)
    outputs = plan_outputs(model, arch, output, source, "pruned", force=force)
    others = [outputs.model, source, calibrate, config, Path(model) if model else None]
    check_report(json, others, force=force)
    check_page(html, json, others, force=force)
    if train_form is TrainForm.bn and source is None:
        raise InputError("--train-form is of the source; name its folder with --source")
    if labels is not None and labels != "folders" and not Path(labels).suffix:
        raise InputError(f"--labels is a .npy or a .txt of classes, or the word folders, not {labels[:60]}")

    from reparam.engines import card_of

    from . import prune_work
    from . import work as cli_work

    wanted = {
        "macs": macs,
        "params": params,
        "latency": latency,
        "engine": engine.value,
        "form": form.value,
        "score": score.value,
        "streams": streams.value,
        "round_to": round_to,
        "floor": floor,
        "keep": keep,
        "refit": refit,
        "joint": joint,
        "max_drop": max_drop,
        "samples": samples,
        "seed": seed,
    }
    prune_work.check_options(wanted)
    loaded = cli_work.load(session, model, arch, arguments, weights, trust=trust, seed=seed)
    options = cli_work.ConvertOptions("fused", shapes, axes, seed)
    how = opt.read_preprocessing(card_of(loaded.model), config, mean, std, size, interpolation, data=calibrate)
    data = prune_work.Data(calibrate, labels, how)
    pruned = prune_work.prune_loaded(session, loaded, options, data, wanted, resume)
    with delivering(session, json) as deliver:
        norms = data if train_form is TrainForm.bn else None
        report = prune_work.save_pruned(session, pruned, loaded, outputs, norms=norms, force=force)
        if html is not None:
            prune_work.write_pruning(html, report, pruned, cli_work.describe_arch(loaded.model), force=force)
        deliver(report)
    if not quiet and json != STANDARD_OUTPUT:
        session.show(*prune_work.render_pruning(report, cli_work.describe_arch(loaded.model)))
