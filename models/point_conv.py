"""Continuous convolutions over points (Hermosilla, Schelling, Ritschel, Ropinski 2022, "Variance-aware weight
initialization for point convolutional neural networks", arXiv 2112.03777).

    y_o(p) = sum_c sum_b w_ocb A_cb(p),    A_cb(p) = sum_i f_c(i) B_b((x_i - x_p)/r)
    B_b(d) = exp(-|d - c_b|^2/(2 s^2)) * max(0, 1 - |d|^2)        points i within a radius r, basis functions b

How many points lie in a radius, and how their features are correlated, decides the variance of y, which no rule of
fan-in knows. The variance-aware weights have

    Var(w) = 1/E_p[sum_ij <f_i, f_j> <B_i, B_j>] = 1/E_p[sum_cb A_cb(p)^2]

measured layer by layer on batches of the data, with 1/variance averaged over them: `variance_aware_`. Every convolution
is followed by a batch norm over all points. Published nets pool clouds to coarser ones in between; here all layers see
the same points, and the larger configuration has 256.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reparam.models.registry import register

__all__ = ["PointConv", "PointNet", "variance_aware_"]

WIDTH = 0.5  # s, of the basis functions, in radii


class PointConv(nn.Module):
    """points (N, P, 3), features (N, P, c_in) -> (N, P, c_out). basis: how many functions; their centres are random."""

    def __init__(self, c_in: int, c_out: int, basis: int, radius: float) -> None:
        super().__init__()
        self.radius = radius
        centres = torch.randn(basis, 3)
        centres = centres / centres.norm(dim=1, keepdim=True) * 0.7 * torch.rand(basis, 1).pow(1 / 3)  # within the ball
        self.centres: Tensor
        self.register_buffer("centres", centres)
        self.linear = nn.Linear(basis * c_in, c_out, bias=False)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")

    def gather(self, points: Tensor, features: Tensor) -> Tensor:
        """A: (N, P, basis*c_in)."""
        offset = (points.unsqueeze(1) - points.unsqueeze(2)) / self.radius  # (N, P, P, 3), from p to i
        squared = offset.square().sum(-1)
        inside = torch.relu(1 - squared)
        # |d - c|^2 = |d|^2 - 2<d, c> + |c|^2
        distance = squared.unsqueeze(-1) - 2 * offset @ self.centres.t() + self.centres.square().sum(1)
        basis = torch.exp(distance / (-2 * WIDTH**2)) * inside.unsqueeze(-1)  # (N, P, P, basis)
        return (basis.transpose(2, 3) @ features.unsqueeze(1)).flatten(2)

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        y: Tensor = self.linear(self.gather(points, features))
        return y


class Layer(nn.Module):
    """points (N, P, 3), features (N, P, c_in) -> (N, P, c_out): a convolution, a batch norm, a ReLU."""

    def __init__(self, c_in: int, c_out: int, basis: int, radius: float, norm: bool) -> None:
        super().__init__()
        self.conv = PointConv(c_in, c_out, basis, radius)
        self.bn = nn.BatchNorm1d(c_out) if norm else nn.Identity()

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        y = self.bn(self.conv(points, features).transpose(1, 2)).transpose(1, 2)
        return torch.relu(y)


@register(
    "point_conv",
    small={"widths": (8, 12), "basis": 4, "num_classes": 10},
    published={},
    small_input=((16, 3), (16, 3)),
    published_input=((256, 3), (256, 3)),
)
class PointNet(nn.Module):
    """points (N, P, 3), features (N, P, features) -> (N, num_classes). norm: batch norms, or none."""

    def __init__(
        self,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        basis: int = 8,
        radius: float = 1.0,
        features: int = 3,
        norm: bool = True,
        num_classes: int = 40,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers.append(Layer(features, width, basis, radius, norm))
            features = width
        self.layers = nn.ModuleList(layers)
        self.classify = nn.Linear(features, num_classes)

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        for layer in self.layers:
            features = layer(points, features)
        y: Tensor = self.classify(features.mean(1))
        return y


def variance_aware_(model: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Redraws the weights of every PointConv of `model`, in the order in which it holds them, from these batches."""
    for conv in [m for m in model.modules() if isinstance(m, PointConv)]:
        inverses: list[Tensor] = []

        def observe(module: nn.Module, args: tuple[Tensor, ...], inverses: list[Tensor] = inverses) -> None:
            assert isinstance(module, PointConv)
            inverses.append(1 / module.gather(*args).square().sum(-1).mean())

        handle = conv.register_forward_pre_hook(observe)
        with torch.no_grad():
            for batch in batches:
                model(*batch)
            handle.remove()
            conv.linear.weight.normal_(std=float(torch.stack(inverses).mean().sqrt()))
