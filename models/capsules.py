"""Capsules: squashing, dynamic routing, losses (Sabour, Frosst and Hinton 2017, arXiv 1710.09829).

A capsule is a vector; its length is the probability that what it stands for is there.

    squash(s) = |s|^2/(1 + |s|^2) * s/|s|
    routing:  u_ij = W_ij u_i;  b_ij = 0;  repeated:  c_i. = softmax_j(b_i.),  v_j = squash(sum_i c_ij u_ij),
              b_ij <- b_ij + <u_ij, v_j>

The iterations are unrolled. Only the last one takes part in the gradient: the others see u_ij as a constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Decoder", "PrimaryCapsules", "RoutingCapsules", "capsule_loss", "margin_loss", "squash"]


def squash(s: Tensor) -> Tensor:
    """|s|^2/(1 + |s|^2) * s/|s| along the last axis, written so that a zero vector gives zero: (..., D) -> (..., D)."""
    length: Tensor = torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    return s * (length / (1 + length * length))


class PrimaryCapsules(nn.Module):
    """A convolution whose channels are grouped into capsules: (N, C, H, W) -> (N, channels/dim * H' * W', dim).

    Raises ValueError when dim does not divide channels.
    """

    def __init__(self, c_in: int, channels: int, dim: int = 8, kernel: int = 9, stride: int = 2) -> None:
        super().__init__()
        if channels % dim:
            raise ValueError(f"{channels} channels cannot be grouped into capsules of {dim}")
        self.dim = dim
        self.conv = nn.Conv2d(c_in, channels, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2)  # (N, capsules * dim, H' * W')
        return squash(y.unflatten(1, (-1, self.dim)).transpose(2, 3).flatten(1, 2))


class RoutingCapsules(nn.Module):
    """A layer of capsules fed by dynamic routing: (N, I, K) -> (N, J, D).

    weight: (I, K, J * D), normal with standard deviation `std`. routing: iterations, at least one; with one the
    coupling is uniform, and the layer is linear before its squash. Raises ValueError for no iteration.
    """

    def __init__(self, capsules_in: int, dim_in: int, capsules: int, dim: int, routing: int = 3, std: float = 0.01):
        super().__init__()
        if routing < 1:
            raise ValueError(f"{routing} routing iterations were asked for; at least one is needed")
        self.capsules, self.dim, self.routing = capsules, dim, routing
        self.weight = nn.Parameter(std * torch.randn(capsules_in, dim_in, capsules * dim))

    def forward(self, u: Tensor) -> Tensor:
        votes = torch.matmul(u.transpose(0, 1), self.weight)  # (I, N, J * D)
        votes = votes.unflatten(2, (self.capsules, self.dim)).permute(1, 2, 0, 3)  # (N, J, I, D)
        constant = votes.detach()
        logits = votes.new_zeros(self.capsules, 1, votes.shape[2])  # (J, 1, I), and (N, J, 1, I) later
        for _ in range(self.routing - 1):
            v = squash(torch.matmul(logits.softmax(dim=-3), constant))  # (N, J, 1, D)
            logits = logits + torch.matmul(v, constant.transpose(2, 3))
        return squash(torch.matmul(logits.softmax(dim=-3), votes)).squeeze(2)


class Decoder(nn.Module):
    """Draws the image from the class capsules, all but one of them zero: (N, J, D) -> (N, *image), within 0 .. 1."""

    def __init__(self, capsules: int, dim: int, image: tuple[int, ...], hidden: tuple[int, ...] = (512, 1024)) -> None:
        super().__init__()
        self.image = image
        layers: list[nn.Module] = []
        width = capsules * dim
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        self.layers = nn.Sequential(*layers, nn.Linear(width, math.prod(image)), nn.Sigmoid())

    def forward(self, capsules: Tensor) -> Tensor:
        image: Tensor = self.layers(capsules.flatten(1)).unflatten(1, self.image)
        return image


def margin_loss(lengths: Tensor, labels: Tensor, upper: float = 0.9, lower: float = 0.1, absent: float = 0.5) -> Tensor:
    """Mean over samples of sum_k T_k max(0, upper - |v_k|)^2 + absent (1 - T_k) max(0, |v_k| - lower)^2.

    lengths: (N, classes). labels: (N,), the class k with T_k = 1.
    """
    there: Tensor = nn.functional.one_hot(labels, lengths.shape[1]).to(lengths.dtype)
    missing = (upper - lengths).clamp(min=0).square()
    wrong = (lengths - lower).clamp(min=0).square()
    return (there * missing + absent * (1 - there) * wrong).sum(1).mean()


def capsule_loss(
    lengths: Tensor, labels: Tensor, images: Tensor, drawn: Tensor, reconstruction: float = 5e-4
) -> Tensor:
    """Margin loss plus `reconstruction` times the squared error of the drawn images, summed over pixels."""
    squared = (drawn - images).flatten(1).square().sum(1).mean()
    return margin_loss(lengths, labels) + reconstruction * squared
