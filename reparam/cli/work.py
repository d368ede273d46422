"""What the verbs share: loading with its warnings, example inputs, and what an input shape that does not fit says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam.errors import InputError
from reparam.options import DEFAULTS, PlainOptions
from reparam.utils import Shapes, is_batch, together

from .examples import Drawing, on_examples
from .options import ImageOptions, Side, read_preprocessing
from .outputs import Outputs
from .session import Session, Tell
from .which_weights import ANY, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from reparam.conversion import Conversion
    from reparam.data import Preprocessing
    from reparam.engines import Runnable
    from reparam.loading import LoadedModel
    from reparam.report import Report

RANDOM_WEIGHTS = "-"  # in place of A or B


@dataclass(frozen=True)
class Loaded:
    """A loaded model, what it is called in reports, and the seconds it took."""

    model: LoadedModel
    name: str
    seconds: float


@dataclass(frozen=True)
class LoadedSide:
    """A or B: a loaded model or an engine, what it is called in reports, and the seconds it took."""

    model: LoadedModel | Runnable
    name: str
    seconds: float


def load(
    session: Session,
    path: str | None,
    arch: str | None,
    arch_args: Mapping[str, Any] | None,
    weights: Weights = ANY,
    *,
    trust: bool,
    seed: int,
    option: str = "--arch",
) -> Loaded:
    """Loads a model and says on standard error what the user should know about it. option: names its architecture."""
    with session.working() as tell:
        from reparam import loading

        start = time.perf_counter()
        tell("load", 0, 1)
        model = loading.load(path, arch=arch, arch_args=arch_args, trust=trust, seed=seed, **asdict(weights))
        tell("load", 1, 1)
        seconds = time.perf_counter() - start
    describe_load(session, model, path, option)
    return Loaded(model, _name(model, path), seconds)


def describe_load(session: Session, model: LoadedModel, path: str | None, option: str) -> None:
    """Says what the user should know about what was loaded. option: what names its architecture."""
    for text in model.notes:
        session.note(text)
    if model.twins and model.arch_inferred:
        session.warn(
            f"{path} is taken as {model.spec}, but its keys and shapes also fit {describe_twins(model.twins)}; "
            f"name the right one with {option}"
        )
    if model.random_seed is not None:
        session.warn(f"{model.spec} has random weights (seed {model.random_seed}), as no checkpoint was given")


def describe_twins(twins: Sequence[str]) -> str:
    """`a, b and c, which compute something else`."""
    if len(twins) == 1:
        return f"{twins[0]}, which computes something else"
    return f"{', '.join(twins[:-1])} and {twins[-1]}, which compute something else"


def file_of(side: Side) -> str | None:
    """The file of A or B; None for `-`, random weights. Raises InputError without their architecture."""
    if side.path != RANDOM_WEIGHTS:
        return side.path
    if side.arch is None:
        raise InputError(f"- stands for random weights of an architecture; name it with --arch-{side.letter}")
    return None


def load_side(session: Session, side: Side, *, trust: bool, seed: int) -> LoadedSide:
    """A or B of `verify` and `diff`, engines too: `-` stands for random weights of its architecture."""
    option, file = f"--arch-{side.letter}", file_of(side)
    with session.working() as tell:
        from reparam.compare import open_model
        from reparam.engines import Runnable

        start = time.perf_counter()
        tell("load", 0, 1)
        model = open_model(
            file, arch=side.arch, arch_args=side.arch_args, trust=trust, seed=seed, **asdict(side.weights)
        )
        tell("load", 1, 1)
        seconds = time.perf_counter() - start
    if isinstance(model, Runnable):
        return LoadedSide(model, side.path, seconds)
    describe_load(session, model, file, option)
    return LoadedSide(model, _name(model, file), seconds)


def preprocessing_for(
    models: Mapping[str, LoadedModel | Runnable], images: ImageOptions, data: str | Path | None
) -> Preprocessing | None:
    """How images go in: as the options say, with the rest from the first card or manifest that says anything.

    models: by their files. data: the samples, if any. Raises InputError for a size that a model does not take, and for
    options that would change nothing of the samples.
    """
    from reparam.engines import known_preprocessing, sizes_of_inputs

    told = (known_preprocessing(model, Path(name)) for name, model in models.items())
    known = next((how for how in told if how is not None), None)
    how = read_preprocessing({} if known is None else {"preprocessing": known}, *images, data=data)
    if how is not None and images[3] is not None:
        for name, model in models.items():
            _refuse_size(name, sizes_of_inputs(model), how.size)
    return how


def _refuse_size(name: str, shapes: Sequence[tuple[int | None, ...]], size: tuple[int, int]) -> None:
    """Raises InputError where the images of an input are of another size alone. shapes: None for what is free."""
    for shape in shapes:
        pairs = zip(shape[-2:], size, strict=True) if len(shape) == 4 else ()
        if any(taken not in (None, wanted) for taken, wanted in pairs):
            taken = "x".join("any" if n is None else str(n) for n in shape[-2:])
            raise InputError(f"{name} takes images of {taken}, not of {'x'.join(map(str, size))}, as --size says")


def sized_for(
    models: Mapping[str, LoadedModel | Runnable], given: Shapes | None, how: Preprocessing | None, images: ImageOptions
) -> Shapes | None:
    """The shapes to run on: the given ones, or images of the size that --size says in place of the usual one."""
    from reparam.measure import known_shapes

    known = known_shapes(list(models.values())) if given is None and images[3] is not None else None
    if how is None or known is None or len(known) != 1 or len(known[0]) != 3:
        return given
    return ((known[0][0], *how.size),)


def _name(model: LoadedModel, path: str | None) -> str:
    if path is not None:
        return path
    return model.published or f"{model.spec} (random weights, seed {model.random_seed})"


def describe_arch(model: LoadedModel) -> str:
    """`torchvision/resnet50, inferred`, or what the file is when it needs none; empty for random weights."""
    if model.random_seed is not None:
        return ""
    if model.spec is None:
        return _kind_of_file(model)
    return f"{model.spec}, inferred" if model.arch_inferred else model.spec


def _kind_of_file(model: LoadedModel) -> str:
    from reparam.onnx_input import ImportedModel

    if isinstance(model.module, ImportedModel):
        return "ONNX file"
    if model.exported is not None:
        return "exported program"
    return "source" if model.source is not None and model.source.is_dir() else "pickled module"


# ---- example inputs ----------------------------------------------------------------------------------------------


def shapes_for(models: Sequence[LoadedModel | Runnable], given: Shapes | None) -> Shapes | None:
    """The shapes to run on: the given ones, else a program's own, which are fixed, else an architecture's usual.

    None beside an engine, whose ports decide.
    """
    from reparam.loading import LoadedModel

    loaded = [m for m in models if isinstance(m, LoadedModel)]
    if given is not None or len(loaded) < len(models):
        return given
    in_order = sorted(loaded, key=lambda m: m.exported is None)
    return next((m.input_shapes for m in in_order if m.input_shapes is not None), None)


# ---- convert and explain -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvertOptions:
    """What `convert` and `explain` are asked for beside the model."""

    to: str
    shapes: Shapes | None
    dynamic: tuple[str, ...]
    seed: int
    plain: PlainOptions = DEFAULTS
    outputs: tuple[str, ...] | None = None

    @property
    def batch(self) -> int:
        """Two where the batch is free, since a traced size of one would be taken as fixed."""
        return 2 if any(map(is_batch, self.dynamic)) else 1

    @property
    def drawing(self) -> Drawing:
        """How example inputs are drawn."""
        return Drawing(self.shapes, self.dynamic, self.batch, self.seed)


def convert_loaded(
    session: Session, loaded: Loaded, options: ConvertOptions, dtype: str | None, outputs: Outputs, *, force: bool
) -> Conversion:
    """Converts and stages or writes the outputs; returns the conversion with the whole report."""
    import torch

    from reparam import convert
    from reparam.rewrite import verifying

    def work(inputs: tuple[Tensor, ...]) -> tuple[Conversion, float]:
        with session.working() as tell:
            with verifying(session.debug):
                conversion = convert(
                    loaded.model.exported or loaded.model.module,
                    *inputs,
                    to=options.to,
                    dynamic=options.dynamic,
                    dtype=getattr(torch, dtype) if dtype is not None else None,
                    seed=options.seed,
                    outputs=options.outputs,
                    **asdict(options.plain),
                    progress=tell,
                )
            start = time.perf_counter()
            _write(conversion, outputs, tell, force=force)
        return conversion, time.perf_counter() - start

    conversion, writing = on_examples(session, loaded.model, options.drawing, work)
    return replace(conversion, report=completed(conversion.report, loaded, outputs.names, writing))


def explain_loaded(session: Session, loaded: Loaded, options: ConvertOptions, *, graphs: bool = False) -> Report:
    """The dry run's report. graphs: whether it holds the graphs."""
    from reparam import explain
    from reparam.rewrite import verifying

    def work(inputs: tuple[Tensor, ...]) -> Report:
        with session.working() as tell, verifying(session.debug):
            return explain(
                loaded.model.exported or loaded.model.module,
                *inputs,
                to=options.to,
                dynamic=options.dynamic,
                seed=options.seed,
                graphs=graphs,
                outputs=options.outputs,
                **asdict(options.plain),
                progress=tell,
            )

    report = on_examples(session, loaded.model, options.drawing, work)
    return completed(report, loaded, [])


def completed(report: Report, loaded: Loaded, outputs: Sequence[str], writing: float = 0.0) -> Report:
    """The report with what the command line knows. writing: the seconds that it took."""
    model = loaded.model
    return report.with_(
        input=loaded.name,
        outputs=tuple(outputs),
        arch=model.spec,
        arch_inferred=model.arch_inferred,
        seconds={"load": loaded.seconds, "emit": writing},
    )


def _write(conversion: Conversion, outputs: Outputs, tell: Tell, *, force: bool) -> None:
    """Both outputs, which appear together."""
    tell("emit", 0, 1)
    with together():
        conversion.save(outputs.model, force=force)
        if outputs.source is not None:
            conversion.save_source(outputs.source, force=force)
    tell("emit", 1, 1)


# ---- pages -------------------------------------------------------------------------------------------------------


def write_conversion(
    path: Path, conversion: Conversion, report: Mapping[str, Any], loaded: Loaded, *, force: bool, verb: str = "convert"
) -> None:
    """The page of a conversion or an export. report: as its JSON has it."""
    from reparam.page import conversion_page, write_page

    graphs, arch = (conversion.original, conversion.program), describe_arch(loaded.model)
    page = conversion_page(report, conversion.report.remarks, *graphs, arch=arch, verb=verb)
    write_page(page, path, force=force)


def write_explanation(path: Path, report: Report, loaded: Loaded, *, force: bool) -> None:
    """The page of a dry run, whose report holds the graphs."""
    from reparam.page import conversion_page, write_page

    assert report.graphs is not None
    graphs, arch = (report.graphs["before"], report.graphs["after"]), describe_arch(loaded.model)
    page = conversion_page(report.with_(graphs=None).as_dict(), report.remarks, *graphs, arch=arch, verb="explain")
    write_page(page, path, force=force)
