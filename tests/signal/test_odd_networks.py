"""Analyses of networks that few people have: a figure, or one sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam import InputError, analyze
from reparam.loading import build_architecture
from reparam.signal import KINDS
from support.of import Of
from support.tables import check_finite


def recurrent(lstm: nn.LSTM, head: nn.Linear, x: Tensor) -> Tensor:
    y: Tensor = head(lstm(x)[0][:, -1])
    return y


NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "volumes": (nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU()), (2, 4, 6, 6)),
    "no layer": (Of(lambda x: x.relu() * 2), (8,)),
    "nothing": (nn.Sequential(), (8,)),
    "recurrent": (Of(recurrent, nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)), (5, 6)),
    "one number": (Of(lambda layer, x: layer(x).mean(), nn.Linear(8, 4)), (8,)),
    "a number for each": (Of(lambda layer, x: layer(x).sum(1), nn.Linear(8, 4)), (8,)),
    "complex": (Of(lambda layer, x: torch.fft.fft(layer(x)).abs(), nn.Linear(8, 4)), (8,)),
    "a mapping": (Of(lambda layer, x: {"z": layer(x).relu(), "best": layer(x).argmax(1)}, nn.Linear(8, 4)), (8,)),
    "a gate": (Of(lambda layer, x: x + torch.tanh(layer(x)) * torch.sigmoid(layer(x)), nn.Linear(8, 8)), (8,)),
    "half": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).half(), (3, 8, 8)),
    "not defined": (Of(lambda a, b, x: b(torch.log(a(x))), nn.Linear(8, 4), nn.Linear(4, 2)), (8,)),
}


@pytest.mark.parametrize("name", NETS)
def test_every_analysis_gives_figures_or_one_sentence(name: str) -> None:
    net, shape = NETS[name]
    x = torch.randn(2, *shape, dtype=torch.float16 if name == "half" else torch.float32)
    found = analyze(net.eval(), x, what="all")
    assert {t.what for t in found.tables} | set(found.refused) == set(KINDS)
    for table in found.tables:
        assert table.rows
        check_finite(table)


def test_what_is_missing_is_told() -> None:
    assert "no layer, activation or sum" in analyze(nn.Sequential(), torch.randn(2, 8), what="all").refused["gradients"]
    block = Of(lambda layer, x: x + layer(x.relu()), nn.Linear(8, 8))
    table = analyze(block, torch.randn(2, 8), what="depth")["depth"]
    assert table.facts == {"blocks": 1, "beta": None}
    assert table.notes == ("an exponent of depth takes two blocks, and there is one",)
    with pytest.raises(InputError, match=r"what 'parts.1' gives on these inputs is not finite"):
        analyze(NETS["not defined"][0], torch.randn(2, 8), what="moments")


def test_sensitivity_names_weights_that_it_does_not_look_at() -> None:
    net, shape = NETS["recurrent"]
    (note,) = analyze(net, torch.randn(2, *shape), what="sensitivity")["sensitivity"].notes
    assert note.endswith("are not looked at: 'parts.0' (lstm)")
    plain = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.PReLU(8))
    assert analyze(plain, torch.randn(2, 8), what="sensitivity")["sensitivity"].notes == ()


def test_channels_of_inputs_lie_where_the_first_layer_reads_them() -> None:
    """Behind a ReLU the layout is the same, of predicted moments and of the field."""
    torch.manual_seed(0)
    rows = nn.Sequential(nn.ReLU(), nn.Conv1d(64, 256, 3, padding=1, bias=False))
    last = Of(lambda layer, x: layer(x.relu()), nn.Linear(64, 256, bias=False))
    for net, shape in ((rows, (64, 32)), (last, (32, 64))):
        x = torch.randn(16, *shape) + torch.randn(64).reshape(-1, *([1] if net is rows else []))
        table = analyze(net, x[:2], what="moments", data=x, batch=16)["moments"]
        row = dict(zip(table.columns, table.rows[-1], strict=True))
        assert row["predicted in channel means"] == pytest.approx(row["in channel means"], abs=0.05)
        assert row["in channel means"] > 0.3
        reach = analyze(net, x[:2], what="erf")["erf"].facts["reach"]
        assert reach == (3 if net is rows else 1)


def shuffled(t: Tensor) -> Tensor:
    n, c, h, w = t.shape
    return t.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def windowed(t: Tensor) -> Tensor:
    n, c, h, w = t.shape
    return t.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)


def headed(t: Tensor) -> Tensor:
    """Tokens whose channels were split among heads and joined again."""
    n, c, h, w = t.shape
    return t.flatten(2).transpose(1, 2).unflatten(2, (2, c // 2)).transpose(1, 2).transpose(1, 2).reshape(n, h * w, c)


def split_anew(t: Tensor) -> Tensor:
    """12 channels, shuffled as 3 x 4, whose factors 4 x 3 are split into 3 x 4 again."""
    n, c, h, w = t.shape
    return t.view(n, 3, 4, h, w).transpose(1, 2).reshape(n, c, h, w).view(n, 3, 4, h, w)


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "a shuffle": shuffled,
    "torch's shuffle": lambda t: nn.functional.channel_shuffle(t, 2),
    "two shuffles": lambda t: shuffled(shuffled(t)),
    "movedim": lambda t: t.movedim(1, 3),
    "movedim of several": lambda t: t.movedim((2, 3), (0, 1)).movedim((0, 1), (2, 3)),
    "swapaxes": lambda t: t.swapaxes(1, 3),
    "there and back": lambda t: (t.movedim(1, -1) * 2).movedim(-1, 1),
    "windows": windowed,
    "heads": headed,
    "halves of the last axis": lambda t: torch.cat(t.permute(0, 2, 3, 1).chunk(2, 3)[::-1], 3),
    "pixels": lambda t: nn.functional.pixel_unshuffle(nn.functional.pixel_shuffle(t, 2), 2),
    "a shuffle of other groups": lambda t: split_anew(torch.cat([t, t[:, :4]], 1))[:, :2].flatten(1, 2),
    "one of two groups": lambda t: torch.cat([t, t], 1).view(-1, 2, *t.shape[1:])[:, 1],
    "picked one by one": lambda t: torch.cat([part.unsqueeze(1) for part in t.unbind(1)], 1),
    "a mask": lambda t: (t[:, :1] * 0 + 1) * t,
    "all but one column": lambda t: t.swapaxes(1, 3)[:, 1:],
    "the mean of the rows": lambda t: t.permute(0, 3, 2, 1).mean(2),
}


@pytest.mark.parametrize("name", MOVES)
def test_units_are_channels_wherever_they_are_moved(name: str) -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    with torch.no_grad():
        conv.bias[2] = -100.0  # type: ignore[index]
    net = Of(lambda layer, x: MOVES[name](layer(x)).relu(), conv)
    assert analyze(net, torch.randn(2, 3, 16, 16), what="dead")["dead"].facts == {"units": 8, "dead": 1}


@pytest.mark.parametrize(
    "name", [n for n in MOVES if n not in ("windows", "all but one column", "the mean of the rows")]
)
def test_fields_lie_in_places_wherever_channels_are_moved(name: str) -> None:
    net = Of(lambda layer, x: MOVES[name](layer(x)), nn.Conv2d(3, 8, 3, padding=1))
    facts = analyze(net, torch.randn(2, 3, 16, 16), what="erf")["erf"].facts
    assert (facts["reach"], facts["field"]) == (3, 3)


def test_the_field_of_a_network_with_shuffles_is_what_its_gradient_reaches() -> None:
    model = build_architecture("torchvision/shufflenet_v2_x0_5").module.eval()
    facts = analyze(model, torch.randn(2, 3, 64, 64), what="erf", unit="stage2.0")["erf"].facts
    assert (facts["field"], facts["reach"]) == (15, 15)


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t[:, 5].unsqueeze(1),
        lambda t: t.unbind(1)[5].unsqueeze(-1),
        lambda t: t.mean(1).unsqueeze(1).flatten(2),
        lambda t: t.view(-1, 8, 1, *t.shape[2:])[:, 5],
    ],
)
def test_a_channel_that_is_left_alone_is_no_row_of_places(function: Callable[[Tensor], Tensor]) -> None:
    net = Of(lambda layer, x: function(layer(x)), nn.Conv2d(3, 8, 3, padding=1))
    facts = analyze(net, torch.randn(2, 3, 16, 16), what="erf")["erf"].facts
    assert (facts["reach"], facts["field"]) == (3, 3)
    counted = analyze(nn.Sequential(net, nn.ReLU()), torch.randn(2, 3, 16, 16), what="dead")["dead"].facts
    assert counted == {"units": 1, "dead": 0}


@pytest.mark.parametrize(
    ("function", "scale", "least", "most"),
    [
        (torch.exp, 1, 0, 0),
        (torch.sinh, 1, 0, 0),
        (lambda x: x**4, 1, 0, 0),
        (torch.tanh, 1, 0, 0),
        (lambda x: torch.tanh(x / 100), 1e4, 8, 32),
        (torch.tanh, 1e3, 8, 32),
    ],
)
def test_a_unit_is_saturated_where_its_function_is_flat_for_the_values_that_there_are(
    function: Callable[[Tensor], Tensor], scale: float, least: int, most: int
) -> None:
    net = Of(lambda a, b, x: b(function(a(x))), nn.Linear(16, 32), nn.Linear(32, 4))
    with torch.no_grad():
        for value in net.parts[0].parameters():
            value.mul_(scale)
    ((_, units, silent, constant, saturated),) = analyze(net, torch.randn(256, 16), what="dead", batch=16)["dead"].rows
    assert (units, silent, constant) == (32, 0, 0) and least <= int(saturated) <= most
