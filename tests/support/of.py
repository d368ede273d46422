"""A network that is one function."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Of(nn.Module):
    """A function of layers and an input, as a module; the layers are `parts.0`, `parts.1` and so on."""

    def __init__(self, function: Callable[..., object], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> object:
        return self.function(*self.parts, x)
