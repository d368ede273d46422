"""`analyze`: what values and gradients do in a network, in tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.check import refuse_broken_weights
from reparam.data import Preprocessing
from reparam.errors import InputError
from reparam.ir import Program, own_generator
from reparam.loading import FileOrModel, take_given
from reparam.rewrite import Progress
from reparam.training import open_batches
from reparam.utils import DEFAULT_AXES, check_callable, check_seed, checked_call

from .by_layer import gaussianity, gradients, moments, norms
from .fields import field
from .layer_inputs import refuse_empty_layers
from .places import call_after_weights
from .precision import sensitivity
from .running import Sampled, random_batches
from .spelled import spell_sums
from .streams import depth, rank
from .table import Analysis, Table
from .units import dead

KINDS: Mapping[str, Callable[[Sampled], Table]] = {
    "moments": moments,
    "gradients": gradients,
    "erf": field,
    "rank": rank,
    "gaussianity": gaussianity,
    "depth": depth,
    "norm": norms,
    "dead": dead,
    "sensitivity": sensitivity,
}
ALL = "all"
MOST = 1 << 20  # samples in a batch, and batches


@checked_call
@torch.inference_mode(False)  # a caller who wants no derivatives gets the same figures
@torch.enable_grad()
def analyze(  # noqa: PLR0913  # the keywords are the options
    model: FileOrModel,
    *example_inputs: Any,
    what: str | Sequence[str] = ("moments", "gradients"),
    data: Any = None,
    batch: int = 8,
    batches: int = 1,
    unit: str | None = None,
    training: bool = False,
    dynamic: Sequence[str] = DEFAULT_AXES,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Analysis:
    """What values and gradients do in `model`, on samples or on random numbers from N(0, 1). Nothing is changed.

    model: a module, left untouched, an exported program, a file, or what `reparam.load` gave. example_inputs: its
        positional arguments (for a module); tensors are (N, ...). A file may tell them.
    what: of moments, gradients, erf, rank, gaussianity, depth, norm, dead and sensitivity, or all; a text may name
        several, with commas. One that does not fit the network is told in `refused`, unless it is the only one.
    data: what `reparam.data.open_samples` takes; `batches` batches of `batch` samples are used. unit: of erf, the
        module whose value is looked at. training: whether batch norms take the statistics of the batch. dynamic: axes
        whose size stays free, as for `convert`. preprocessing: of images. seed: of random inputs and directions.

    Raises InputError or CaptureError for a model that cannot be taken in, samples that do not fit, and an analysis that
    is not known, or that is the only one and does not fit.

    >>> import torch, reparam
    >>> net = torch.nn.Sequential(*(torch.nn.Conv2d(1, 1, 3, bias=False) for _ in range(5)))
    >>> for layer in net:
    ...     _ = torch.nn.init.constant_(layer.weight, 1 / 9)
    >>> found = reparam.analyze(net, torch.randn(2, 1, 11, 11), what="erf")
    >>> found["erf"].facts["reach"], round(found["erf"].facts["sigma"], 4)
    (11, 1.8257)
    """
    check_seed(seed)
    check_callable(progress, "progress")
    wanted = _read_kinds(what)
    for name, value in (("batch", batch), ("batches", batches)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
            raise InputError(f"{name} is {str(value)[:40]!r}; give a whole number from 1 to {MOST}")
    if unit is not None and "erf" not in wanted:
        raise InputError("unit is for the analysis erf, which is not asked for")
    captured = take_given(model, example_inputs, dynamic=dynamic, seed=seed).capture()
    program = captured.program.copy()
    refuse_broken_weights(program)
    refuse_empty_layers(program)
    call_after_weights(program)
    spell_sums(program)
    drawn = _batches(program, data, batch, batches, preprocessing, seed)
    held = [[t.clone() if t.is_inference() else t for t in inputs] for inputs in drawn]
    sampled = Sampled(program, held, training, data is None, seed)
    tables, refused = [], {}
    for i, name in enumerate(wanted):
        if progress is not None:
            progress("analyze", i, len(wanted))
        try:
            made = field(sampled, unit) if name == "erf" else KINDS[name](sampled)
            tables.append(made.finite())
        except InputError as error:
            if len(wanted) == 1:
                raise
            refused[name] = str(error)
    if progress is not None:
        progress("analyze", len(wanted), len(wanted))
    return Analysis(tuple(tables), refused, captured.notes)


def _read_kinds(what: Any) -> tuple[str, ...]:
    names = what.split(",") if isinstance(what, str) else what
    if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names) or not names:
        raise InputError(f"what is {str(what)[:40]!r}; give names out of {', '.join(KINDS)}, or {ALL}")
    names = [n.strip() for n in names]
    if ALL in names:
        names = [*KINDS, *(n for n in names if n != ALL)]
    if unknown := [n for n in names if n not in KINDS]:
        raise InputError(f"unknown analysis {unknown[0][:40]!r}; choose from {', '.join(KINDS)}, or {ALL}")
    return tuple(dict.fromkeys(names))


def _batches(
    program: Program, data: Any, size: int, count: int, preprocessing: Any, seed: int
) -> Iterator[Sequence[Tensor]]:
    if data is not None:
        for _, inputs in zip(range(count), open_batches(data, program, size, preprocessing), strict=False):
            yield inputs
        return
    yield from random_batches(program, size, count, own_generator("inputs", seed))
