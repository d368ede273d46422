"""What samples tell of the inputs of models that do not tell it themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from reparam.data import Preprocessing, first_sample
from reparam.engines import Runnable, names_of_inputs
from reparam.ir import draw_examples
from reparam.loading import LoadedModel
from reparam.utils import Shapes, foreign_code

from .latency import known_shapes


def shapes_of_samples(
    models: Sequence[LoadedModel | Runnable], source: Any, how: Preprocessing | None
) -> tuple[Shapes | None, Any]:
    """The shapes of the inputs, without the batch, where no model knows them, and the source to read from now on.

    how: of images. None where a model knows its shapes, or the samples do not tell. Raises InputError for files that
    cannot be read.
    """
    if known_shapes(models) is not None:
        return None, source
    guesses, source = first_sample(source, names_of_inputs(models[0]), how)
    found = guesses or []
    return next((g for g in found if len(found) == 1 or _takes(models[0], g)), None), source


def _takes(model: LoadedModel | Runnable, shapes: Shapes) -> bool:
    """Whether a model takes inputs of these shapes: a port says so, a module is tried on one sample."""
    if isinstance(model, Runnable):
        sizes = zip(model.inputs, shapes, strict=True)
        return all(len(p.shape) == 1 + len(s) and (isinstance(p.shape[1], str) or p.shape[1] == s[0]) for p, s in sizes)
    home = next((p.device for p in model.module.parameters()), torch.device("cpu"))
    try:
        with torch.inference_mode(), foreign_code("running the model"):
            model.module(*(v.to(home) for v in draw_examples(model.module, shapes, batch=1)))
    except Exception:
        return False
    return True
