"""Batches from Python: a DataLoader, a generator, a list, or a single batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    perhaps one more of labels; or a mapping by the names of inputs. Raises InputError for what is none of these.
    """
    if isinstance(source, Tensor | np.ndarray | Mapping):
        return Source("the batch", lambda: iter([_block(source, inputs, "the batch")]), lambda: None)
    if not isinstance(source, Iterable) or isinstance(source, bytes | str):
        raise InputError(f"the samples are {describe_type(source)}, neither a path nor an iterable of batches")

    def blocks() -> Iterator[Block]:
        for index, batch in enumerate(source):
            yield _block(batch, inputs, f"batch {index} of the samples")

    return Source(describe_type(source), blocks, lambda: None, "it is empty, or was read to its end before")


def _block(batch: Any, inputs: Inputs, where: str) -> Block:
    names = inputs.names
    labels: Any = None
    if isinstance(batch, Mapping):
        missing = [name for name in names if name not in batch]
        if missing:
            held = ", ".join(str(key)[:40] for key in batch)
            raise InputError(f"{where} has no '{missing[0]}'; it holds {held or 'nothing'}")
        values = [batch[name] for name in names]
        labels = next((batch[name] for name in inputs.label_names if name in batch), None)
    elif isinstance(batch, tuple | list):
        if len(batch) not in (len(names), len(names) + 1):
            raise InputError(
                f"{where} holds {len(batch)} values, where the network takes {len(names)}, and one more may be labels"
            )
        values = list(batch[: len(names)])
        labels = batch[-1] if len(batch) > len(names) else None
    else:
        values = [batch]
        if len(names) != 1:
            raise InputError(f"{where} is {describe_type(batch)}, but the network takes {len(names)} inputs")
    columns = tuple(HeldColumn(_tensor(value, where)) for value in values)
    return Block(where, columns, None if labels is None else as_labels(labels, where, maps=inputs.maps))


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
