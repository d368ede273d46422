"""Batches from Python: a DataLoader, a generator, a list, or a single batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.ir import odd_kind
from reparam.utils import describe_type

from .block import Block, HeldColumn, Source, as_labels
from .inputs import Inputs


def open_batches(source: Any, inputs: Inputs) -> Source:
    """The samples of an iterable of batches, or of one batch.

    A batch is a tensor (N, *shape), for a network with one input; a tuple or list of them, one for each input, and
    perhaps one more of labels, where the inputs may lie in a tuple of their own, (inputs, labels); or a mapping by the
    names of inputs, alone or in front of labels. Raises InputError for what is none of these.
    """
    if isinstance(source, Tensor | np.ndarray | Mapping):
        return Source("the batch", lambda: iter([_block(source, inputs, "the batch")]), lambda: None)
    if _is_labelled_pair(source):
        raise InputError("a pair of samples and labels is no list of batches; give [(x, y)], or the labels apart")
    if not isinstance(source, Iterable) or isinstance(source, bytes | str):
        hint = "; give a DataLoader of it" if hasattr(source, "__getitem__") else ""  # a data set
        raise InputError(f"the samples are {describe_type(source)}, neither a path nor an iterable of batches{hint}")

    def blocks() -> Iterator[Block]:
        for index, batch in enumerate(source):
            yield _block(batch, inputs, f"batch {index} of the samples")

    return Source(describe_type(source), blocks, lambda: None, "it is empty, or was read to its end before")


def _is_labelled_pair(source: Any) -> bool:
    """Whether a pair is one batch with its labels, and cannot be two batches."""
    if not isinstance(source, tuple) or len(source) != 2 or not all(isinstance(v, Tensor | np.ndarray) for v in source):
        return False
    x, y = (torch.as_tensor(v) if isinstance(v, Tensor) or v.dtype.kind in "fiub" else None for v in source)
    if x is None or y is None or not x.dim() or y.dim() != 1 or len(x) != len(y):
        return False
    return x.is_floating_point() and not y.is_floating_point()


def _block(batch: Any, inputs: Inputs, where: str) -> Block:
    values, labels = _parts(batch, inputs, where)
    columns = tuple(HeldColumn(_tensor(value, where)) for value in values)
    return Block(where, columns, None if labels is None else as_labels(labels, where, maps=inputs.maps))


def _parts(batch: Any, inputs: Inputs, where: str) -> tuple[list[Any], Any]:
    """The values of the inputs, and the labels or None."""
    names = inputs.names
    if isinstance(batch, Mapping):
        named = _named(batch, names, where)
        return list(named.values()), next((batch[n] for n in inputs.label_names if n in batch and n not in named), None)
    if not isinstance(batch, tuple | list):
        if len(names) != 1:
            raise InputError(f"{where} is {describe_type(batch)}, but the network takes {len(names)} inputs")
        return [batch], None
    if len(batch) in (1, 2) and isinstance(batch[0], Mapping):
        return list(_named(batch[0], names, where).values()), batch[1] if len(batch) == 2 else None
    values = list(_leaves(batch)) if any(isinstance(v, tuple | list) for v in batch[:-1] or batch) else list(batch)
    if len(values) not in (len(names), len(names) + 1):
        raise InputError(
            f"{where} holds {len(values)} values, where the network takes {len(names)}, and one more may be labels"
        )
    return values[: len(names)], values[-1] if len(values) > len(names) else None


def _named(batch: Mapping[Any, Any], names: Sequence[str], where: str) -> dict[str, Any]:
    """What the mapping calls each input, and its value; parts of one argument may leave out its name, `data_`."""
    starts = [i + 1 for i, letter in enumerate(names[0]) if letter == "_"]
    for start in (0, *starts):
        if len({name[:start] for name in names}) == 1 and all(name[start:] in batch for name in names):
            return {name[start:]: batch[name[start:]] for name in names}
    missing = next(name for name in names if name not in batch)
    held = ", ".join(str(key)[:40] for key in batch)
    raise InputError(f"{where} has no '{missing}'; it holds {held or 'nothing'}")


def _leaves(batch: Any) -> Iterator[Any]:
    """What lies in tuples and lists that lie in each other, but for a list of labels at the end."""
    for i, part in enumerate(batch):
        plain = i == len(batch) - 1 and isinstance(part, list | tuple) and all(isinstance(v, int) for v in part)
        if isinstance(part, tuple | list) and not plain:
            yield from _leaves(part)
        else:
            yield part


def _tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(np.ascontiguousarray(value))
        except TypeError as error:
            raise InputError(f"{where} holds an array of {value.dtype}, which no tensor is of") from error
    if odd := odd_kind(value):
        raise InputError(f"{where} holds {odd}, not an ordinary tensor")
    found: Tensor = value
    return found.detach().cpu().resolve_conj().resolve_neg()
