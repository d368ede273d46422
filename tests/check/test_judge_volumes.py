"""The judge convolves volumes in float64 as the interpreter does, and in their own dtype as torch does."""

from __future__ import annotations

import copy
from unittest.mock import patch

import torch
from torch import nn

from reparam.check import Judge
from reparam.ir import volumes
from support.helpers import program_of


def test_volumes_are_convolved_as_matrix_products() -> None:
    net, x = nn.Conv3d(2, 3, 3, padding=1), torch.randn(1, 2, 8, 9, 10)
    judge = Judge(net, program_of(net, x))
    with patch.object(volumes, "_slab", side_effect=volumes._slab) as used:
        [found] = judge.truth([x.double()])
        assert used.called and found.dtype == torch.float64
        used.reset_mock()
        judge.own_where_it_runs([x.double()])
        assert not used.called
    torch.testing.assert_close(found, copy.deepcopy(net).double()(x.double()), rtol=1e-12, atol=1e-12)
