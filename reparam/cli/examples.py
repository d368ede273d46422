"""Example inputs: random ones, what is said where they do not fit, and other batches where the usual one does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from reparam.errors import CaptureError, EndedError, InputError, ReparamError
from reparam.ir import draw_examples, shape_of_input
from reparam.utils import Shapes, first_line, foreign_code

from .session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from reparam.loading import LoadedModel

OTHERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 32)  # batches, tried in this order
SECONDS = 10.0  # after which no other is tried

T = TypeVar("T")


def example_inputs(
    session: Session, model: LoadedModel, given: Shapes | None, batch: int, seed: int
) -> tuple[Tensor, ...]:
    """Random inputs, as `draw_examples` draws them; none for an exported program, which has its own.

    Those of an ONNX file have the shapes of the file.
    """
    from reparam.onnx_input import ImportedModel

    if isinstance(model.module, ImportedModel):
        return model.module.examples(given, batch=batch, seed=seed)
    if model.exported is not None:
        if given is not None:
            session.warn("--input-shape is not used: a .pt2 program has its own shapes")
        return ()
    return draw_examples(model.module, given or model.input_shapes, batch=batch, seed=seed)


class MisfitError(InputError):
    """The model does not run on its example inputs."""


@contextmanager
def explained_misfit(model: LoadedModel, inputs: Sequence[Tensor]) -> Iterator[None]:
    """A capture that failed because the model does not run on the inputs at all says so, in terms of the option."""
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
                f"the model does not run on the input shape {shapes} (batch {inputs[0].shape[0]}): {reason}; "
                "pass the right one with --input-shape"
            ) from error
        raise


def on_examples(
    session: Session,
    model: LoadedModel,
    given: Shapes | None,
    batch: int,
    seed: int,
    work: Callable[[tuple[Tensor, ...]], T],
) -> T:
    """What `work` gives for example inputs of this batch, or of the first other one that the model runs on.

    Some take frames in groups of four, and there is no option for the batch. Others are tried only where it failed.

    Raises InputError where the model runs on none of them, with what it said of the usual one.
    """
    inputs = example_inputs(session, model, given, batch, seed)
    try:
        with explained_misfit(model, inputs):
            return work(inputs)
    except MisfitError:
        others = _others(session, model, given, seed, inputs)
        if others is None:
            raise
    session.note(
        f"the model does not run on a batch of {inputs[0].shape[0]}; of the others that were tried, "
        f"{others[0].shape[0]} is the first that it runs on"
    )
    return work(others)


def _others(
    session: Session, model: LoadedModel, given: Shapes | None, seed: int, failed: tuple[Tensor, ...]
) -> tuple[Tensor, ...] | None:
    """Inputs of the first other batch on which the model runs; None where there is none, or it takes too long."""
    start = time.perf_counter()
    with session.working():
        from reparam.capture import runs_on

        for batch in OTHERS:
            if time.perf_counter() - start > SECONDS:
                return None
            try:
                inputs = example_inputs(session, model, given, batch, seed)
                if inputs[0].shape[0] != failed[0].shape[0] and runs_on(model.module, inputs):
                    return inputs
            except ReparamError:  # larger ones would not fit into the memory either; the first failure is told
                return None
    return None
