"""dense-beside-conv: a convolution beside a dense layer over one patch becomes part of it, when that is cheaper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.ir import census
from support.helpers import doubles, fuse_exactly, healthy


class Patch(nn.Module):
    """A dense layer over all positions of a map beside convolutions, as in RepMLP."""

    def __init__(self, sets: int, size: int, spelled: str, norm: bool = True) -> None:
        super().__init__()
        self.sets, self.size, self.spelled = sets, size, spelled
        width = sets * size * size
        self.dense = nn.Conv2d(width, width, 1, groups=sets)
        self.conv, self.wide = (nn.Conv2d(sets, sets, k, padding=k // 2, groups=sets) for k in (1, 3))
        self.a, self.b = (nn.BatchNorm2d(sets) if norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        if self.spelled == "linear":
            flat = F.linear(x.flatten(1), self.dense.weight[:, :, 0, 0], self.dense.bias)
        else:
            flat = self.dense(x.reshape(n, -1, 1, 1))
        return torch.tanh(
            flat.reshape(n, self.sets, self.size, self.size) + self.a(self.conv(x)) + self.b(self.wide(x))
        )


@pytest.mark.parametrize(("sets", "spelled"), [(1, "linear"), (1, "conv"), (3, "conv")])
def test_layers_over_one_patch_become_one(sets: int, spelled: str) -> None:
    done = fuse_exactly(healthy(Patch(sets, 4, spelled)), doubles(2, sets, 4, 4), bound=1e-13)
    after = census(done.program)
    assert (after.merges, after.norms) == (0, 0)
    assert after.macs == sets * 16 * 16  # those of the dense layer, with its groups
    assert len(done.passed("dense-beside-conv")) >= 1


def test_dearer_stays() -> None:
    """A grouped dense layer beside a convolution that mixes the sets would lose its groups."""

    class Mixed(Patch):
        def __init__(self) -> None:
            super().__init__(4, 4, "conv")
            self.wide = nn.Conv2d(4, 4, 3, padding=1)

    done = fuse_exactly(healthy(Mixed()), doubles(2, 4, 4, 4), bound=1e-13)
    assert census(done.program).merges == 1


def test_sizes_that_are_free_are_left_alone() -> None:
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).sin() + self.b(x.movedim(1, 3)).movedim(3, 1)

    done = fuse_exactly(healthy(Free()), doubles(2, 3, 5, 5), bound=1e-13, dynamic=("batch", "height", "width"))
    assert not done.passed("dense-beside-conv")
