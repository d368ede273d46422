"""Models of any kind on the user's samples: their scores against labels, and how close they are to the first one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from reparam.data import Sample, grouped
from reparam.errors import InputError, ReparamError
from reparam.ir import CPU, InputSpec, on_device
from reparam.loading import LoadedModel
from reparam.scoring import Agreement, Comparison, Metric, Score, Scorer, decisions, is_scores, scorer_for
from reparam.utils import Shape, Shapes, as_the_user_set, dtype_name, first_line, foreign_code

from .engine_check import floats
from .format import Port, Runnable, Tell

BATCH = 32  # samples in one run, where the batch is free
LARGEST = 64  # batches up to this are tried with an engine that takes some


@dataclass(frozen=True)
class Task:
    """What is scored. metric: of the user's own, called `name`. scored: whether labels are looked at.

    folders: where the labels are the folders of images, how many there are. chosen: whether the user says so; where
    nobody does, they are taken only if the first model gives as many classes.
    named: how many classes a file of labels names, 0 where it has numbers or there is none.
    """

    metric: Metric | None = None
    name: str = ""
    scored: bool = True
    folders: int | None = None
    chosen: bool = False
    named: int = 0


@dataclass(frozen=True)
class Judged:
    """One model. score: None without labels and without a metric. agreement: with the first model."""

    score: Score | None
    agreement: Agreement


@dataclass(frozen=True)
class OnSamples:
    """Every model by its name, over `samples` samples. note: what the user should know, "" for nothing."""

    samples: int
    models: Mapping[str, Judged]
    note: str = ""


class Runner:
    """Runs a model on batches of any size. name: for messages."""

    def __init__(self, name: str, model: LoadedModel | Runnable) -> None:
        self.name, self.model = name, model
        self.sizes: dict[int, int] = {}

    def outputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The floating outputs (n, ...), in float32 at least; where there are none, the decisions (n, ...).

        inputs: (n, ...) each.

        A model that takes batches of one size alone gets such batches; the last is filled up with copies of its last
        sample, whose outputs are dropped. An engine that refuses a batch gets halves of it: not all say what they take.
        Raises InputError for inputs that the model does not take.
        """
        count = len(inputs[0])
        size = self.sizes.get(count) or self._size([tuple(v.shape) for v in inputs])
        first: InputError | None = None
        while True:
            try:
                parts = [self._part([v[i : i + size] for v in inputs], size) for i in range(0, count, size)]
                break
            except InputError as error:
                first = first or error
                if size == 1 or isinstance(self.model, LoadedModel) or self._fixed() is not None:
                    raise first from None
                size //= 2
        self.sizes[count] = size
        found = [torch.cat(values) if len(values) > 1 else values[0] for values in zip(*parts, strict=True)]
        return [v.float() if v.is_floating_point() and v.dtype.itemsize < 4 else v for v in found]

    def _size(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """The rows of one run."""
        count = shapes[0][0]
        if isinstance(self.model, LoadedModel):
            return fixed_batch(self.model) or count
        fixed = self._fixed()
        if fixed is not None:
            return fixed
        sizes = [count, *range(min(count, LARGEST), 0, -1), *range(count + 1, LARGEST + 1)]
        found: int | None = next((n for n in sizes if self.model.takes([(n, *s[1:]) for s in shapes])), None)
        if found is None:
            raise InputError(f"{self.name} takes samples of {_texts(shapes)} in no batch of up to {LARGEST}")
        return found

    def _fixed(self) -> int | None:
        """The batch that an engine was built for, where it takes no other."""
        ports = self.model.inputs if isinstance(self.model, Runnable) else ()
        return next((p.shape[0] for p in ports if p.shape and isinstance(p.shape[0], int)), None)

    def _part(self, inputs: Sequence[Tensor], size: int) -> list[Tensor]:
        count = len(inputs[0])
        if count < size:
            inputs = [torch.cat([v, v[-1:].expand(size - count, *v.shape[1:])]) for v in inputs]
        given = self._run(inputs)
        found = floats(given) or [v for v in given if isinstance(v, Tensor) and not v.is_complex()]
        if not found:
            raise InputError(
                f"{self.name} gives neither real numbers nor decisions, so that there is nothing to compare"
            )
        odd = next((v for v in found if not v.dim() or v.shape[0] != size), None)
        if odd is not None:
            raise InputError(
                f"{self.name} gives an output of shape {list(odd.shape)} for {size} samples, which is not one for each"
            )
        return [v[:count] for v in found]

    def _run(self, inputs: Sequence[Tensor]) -> list[Any]:
        try:
            with torch.inference_mode(), foreign_code(f"running {self.name}"):
                if isinstance(self.model, Runnable):
                    return list(self.model.run([_ported(v, p) for v, p in self._pairs(inputs, self.model.inputs)]))
                with as_the_user_set():
                    result = self.model.module(*(_cast(v, self.model) for v in inputs))
                return [on_device(v, CPU) for v in pytree.tree_leaves(result)]
        except ReparamError:
            raise
        except Exception as error:
            shapes = _texts([tuple(v.shape) for v in inputs])
            raise InputError(f"{self.name} does not run on samples of shape {shapes}: {first_line(error)}") from error

    def _pairs(self, inputs: Sequence[Tensor], ports: Sequence[Port]) -> list[tuple[Tensor, Port]]:
        fits = len(inputs) == len(ports) and all(_fits(v, p) for v, p in zip(inputs, ports, strict=True))
        if not fits:
            wanted = "; ".join(f"{p.name} {p.dtype} ({', '.join(map(str, p.shape))})" for p in ports)
            given = "; ".join(f"{dtype_name(v.dtype)} {tuple(v.shape)}" for v in inputs)
            raise InputError(f"{self.name} takes {wanted}, not {given}")
        return list(zip(inputs, ports, strict=True))


def judge_on_samples(
    models: Mapping[str, LoadedModel | Runnable],
    samples: Iterable[Sample],
    task: Task | None = None,
    *,
    total: int | None = None,
    tell: Tell | None = None,
) -> OnSamples:
    """Runs every model on all samples, each batch once, and scores and compares the outputs with those of the first.

    total: how many samples there are, where it is known. Raises InputError for samples that a model does not take, for
    outputs of other shapes than those of the first model, and for labels that are not for them.
    """
    task, tell = task or Task(), tell or (lambda stage, done, total: None)
    runners = [Runner(name, model) for name, model in models.items()]
    comparisons = [Comparison(r.name) for r in runners]
    scorers: list[Scorer | None] = []
    labelled, note, done = True, "", 0
    for group in grouped(samples, BATCH):
        outputs = [r.outputs(group.inputs) for r in runners]
        if not done:
            note = _not_classes(outputs[0], group.labels, task)
            labelled = task.scored and not note
            given = group.labels if labelled else None
            scorers = [scorer_for(o, given, task.metric, task.name) for o in outputs]
        for found, scorer, comparison in zip(outputs, scorers, comparisons, strict=True):
            comparison.add(group.names, outputs[0], found)
            if scorer is not None:
                scorer.add(found, group.labels if labelled else None)
        done += len(group.names)
        tell("samples", done, total or done)
    judged = {
        r.name: Judged(None if s is None else s.result(), c.result())
        for r, s, c in zip(runners, scorers, comparisons, strict=True)
    }
    return OnSamples(done, judged, note)


def _not_classes(outputs: Sequence[Tensor], labels: Tensor | None, task: Task) -> str:
    """Why folders that nobody chose as labels are none; "" where they are, or were chosen.

    Raises InputError for names of classes, or chosen folders, that are not as many as the classes of the first model:
    which is which is not known.
    """
    if labels is None or (task.folders is None and not task.named):
        return ""
    classes = outputs[0].shape[1] if is_scores(outputs) and outputs[0].dim() == 2 else None
    has = f"{classes} classes" if classes is not None else "no classes" if decisions(outputs) is None else "decisions"
    if task.named and classes not in (None, task.named):
        raise InputError(
            f"the labels name {task.named} classes, and the first model has {classes}; give the numbers of the classes"
        )
    if task.folders is None or classes == task.folders:
        return ""
    if task.chosen and classes is not None:
        raise InputError(
            f"the samples lie in {task.folders} folders, and the first model has {classes} classes; add an "
            "empty folder for each class without a sample, or give the numbers of the classes"
        )
    if task.chosen:
        return ""
    return f"the {task.folders} folders of the samples are not taken for labels, since the first model has {has}"


def input_specs(
    models: Sequence[LoadedModel | Runnable], shapes: Shapes | Sequence[Sequence[int]] | None = None
) -> tuple[InputSpec, ...]:
    """What a sample of these models is, with a free batch: as `shapes` says, or the first model that tells its own.

    Raises InputError where none does.
    """
    if shapes is not None:
        return _specs(models, shapes)
    for model in models:
        if isinstance(model, Runnable):
            return tuple(InputSpec(p.name, ("batch", *p.shape[1:]), getattr(torch, p.dtype)) for p in model.inputs)
        if model.input_shapes is not None:
            return _specs([model], model.input_shapes)
    raise InputError("the input's shape is not known; pass it with --input-shape, for example 3,224,224")


def _specs(models: Sequence[LoadedModel | Runnable], shapes: Sequence[Sequence[int]]) -> tuple[InputSpec, ...]:
    unnamed = ["input"] if len(shapes) == 1 else [f"input_{i}" for i in range(len(shapes))]
    names = next((n for m in models if len(n := _names(m)[: len(shapes)]) == len(shapes)), unnamed)
    dtypes = [getattr(torch, s.dtype) if isinstance(s, Shape) and s.dtype else torch.float32 for s in shapes]
    return tuple(InputSpec(n, ("batch", *s), d) for n, s, d in zip(names, shapes, dtypes, strict=True))


def _names(model: LoadedModel | Runnable) -> list[str]:
    """What a model calls its inputs; a module, the arguments of its forward."""
    if isinstance(model, Runnable):
        return [p.name for p in model.inputs]
    if model.exported is not None:
        return [str(n) for n in model.exported.graph_signature.user_inputs]
    found = inspect.signature(model.module.forward).parameters.values()
    return [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def names_of_inputs(model: LoadedModel | Runnable) -> list[str]:
    """What a model calls the inputs that it needs; those of a module that have a value of their own are left out."""
    if isinstance(model, Runnable) or model.exported is not None:
        return _names(model)
    found = inspect.signature(model.module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in found if p.kind in kinds and p.default is p.empty]


def sizes_of_inputs(model: LoadedModel | Runnable) -> list[tuple[int | None, ...]]:
    """The shapes that an engine or an exported program was built for, None for an axis of free size.

    Empty for a module, which says nothing of what it takes.
    """
    if isinstance(model, Runnable):
        return [tuple(n if isinstance(n, int) else None for n in p.shape) for p in model.inputs]
    if model.exported is None:
        return []
    names = set(model.exported.graph_signature.user_inputs)
    nodes = (n for n in model.exported.graph.nodes if n.op == "placeholder" and n.name in names)
    values = (n.meta.get("val") for n in nodes)
    return [tuple(n if isinstance(n, int) else None for n in v.shape) for v in values if isinstance(v, Tensor)]


def fixed_batch(model: LoadedModel) -> int | None:
    """The batch that an exported program was captured with, where that is fixed; None where any is taken."""
    return next((s[0] for s in sizes_of_inputs(model) if s and s[0] is not None), None)


def _fits(value: Tensor, port: Port) -> bool:
    dtype: torch.dtype = getattr(torch, port.dtype)
    return (
        value.dim() == len(port.shape)
        and all(isinstance(s, str) or s == n for s, n in zip(port.shape, value.shape, strict=True))
        and value.is_floating_point() == dtype.is_floating_point
    )


def _ported(value: Tensor, port: Port) -> Tensor:
    return value.to(getattr(torch, port.dtype))


def _cast(value: Tensor, model: LoadedModel) -> Tensor:
    """In the dtype of the weights, and where they are."""
    weights = (t for t in (*model.module.parameters(), *model.module.buffers()) if t.is_floating_point())
    first = next(weights, torch.zeros(()))
    return value.to(first.device, first.dtype if value.is_floating_point() else None)


def _texts(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, s)) for s in shapes)
