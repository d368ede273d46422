"""The statistics of batch norms measured again: mu and var as they are on the user's own samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from reparam.capture import capture, own_copy
from reparam.data import Preprocessing
from reparam.errors import InputError, ReparamError
from reparam.ir import on_device
from reparam.loading import FileOrModel, take_given
from reparam.rewrite import Progress
from reparam.utils import (
    DEFAULT_AXES,
    Facts,
    Shown,
    as_the_user_set,
    check_callable,
    checked_call,
    describe_type,
    first_line,
    foreign_code,
)

from .batches import open_batches

BATCH = 64


@dataclass(frozen=True)
class NormShift:
    """How far the statistics of one norm moved.

    mean, largest: of |new mean - old mean| / sqrt(old variance + eps) over the channels. deviation: the geometric mean
    over the channels of the new standard deviation by the old one (eps added to both variances).
    """

    name: str
    channels: int
    mean: float
    largest: float
    deviation: float


@dataclass(frozen=True, repr=False)
class Recalibrated(Shown):
    """A model whose statistics were measured again.

    module: a copy of the model, in evaluation mode. norms: what became of each norm. unused: norms that the samples
    did not reach, which keep their statistics. batches, samples: that were seen, by all processes together.
    """

    module: nn.Module
    norms: tuple[NormShift, ...]
    unused: tuple[str, ...]
    batches: int
    samples: int

    @property
    def moved(self) -> float:
        """The mean over all channels of how far the means moved, in old standard deviations."""
        channels = sum(n.channels for n in self.norms)
        return sum(n.mean * n.channels for n in self.norms) / channels if channels else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The report, as the command line writes it."""
        return {
            "batches": self.batches,
            "samples": self.samples,
            "moved": self.moved,
            "norms": [asdict(norm) for norm in self.norms],
            "unused": list(self.unused),
        }

    def summary(self) -> tuple[str, Facts]:
        """How many norms were measured, and on what; how far their means moved."""
        facts = [
            ("batch norms", str(len(self.norms))),
            ("batches", f"{self.batches:,}"),
            ("samples", f"{self.samples:,}"),
            ("means moved by", f"{self.moved:.3g} standard deviations"),
        ]
        if self.unused:
            facts.append(("not reached", ", ".join(self.unused)))
        return "measured again", facts


@checked_call
def recalibrate(
    model: FileOrModel,
    *example_inputs: Any,
    data: Any,
    dynamic: Sequence[str] = DEFAULT_AXES,
    batch: int = BATCH,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Recalibrated:
    """Measures the running statistics of every batch norm of `model` again, on `data`.

    One pass is made. Batch norms are in training mode and everything else, dropout among it, in evaluation mode. The
    running statistics become the averages of those of the batches, each weighted by its samples: what torch gives with
    `momentum=None` where all batches are of one size. No figure is taken from the samples, so none is held out.

    model: a module, left untouched, a file, or what `reparam.load` gave. example_inputs: its positional arguments;
        tensors are (N, ...). A file may tell them.
    data: what `reparam.data.open_samples` takes, or a `Deck`. In a process group of torch.distributed, each process
        gives samples of its own, and all get the same statistics.
    dynamic: axes whose size stays free, as in `convert`. batch: samples that are normalised together; a rest of less
        than half as many joins the batch before it. preprocessing: of images.

    Raises InputError for a model without batch norms that keep statistics, for one that cannot be captured, and for
    samples that do not fit it or whose statistics are not finite.

    >>> import torch, reparam
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> samples = torch.randn(32, 3, 16, 16) + 2
    >>> found = reparam.recalibrate(model, samples[:1], data=samples)
    >>> len(found.norms), found.samples, found.module.training
    (1, 32, False)
    """
    given = take_given(model, example_inputs, dynamic=dynamic)
    model, example_inputs = given.model, given.inputs
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is {describe_type(model)}; statistics are those of an nn.Module")
    if not any(True for _ in _norms(model)):
        raise InputError("the model has no batch norm that keeps running statistics, so there is nothing to measure")
    check_callable(progress, "progress")
    program = capture(model, example_inputs, dynamic=given.dynamic).program
    with foreign_code("copying the model", errors=True):
        module = own_copy(model).eval()
    counts = _Counts({name: _Count() for name, _ in _norms(module)})
    old = {name: _statistics(norm) for name, norm in _norms(module)}
    batches = open_batches(data, program, batch, preprocessing)
    with _measuring(module, counts):
        for inputs in batches:
            counts.samples += len(inputs[0])
            counts.batches += 1
            _run(module, example_inputs, [on_device(v, program.home) for v in inputs])
            if progress is not None:
                progress("measure", counts.samples, batches.samples)
    _combine(module, counts, program.home)
    for name, norm in _norms(module):
        if not all(bool(torch.isfinite(value).all()) for value in _statistics(norm)):
            raise InputError(f"the batch norm '{name}' meets NaN or infinite values on the samples")
    unused = tuple(name for name, count in counts.of.items() if not count.samples)
    shifts = []
    for name, norm in _norms(module):
        if name in unused:
            _restore(norm, *old[name])
            continue
        shifts.append(_shift(name, old[name], _statistics(norm), norm.eps))
    return Recalibrated(module.eval(), tuple(shifts), unused, counts.batches, counts.samples)


# ---- one pass ----------------------------------------------------------------------------------------------------


@dataclass
class _Count:
    """What one norm has seen: samples, and calls."""

    samples: int = 0
    calls: int = 0


@dataclass
class _Counts:
    """of: what each norm has seen. samples, batches: what the network was given."""

    of: dict[str, _Count]
    samples: int = 0
    batches: int = 0


def _norms(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Batch norms with running statistics, a shared one once."""
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None:
            yield name, part


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean.detach().double().clone(), norm.running_var.detach().double().clone()


def _restore(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


@contextmanager
def _measuring(module: nn.Module, counts: _Counts) -> Iterator[None]:
    """In the block, norms are in training mode, and their statistics are averages over all that they have seen."""
    momenta = {name: norm.momentum for name, norm in _norms(module)}

    def weigh(count: _Count) -> Any:
        def hook(norm: nn.Module, args: tuple[Any, ...]) -> None:
            count.samples += len(args[0])
            count.calls += 1
            norm.momentum = len(args[0]) / count.samples  # type: ignore[assignment]  # 1 at first: nothing old is left

        return hook

    handles = []
    for name, norm in _norms(module):
        norm.reset_running_stats()
        norm.train()
        handles.append(norm.register_forward_pre_hook(weigh(counts.of[name])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, norm in _norms(module):
            norm.momentum = momenta[name]
            norm.eval()


def _run(module: nn.Module, examples: Sequence[Any], inputs: Sequence[Tensor]) -> None:
    """The module on one batch; what is no tensor among its arguments is as in the examples."""
    leaves, spec = torch.utils._pytree.tree_flatten(tuple(examples))
    given = iter(inputs)
    filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    try:
        with torch.no_grad(), foreign_code("running the model"), as_the_user_set():
            module(*torch.utils._pytree.tree_unflatten(filled, spec))
    except ReparamError:
        raise
    except Exception as error:
        raise InputError(
            f"the model does not run with its batch norms in training mode on {len(inputs[0])} samples: "
            f"{first_line(error)}"
        ) from error


# ---- the result --------------------------------------------------------------------------------------------------


def _combine(module: nn.Module, counts: _Counts, device: torch.device) -> None:
    """In a process group: the statistics of all processes, weighted by the samples that each norm saw there."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    for name, norm in _norms(module):
        count = counts.of[name]
        mean, variance = (value.to(device) for value in _statistics(norm))
        seen = torch.tensor([count.samples, count.calls], dtype=torch.float64, device=device)
        sums = torch.cat([mean * count.samples, variance * count.samples, seen])
        dist.all_reduce(sums)
        total = max(float(sums[-2]), 1.0)
        _restore(norm, sums[: len(mean)] / total, sums[len(mean) : -2] / total)
        count.samples, count.calls = int(sums[-2]), int(sums[-1])
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(count.calls)
    given = torch.tensor([counts.samples, counts.batches], dtype=torch.int64, device=device)
    dist.all_reduce(given)
    counts.samples, counts.batches = int(given[0]), int(given[1])


def _shift(name: str, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], eps: float) -> NormShift:
    deviations = (old[1].clamp_min(0) + eps).sqrt()
    moved = (new[0] - old[0]).abs() / deviations
    ratio = (new[1] + eps).sqrt() / deviations
    mean, largest = (float(moved.mean()), float(moved.max())) if len(moved) else (0.0, 0.0)
    return NormShift(name, len(moved), mean, largest, math.exp(float(ratio.log().mean())) if len(moved) else 1.0)
