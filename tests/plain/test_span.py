"""Spans: where one value enters and one leaves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.ir import ADDS, CATS, Program, is_call
from reparam.plain import around, outermost, position_of
from support.helpers import program_of


class Two(nn.Module):
    """Two residual blocks in a row; the first one's result is an output as well."""

    def __init__(self, *, seen: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        a, b, c, d = self.convs
        y = F.relu(b(F.relu(a(x))) + x)
        z = F.relu(d(F.relu(c(y))) + y)
        return (y, z) if self.seen else z


def merges(program: Program) -> list[fx.Node]:
    return [n for n in program.calls() if is_call(n, ADDS | CATS)]


def test_a_chain_of_blocks_is_cut_between_them() -> None:
    program = program_of(Two(seen=False), torch.randn(2, 4, 8, 8))
    spans = outermost(program)
    assert [len(s.nodes) for s in spans] == [4, 1, 4, 1]  # conv relu conv add, relu; twice
    assert all(s.exit is s.nodes[-1] for s in spans)
    assert spans[1].entry is spans[0].exit


def test_an_output_stays_alive_and_joins_what_follows() -> None:
    program = program_of(Two(seen=True), torch.randn(2, 4, 8, 8))
    spans = outermost(program)
    assert any(merges(program)[0] in s.nodes for s in spans)
    assert not any(merges(program)[1] in s.nodes for s in spans)


def test_around_finds_the_block_although_its_input_is_read_elsewhere() -> None:
    program = program_of(Two(seen=True), torch.randn(2, 4, 8, 8))
    second = merges(program)[1]
    span = around(second, position_of(program))
    assert span is not None
    assert span.exit is second
    assert [str(n.target) for n in span.nodes] == [
        "aten.conv2d.default",
        "aten.relu.default",
        "aten.conv2d.default",
        "aten.add.Tensor",
    ]
    assert [str(u.target) for u in span.entry.users if u.op == "output"] == ["output"]


def test_around_grows_until_nothing_inside_is_seen_from_outside() -> None:
    class Crossed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = torch.sigmoid(x)
            b = a + torch.tanh(x)
            return b * torch.exp(a)

    program = program_of(Crossed(), torch.randn(2, 4))
    (node,) = merges(program)
    span = around(node, position_of(program))
    assert span is not None
    assert str(span.exit.target) == "aten.mul.Tensor"
    assert len(span.nodes) == 5


def test_around_gives_up_on_two_inputs_and_on_what_is_too_long() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(x) + torch.relu(y)

    program = program_of(Sum(), torch.randn(2, 4), torch.randn(2, 4))
    assert around(merges(program)[0], position_of(program)) is None
    long = program_of(Two(seen=False), torch.randn(2, 4, 8, 8))
    assert around(merges(long)[0], position_of(long), limit=2) is None
