"""max(a, b) = a + relu(b - a): max-pools beside carried values, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.ir import MAX_POOLS, census, is_call, is_chain
from reparam.passes import plain_phases
from support.helpers import EXACT, Fused, healthy, max_rel, module_rel, program_of, run_phases


class Reduction(nn.Module):
    """Inception's reduction: a strided convolution beside a max-pool, concatenated; both keep to one window."""

    def __init__(self, kernel: int, stride: int, padding: int, *, act: bool = True, ceil: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 6, kernel, stride, padding)
        self.head = nn.Conv2d(10, 5, 1)
        self.window = (kernel, stride, padding)
        self.act, self.ceil = act, ceil

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x) if self.act else x
        y = F.relu(self.conv(x))
        return F.relu(self.head(torch.cat([y, F.max_pool2d(x, *self.window, ceil_mode=self.ceil)], 1)))


def plain(model: nn.Module, x: Tensor, max_pool: str = "relu", dynamic: tuple[str, ...] = ("batch",)) -> Fused:
    return run_phases(program_of(model, x, dynamic=dynamic), plain_phases(max_pool=max_pool))


@given(
    kernel=st.sampled_from([2, 3]),
    stride=st.sampled_from([1, 2, 3]),
    padded=st.booleans(),
    height=st.integers(6, 11),
    width=st.integers(6, 11),
)
def test_a_max_pool_beside_a_convolution_becomes_a_chain(
    kernel: int, stride: int, padded: bool, height: int, width: int
) -> None:
    model = healthy(Reduction(kernel, stride, 1 if padded and kernel == 3 else 0))
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    made = plain(model, x)
    assert is_chain(made.program)
    assert not any(is_call(n, MAX_POOLS) for n in made.program.graph.nodes)
    assert module_rel(model, made.program, (x,)) <= EXACT
    other = torch.randn(3, 3, height, width, dtype=torch.float64)
    assert max_rel(made.original, made.program, (other,)) <= EXACT


def test_it_takes_one_level_for_each_tap_but_the_first() -> None:
    model = healthy(Reduction(3, 2, 0))
    made = plain(model, torch.randn(2, 3, 9, 9, dtype=torch.float64))
    steps = census(made.program).convs - 2  # without stem and head
    assert 4 <= steps <= 5  # the last one with the strided convolution; a layer more can be cheaper


def test_by_default_the_pool_stays_and_says_why() -> None:
    model = healthy(Reduction(3, 2, 0))
    made = plain(model, torch.randn(2, 3, 9, 9, dtype=torch.float64), max_pool="keep")
    assert census(made.program).merges == 1
    (reason,) = made.missed("carry-residual")
    assert "max_pool2d takes the largest of several positions" in reason


def test_a_padded_pool_of_signed_values_is_refused() -> None:
    model = healthy(Reduction(3, 2, 1, act=False))
    made = plain(model, torch.randn(2, 3, 9, 9, dtype=torch.float64))
    assert any("a zero would win" in r for r in made.missed("carry-residual"))


def test_an_unpadded_pool_of_signed_values_is_exact() -> None:
    model = healthy(Reduction(3, 2, 0, act=False))
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    made = plain(model, x)
    assert is_chain(made.program)
    assert module_rel(model, made.program, (x,)) <= EXACT


def test_ceil_mode_is_exact_where_it_cuts_nothing_off_and_refused_elsewhere() -> None:
    model = healthy(Reduction(2, 2, 0, ceil=True))
    even = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    made = plain(model, even)
    assert is_chain(made.program)
    assert module_rel(model, made.program, (even,)) <= EXACT
    free = plain(model, even, dynamic=("batch", "height", "width"))
    assert any("ceil_mode" in r for r in free.missed("carry-residual"))


def test_a_dilated_pool_is_refused() -> None:
    class Dilated(Reduction):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            pooled = F.max_pool2d(x, 2, 1, 0, dilation=2)
            return F.relu(self.head(torch.cat([F.relu(self.conv(x)), pooled], 1)))

    made = plain(healthy(Dilated(3, 1, 0)), torch.randn(2, 3, 9, 9, dtype=torch.float64))
    assert any("without dilation" in r for r in made.missed("carry-residual"))


@pytest.mark.parametrize("channel", [0, 3])
def test_negative_control_a_changed_carried_weight_is_seen(channel: int) -> None:
    model = healthy(Reduction(3, 2, 0))
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    made = plain(model, x)
    weights = [n for n in made.program.graph.nodes if n.op == "get_attr" and n.meta["val"].dim() == 4]
    first_step = made.program.constants[str(weights[1].target)].value
    first_step[channel] += 0.5  # a dirac row of what is carried
    assert module_rel(model, made.program, (x,)) > 1e-3
