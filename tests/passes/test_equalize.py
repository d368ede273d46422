"""equalize: powers of two move between layers until the ranges of their channels are alike, and no bit changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.algebra import read_layer, weights
from reparam.engines import ExportOptions, export
from reparam.errors import InputError
from reparam.ir import evaluate
from reparam.passes import equalize_phases
from reparam.passes.equalize import Equalize, Plan, _Given, measure
from reparam.rewrite import Match
from support.helpers import Lambda, assert_evidence_bites, doubles, program_of, run_phases, run_rules

RULES = [Equalize()]


def uneven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Rows of very different sizes."""
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            rows = 10 ** (6 * torch.rand(m.weight.shape[0], generator=g) - 3)
            with torch.no_grad():
                m.weight.mul_(rows.reshape(-1, *[1] * (m.weight.dim() - 1)))
    return model.double().eval()


def outputs(program: Any, x: Tensor) -> Tensor:
    (y,) = evaluate(program, [x])
    return y


def spread(program: Any) -> list[float]:
    """Of each layer but the last, log2 of the largest row range over the smallest."""
    layers = [layer for n in program.calls() if (layer := read_layer(program, n)) is not None]
    ranges = [weights(program, layer)[0].abs().flatten(1).amax(1) for layer in layers[:-1]]
    return [float(torch.log2(r.max() / r.min())) for r in ranges]


def chain(depthwise: bool = False) -> nn.Module:
    middle = nn.Conv2d(6, 6, 3, padding=1, groups=6 if depthwise else 1)
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), middle, nn.LeakyReLU(0.1), nn.Conv2d(6, 4, 1, groups=2))
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize("depthwise", [False, True])
def test_ranges_become_alike_and_no_bit_changes(depthwise: bool) -> None:
    model = uneven(chain(depthwise))
    x = doubles(2, 3, 8, 8)
    done = run_phases(program_of(model, x), equalize_phases())
    assert done.outcome.rejected == 0
    assert torch.equal(outputs(done.program, x), outputs(done.original, x))
    assert all(after < before for before, after in zip(spread(done.original), spread(done.program), strict=True))
    again = run_phases(done.program, equalize_phases())
    assert not again.passed("equalize")


def test_before_and_after() -> None:
    """Rows 8 and 1/8 before columns of one: the factors are 2 and 1/2."""
    model = nn.Sequential(nn.Linear(1, 2, bias=True), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0], [0.125]]))
        model[0].bias.copy_(torch.tensor([4.0, 0.5]))
        model[2].weight.fill_(1.0)
    done = run_rules(program_of(model, doubles(2, 1)), *RULES)
    first, last = (weights(done.program, layer) for n in done.program.calls() if (layer := read_layer(done.program, n)))
    assert first[0].flatten().tolist() == [4.0, 0.25]
    assert first[1] is not None and first[1].tolist() == [2.0, 1.0]
    assert last[0].flatten().tolist() == [2.0, 0.5]


def test_with_data_the_results_of_channels_are_evened_out() -> None:
    """Rows 1 and 1, results 16 and 1/4 behind the ReLU, columns of one: the factors are 4 and 1/2."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.fill_(1.0)
    data = torch.tensor([[16.0, -100.0], [1.0, 0.25]], dtype=torch.float64)
    program = program_of(model, data)
    measured = measure(program, [[data[:1]], [data[1:]]])
    assert [v.tolist() for v in measured.values()] == [[16.0, 0.25], [16.0]]
    done = run_rules(program, Equalize(measured))
    first, last = (weights(done.program, layer) for n in done.program.calls() if (layer := read_layer(done.program, n)))
    assert first[0].tolist() == [[0.25, 0.0], [0.0, 2.0]]
    assert last[0].flatten().tolist() == [4.0, 0.5]
    assert torch.equal(outputs(done.program, data), outputs(done.original, data))


def test_a_layer_that_was_not_measured_stays() -> None:
    done = run_rules(program_of(uneven(chain()), doubles(2, 3, 8, 8)), Equalize({}))
    assert not done.passed("equalize") and not done.missed("equalize")


def test_flattened_maps_take_one_factor_for_each_channel() -> None:
    model = uneven(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)))
    x = doubles(2, 3, 6, 6)
    done = run_rules(program_of(model, x), *RULES)
    assert done.passed("equalize")
    assert torch.equal(outputs(done.program, x), outputs(done.original, x))
    assert spread(done.program)[0] < spread(done.original)[0]


def test_a_value_with_two_readers_goes_by_the_larger_one() -> None:
    model = Lambda(
        lambda m, x: (m.b(y := F.relu(m.a(x))), m.c(y)), a=nn.Linear(1, 1), b=nn.Linear(1, 1), c=nn.Linear(1, 1)
    ).double()
    with torch.no_grad():
        model.a.weight.fill_(64.0)
        model.b.weight.fill_(0.25)
        model.c.weight.fill_(4.0)
    done = run_rules(program_of(model, doubles(2, 1)), *RULES)
    layers = [
        weights(done.program, layer)[0].item() for n in done.program.calls() if (layer := read_layer(done.program, n))
    ]
    assert layers == [16.0, 1.0, 16.0]


@given(c=st.integers(1, 5), groups=st.booleans(), seed=st.integers(0, 9), act=st.sampled_from([nn.ReLU, nn.LeakyReLU]))
def test_property(c: int, groups: bool, seed: int, act: type[nn.Module]) -> None:
    middle = nn.Conv2d(c, c, 3, padding=1, groups=c if groups else 1)
    model = uneven(nn.Sequential(nn.Conv2d(2, c, 1), act(), middle, act(), nn.Conv2d(c, 3, 1)), seed)
    x = doubles(2, 2, 5, 5, seed=seed)
    done = run_rules(program_of(model, x), *RULES)
    assert done.outcome.rejected == 0
    assert torch.equal(outputs(done.program, x), outputs(done.original, x))


# ---- before int8 -----------------------------------------------------------------------------------------------------


def test_int8_keeps_more_digits_of_a_network_with_uneven_ranges(tmp_path: Path) -> None:
    model = uneven(chain()).float()
    samples = [[torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))]]
    sqnr = []
    for equalize in (False, True):
        options = ExportOptions(precision="int8", calibration=samples, equalize=equalize)
        done = export(model, torch.randn(2, 3, 8, 8), path=tmp_path / f"{equalize}.onnx", options=options)
        assert any(r.rule == "equalize" for r in done.report.remarks) == equalize
        assert done.check.sqnr is not None
        sqnr.append(done.check.sqnr)
    assert sqnr[1] > sqnr[0] + 3


def test_equalising_is_for_int8(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="equalising is for int8; fp16 gains nothing"):
        export(
            chain(),
            torch.randn(2, 3, 8, 8),
            path=tmp_path / "x.onnx",
            options=ExportOptions(precision="fp16", equalize=True),
        )


# ---- what is left alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.b(torch.sigmoid(m.a(x))), "sigmoid does not"),
        (lambda m, x: m.b(F.relu6(m.a(x))), "does not"),
        (lambda m, x: m.b(F.relu(m.a(x) + x)), "does not pass through a sum"),
        (lambda m, x: F.relu(m.a(x)), "output"),
    ],
    ids=["sigmoid", "relu6", "residual", "output"],
)
def test_refused_where_a_scale_does_not_pass(forward: Any, reason: str) -> None:
    model = uneven(Lambda(forward, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1)))
    done = run_rules(program_of(model, doubles(2, 4, 5, 5)), *RULES)
    assert not done.passed("equalize")
    assert any(reason in m for m in done.missed("equalize"))


def test_channels_without_weights_stay() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.0], [64.0, 1.0]]))
        model[2].weight[:, 1] = 0.0
    done = run_rules(program_of(model, doubles(2, 2)), *RULES)
    assert not done.passed("equalize") and not done.missed("equalize")


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(F.relu(F.conv2d(x, m.a.weight * x.mean()))),
        lambda m, x: m.b(F.relu(m.a(x[0]))),
        lambda m, x: m.a(x),
        lambda m, x: m.d(torch.cat([F.relu(m.a(x)), F.relu(x)], 1)),
        lambda m, x: torch.cat([m.piece(y) for y in F.relu(m.a(x)).chunk(2, 1)], 1),
        lambda m, x: m.rows(F.relu(m.a(x)).chunk(2, 1)[1].flatten(1)),
        lambda m, x: m.up(F.relu(m.a(x))),
        lambda m, x: m.along(F.relu(m.a(x)).transpose(2, 3)),
    ],
    ids=[
        "weights of data",
        "one sample",
        "the last layer",
        "a concatenation",
        "pieces",
        "a piece in one row",
        "before a transposed convolution",
        "read along another axis",
    ],
)
def test_silent_where_the_columns_are_not_known(forward: Any) -> None:
    layers = {"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 1), "d": nn.Conv2d(8, 4, 1), "along": nn.Linear(4, 4)}
    layers |= {"piece": nn.Conv2d(2, 4, 1), "rows": nn.Linear(32, 4), "up": nn.ConvTranspose2d(4, 4, 2)}
    model = uneven(Lambda(forward, **layers))
    with torch.no_grad():
        model.a.weight.mul_(torch.tensor([1.0, 64.0, 1 / 64, 4096.0]).reshape(4, 1, 1, 1))  # type: ignore[union-attr, operator]
    done = run_rules(program_of(model, doubles(2, 4, 4, 4)), *RULES)
    assert not any(r.node == "conv2d" for r in done.outcome.remarks)


# ---- what is written down --------------------------------------------------------------------------------------------


def three_rows() -> nn.Module:
    """Rows 8, 8 and 1 before columns of one: the factors are 2, 2 and 1."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0], [8.0], [1.0]]))
        model[2].weight.fill_(1.0)
    return model


def test_it_says_how_many_channels_were_scaled_and_by_how_much() -> None:
    done = run_rules(program_of(three_rows(), doubles(2, 1)), *RULES)
    assert done.passed("equalize") == ["2 of 3 channels scaled by powers of two from 1 to 2"]


def test_a_layer_has_twenty_turns() -> None:
    program = program_of(three_rows(), doubles(2, 1))
    first = next(n for n in program.calls())
    rule, match = Equalize(), Match(first, {})
    turns = 0
    plan = rule.check(program, match)
    assert isinstance(plan, Plan)
    for turns in range(1, 21):
        (note,) = rule.rewrite(program, plan).notes
        assert isinstance(note, _Given)
        (own,) = note.turns.values()
        assert own.count == turns and own.given.tolist() == [2.0**turns, 2.0**turns, 1.0]
        program.notes.put(note)
        assert (rule.check(program, match) is None) == (turns == 20)


def test_measured_are_convolutions_and_linear_layers_each_by_itself_where_several_read_it() -> None:
    model = Lambda(
        lambda m, x: (m.up(y := m.a(x)), m.b(F.relu(y))),
        a=nn.Conv2d(1, 1, 1, bias=False),
        up=nn.ConvTranspose2d(1, 1, 1),
        b=nn.Conv2d(1, 1, 1, bias=False),
    ).double()
    with torch.no_grad():
        model.a.weight.fill_(-2.0)
        model.b.weight.fill_(3.0)
    x = torch.tensor([1.0, -0.5], dtype=torch.float64).reshape(2, 1, 1, 1)
    measured = measure(program_of(model, x), [[x]])
    assert {name: v.tolist() for name, v in measured.items()} == {"a.weight": [2.0], "b.weight": [3.0]}


def test_it_is_measured_in_the_precision_of_the_network() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.1)
    x = torch.full((1, 1), 3.0)
    (found,) = measure(program_of(model, x), [[x]]).values()
    assert found.tolist() == [float(torch.tensor(0.1) * 3.0)] != [3.0 * float(torch.tensor(0.1))]


# ---- negative control ------------------------------------------------------------------------------------------------


def test_a_weight_that_is_off_by_a_millionth_is_noticed() -> None:
    model = chain().double().eval()
    with torch.no_grad():
        model[0].weight.mul_(64.0)  # type: ignore[index,operator,union-attr]
    assert_evidence_bites(program_of(model, doubles(2, 3, 8, 8)), Equalize())
