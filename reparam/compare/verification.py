"""`verify`: are two models the same function, as far as finite arithmetic can tell?"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from reparam.check import depth_limit
from reparam.engines import Runnable
from reparam.errors import InputError
from reparam.ir import Program, check_shapes, odd_kind, shape_of_input
from reparam.loading import LoadedModel
from reparam.rewrite import Progress
from reparam.scoring import UnlikeOutputsError
from reparam.utils import Shapes, check_callable, check_seed, checked_call

from .engines import verify_engines
from .on_data import How, agree_on, with_data
from .opening import Comparable, opened_alike, runnable
from .programs import program_of, verify_programs
from .sizes import difference_at_sizes
from .verdict import Verdict

_log = logging.getLogger(__name__)
_Opened = LoadedModel | Runnable | Program


@checked_call
def verify(  # noqa: PLR0913  # each is asked for on its own
    a: Comparable,
    b: Comparable,
    *example_inputs: Any,
    input_shapes: Sequence[Sequence[int]] | None = None,
    trials: int = 8,
    seed: int = 0,
    adversarial: bool = True,
    data: Any = None,
    preprocessing: How = None,
    progress: Progress | None = None,
) -> Verdict:
    """Compares two models on random inputs of several sizes, in float64 and in their own dtypes.

    Modules are run at other sizes too, even those that a captured graph does not hold for: where both run, they have to
    agree.

    a, b: modules, exported programs, files, results of `convert`, `export` and `prune`, or what `reparam.loading` and
        `reparam.compare` open: loaded models and engines.
    example_inputs: positional arguments of a module; tensors are (N, ...) where the batch is free.
    input_shapes: in place of examples, the shape of each input without the batch. Not needed where a model tells it;
        where its sizes are free, these are compared.
    trials: random inputs. seed: of them. adversarial: whether inputs on which the models differ are searched for too.
    data: samples on which they are compared too, as `reparam.data.open_samples` takes them; `Verdict.data` names those
        that differ. preprocessing: of images, where no card and no manifest of a model tells.

    Errors in the verdict are root mean squares over all elements, in the units of the outputs.

    Raises InputError when the models do not take the same inputs, or when what they take is not known, and what opening
    a file raises.

    >>> import torch, reparam
    >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> x = torch.randn(1, 3, 16, 16)
    >>> reparam.verify(block, reparam.convert(block, x).module, x).equivalent
    True
    """
    check_seed(seed)
    check_callable(progress, "progress")
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise InputError(f"{str(trials)[:40]} random inputs prove nothing; ask for at least one")
    if input_shapes is not None:
        check_shapes(input_shapes)
    first, second = opened_alike(a, "a"), opened_alike(b, "b")
    verdict = _compared(
        first,
        second,
        example_inputs,
        input_shapes,
        trials=trials,
        seed=seed,
        adversarial=adversarial,
        progress=progress,
    )
    _log.info("compared: %s", verdict.reason or "the same function")
    if data is None:
        return verdict
    sizes = input_shapes or [shape_of_input(x) for x in example_inputs if isinstance(x, Tensor)] or None
    models = [runnable(first), runnable(second)]
    known = any(isinstance(m, Runnable) or m.input_shapes is not None for m in models)
    shapes = input_shapes if known else sizes
    paths = [_path(a), _path(b)]
    try:
        found = agree_on(models, data, preprocessing=preprocessing, paths=paths, input_shapes=shapes, progress=progress)
    except UnlikeOutputsError:
        if verdict.equivalent:
            raise
        return verdict  # which says so already
    return with_data(verdict, found)


def _path(model: Any) -> Path | None:
    """The file that a model was opened from."""
    if isinstance(model, str | Path):
        return Path(model)
    path = getattr(model, "path", None)
    return path if isinstance(path, Path) else None


def _compared(
    first: _Opened,
    second: _Opened,
    example_inputs: Sequence[Any],
    input_shapes: Sequence[Sequence[int]] | None,
    *,
    trials: int,
    seed: int,
    adversarial: bool,
    progress: Progress | None,
) -> Verdict:
    """The verdict on random inputs."""
    for x in example_inputs:
        if isinstance(x, Tensor) and not x.is_meta and (kind := odd_kind(x)):
            raise InputError(f"an example input is {kind}; give an ordinary tensor")
    given = [x for x in pytree.tree_leaves(tuple(example_inputs)) if isinstance(x, Tensor)]
    told = input_shapes or [tuple(x.shape[1:]) for x in given] or None
    if isinstance(first, Runnable) or isinstance(second, Runnable):
        return verify_engines(
            runnable(first), runnable(second), example_inputs=example_inputs, input_shapes=told, trials=trials,
            seed=seed, adversarial=adversarial, progress=progress,
        )  # fmt: skip
    known = input_shapes or _shapes(second) or _shapes(first)
    if not example_inputs and known is None and not (_has_program(first) and _has_program(second)):
        raise InputError("the shapes of the models' inputs are not known; give example inputs, or input_shapes")
    one = _program(first, input_shapes or _shapes(second), example_inputs)
    two = _program(second, input_shapes or _shapes(first), example_inputs)
    verdict = verify_programs(
        one, two, input_shapes=told, trials=trials, seed=seed, adversarial=adversarial, progress=progress
    )
    if not verdict.equivalent or isinstance(first, Program) or isinstance(second, Program):
        return verdict
    floor = max(*(4.0 * torch.finfo(p.dtype).eps for p in (one, two)), depth_limit(one))
    reason = difference_at_sizes((first, second), (one, two), floor, seed)
    return dataclasses.replace(verdict, equivalent=not reason, reason=reason)


def _shapes(model: _Opened) -> Shapes | None:
    return model.input_shapes if isinstance(model, LoadedModel) else None


def _has_program(model: _Opened) -> bool:
    return isinstance(model, Program) or (isinstance(model, LoadedModel) and model.exported is not None)


def _program(model: _Opened, shapes: Sequence[Sequence[int]] | None, examples: Sequence[Any]) -> Program:
    if isinstance(model, Program):
        return model
    assert isinstance(model, LoadedModel)
    return program_of(model, shapes, examples)
