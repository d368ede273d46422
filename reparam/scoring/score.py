"""Outputs against labels: top-1 and top-5, the mean intersection over union, or a metric of the user's own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam.errors import InputError, ReparamError
from reparam.utils import describe_error, describe_type, foreign_code

UNLABELLED = 255  # in label maps of up to so many classes: a pixel of no class, as in most data sets
Metric = Callable[..., Any]


@dataclass(frozen=True)
class Score:
    """How good outputs are.

    name: of the figure. value: a share from 0 to 1, or what a metric of the user's own gives. more: further shares by
    their names. own: whether it is a metric of the user's own, which has its own units.
    """

    name: str
    value: float
    more: Mapping[str, float] = field(default_factory=dict)
    own: bool = False

    @property
    def points(self) -> float:
        """What a drop is counted in: hundredths, or the units of the metric."""
        return self.value if self.own else 100.0 * self.value

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"name": self.name, "value": self.value, "more": dict(self.more), "own": self.own}


class Scorer(ABC):
    """Adds up one figure over batches."""

    @abstractmethod
    def add(self, outputs: Sequence[Tensor], labels: Tensor | None) -> None:
        """outputs: (N, ...) each. labels: (N,) or maps (N, H, W). Raises InputError for labels that do not fit."""

    @abstractmethod
    def result(self) -> Score:
        """The figure over all that was added. Raises InputError where there is none."""


class _Classes(Scorer):
    """Shares of samples whose label is the largest output, and one of the five largest where there are more.

    classes: how many scores there are; None where the outputs are the decisions themselves.
    """

    def __init__(self, classes: int | None) -> None:
        self.classes, self.top1, self.top5, self.count = classes, 0, 0, 0

    def add(self, outputs: Sequence[Tensor], labels: Tensor | None) -> None:
        assert labels is not None
        _check_classes(labels, self.classes)
        found = decisions(outputs)
        assert found is not None
        self.top1 += int((found == labels).sum())
        if self._many:
            self.top5 += int((outputs[0].topk(5, 1).indices == labels[:, None]).any(1).sum())
        self.count += len(labels)

    @property
    def _many(self) -> bool:
        return self.classes is not None and self.classes > 5

    def result(self) -> Score:
        return Score("top-1", self.top1 / self.count, {"top-5": self.top5 / self.count} if self._many else {})


class _Maps(Scorer):
    """The mean over classes of TP / (TP + FP + FN), counted over all pixels of all samples.

    Classes that are neither in a label nor in an output are left out. Pixels of no class count nowhere.
    classes: how many scores there are; None where the outputs are the decisions themselves, which are 0 to 255 then.
    """

    def __init__(self, classes: int | None) -> None:
        self.told = classes
        self.classes = UNLABELLED + 1 if classes is None else classes
        self.counts = torch.zeros(self.classes, self.classes, dtype=torch.int64)

    def add(self, outputs: Sequence[Tensor], labels: Tensor | None) -> None:
        assert labels is not None
        found = decisions(outputs)
        assert found is not None
        if found.shape != labels.shape:
            raise InputError(
                f"the label maps are {list(labels.shape[1:])}, but the outputs {list(found.shape[1:])}; score them by "
                "a --metric of your own"
            )
        known = labels >= 0
        if self.told is None or self.told <= UNLABELLED:
            known &= labels != UNLABELLED
        _check_classes(labels[known], self.classes)
        if self.told is None and found.numel() and not 0 <= int(found.min()) <= int(found.max()) < self.classes:
            raise InputError(
                f"the network gives pixels the numbers {int(found.min())} to {int(found.max())}, where classes are 0 "
                f"to {UNLABELLED}; score them by a --metric of your own"
            )
        pairs = labels[known] * self.classes + found[known]
        self.counts += torch.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    def result(self) -> Score:
        right, total = self.counts.diagonal(), int(self.counts.sum())
        union = self.counts.sum(0) + self.counts.sum(1) - right
        there = union > 0
        if not total:
            raise InputError("the label maps hold no pixel of any class, so that nothing can be scored")
        mean = float((right[there].double() / union[there]).mean())
        return Score("mIoU", mean, {"pixel accuracy": int(right.sum()) / total})


class _Own(Scorer):
    """A metric of the user's own: a function, or a class with `update` and `compute` as torchmetrics has them."""

    def __init__(self, metric: Metric, name: str) -> None:
        self.metric, self.name, self.total, self.count = metric, name, 0.0, 0
        self.state = self._called(metric) if isinstance(metric, type) else None
        if self.state is not None and not (hasattr(self.state, "update") and hasattr(self.state, "compute")):
            raise InputError(f"the metric {name} is a class without update and compute; give those, or a function")

    def add(self, outputs: Sequence[Tensor], labels: Tensor | None) -> None:
        given = outputs[0] if len(outputs) == 1 else tuple(outputs)
        count = len(outputs[0])
        if self.state is not None:
            self._called(self.state.update, given, labels)
        else:
            found = self._called(self.metric, given, labels)
            self.total += _total(found, count, self.name)
        self.count += count

    def result(self) -> Score:
        value = self.total / self.count if self.state is None else _number(self._called(self.state.compute), self.name)
        if not math.isfinite(value):
            raise InputError(f"the metric {self.name} is {value}, which compares with nothing")
        return Score(self.name, value, own=True)

    def _called(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            with torch.no_grad(), foreign_code(f"the metric {self.name}"):
                return function(*args)
        except ReparamError:
            raise
        except Exception as error:
            raise InputError(f"the metric {self.name} failed ({describe_error(error)})") from error


def _total(found: Any, count: int, name: str) -> float:
    """The sum over a batch of what the metric gives for it: a number for each sample, or their mean."""
    if not isinstance(found, Tensor | np.ndarray | list | tuple):
        return _number(found, name) * count
    try:
        values = torch.as_tensor(found).double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the metric {name} gave {describe_type(found)} that holds no numbers") from error
    if values.dim() == 0:
        return float(values) * count
    if values.shape != (count,):
        raise InputError(f"the metric {name} gave {list(values.shape)} values for {count} samples; give one for each")
    return float(values.sum())


def _number(value: Any, name: str) -> float:
    if isinstance(value, str | bytes):
        raise InputError(f"the metric {name} gave {describe_type(value)}, not a number")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the metric {name} gave {describe_type(value)}, not a number") from error


def is_scores(outputs: Sequence[Tensor]) -> bool:
    """Whether the first output is one score for each of several classes, of a sample or of each of its pixels."""
    first = outputs[0] if outputs else torch.zeros(())
    return first.is_floating_point() and (first.dim() == 2 or first.dim() >= 4) and first.shape[1] > 1


def decisions(outputs: Sequence[Tensor]) -> Tensor | None:
    """What the first output decides: the class of the largest score, or what it is where it holds whole numbers.

    (N,) for samples, (N, H, W) for pixels, and of any shape (N, ...) for whole numbers or truth values, as int64. None
    where it decides nothing.
    """
    if is_scores(outputs):
        return outputs[0].argmax(1)
    first = outputs[0] if outputs else torch.zeros(())
    return None if not first.dim() or first.is_floating_point() or first.is_complex() else first.long()


def scorer_for(
    outputs: Sequence[Tensor], labels: Tensor | None, metric: Metric | None = None, name: str = ""
) -> Scorer | None:
    """What scores such outputs against such labels; None without labels and without a metric.

    metric: called with the outputs of a batch (a tuple where there are several) and its labels; it gives a number for
    each sample, or their mean. Larger is better. name: of it. Raises InputError for labels that are not for these
    outputs.
    """
    if metric is not None:
        return _Own(metric, name)
    if labels is None:
        return None
    found = decisions(outputs)
    if found is not None:
        classes = outputs[0].shape[1] if is_scores(outputs) else None
        if labels.dim() == found.dim() == 1:
            return _Classes(classes)
        if labels.dim() == found.dim() >= 3:
            return _Maps(classes)
    shapes = ", ".join(str(list(o.shape)) for o in outputs) or "none"
    raise InputError(
        f"labels of shape {list(labels.shape)} are neither classes nor label maps for outputs of {shapes}; give a "
        "--metric of your own"
    )


def _check_classes(labels: Tensor, classes: int | None) -> None:
    if classes is not None and labels.numel() and int(labels.max()) >= classes:
        raise InputError(f"a label is {int(labels.max())}, but the network has {classes} classes, from 0")
