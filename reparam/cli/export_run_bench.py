"""The verbs that deal with files of other formats: `export`, `run` and `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reparam.engines.formats import all_formats, find_format
from reparam.errors import InputError, NotEquivalentError
from reparam.options import DEFAULTS, PlainOptions

from . import options as opt
from . import which_weights as which
from .outputs import (
    STANDARD_OUTPUT,
    check_apart,
    check_file,
    check_page,
    check_report,
    delivering,
    export_label,
    plan_export,
)
from .session import begin


def export(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    model: opt.Model = None,
    format: Annotated[
        str, typer.Option("--format", "-f", metavar="FORMAT", help=f"One of: {', '.join(all_formats())}.")
    ],
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: which.Key = None,
    prefix: which.Prefix = None,
    pretrained: which.Pretrained = None,
    to: opt.ExportTo = opt.ExportTarget.fused,
    precision: Annotated[
        opt.Precision, typer.Option("--precision", help="Precision of the weights.")
    ] = opt.Precision.fp32,
    io_precision: Annotated[
        opt.IoPrecision,
        typer.Option("--io-precision", help="Precision of inputs and outputs: fp32, or same as the weights."),
    ] = opt.IoPrecision.fp32,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="DIR|x.npy",
            help="Samples for int8: .npy, .npz, .safetensors, .tar; a folder of those or of images.",
        ),
    ] = None,
    data: opt.Data = None,
    labels: opt.Labels = None,
    metric: opt.Metric = None,
    max_drop: opt.MaxDrop = None,
    config: opt.Config = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    interpolation: opt.Interpolation = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option("--min-sqnr", metavar="DB", help="Refuse a file with less than this signal-to-noise ratio."),
    ] = None,
    equalize: Annotated[
        bool, typer.Option("--equalize", help="For int8: even out the ranges of a layer's results first.")
    ] = False,
    runtime: Annotated[
        str | None, typer.Option("--runtime", metavar="NAME", help="For --format tensorrt: tensorrt or rtx.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="sm89,sm120", help="Compute capabilities that rtx builds for.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="batch=1:8:32",
            help="For TensorRT: the least, best and largest size of an axis; it tunes for the best one.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="For --format aoti: cpu or cuda.")
    ] = None,
    carry: opt.CarryOption = DEFAULTS.carry,
    max_pool: opt.MaxPoolOption = opt.MAX_POOL,
    signed: opt.SignedOption = opt.SIGNED,
    max_cost: opt.MaxCostOption = DEFAULTS.max_cost,
    outputs: opt.OutputsOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="Default: MODEL-TARGET.SUFFIX beside MODEL.")
    ] = None,
    input_shape: opt.InputShape = None,
    dynamic: opt.Dynamic = None,
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
    """Rewrite MODEL, write it in another format, run that and check that it is still the same function.

    Beside the file, a manifest says what it is, what it was made of and how it was verified. With --max-drop, an int8
    file gets its worst layers back in float32 until it loses no more on --data; where that does not help, nothing is
    written (exit code 1).
    """
    session = begin(ctx, quiet=quiet, debug=debug)
    weights = which.Weights(key, prefix, pretrained)
    shapes, axes = opt.read_shapes(input_shape), opt.read_dynamic(dynamic)
    plain = PlainOptions(carry, max_pool.value, signed.value, max_cost)
    arguments, choice = opt.read_arguments(arch_args), opt.read_remarks(remarks, remarks_filter)
    kind = find_format(format)
    path = plan_export(model, arch, output, export_label(to.value, precision.value), kind.suffix, force=force)
    read = [*(Path(p) for p in (model, data) if p is not None), calibrate, config]
    check_report(json, [path, *read], force=force)
    check_page(html, json, [path, *read], force=force)

    from . import export_work as cli_engine_work
    from . import render
    from . import work as cli_work

    loaded = cli_work.load(session, model, arch, arguments, weights, trust=trust, seed=seed)
    options = cli_work.ConvertOptions(to.value, shapes, axes, seed, plain, opt.read_outputs(outputs))
    given = {"runtime": runtime, "gpu": gpu, "profile": profile, "device": device}
    settings = {name: text for name, text in given.items() if text is not None}
    judging = cli_engine_work.JudgeOptions(data, labels, metric, max_drop, (config, mean, std, size, interpolation))
    wanted = cli_engine_work.Wanted(
        format, precision.value, io_precision.value, calibrate, min_sqnr, equalize, settings, judging, force
    )
    with delivering(session, json) as deliver:
        found = cli_engine_work.export_loaded(session, loaded, options, wanted, path)
        report = found.report.as_dict()
        kept = [r for r in report["remarks"] if choice.keeps(r)]
        if html is not None:
            cli_work.write_conversion(html, found, report, loaded, force=force, verb="export")
        deliver(report | {"remarks": kept})
    if not quiet and json != STANDARD_OUTPUT:
        listed = kept if choice.kinds else []
        session.show(*render.render_conversion(report, cli_work.describe_arch(loaded.model), listed=listed))


def run(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint, .pt2, folder of source or exported file.")
    ],
    input: Annotated[
        list[str], typer.Option("--input", "-i", metavar="[NAME=]x.npy", help="An input; repeat it for several.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="y.npy", help="The output; .npz holds several by their names.")
    ],
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: which.Key = None,
    prefix: which.Prefix = None,
    trust: opt.Trust = False,
    json: opt.Json = None,
    write_recipe: opt.WriteRecipe = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Run MODEL on arrays and write what it gives."""
    session = begin(ctx, quiet=quiet, debug=debug)
    arguments, named = opt.read_arguments(arch_args), opt.read_named(input)
    check_file(output, force=force)
    check_report(json, [output, Path(model), *(p for _, p in named)], force=force)

    from . import export_work as cli_engine_work
    from . import render

    with delivering(session, json) as deliver:
        how = {"arch": arch, "arch_args": arguments, "trust": trust, "key": key, "prefix": prefix}
        report = cli_engine_work.run_model(session, model, how, named, output, force=force)
        deliver(report)
    if not quiet and json != STANDARD_OUTPUT:
        session.show(*map(render.line, cli_engine_work.describe_run(report)))


def bench(  # noqa: PLR0913  # the parameters are the options
    ctx: typer.Context,
    *,
    models: Annotated[
        list[str], typer.Argument(metavar="A [B ...]", help="Anything that run takes; the others are compared with A.")
    ],
    batch: Annotated[str, typer.Option("--batch", metavar="N,...", help="Batch sizes to time.")] = "1",
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="Interleaved rounds for each batch size.")] = 20,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of every runtime; torch's own when left out.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime",
            metavar="NAME,...",
            help="Run every model by each of these: torch, compile, onnxruntime, openvino, aoti, tensorrt.",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda", help="Where torch runs networks.")] = "cpu",
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Capture what runs on a GPU once, and time replays.")
    ] = False,
    data: opt.Data = None,
    labels: opt.Labels = None,
    metric: opt.Metric = None,
    max_drop: opt.MaxDrop = None,
    fastest: Annotated[
        bool, typer.Option("--fastest", help="Choose the fastest of those that --max-drop accepts.")
    ] = False,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", min=1, help="The most samples of DATA to use, drawn evenly.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure the peak of memory, in a process for each model.")
    ] = True,
    config: opt.Config = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    interpolation: opt.Interpolation = None,
    arch: opt.Arch = None,
    arch_args: opt.ArchArgs = None,
    key: which.Key = None,
    prefix: which.Prefix = None,
    input_shape: opt.InputShape = None,
    seed: opt.Seed = 0,
    trust: opt.Trust = False,
    json: opt.Json = None,
    html: opt.Html = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the table as CSV.")] = None,
    write_recipe: opt.WriteRecipe = None,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure models side by side: time, size and memory; with --data also accuracy and agreement with A.

    --arch is that of the checkpoints among them. Times are taken in interleaved rounds, with the spread. With
    --runtime, networks are exported as they are, and checked, first. Exit code 1: a model misses --max-drop, and
    --fastest was not asked to choose another.
    """
    session = begin(ctx, quiet=quiet, debug=debug)
    weights = which.Weights(key, prefix)
    shapes, batches, arguments = opt.read_shapes(input_shape), opt.read_batches(batch), opt.read_arguments(arch_args)
    names = [n.strip() for n in runtime.split(",")] if runtime is not None else []
    read = [*map(Path, models), *(Path(p) for p in (data, config) if p is not None)]
    check_report(json, [*read, csv], force=force)
    if csv is not None:
        if str(csv) == STANDARD_OUTPUT:
            raise InputError("--csv writes a file; name it, such as bench.csv (--json - prints the table)")
        check_apart(csv, read, force=force)
    check_page(html, json, [*read, csv], force=force)

    from reparam.measure import BenchOptions, Judging, Where

    from . import bench_work

    opening = bench_work.Opening(arch, arguments, trust, seed, (config, mean, std, size, interpolation), weights)
    options = BenchOptions(
        batches=batches,
        rounds=rounds,
        threads=threads,
        where=Where(names, device, cuda_graphs),
        samples=samples,
        memory=memory,
        seed=seed,
    )
    judging = Judging(data, labels, metric, max_drop, fastest)
    found = bench_work.bench_models(session, models, opening, judging, options, shapes)
    report = found.to_dict()
    missed = found.choice if found.choice is not None and found.choice.model is None and found.choice.out else None
    if not quiet and json != STANDARD_OUTPUT:
        shown = report if missed is None else report | {"choice": None}  # the error is the sentence
        session.show(*bench_work.render_bench(shown, session.width))
    with delivering(session, json) as deliver:
        if csv is not None:
            bench_work.save_csv(found, csv)
        if html is not None:
            bench_work.save_page(report, html, force=force)
        deliver(report)
    if missed is not None:
        raise NotEquivalentError(missed.why)
