"""`bench`: models side by side on the user's samples, by accuracy, agreement, time, size and memory."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from reparam.compare import Comparable, open_model, opened_alike, runnable
from reparam.data import FOLDERS, Preprocessing, Samples, class_folders
from reparam.engines import (
    HeldOut,
    OnSamples,
    Runnable,
    check_metric,
    check_points,
    drop_of,
    input_specs,
    judge,
    task_of,
)
from reparam.errors import InputError
from reparam.ir import check_shapes
from reparam.loading import LoadedModel
from reparam.rewrite import Progress
from reparam.utils import as_path, check_callable, check_kind, check_seed, checked_call, describe_type, three_digits

from .cards import GIVEN, Images, Told, images_of, told_architectures
from .choice import choose
from .entry import Entry, precision_of, size_of_model
from .latency import BenchResult, Where, time_models
from .memory import peak_memory
from .shapes import shapes_of_samples
from .table import BenchTable, DataFacts, ModelFacts

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchOptions:
    """How `bench` measures.

    input_shapes: of one sample, where neither a model nor the first of the samples tells. batches, rounds: what is
    timed, how often. threads: of every runtime, torch's own where left out. where: what runs the models.
    preprocessing: of images, where no card and no manifest of a model tells, or in its place. samples: at most so many,
    drawn evenly. memory: whether the peak is measured, in a process for each model. seed: of the inputs that are timed.

    Raises InputError.
    """

    input_shapes: Sequence[Sequence[int]] | None = None
    batches: Sequence[int] = (1,)
    rounds: int = 20
    threads: int | None = None
    where: Where = field(default_factory=Where)
    preprocessing: Preprocessing | Mapping[str, Any] | None = None
    samples: int | None = None
    memory: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("threads", "samples"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} is {str(value)[:40]}; give a whole number of one or more")
        if self.input_shapes is not None:
            check_shapes(self.input_shapes)


@dataclass(frozen=True)
class Judging:
    """What is asked for on samples: `data`, `labels`, `metric`, `max_drop` and `fastest` of `bench`."""

    data: Any = None
    labels: Any = None
    metric: Any = None
    max_drop: float | None = None
    fastest: bool = False

    def check(self, options: BenchOptions) -> None:
        """Raises InputError for what does not go together, before anything is opened."""
        if self.data is None and (self.labels is not None or self.metric is not None):
            raise InputError("labels and metrics are for samples; give some with --data")
        if self.data is None and self.max_drop is not None:
            raise InputError("--max-drop is judged on samples; give some with --data")
        if self.data is not None and options.where.runtimes:
            raise InputError("--runtime is for times alone; without it each model is run by what it is for")
        check_points(self.max_drop, "max_drop")
        check_metric(self.metric)


@checked_call
def bench(
    models: Mapping[str, Comparable] | Sequence[Comparable],
    *,
    data: Any = None,
    labels: Any = None,
    metric: Any = None,
    max_drop: float | None = None,
    fastest: bool = False,
    options: BenchOptions | None = None,
    progress: Progress | None = None,
) -> BenchTable:
    """Measures models side by side: accuracy, agreement with the first, worst sample, time, size, memory.

    models: files, modules, programs, or results of `convert`, `export` and `prune`; a mapping names them. They are
        timed on random inputs (N, ...) of the same shape.
    data: samples, as `reparam.data.open_samples` takes them: a folder of images, a .npy, batches from Python, …;
        without any, only times, sizes and memory are measured. They are read a batch at a time.
    labels: classes (N,), label maps (N, H, W), a .npy of either, a folder of label maps, or "folders": one folder a
        class. Where images lie in as many folders as the first model has classes, the folders are taken.
    metric: a function, or its name as "package.module:name", in place of top-1 and mIoU. It is called with the outputs
        of a batch and its labels, and gives a number for each sample, or their mean; or a class with `update` and
        `compute`. Larger is better.
    max_drop: points by which a model may be worse than the first: hundredths of top-1, of mIoU, or, without labels, of
        equal classes; of a metric, its own units. fastest: whether the fastest of those that hold it is chosen.
    options: how it is measured.

    Raises InputError for models that do not take the samples, for labels that are not for their outputs, and what
    opening a file raises.

    >>> import torch, reparam
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()).eval()
    >>> x = torch.randn(8, 3, 8, 8)
    >>> table = reparam.bench({"net": net, "fused": reparam.convert(net, x).module}, data=[x], fastest=True,
    ...                       options=reparam.BenchOptions(rounds=3))
    >>> [m.agreement.share for m in table.models]
    [1.0, 1.0]
    """
    check_kind(options, BenchOptions, "options")
    options = options or BenchOptions()
    if not isinstance(options, BenchOptions):
        raise InputError(f"options is {describe_type(options)}; give reparam.BenchOptions(rounds=..., batches=...)")
    check_callable(progress, "progress")
    judging = Judging(data, labels, metric, max_drop, fastest)
    judging.check(options)
    return bench_entries(_entries(models), judging, options, progress=progress)


def bench_entries(
    entries: Sequence[Entry], judging: Judging, options: BenchOptions, *, progress: Progress | None = None
) -> BenchTable:
    """`bench` on models that are open. Raises the same."""
    tell = progress or (lambda stage, done, total: None)
    if not entries:
        raise InputError("name at least one model")
    judging.check(options)
    with _on_threads(options.threads):
        models = {e.name: e.model for e in entries}
        images = _images(entries, judging, options)
        shapes, data = _shapes(entries, judging, options, images)
        options, judging = replace(options, input_shapes=shapes), replace(judging, data=data)
        judged, samples = (None, None) if data is None else _judged(entries, judging, options, images, tell)
        timing = time_models(
            models,
            input_shapes=options.input_shapes,
            batches=options.batches,
            rounds=options.rounds,
            where=options.where,
            seed=options.seed,
            progress=progress,
        )
        peaks = _peaks(entries, options, timing, tell)
    facts = _facts(entries, judged, peaks)
    for row in timing.rows:
        _log.info("timed %s by %s: %s ms at batch %d", row.model, row.runtime, three_digits(row.median_ms), row.batch)
    figure = _figure(facts)
    drops = {f.model: f.drop for f in facts}
    rows = [r for r in timing.rows if r.batch == timing.rows[0].batch]
    copies = [e.name for e in entries if isinstance(e.model, Runnable) and e.model.copied]
    choice = choose(drops, rows, figure, max_drop=judging.max_drop, fastest=judging.fastest, copies=copies)
    told = None if judged is None or samples is None else _data_facts(judging, judged, facts, samples, images)
    if told is not None and copies:
        run = f"of {', '.join(copies)} a copy in float32 was run, since onnxruntime has no kernels for bfloat16"
        told = replace(told, note="; ".join(filter(None, (told.note, run))))
    return BenchTable(tuple(facts), timing, told, figure, choice)


@contextlib.contextmanager
def _on_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        yield
    finally:
        torch.set_num_threads(before)


def _entries(models: Any) -> list[Entry]:
    if isinstance(models, str | Path | torch.nn.Module) or not isinstance(models, Mapping | Sequence):
        raise InputError(f"the models are {describe_type(models)}; give a list of them, or a mapping by names")
    named = list(models.items()) if isinstance(models, Mapping) else [(_name(m, i), m) for i, m in enumerate(models)]
    names = [str(name) for name, _ in named]
    if len(set(names)) != len(names):
        raise InputError("a model is named twice; each is measured once")
    files = {str(name): as_path(m, f"the file {name}") for name, m in named if isinstance(m, str | Path)}
    told = told_architectures(list(files.values()))
    return [_entry(str(name), model, told.get(files.get(str(name), Path()))) for name, model in named]


def _entry(name: str, model: Any, told: Told | None) -> Entry:
    """told: the architecture of a checkpoint; Python of somebody's is not run for that."""
    path = Path(model) if isinstance(model, str | Path) else getattr(model, "path", None)
    if told is not None and not told.is_code and path is not None:
        opened = open_model(path, arch=told.spec, arch_args=told.arch_args)
    else:
        opened = runnable(opened_alike(model, name))
    if isinstance(opened, LoadedModel):
        return Entry(name, opened, opened.source, opened.spec, opened.arch_args)
    return Entry(name, opened, path if isinstance(path, Path) else None)


def _name(model: Any, index: int) -> str:
    if isinstance(model, str | Path):
        return str(model)
    path = getattr(model, "path", None) or getattr(model, "source", None)
    return str(path) if isinstance(path, Path) else f"{type(model).__name__} {index}"


# ---- on samples --------------------------------------------------------------------------------------------------


def _images(entries: Sequence[Entry], judging: Judging, options: BenchOptions) -> Images | None:
    """How images go in: as the options say, or the cards and manifests of the models."""
    how = options.preprocessing
    if judging.data is None:
        return None
    if how is None:
        return images_of(entries)
    if not isinstance(how, Preprocessing | Mapping):
        raise InputError("the preprocessing has to be a Preprocessing or a mapping with mean, std and size")
    return Images(how if isinstance(how, Preprocessing) else Preprocessing.of(how), GIVEN)


def _shapes(
    entries: Sequence[Entry], judging: Judging, options: BenchOptions, images: Images | None
) -> tuple[Sequence[Sequence[int]] | None, Any]:
    """The shapes of the inputs, of the samples where nothing else tells them, and the samples to read from now on."""
    if options.input_shapes is not None or judging.data is None:
        return options.input_shapes, judging.data
    return shapes_of_samples([e.model for e in entries], judging.data, None if images is None else images.how)


def _judged(
    entries: Sequence[Entry], judging: Judging, options: BenchOptions, images: Images | None, tell: Progress
) -> tuple[OnSamples, Samples]:
    models = {e.name: e.model for e in entries}
    specs = input_specs(list(models.values()), options.input_shapes)
    data = HeldOut(judging.data, judging.labels, None if images is None else images.how)
    found, samples = judge(models, specs, data, task=task_of(judging.metric), most=options.samples, tell=tell)
    _log.info("judged %d models on %d samples", len(models), found.samples)
    return found, samples


def _data_facts(
    judging: Judging, judged: OnSamples, facts: Sequence[ModelFacts], samples: Samples, images: Images | None
) -> DataFacts:
    source = str(judging.data) if isinstance(judging.data, str | os.PathLike) else describe_type(judging.data)
    scored = facts[0].score is not None
    labels = ""
    if scored and judging.labels is None:
        folders = isinstance(judging.data, str | os.PathLike) and class_folders(Path(judging.data)) is not None
        labels = "its folders" if folders else "those in it"
    elif scored:
        given = judging.labels
        named = isinstance(given, str | os.PathLike)
        labels = "its folders" if named and given == FOLDERS else str(given) if named else describe_type(given)
    how = samples.source.images
    told = "" if how is None or images is None else images.describe(how)
    return DataFacts(source, judged.samples, labels, judged.note, told)


# ---- what is known of each ---------------------------------------------------------------------------------------


def _peaks(entries: Sequence[Entry], options: BenchOptions, timing: BenchResult, tell: Progress) -> list[int | None]:
    if not options.memory or options.where.device != "cpu":
        return [None] * len(entries)
    specs = input_specs([e.model for e in entries], options.input_shapes)
    shapes = [(timing.rows[0].batch, *s) for s in timing.shapes]
    found = []
    for i, entry in enumerate(entries):
        tell("memory", i, len(entries))
        found.append(peak_memory(entry, specs, shapes, torch.get_num_threads()))
    tell("memory", len(entries), len(entries))
    return found


def _facts(entries: Sequence[Entry], judged: OnSamples | None, peaks: Sequence[int | None]) -> list[ModelFacts]:
    found = []
    first = None if judged is None else judged.models[entries[0].name]
    for entry, peak in zip(entries, peaks, strict=True):
        one = None if judged is None else judged.models[entry.name]
        drop = None if one is None or first is None else drop_of(first, one)[1]
        score, agreement = (None, None) if one is None else (one.score, one.agreement)
        size = size_of_model(entry)
        found.append(ModelFacts(entry.name, precision_of(entry.model), size, peak, score, agreement, drop))
    return found


def _figure(facts: Sequence[ModelFacts]) -> str:
    """What drops are of."""
    first = facts[0]
    if first.score is not None:
        return first.score.name
    return "agreement" if first.drop is not None else ""
