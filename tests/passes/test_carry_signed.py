"""Signed values past ReLUs as x = relu(x) - relu(-x): no PReLU is left, and the function is the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.errors import InputError
from reparam.ir import Program, aten, census, evaluate, is_chain
from reparam.passes import plain_phases
from support.choice import crossed
from support.helpers import EXACT, doubles, healthy, max_rel, run_phases
from support.helpers import program_of as captured


class PreActivation(nn.Module):
    """He et al. 2016b: x + conv(relu(bn(conv(relu(bn(x)))))), x of either sign."""

    def __init__(self, c: int, wide: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(c), nn.BatchNorm2d(wide)
        self.conv1, self.conv2 = nn.Conv2d(c, wide, 3, padding=1), nn.Conv2d(wide, c, 3, padding=1)
        self.act = act or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.act(self.norm1(x)))
        return x + self.conv2(self.act(self.norm2(y)))


class Inverted(nn.Module):
    """MobileNetV2's block with ReLU: a linear bottleneck, so that what is carried is signed."""

    def __init__(self, c: int, wide: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(c, wide, 1, bias=False), nn.Conv2d(wide, c, 1, bias=False)
        self.spatial = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(wide), nn.BatchNorm2d(wide), nn.BatchNorm2d(c)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.up(x)))
        y = F.relu(self.norms[1](self.spatial(y)))
        return x + self.norms[2](self.down(y))


class Strided(nn.Module):
    """A shortcut by a strided 3x3 layer: a signed linear value comes into being beside a ReLU, with a bias."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.side, self.one = nn.Conv2d(c, c, 3, 2, 1), nn.Conv2d(c, 5, 3, 2, 1)
        self.two, self.last = nn.Conv2d(5, c, 1), nn.Conv2d(c, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.relu(self.one(x)))
        return self.last(F.relu(self.side(x) * 2.0 - y))


def plain(model: nn.Module, *shape: int, **options: str) -> tuple[Program, Program]:
    """The original and the plain program."""
    found = run_phases(captured(model, doubles(*shape)), plain_phases(**options))
    return found.original, found.program


def preludes(program: Program) -> int:
    return sum(n.target is aten.prelu.default for n in program.calls())


def assert_without_prelu(model: nn.Module, *shape: int, **options: str) -> Program:
    original, program = plain(model, *shape, signed="relu", **options)
    assert preludes(program) == 0
    assert is_chain(program)
    assert max_rel(original, program, [doubles(*shape)]) <= EXACT
    assert max_rel(original, program, [3.0 * doubles(*shape, seed=1)]) <= EXACT
    return program


SIGNED_BLOCKS = (
    nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), PreActivation(4, 6), PreActivation(4, 4)),
    nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), Inverted(4, 8), Inverted(4, 8)),
    Strided(3),
)


@pytest.mark.parametrize("model, carry", crossed(SIGNED_BLOCKS, ["auto", "grouped", "dense"]))
def test_nothing_but_relus(model: nn.Module, carry: str) -> None:
    torch.manual_seed(0)
    model = healthy(model)
    assert_without_prelu(model, 2, 3, 9, 9, carry=carry)
    with_slopes = plain(model, 2, 3, 9, 9, carry=carry)[1]
    assert preludes(with_slopes) > 0, "by default the carried channels have slopes"


def test_an_elu_lets_no_signed_value_pass() -> None:
    """elu(x) - elu(-x) is not x."""
    torch.manual_seed(0)
    model = healthy(nn.Sequential(nn.Conv2d(3, 4, 1), PreActivation(4, 6, nn.ELU())))
    found = run_phases(captured(model, doubles(2, 3, 7, 7)), plain_phases(signed="relu"))
    assert census(found.program).merges == 1
    (reason,) = found.missed("carry-residual")
    assert "elu" in reason


def test_linear_layers_of_higher_rank() -> None:
    """PReLU has its slopes along axis 1; pairs need none."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.two(F.relu(self.one(x)))

    torch.manual_seed(0)
    model = Tokens().double()
    program = assert_without_prelu(model, 2, 5, 4)
    assert census(program).merges == 0
    assert census(plain(model, 2, 5, 4)[1]).merges == 1


def test_a_leaky_relu_keeps_its_slopes() -> None:
    torch.manual_seed(0)
    model = healthy(PreActivation(4, 6, nn.LeakyReLU(0.1)))
    original, program = plain(model, 2, 4, 7, 7, signed="relu")
    assert is_chain(program)
    assert preludes(program) > 0
    assert max_rel(original, program, [doubles(2, 4, 7, 7)]) <= EXACT


@given(
    c=st.integers(1, 5),
    wide=st.integers(1, 6),
    depth=st.integers(1, 3),
    inverted=st.lists(st.booleans(), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_pairs_are_exact(c: int, wide: int, depth: int, inverted: list[bool], seed: int) -> None:
    torch.manual_seed(seed)
    blocks = [Inverted(c, wide) if inverted[i] else PreActivation(c, wide) for i in range(depth)]
    assert_without_prelu(healthy(nn.Sequential(*blocks), seed), 2, c, 5, 6)


def test_a_perturbed_weight_is_seen() -> None:
    torch.manual_seed(0)
    model = healthy(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), PreActivation(4, 6)))
    x = doubles(2, 3, 8, 8)
    original, program = plain(model, 2, 3, 8, 8, signed="relu")
    before = evaluate(original, [x])[0]
    assert len(program.constants) > 4
    for name, constant in program.constants.items():
        kept = constant.value.clone()
        with torch.no_grad():
            constant.value.mul_(1.01)
        assert float((evaluate(program, [x])[0] - before).abs().max()) > 1e-6, name
        with torch.no_grad():
            constant.value.copy_(kept)


def test_the_choice_is_validated() -> None:
    with pytest.raises(InputError, match="unknown signed 'twice'; choose from prelu, relu"):
        convert(nn.Conv2d(1, 1, 1), torch.randn(1, 1, 4, 4), to="plain", signed="twice")


def test_the_whole_way() -> None:
    torch.manual_seed(0)
    model = healthy(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Inverted(4, 8), PreActivation(4, 6))).float()
    conversion = convert(model, torch.randn(2, 3, 8, 8), to="plain", signed="relu")
    assert conversion.report.plain
    assert preludes(conversion.program) == 0
