"""Whether calls take some shapes is told without computing values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reparam.ir import takes_shapes
from support.helpers import Lambda, doubles, program_of


class Halved(nn.Module):
    """Halves an image and doubles it again, beside the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 4, 3, 2, 1), nn.ConvTranspose2d(4, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.up(self.down(x))], 1)


@pytest.mark.parametrize("size, fits", [((8, 8), True), ((6, 10), True), ((7, 8), False), ((8, 9), False)])
def test_a_decoder_that_meets_its_skip_at_even_sizes(size: tuple[int, int], fits: bool) -> None:
    program = program_of(Halved().double(), doubles(2, 2, 8, 8), dynamic=("batch",))
    assert takes_shapes(program, [doubles(3, 2, *size)]) is fits


def test_weights_are_not_read_and_inputs_stay_where_they_are() -> None:
    program = program_of(nn.Linear(4, 3).double(), doubles(2, 4))
    x = doubles(2, 4)
    for name, constant in program.constants.items():
        program.constants[name] = type(constant)(**{**vars(constant), "value": constant.value.to("meta")})
    assert takes_shapes(program, [x]) and x.device.type == "cpu"
    assert not takes_shapes(program, [doubles(2, 5)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_single_precision_meet_inputs_of_any(dtype: torch.dtype) -> None:
    """The sizes are those of a run in float64."""
    net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(32, 3), nn.LayerNorm(3)).eval()
    program = program_of(net, torch.zeros(2, 1, 4, 4, 4), dynamic=("batch",))
    assert takes_shapes(program, [torch.zeros(5, 1, 4, 4, 4, dtype=dtype)])
    assert not takes_shapes(program, [torch.zeros(5, 1, 5, 4, 4, dtype=dtype)])


def test_what_depends_on_values_is_not_told() -> None:
    program = program_of(Lambda(lambda m, x: x[x > 0].sum()), doubles(2, 4), dynamic=())
    assert not takes_shapes(program, [doubles(2, 4)])
