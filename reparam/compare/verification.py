"""`verify`: are two models the same function, as far as finite arithmetic can tell?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from reparam.check import depth_limit
from reparam.engines import Runnable
from reparam.load import LoadedModel
from reparam.rewrite import Progress

from .engines import verify_engines
from .programs import program_of, verify_programs
from .sizes import difference_at_sizes
from .verdict import Verdict

Comparable = nn.Module | torch.export.ExportedProgram | LoadedModel | Runnable


def verify(
    a: Comparable,
    b: Comparable,
    *example_inputs: Any,
    input_shapes: Sequence[Sequence[int]] | None = None,
    trials: int = 8,
    seed: int = 0,
    adversarial: bool = True,
    progress: Progress | None = None,
) -> Verdict:
    """Compares two models on random inputs of several sizes, in float64 and in their own dtypes.

    Modules are run at other sizes too, even those that a captured graph does not hold for: where both run, they have to
    agree.

    a, b: modules, exported programs, or what `reparam.load` and `reparam.compare` open: loaded models and engines.
    example_inputs: positional arguments of a module; tensors are (N, ...) where the batch is free.
    input_shapes: in place of examples, the shape of each input without the batch. Not needed where a model tells it.
    trials: random inputs. seed: of them. adversarial: whether inputs on which the models differ are searched for too.

    Errors in the verdict are root mean squares over all elements, in the units of the outputs.

    Raises InputError when the models do not take the same inputs, or when what they take is not known.

    >>> import torch, reparam
    >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> x = torch.randn(1, 3, 16, 16)
    >>> reparam.verify(block, reparam.convert(block, x).module, x).equivalent
    True
    """
    first, second = _loaded(a), _loaded(b)
    if isinstance(first, Runnable) or isinstance(second, Runnable):
        shapes = input_shapes or [tuple(x.shape[1:]) for x in example_inputs] or None
        return verify_engines(
            first, second, input_shapes=shapes, trials=trials, seed=seed, adversarial=adversarial, progress=progress
        )
    one = program_of(first, input_shapes or second.input_shapes, example_inputs)
    two = program_of(second, input_shapes or first.input_shapes, example_inputs)
    verdict = verify_programs(one, two, trials=trials, seed=seed, adversarial=adversarial, progress=progress)
    if not verdict.equivalent:
        return verdict
    floor = max(*(4.0 * torch.finfo(p.dtype).eps for p in (one, two)), depth_limit(one))
    reason = difference_at_sizes((first, second), (one, two), floor, seed)
    return dataclasses.replace(verdict, equivalent=not reason, reason=reason)


def _loaded(model: Comparable) -> LoadedModel | Runnable:
    if isinstance(model, torch.export.ExportedProgram):
        return LoadedModel(model.module(), exported=model)
    return LoadedModel(model) if isinstance(model, nn.Module) else model
