"""torch's own layers of attention under no_grad: what their fast path computes that the layers themselves do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_LAYERS = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
NOTE = (
    "without gradients, torch's fast path of attention gives other results than these layers (it sets padded positions "
    "to zero); what is converted are the layers, as after torch.backends.mha.set_fastpath_enabled(False)"
)


def fast_path_notes(module: nn.Module, run: Callable[[], object]) -> Iterator[str]:
    """A note where the results of `run`, which runs the module on its example inputs, hang on torch's fast path.

    A graph holds the layers alone: the fast path is left out while torch traces.
    """
    if not torch.backends.mha.get_fastpath_enabled() or not any(isinstance(m, _LAYERS) for m in module.modules()):
        return
    with warnings.catch_warnings(), torch.no_grad(), suppress(Exception):  # of the model, which is told elsewhere
        warnings.simplefilter("ignore")
        usual = pytree.tree_leaves(run())
        with _without_fast_path():
            layers = pytree.tree_leaves(run())
        if not all(_close(a, b) for a, b in zip(usual, layers, strict=True)):
            yield NOTE


@contextmanager
def _without_fast_path() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def _close(usual: object, layers: object) -> bool:
    """Whether two results differ by rounding alone; what is no tensor of real numbers is not looked at."""
    if not isinstance(usual, Tensor) or not isinstance(layers, Tensor) or not usual.is_floating_point():
        return True
    if usual.shape != layers.shape:
        return False
    room = torch.finfo(usual.dtype).eps ** 0.5
    scale = float(layers.abs().nan_to_num(0.0, 0.0, 0.0).max()) if layers.numel() else 0.0
    return torch.allclose(usual.double(), layers.double(), rtol=room, atol=room * scale, equal_nan=True)
