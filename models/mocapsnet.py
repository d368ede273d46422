"""MoCapsNet: capsule layers in momentum residual blocks (Gugglberger, Peer, Rodriguez-Sanchez 2022, arXiv 2201.11091).

    h    = primary capsules (relu(conv(image)))
    x_0  = routing(h)                                     32 capsules of 8 numbers
    block: v <- g*v + (1 - g)*routing_n(x), x <- x + v    two routing layers a block, v = 0 at its start, g = 0.9
    y    = routing(x)                                     a capsule of 16 numbers for each class; |y_k| is the answer

Forms of a block (`form`):

* momentum: the recurrence above. With `velocity="stack"` one velocity runs through all blocks, as in the momentum
  residual networks that these descend from; only then is reversible training free of any cost per block.
* published: x + (x_2 of the recurrence) = 2x + 0.19 f_0 + 0.10 f_1, which the authors' code computes.
* residual: x <- x + routing_n(x), what momentum blocks are compared with.

`reversible` says whether momentum is trained by reconstructing activations (`momentum.py`) or by storing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reparam.models.capsules import Decoder, PrimaryCapsules, RoutingCapsules
from reparam.models.momentum import MomentumResidual
from reparam.models.registry import register

__all__ = ["CapsNet", "MoCapsNet", "ResidualBlocks"]

IMAGE = (1, 28, 28)
SMALL = {"channels": 32, "decoder": (128, 256), "std": 0.1}


@register("capsnet", small=SMALL, published={}, small_input=IMAGE, published_input=IMAGE)
class CapsNet(nn.Module):
    """The plain capsule network: image -> conv -> primary capsules -> class capsules (Sabour et al. 2017).

    forward: images (N, *image) -> lengths (N, classes); with `decode` also the reconstruction (N, *image), drawn from
    the longest capsule. Raises ValueError for images that are too small for the two convolutions.
    """

    def __init__(  # noqa: PLR0913  # the published sizes by name
        self,
        *,
        image: tuple[int, int, int] = IMAGE,
        classes: int = 10,
        channels: int = 256,
        kernel: int = 9,
        primary_dim: int = 8,
        class_dim: int = 16,
        routing: int = 3,
        decoder: tuple[int, ...] = (512, 1024),
        std: float = 0.01,
        decode: bool = False,
    ) -> None:
        super().__init__()
        height, width = ((size - kernel + 1 - kernel) // 2 + 1 for size in image[1:])
        if min(height, width) < 1:
            raise ValueError(f"an image of {image[1]} x {image[2]} is too small for two {kernel} x {kernel} windows")
        self.input_shapes = (tuple(image),)
        self.decode = decode
        self.conv = nn.Conv2d(image[0], channels, kernel)
        self.primary = PrimaryCapsules(channels, channels, primary_dim, kernel)
        self.hidden: nn.Module = nn.Identity()
        self.classes = RoutingCapsules(
            channels // primary_dim * height * width, primary_dim, classes, class_dim, routing, std
        )
        self.decoder = Decoder(classes, class_dim, image, decoder)

    def encode(self, images: Tensor) -> Tensor:
        """Class capsules (N, classes, class_dim)."""
        y: Tensor = self.classes(self.hidden(self.primary(torch.relu(self.conv(images)))))
        return y

    def draw(self, capsules: Tensor, labels: Tensor | None = None) -> Tensor:
        """The image that the capsule of each label holds, or the longest capsule: (N, *image)."""
        chosen = torch.linalg.vector_norm(capsules, dim=-1).argmax(1) if labels is None else labels
        mask = torch.arange(capsules.shape[1], device=capsules.device) == chosen.unsqueeze(1)
        y: Tensor = self.decoder(capsules * mask.unsqueeze(2).to(capsules.dtype))
        return y

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        capsules = self.encode(images)
        lengths = torch.linalg.vector_norm(capsules, dim=-1)
        return (lengths, self.draw(capsules)) if self.decode else lengths


class ResidualBlocks(nn.Module):
    """A stack of blocks of `layers` functions each, in one of the three forms. (N, J, D) -> (N, J, D).

    Raises ValueError for an unknown form or velocity, or a gamma that is no fraction of hundredths.
    """

    def __init__(
        self,
        functions: Sequence[nn.Module],
        layers: int = 2,
        form: str = "momentum",
        velocity: str = "block",
        gamma: float = 0.9,
        reversible: bool = True,
    ) -> None:
        super().__init__()
        if form not in ("momentum", "published", "residual"):
            raise ValueError(f"unknown form '{form}'; choose from momentum, published, residual")
        if velocity not in ("block", "stack"):
            raise ValueError(f"unknown velocity '{velocity}'; choose from block, stack")
        self.form = form
        if form == "residual":
            self.functions = nn.ModuleList(functions)
            return
        whole = form == "momentum"
        size, restart = (len(functions), layers if velocity == "block" else None) if whole else (layers, None)
        groups = [functions[i : i + size] for i in range(0, len(functions), size or 1)]
        self.momentum = nn.ModuleList(MomentumResidual(group, gamma, restart, reversible) for group in groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "residual":
            for function in self.functions:
                x = x + function(x)
            return x
        for momentum in self.momentum:
            y = momentum(x)
            x = x + y if self.form == "published" else y
        return x


@register(
    "mocapsnet",
    small={**SMALL, "capsules": 16, "blocks": 2},
    published={},
    small_input=IMAGE,
    published_input=IMAGE,
)
class MoCapsNet(CapsNet):
    """The network of the module's docstring; `blocks=0` leaves two routing layers. Arguments as in CapsNet, and

    capsules: in each hidden layer. blocks, layers: how many, and routing layers in each. form, velocity, gamma,
    reversible: see ResidualBlocks.
    """

    def __init__(
        self,
        *,
        capsules: int = 32,
        blocks: int = 1,
        layers: int = 2,
        form: str = "momentum",
        velocity: str = "block",
        gamma: float = 0.9,
        reversible: bool = True,
        **plain: Any,
    ) -> None:
        super().__init__(**plain)
        primary, dim = self.classes.weight.shape[:2]
        routing, std = self.classes.routing, plain.get("std", 0.01)
        inner = [RoutingCapsules(capsules, dim, capsules, dim, routing, std) for _ in range(blocks * layers)]
        self.hidden = nn.Sequential(
            RoutingCapsules(primary, dim, capsules, dim, routing, std),
            ResidualBlocks(inner, layers, form, velocity, gamma, reversible),
        )
        self.classes = RoutingCapsules(capsules, dim, self.classes.capsules, self.classes.dim, routing, std)
