"""ZerO sets queries, keys and values alike, whether they are three layers or one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import init

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Packed(nn.Module):
    """One layer for queries, keys and values, which `split` takes apart."""

    def __init__(self, split: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.split, self.qkv, self.out = split, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.transpose(1, 2).flatten(2) if y.dim() == 4 else y
        z: Tensor = self.out(y)
        return z


class Torchs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y


SPLITS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "chunk": lambda y: y.chunk(3, -1),
    "split": lambda y: y.split(8, -1),
    "slices": lambda y: (y[..., :8], y[..., 8:16], y[..., 16:]),
    "unbind": lambda y: y.reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0),
    "movedim": lambda y: y.reshape(2, 5, 3, 2, 4).movedim(2, 0).swapaxes(2, 3).unbind(0),
    "select": lambda y: tuple(y.unflatten(-1, (3, 8))[:, :, i] for i in range(3)),
}


@pytest.mark.parametrize("name", [*SPLITS, "torch"])
def test_packed_layers_are_an_identity_for_each_part(name: str) -> None:
    net = Torchs() if name == "torch" else Packed(SPLITS[name])
    made = init(net, X, method="zero").module
    weight = next(p for n, p in made.named_parameters() if "qkv.weight" in n or "in_proj_weight" in n)
    assert torch.equal(weight, torch.eye(8).repeat(3, 1))


def by_heads(y: Tensor) -> tuple[Tensor, ...]:
    """Each head has its query, key and value side by side."""
    return y.view(2, 5, 2, 12).transpose(1, 2).chunk(3, -1)


@pytest.mark.parametrize("split", [by_heads, lambda y: y.unflatten(-1, (2, 3, 4)).permute(3, 0, 2, 1, 4).unbind(0)])
def test_parts_that_are_packed_head_by_head_are_identities_too(split: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
    made = init(Packed(split), X, method="zero").module
    weight: Tensor = made.qkv.weight  # type: ignore[union-attr, assignment]
    for part in weight.unflatten(0, (2, 3, 4)).unbind(1):
        assert torch.equal(part.flatten(0, 1), torch.eye(8))


def rotary(t: Tensor) -> Tensor:
    return t * 0.8 + torch.cat([-t[..., 4:], t[..., :4]], -1) * 0.6


def test_parts_that_are_also_read_in_halves_stay_parts() -> None:
    def turned(y: Tensor) -> tuple[Tensor, ...]:
        q, k, v = y.chunk(3, -1)
        return rotary(q), rotary(k), v

    made = init(Packed(turned), X, method="zero").module
    assert torch.equal(made.qkv.weight, torch.eye(8).repeat(3, 1))  # type: ignore[union-attr, arg-type]


def test_the_two_parts_of_a_gated_linear_unit() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.GLU(), nn.Linear(8, 8))
    assert torch.equal(init(net, X, method="zero").module[0].weight, torch.eye(8).repeat(2, 1))  # type: ignore[index]


def test_a_layer_that_is_read_whole_or_in_unequal_parts_is_one() -> None:
    def unequal(y: Tensor) -> tuple[Tensor, ...]:
        return y[..., :8], y[..., 4:12], y[..., 16:]

    for net in (Packed(unequal), nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8))):
        what = init(net, X, method="zero").weights[0].what
        assert what == "Hadamard matrix 24 x 8"


def test_a_weight_that_is_read_in_slices_is_left_with_that_reason() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.out = nn.Parameter(torch.randn(24, 8)), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (F.linear(x, self.weight[i : i + 8]) for i in (0, 8, 16))
            y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v))
            return y

    left = {w.name: w.why for w in init(Sliced(), X, method="zero").left}
    assert left["weight"] == "layers read it in parts, or turned, and the method sets whole weights"
