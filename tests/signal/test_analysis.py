"""Analyses against theory and published figures, on networks that are made for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import InputError, analyze, convert, init
from reparam.loading import build_architecture
from reparam.models.proxy_norm_resnet import ProxyNorm
from reparam.models.scaled_resnet import ScaledResNet
from reparam.models.transformer import Attention
from reparam.models.transformer import Block as TransformerBlock
from reparam.signal import KINDS
from reparam.signal.pictures import draw_pictures


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def chain(count: int) -> nn.Sequential:
    """Convolutions of 3 x 3 whose weights are all equal."""
    layers = [nn.Conv2d(1, 1, 3, bias=False) for _ in range(count)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1 / 9)
    return nn.Sequential(*layers)


class Turned(nn.Module):
    """A linear layer over channels, which it brings to the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.movedim(1, -1))
        return y


class Tokens(nn.Module):
    """Sequences (N, T, 6): a linear layer, and a convolution over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Linear(6, 8), nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.first(x).relu().transpose(1, 2)).transpose(1, 2)
        return y


# ---- 4: erf ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "ratio"), [(5, 0.755), (10, 0.557), (20, 0.394), (40, 0.281)])
def test_the_effective_receptive_field_of_a_chain(count: int, ratio: float) -> None:
    side = 2 * count + 1
    facts = analyze(chain(count), torch.randn(2, 1, side, side), what="erf", batch=1)["erf"].facts
    assert facts["sigma"] == pytest.approx(math.sqrt(count * 8 / 12), rel=1e-6)
    assert facts["reach"] == side
    assert facts["side/reach"] == pytest.approx(ratio, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "side"), [("reparam/resnet_small", 32), pytest.param("torchvision/resnet50", 64, marks=pytest.mark.sweep)]
)
def test_conversion_leaves_the_field(name: str, side: int) -> None:
    model = build_architecture(name).module.eval()
    x = torch.randn(2, 3, side, side)
    plain = convert(model.double(), x.double(), to="plain").module
    unit = dict(what="erf", batch=2)
    before, after = (analyze(m, x.double(), **unit)["erf"] for m in (model, plain))
    a, b = (torch.tensor(t.maps["field"], dtype=torch.float64) for t in (before, after))
    assert float((a - b).abs().max() / a.abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("net", "shape", "reach", "middle"),
    [
        (nn.Sequential(*(nn.Conv1d(8, 8, 3, padding=1) for _ in range(3))), (8, 41), 7, 20.0),
        (nn.Sequential(nn.Conv1d(1, 1, 5, padding=2)), (1, 21), 5, 10.0),
        (nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), Turned(8)), (3, 21), 3, 10.0),
        (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Turned(8)), (3, 11, 21), 3, 10.0),
        (Tokens(), (21, 6), 3, 10.0),
        (
            nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Turned(8)),
            (3, 32, 32),
            4,
            17.5,
        ),  # the fifth of 8 patches
    ],
)
def test_the_field_lies_in_places_and_not_in_channels(
    net: nn.Module, shape: tuple[int, ...], reach: int, middle: float
) -> None:
    table = analyze(net, torch.randn(2, *shape), what="erf")["erf"]
    across = torch.tensor(table.maps["field"]).sum(0)
    assert table.facts["reach"] == reach and int((across > 0).sum()) == reach
    assert (across > 0).nonzero().flatten().double().mean() == middle


def test_the_unit_of_a_module_that_holds_others_is_their_last_value() -> None:
    stage = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()))
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), stage, nn.Conv2d(2, 1, 3)), torch.randn(2, 1, 15, 15)
    found = [analyze(model, x, what="erf", unit=unit)["erf"].rows[0] for unit in ("1", "1.1", "1.1.1")]
    assert [row[0] for row in found] == ["1.1.1"] * 3 and found[0] == found[1] == found[2]


def test_rank_compares_samples_of_a_sequence_by_their_channels() -> None:
    net, x = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3)), torch.randn(6, 3, 20)
    table = analyze(net, x, what="rank", data=[x], batch=6)["rank"]
    means = F.normalize(net(x).double().mean(2), dim=1)
    cosine = float(((means @ means.t()).sum() - 6) / 30)
    assert [r[1] for r in table.rows] == ["samples", "samples"]
    assert table.rows[-1][2] == pytest.approx(cosine, abs=1e-5)


def test_the_field_of_a_unit_that_is_named() -> None:
    model = nn.Sequential(*chain(3), nn.Flatten(), nn.Linear(25, 4))
    x = torch.randn(2, 1, 11, 11)
    assert analyze(model, x, what="erf", unit="1")["erf"].facts["reach"] == 5
    assert analyze(model, x, what="erf")["erf"].facts["reach"] == 7  # the last value with places
    with pytest.raises(InputError, match="no value with places is made by a module 'head'"):
        analyze(model, x, what="erf", unit="head")
    with pytest.raises(InputError, match="needs an input with places"):
        analyze(nn.Linear(4, 4), torch.randn(2, 4), what="erf")


# ---- 5: rank ---------------------------------------------------------------------------------------------------------


def uniform(depth: int, scale: float, dim: int = 128) -> nn.Sequential:
    """Blocks of uniform attention and a linear feed-forward, all orthogonal."""
    blocks = [TransformerBlock(dim, 1, dim, scale, "none", "relu") for _ in range(depth)]
    for block in blocks:
        block.act = lambda v: v
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(block.attention.q.weight)
    return nn.Sequential(*blocks)


@pytest.mark.parametrize(
    ("depth", "scale", "wanted", "seeds"),
    [
        (10, 1.0, 0.992, 1),
        pytest.param(10, 10**-0.5, 0.166, 4, marks=pytest.mark.sweep),
        pytest.param(50, 50**-0.5, 0.1745, 8, marks=pytest.mark.sweep),
    ],
)
def test_tokens_become_alike_as_theory_says(depth: int, scale: float, wanted: float, seeds: int) -> None:
    """Of n orthonormal tokens rho = (E - 1)/(n - 1 + E), E = (1 + scale^2)^L."""
    growth = (1 + scale**2) ** depth
    assert (growth - 1) / (7 + growth) == pytest.approx(wanted, abs=1e-3)
    tokens, found = torch.eye(8, 128).unsqueeze(0), []
    for seed in range(seeds):
        torch.manual_seed(seed)
        table = analyze(uniform(depth, scale), tokens, what="rank", data=[tokens.repeat(2, 1, 1)], batch=2)["rank"]
        found.append(table.facts["last cosine"])
    assert sum(found) / seeds == pytest.approx(wanted, rel=0.01 if scale == 1 else 0.25)
    effective = table.series["effective rank"]
    assert effective[0] > effective[-1] and effective[-1] < (2 if scale == 1 else 8)


def test_attention_alone_collapses_within_three_layers() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Attention(128, 1) for _ in range(3))
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_normal_(layer.weight)
                    nn.init.zeros_(layer.bias)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    table = analyze(Attend(), torch.randn(2, 8, 128), what="rank", batch=8)["rank"]
    outs = [row[2] for row in table.rows if row[0].endswith("out")]
    assert outs == [pytest.approx(0.624, abs=0.08), pytest.approx(0.994, abs=0.01), pytest.approx(1, abs=1e-3)]
    keys = [row["keys"] for row in table.detail["attention"]]
    assert len(keys) == 3 and keys[0] > 10 * keys[2] > 0  # where tokens are alike, nothing reaches queries and keys


def test_a_block_that_starts_at_a_split_has_its_tokens_looked_at() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            kept, moved = torch.split(self.first(x), [4, 4], -1)
            return kept + self.second(torch.relu(moved))

    rows = analyze(Halves(), torch.randn(2, 8), what="rank")["rank"].rows
    assert [row[0] for row in rows] == ["add"]


# ---- 12: norm --------------------------------------------------------------------------------------------------------


def proxied(proxy: bool | None) -> nn.Module:
    """Twenty random circular convolutions of 64 channels behind each other; None: with batch norms."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(64, 64, 3, 3) * math.sqrt(2 / 576) for _ in range(20))
            kind: Callable[[], nn.Module] = (
                (lambda: nn.BatchNorm2d(64)) if proxy is None else (lambda: ProxyNorm(64, proxy=bool(proxy)))
            )
            self.norms = nn.ModuleList(kind() for _ in range(20))

        def forward(self, x: Tensor) -> Tensor:
            for weight, norm in zip(self.weights, self.norms, strict=True):
                x = norm(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight))
                x = torch.relu(x) if proxy is None else x
            return x

    return Net()


@pytest.mark.parametrize(
    ("proxy", "wanted"),
    [
        pytest.param(False, (0.001, 0.639, 0.793, 0.905), marks=pytest.mark.sweep),
        pytest.param(True, (0.001,) * 4, marks=pytest.mark.sweep),
        (None, (0.0,) * 4),
    ],
)
def test_layer_norms_let_channel_means_grow(proxy: bool | None, wanted: tuple[float, ...]) -> None:
    shares = []
    for seed in (3, 4, 5) if proxy is False else (3,):  # single networks scatter by 0.05
        torch.manual_seed(seed)
        found = analyze(proxied(proxy), torch.randn(2, 64, 8, 8), what="norm", batch=32, training=True)["norm"]
        shares.append([found.rows[i - 1][2] for i in (1, 5, 10, 20)])
    means = [sum(column) / len(shares) for column in zip(*shares, strict=True)]
    assert means == [pytest.approx(w, abs=0.06 if proxy is False else 0.004) for w in wanted]


# ---- 14: gaussianity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "distance"), [(1, 0.257), (3, 0.111), (10, 0.036)])
def test_narrow_layers_of_relu_are_not_gaussian(width: int, distance: float) -> None:
    count = 40_000 // width
    read = nn.Conv1d(width * count, count, 1, groups=count, bias=False)
    nn.init.normal_(read.weight)
    first = nn.Conv1d(width * count, width * count, 1, groups=width * count, bias=False)
    nn.init.ones_(first.weight)
    net = nn.Sequential(first, nn.ReLU(), read, nn.ReLU())
    rows = analyze(net, torch.randn(2, width * count, 4), what="gaussianity", batch=4)["gaussianity"].rows
    assert rows[0][1] < 0.01
    assert rows[1][1] == pytest.approx(distance, rel=0.1)


# ---- 17: depth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.25, 0.5, 1.0])
def test_the_exponent_of_depth_is_found(beta: float) -> None:
    table = analyze(ScaledResNet(layers=30, beta=beta), torch.randn(2, 64), what="depth", batch=32)["depth"]
    assert table.facts["blocks"] == 30
    assert table.facts["beta"] == pytest.approx(beta, abs=0.05)


# ---- moments, gradients, dead, sensitivity ---------------------------------------------------------------------------


def test_predicted_moments_are_those_that_are_measured() -> None:
    net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 512))
    rows = analyze(net, torch.randn(2, 64), what="moments", batch=64)["moments"].rows
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    for row in rows:
        assert row[3] == pytest.approx(row[4], rel=0.2)
    shifted = analyze(net, torch.randn(2, 64), what="moments", batch=64, data=[torch.randn(64, 64) + 3])["moments"]
    assert shifted.rows[0][3] == pytest.approx(shifted.rows[0][4], rel=0.2)
    assert shifted.rows[0][3] > 5 * rows[0][3]


def test_gradients_shrink_by_half_with_each_relu_unless_weights_make_up_for_it() -> None:
    net = nn.Sequential(*(part for _ in range(10) for part in (nn.Linear(256, 256, bias=False), nn.ReLU())))
    for layer in net[::2]:
        nn.init.normal_(layer.weight, std=256**-0.5)  # type: ignore[arg-type]
    x = torch.randn(2, 256)
    found = analyze(net, x, what="gradients", batch=64)["gradients"]
    assert found.facts["gain through the whole"] == pytest.approx(2**-10, rel=0.5)
    he = init(net, x, method="he").module
    assert analyze(he, x, what="gradients", batch=64)["gradients"].facts["gain through the whole"] == pytest.approx(
        0.5, rel=0.6
    )


def test_units_that_do_nothing_are_listed() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.Sigmoid())
    with torch.no_grad():
        net[0].bias[1] = -100
        net[0].weight[3] = 0
        net[0].bias[3] = 2
        net[2].bias[2] = 20
    table = analyze(net, torch.randn(2, 8), what="dead", batch=64)["dead"]
    units = table.detail["units"]
    assert units["1"] == {"never fires": [1], "constant": [3], "saturated": []}
    assert units["3"]["saturated"] == [2] and table.facts["dead"] == 3
    assert "random" in table.notes[0]
    assert not analyze(net, torch.randn(2, 8), what="dead", data=torch.randn(16, 8))["dead"].notes


def test_sensitivity_is_what_rounding_one_layer_costs() -> None:
    net = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).double()
    x = torch.randn(256, 32, dtype=torch.float64)
    table = analyze(net, x[:2], what="sensitivity", data=x, batch=256)["sensitivity"]
    with torch.no_grad():
        truth = net(x)
        for row, at in zip(table.rows, (0, 2, 4), strict=True):
            layer = net[at]
            for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
                h = net[:at](x).to(dtype).double()
                y = F.linear(h, layer.weight.to(dtype).double(), layer.bias)
                error = (net[at + 1 :](y) - truth).square().sum()
                wanted = 10 * math.log10(float(truth.square().sum() / error))
                assert row[table.columns.index(name)] == pytest.approx(wanted, abs=1.5)
    assert all(row[1] > row[2] > row[3] for row in table.rows)


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "reparam/transformer_small",
        *(pytest.param(f"reparam/{n}_small", marks=pytest.mark.sweep) for n in ("resnet", "capsnet")),
    ],
)
def test_every_analysis_runs_or_says_what_it_needs(name: str) -> None:
    built = build_architecture(name)
    assert built.input_shapes is not None
    x = [torch.randn(2, *shape) for shape in built.input_shapes]
    before = {n: v.clone() for n, v in built.module.state_dict().items()}
    found = analyze(built.module.eval(), *x, what=list(KINDS), batch=3)
    assert {t.what for t in found.tables} | set(found.refused) == set(KINDS)
    assert all(len(why) > 20 for why in found.refused.values())
    assert len(found.tables) >= 6
    assert all(torch.equal(v, before[n]) for n, v in built.module.state_dict().items())
    pictures = dict(draw_pictures({"one": found.tables, "two": found.tables}))
    assert len(pictures) >= 6 and all(t.startswith("<svg") and t.endswith("</svg>\n") for t in pictures.values())
    assert set(found.as_dict()) == {t.what for t in found.tables} | {"refused", "notes"}


def test_all_stands_for_every_analysis() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
    for what in ("all", ["all"], " all ", "dead,all"):
        found = analyze(net, x, what=what)
        assert [*(t.what for t in found.tables), *found.refused] == [
            *("moments", "gradients", "rank", "gaussianity", "dead", "sensitivity"),
            *("erf", "depth", "norm"),
        ]


def test_what_cannot_be_analysed_is_one_sentence() -> None:
    net, x = nn.Linear(4, 4), torch.randn(2, 4)
    for words, options in (
        ("unknown analysis 'colour'", {"what": "colour"}),
        ("choose from|give names", {"what": ()}),
        ("batch is '0'", {"batch": 0}),
        ("unit is for the analysis erf", {"unit": "0"}),
        ("no residual block", {"what": "depth"}),
        ("no norm", {"what": "norm"}),
        ("no activation", {"what": "dead"}),
        ("where the input", {"data": [torch.randn(2, 5)]}),
    ):
        with pytest.raises(InputError, match=words):
            analyze(net, x, **options)
    norm = nn.Sequential(net, nn.BatchNorm1d(4))
    with pytest.raises(InputError, match="'1' takes statistics of one value in each channel; give a larger batch"):
        analyze(norm, x, what="moments", batch=1, training=True)
    empty = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4))
    with pytest.raises(InputError, match=r"the weight of '0' is of shape \[0, 4\], with no number in it"):
        analyze(empty, x, what="all")
    with pytest.raises(InputError, match="the weight of '0' is of shape"):
        init(empty, x, method="he")
    assert "no layer" in analyze(nn.Tanh(), x, what="moments,gradients,dead").refused["moments"]
    with torch.no_grad():
        net.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="weight 'weight' holds NaN"):
        analyze(net, x, what="dead")
