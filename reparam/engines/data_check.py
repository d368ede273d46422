"""An exported file on the user's own samples: how far it falls behind the network that it was built from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reparam.data import FOLDERS, Apart, Preprocessing, Samples, class_folders, folder_classes, open_samples
from reparam.errors import InputError
from reparam.ir import InputSpec
from reparam.loading import LoadedModel, find_function
from reparam.scoring import Agreement, Score
from reparam.utils import as_path, describe_type, one_line

from .format import Runnable, Tell
from .on_samples import Judged, OnSamples, Task, input_specs, judge_on_samples

SHOWN = 4  # names of classes

SLACK = 1e-9  # points by which sums of rounded numbers may miss


@dataclass(frozen=True)
class HeldOut:
    """Samples to judge on. source, labels: as `open_samples` takes them. max_drop: points that may be lost.

    metric: in place of top-1 and mIoU, a function or its name.
    """

    source: Any
    labels: Any = None
    preprocessing: Preprocessing | Mapping[str, Any] | None = None
    max_drop: float | None = None
    metric: Any = None


@dataclass(frozen=True)
class DataCheck:
    """What was found on samples.

    figure: what `drop` is of: top-1, mIoU, or equal decisions without labels. before: of the network, after: of the
    file; None without labels. drop: points lost, None where outputs decide nothing. max_drop: the gate, if any.
    """

    source: str
    samples: int
    figure: str
    before: Score | None
    after: Score | None
    agreement: Agreement
    drop: float | None
    max_drop: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether it holds the gate. Raises InputError for a gate on what was not measured."""
        if self.max_drop is None:
            return True
        if self.drop is None:
            raise InputError("--max-drop is of an accuracy or of equal classes, and these outputs decide nothing")
        return self.drop <= self.max_drop + SLACK

    @property
    def complaint(self) -> str:
        """What misses the gate, in a sentence."""
        return f"{self.figure} drops by {self.drop:.4g} points on {self.source}, where {self.max_drop:g} is allowed"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        scores = {
            name: None if s is None else s.as_dict() for name, s in (("before", self.before), ("after", self.after))
        }
        return asdict(self) | scores | {"agreement": self.agreement.as_dict()}

    def facts(self) -> dict[str, Any]:
        """The figures for the manifest, which goes where the file goes: no path and no name of a sample."""
        return {
            "samples": self.samples,
            "figure": self.figure,
            "before": None if self.before is None else self.before.value,
            "after": None if self.after is None else self.after.value,
            "drop": self.drop,
            "max_drop": self.max_drop,
            "agreement": self.agreement.share,
            "error": self.agreement.error if math.isfinite(self.agreement.error) else None,
        }


def check_on_data(network: LoadedModel, engine: Runnable, data: HeldOut, tell: Tell) -> DataCheck:
    """Runs both on the samples. Raises what opening and reading the samples raises."""
    models: Mapping[str, LoadedModel | Runnable] = {"the network": network, "the file": engine}
    found, _ = judge(models, input_specs([engine]), data, task=task_of(data.metric), tell=tell)
    before, after = found.models["the network"], found.models["the file"]
    figure, drop = drop_of(before, after)
    source = str(data.source) if isinstance(data.source, str | os.PathLike) else describe_type(data.source)
    return DataCheck(
        source, found.samples, figure, before.score, after.score, after.agreement, drop, data.max_drop, found.note
    )


def task_of(metric: Any) -> Task:
    """What is scored. metric: None, a function, or its name. Raises InputError for one that is not there."""
    if isinstance(metric, str):
        return Task(find_function(metric, "metric"), metric)
    return Task(metric, getattr(metric, "__name__", "metric"))


def check_metric(metric: Any) -> None:
    """Raises InputError for what is neither a function nor the name of one."""
    if metric is not None and not isinstance(metric, str) and not callable(metric):
        raise InputError(f"the metric is {describe_type(metric)}; give a function, or package.module:name")


def drop_of(first: Judged, other: Judged) -> tuple[str, float | None]:
    """What a drop is of, and by how many points the other model is worse; None where nothing is decided."""
    if first.score is not None and other.score is not None:
        return first.score.name, first.score.points - other.score.points
    share = other.agreement.share
    return ("", None) if share is None else ("agreement", 100.0 * (1.0 - share))


def judge(
    models: Mapping[str, LoadedModel | Runnable],
    specs: Sequence[InputSpec],
    data: HeldOut,
    *,
    task: Task | None = None,
    most: int | None = None,
    tell: Tell | None = None,
) -> tuple[OnSamples, Samples]:
    """`judge_on_samples` on samples of any source. Folders of images are their labels where no others are given.

    most: so many of the samples at most, drawn evenly. Raises InputError.
    """
    path = as_path(data.source, "the data") if isinstance(data.source, str | os.PathLike) else None
    folders = None if path is None else class_folders(path)
    labels = FOLDERS if data.labels is None and folders is not None else data.labels
    samples = open_samples(data.source, specs, preprocessing=data.preprocessing, labels=labels, maps=True)
    samples = samples if most is None else samples.drawn(most)
    total = samples.count() if samples.chosen is None else len(samples.chosen)
    names = 0 if samples.labels is None else len(samples.labels.names)
    by_folders = isinstance(labels, str) and labels == FOLDERS
    chosen = by_folders and data.labels is not None
    task = replace(task or Task(), folders=folders if by_folders else None, chosen=chosen, named=names)
    found = judge_on_samples(models, samples, task, total=total, tell=tell)
    notes = [found.note]
    if samples.labels is not None and samples.labels.names:
        notes.append(_counted(samples.labels.names))
    if path is not None and folders is not None and samples.labels is not None:
        notes.append(_other_folders(path, samples.labels))
    return replace(found, note="; ".join(filter(None, notes))), samples


def _counted(names: Sequence[str]) -> str:
    """Which class a name is, of the first few."""
    told = ", ".join(f"{i} {one_line(name)[:30]}" for i, name in enumerate(names[:SHOWN]))
    return f"classes are counted in the order of their names: {told}{', …' if len(names) > SHOWN else ''}"


def _other_folders(path: Path, labels: Apart) -> str:
    """What is to be said of labels that are not the numbers of the folders that the images lie in; "" for nothing."""
    other = 0
    for folder, read in zip(folder_classes(path), labels.rows(), strict=True):
        label = read()
        if not isinstance(label, int):  # a label map, and so are the others
            return ""
        other += label != folder
    return f"{other} of {labels.count} labels are not those of the folders; the labels count" if other else ""


def check_points(value: Any, name: str) -> None:
    """Raises InputError unless `value` is None or a number of points."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InputError(f"{name} is {str(value)[:40]}; give points of 0 and more, such as 0.5")
