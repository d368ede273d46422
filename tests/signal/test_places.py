"""What calls are called in tables: a converted network in memory has no modules; its layers keep the user's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from reparam import InputError, analyze, convert, init
from reparam.loading import build_architecture
from reparam.models.transformer import Block


@pytest.mark.parametrize("to", ["fused", "plain"])
def test_layers_of_a_converted_network_have_the_names_of_its_model(to: str, tmp_path: Path) -> None:
    model, x = build_architecture("reparam/resnet_small").module.eval(), torch.randn(2, 3, 16, 16)
    made = convert(model, x, to=to)
    made.save(tmp_path / "net.pt2")
    exported = torch.export.load(tmp_path / "net.pt2")
    own = {name for name, _ in model.named_modules()}
    places = analyze(made.module, x, what="moments")["moments"].column("place")
    layers = [p for p in places if ":" not in p]
    assert {p.partition(":")[0] for p in places} == set(layers) <= own
    assert places[:4] == ["conv1", "conv1: relu", "layer1.0.conv1", "layer1.0.conv1: relu"]
    assert places[-1] == "fc"
    sums = [p for p in places if p.endswith(": add")]
    assert len(sums) == (4 if to == "fused" else 0)
    for given in (exported, tmp_path / "net.pt2"):  # which know their modules
        places = analyze(given, what="moments")["moments"].column("place")
        assert {p.partition(":")[0] for p in places} <= own
        assert places[:3] == ["conv1", "relu", "layer1.0.conv1"]
        assert [p for p in places if p in layers] == layers
        assert sum(p in own - set(layers) for p in places) == (5 if to == "fused" else 1)
    sensitive = analyze(made.module, x, what="sensitivity")["sensitivity"].column("place")
    assert sensitive == [p for p in layers]


def test_a_unit_has_the_name_that_tables_give_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 1, 3)).eval()
    for part in model[::2]:
        nn.init.ones_(part.weight)  # type: ignore[arg-type]
    x = torch.randn(2, 1, 9, 9)
    made = convert(model, x).module
    places = analyze(made, x, what="moments")["moments"].column("place")
    assert places == ["0", "0: relu", "2"]
    for unit in places:
        found = analyze(made, x, what="erf", unit=unit)["erf"]
        assert found.facts["reach"] == (5 if unit == "2" else 3)
    with pytest.raises(InputError, match="no value with places is made by a module '1'"):
        analyze(made, x, what="erf", unit="1")


def test_modules_with_several_layers_number_them() -> None:
    block, x = Block(8, 2, 16, 1.0, "none", "relu"), torch.randn(2, 4, 8)
    places = analyze(block, x, what="moments")["moments"].column("place")
    assert len(set(places)) == len(places) and "attention.q" in places
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    listed = analyze(net, torch.randn(2, 4, 8), what="sensitivity")["sensitivity"].column("place")
    assert listed[0] == "self_attn: linear 1" and listed[-1] == "linear2"


def test_the_sums_inside_of_an_activation_have_no_rows() -> None:
    """phi of `init --method gaussian` is a polynomial, whose ten sums are a part of it."""
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(8, 4)
    made = init(net, x, method="gaussian").module
    for what in ("moments", "gradients"):
        assert analyze(made, x, what=what)[what].column("call") == ["linear", "mul", "linear"]
