"""Weights that several calls read: the scale that they get, and what is said of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import init
from reparam.initial import WITH_DATA
from support.choice import crossed
from support.initial_nets import second_moment

TOKENS, WIDTH = 100, 32


class Language(nn.Module):
    """One residual block between an embedding and a head that is tied to it."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, 128), nn.Linear(128, WIDTH)
        self.norm: nn.Module = nn.LayerNorm(WIDTH) if norm else nn.Identity()
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        y: Tensor = self.head(self.norm(x + self.down(F.gelu(self.up(x)))))
        return y


class Mirror(nn.Module):
    """A decoder that has the weight of its encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.encode(x).relu(), self.encode.weight.t())


class Again(nn.Module):
    """One layer, five times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = self.layer(x).relu()
        y: Tensor = self.layer(x)
        return y


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("method, norm", crossed(["lsuv", "autoinit", "point-variance"], [False, True]))
def test_a_head_that_is_tied_to_its_embedding_gives_variance_one(method: str, norm: bool) -> None:
    """Without rounds: 0.01 for lsuv, 1.97 for autoinit, 0.02 for point-variance, behind no norm."""
    tokens = torch.randint(0, TOKENS, (256, 16))
    data = {"data": [tokens]} if method in WITH_DATA else {}
    made = init(Language(norm=norm), tokens[:2], method=method, **data)
    module = made.module
    assert isinstance(module, Language) and module.head.weight is module.table.weight
    with torch.no_grad():
        power = second_moment(module(tokens))
    assert power == pytest.approx(1, rel=0.02 if method != "point-variance" else 0.1)
    (note,) = made.notes
    assert note.startswith("'table.weight' is one tensor, read by 'head' and 'table' (embedding)")
    assert f"the predicted power is 'table' {second_moment(module.table.weight):.3g}" in note
    if method == "autoinit":
        assert made.figures["measured_output_power"] == pytest.approx(1, rel=1e-3)


def test_moments_alone_know_the_new_table() -> None:
    made = init(Language(norm=False), torch.randint(0, TOKENS, (2, 16)), method="autoinit", samples=0)
    assert made.figures["predicted_output_power"] == pytest.approx(1, rel=2e-3)
    with torch.no_grad():
        power = second_moment(made.module(torch.randint(0, TOKENS, (64, 16))))
    assert power == pytest.approx(1, rel=0.3)  # of one draw; 1.97 with the table as it was


@pytest.mark.parametrize("method", ["he", "residual-scale", "normalised-act"])
def test_methods_that_measure_nothing_tell_what_is_predicted(method: str) -> None:
    made = init(Language(norm=False), torch.randint(0, TOKENS, (2, 16)), method=method)
    (note,) = made.notes
    assert "one scale serves them all, that of 'head'; the predicted power is 'head' 0.0" in note


def test_zero_leaves_the_table_of_an_embedding() -> None:
    """Were it zero as what gives an output, nothing would ever reach it, forwards or backwards."""
    net = Language(norm=False)
    made = init(net, torch.randint(0, TOKENS, (2, 16)), method="zero")
    assert torch.equal(made.module.get_parameter("table.weight"), net.table.weight)
    assert {w.name: w.why for w in made.left}["table.weight"].startswith("it is also the table of an embedding")


@pytest.mark.parametrize("method", ["he", "lsuv"])
def test_what_one_scale_cannot_serve_is_told_with_its_figures(method: str) -> None:
    x = torch.randn(512, WIDTH)
    data = {"data": [x]} if method in WITH_DATA else {}
    made = init(Mirror(), x[:2], method=method, **data)
    (note,) = made.notes
    figure = float(note.rpartition("'linear_1' ")[2])
    with torch.no_grad():
        assert second_moment(made.module(x)) == pytest.approx(figure, rel=0.3)
    (note,) = init(Again(), x[:2], method=method, **data).notes
    assert note.count("'layer'") == 11  # five readers, their scale, and what each gives
    assert float(note.rpartition("'layer' ")[2]) < 0.1  # a ReLU halves the power, and one scale serves all five


@pytest.mark.parametrize("options", [{}, {"samples": 0}])
def test_what_moments_leave_out_is_measured(options: dict[str, int]) -> None:
    made = init(Mirror(), torch.randn(2, WIDTH), method="autoinit", **options)
    figure = float(made.notes[-1].rpartition("'linear_1' ")[2])
    assert "the power on random inputs is" in made.notes[-1]
    with torch.no_grad():
        assert second_moment(made.module(torch.randn(4096, WIDTH))) == pytest.approx(figure, rel=0.1)


def test_weights_with_one_reader_are_not_spoken_of() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    assert init(net, torch.randn(2, 8), method="he").notes == ()
    assert init(net, torch.randn(2, 8), method="lsuv", data=[torch.randn(64, 8)]).notes == ()
