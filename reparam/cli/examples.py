"""Example inputs: random ones, what is said where they do not fit, and other batches where the usual one does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from reparam.errors import CaptureError, EndedError, InputError, ReparamError
from reparam.ir import shape_of_input
from reparam.utils import Shapes, axis_words, first_line, foreign_code

from .session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from reparam.loading import LoadedModel

OTHERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 32)  # batches, tried in this order
SECONDS = 10.0  # after which no other is tried

T = TypeVar("T")


@dataclass(frozen=True)
class Drawing:
    """How example inputs are drawn.

    given: their shapes without axis 0, where there are any. dynamic: the names of free axes. batch: the size of axis 0
    where it is the batch or has no name.
    """

    given: Shapes | None
    dynamic: tuple[str, ...]
    batch: int
    seed: int


def example_inputs(
    session: Session, model: LoadedModel, how: Drawing, rows: int | None = None
) -> tuple[tuple[Tensor, ...], str]:
    """Random inputs, as `drawn_inputs` draws them, and what axis 0 of the first is called.

    There are none for an exported program, which has its own. Those of an ONNX file have the shapes of the file.

    rows: the size of axis 0 where it is free and not the batch.
    """
    from reparam.loading import drawn_inputs
    from reparam.onnx_input import ImportedModel

    if model.exported is not None:
        if how.given is not None:
            session.warn("--input-shape is not used: a .pt2 program has its own shapes")
        return (), "batch"
    shapes = how.given if isinstance(model.module, ImportedModel) else how.given or model.input_shapes
    return drawn_inputs(model.module, shapes, how.dynamic, batch=how.batch, rows=rows, seed=how.seed)


class MisfitError(InputError):
    """The model does not run on its example inputs."""


@contextmanager
def explained_misfit(model: LoadedModel, inputs: Sequence[Tensor], called: str = "batch") -> Iterator[None]:
    """A capture that failed because the model does not run on the inputs at all says so, in terms of the option.

    called: what axis 0 is.
    """
    import torch

    try:
        yield
    except EndedError:
        raise
    except CaptureError as error:
        if model.exported is not None:
            raise
        try:
            with torch.no_grad(), foreign_code("running the model"):
                model.module(*inputs)
        except ReparamError:
            raise
        except Exception as cause:
            shapes = " ".join(str(shape_of_input(x)) for x in inputs)
            reason = first_line(cause)
            raise MisfitError(
                f"the model does not run on the input shape {shapes} ({called} {inputs[0].shape[0]}): {reason}; "
                "pass the right one with --input-shape"
            ) from error
        raise


def on_examples(session: Session, model: LoadedModel, how: Drawing, work: Callable[[tuple[Tensor, ...]], T]) -> T:
    """What `work` gives for example inputs of this batch, or of the first other one that the model runs on.

    Some take frames in groups of four, and there is no option for the batch. Others are tried only where it failed. So
    are other sizes of axis 0 where it is free under another name.

    Raises InputError where the model runs on none of them, with what it said of the usual one.
    """
    inputs, called = example_inputs(session, model, how)
    try:
        with explained_misfit(model, inputs, called):
            return work(inputs)
    except MisfitError:
        others = _others(session, model, how, inputs, called)
        if others is None:
            raise
    what = "a batch" if called == "batch" else axis_words(called)
    session.note(
        f"the model does not run on {what} of {inputs[0].shape[0]}; of the others that were tried, "
        f"{others[0].shape[0]} is the first that it runs on"
    )
    return work(others)


def _others(
    session: Session, model: LoadedModel, how: Drawing, failed: tuple[Tensor, ...], called: str
) -> tuple[Tensor, ...] | None:
    """Inputs of the first other batch on which the model runs; None where there is none, or it takes too long."""
    start = time.perf_counter()
    with session.working():
        from reparam.capture import runs_on

        for size in OTHERS if called == "batch" else OTHERS[1:]:  # a traced size of one would be fixed
            if time.perf_counter() - start > SECONDS:
                return None
            try:
                tried = replace(how, batch=size) if called == "batch" else how
                inputs, _ = example_inputs(session, model, tried, None if called == "batch" else size)
                if inputs[0].shape[0] != failed[0].shape[0] and runs_on(model.module, inputs):
                    return inputs
            except ReparamError:  # larger ones would not fit into the memory either; the first failure is told
                return None
    return None
