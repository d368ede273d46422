"""What is said about the target `plain`: the price of each block, the facts it rests on, and why merges are left."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from reparam.cli.render import render_conversion, render_explanation
from reparam.conversion import convert, explain
from reparam.ir import Program, is_float, spelled_out
from reparam.plain.block_report import shared_path
from reparam.report import Report
from support.helpers import Lambda, conv_bn, healthy


class Basic(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.one, self.two = conv_bn(c, c, 3, padding=1), conv_bn(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(F.relu(self.one(x))) + x)


class Bottleneck(nn.Module):
    def __init__(self, c: int, m: int) -> None:
        super().__init__()
        self.down, self.mid, self.up = conv_bn(c, m, 1), conv_bn(m, m, 3, padding=1), conv_bn(m, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.up(F.relu(self.mid(F.relu(self.down(x))))) + x)


class Excited(nn.Module):
    """x + SE(conv(x)): the sum goes, the gate stays."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        y = y * torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)))))
        return F.relu(x + y)


class ConvNorm(nn.Module):
    """ConvNeXt's block: a layer norm over the channels inside a residual block."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.spatial, self.norm = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.LayerNorm(c)
        self.one, self.two = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        return x + self.two(F.gelu(self.one(y))).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """A transformer block; `spelled` writes the attention with matmul and softmax."""

    def __init__(self, c: int, *, spelled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.q, self.k, self.v, self.out = (nn.Linear(c, c) for _ in range(4))
        self.one, self.two, self.spelled = nn.Linear(c, 2 * c), nn.Linear(2 * c, c), spelled

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = self.q(y), self.k(y), self.v(y)
        y = (q @ k.transpose(1, 2)).softmax(2) @ v if self.spelled else F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y)
        return x + self.two(F.gelu(self.one(self.norm2(x))))


def oddities() -> nn.Module:
    """Merges of many kinds, none of which a register can hold."""
    return Lambda(
        lambda m, x: (
            torch.where(m.a(x) > 0, x.sin(), m.b(x)) / (1.0 + torch.maximum(m.a(x), m.b(x)).square())
            + torch.lerp(m.a(x), x, 0.3) * m.b(x).atan2(x + 3.0)
        ),
        a=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 4, 3, padding=1),
    )


def left(program: Program) -> set[str]:
    """The merges and gates of a graph, each by its node's name."""
    inside = spelled_out(program)
    calls = [n for n in program.calls() if n not in inside]
    return {n.name for n in calls if sum(is_float(i) and bool(i.meta["data"]) for i in n.all_input_nodes) > 1}


def missed(report: Report) -> dict[str, Any]:
    return {r.node: r for r in report.remarks if r.rule == "carry-residual" and r.kind == "missed"}


NETWORKS = {
    "conv-norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), ConvNorm(4), ConvNorm(4)), (3, 8, 8)),
    "attention": (lambda: nn.Sequential(Attention(8, spelled=False), Attention(8, spelled=False)), (5, 8)),
    "attention-spelled": (lambda: nn.Sequential(Attention(8, spelled=True), nn.Linear(8, 3)), (5, 8)),
    "gate": (lambda: nn.Sequential(Excited(4), Basic(4), Excited(4)), (4, 8, 8)),
    "oddities": (oddities, (4, 7, 7)),
    "mixed": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Basic(4), ConvNorm(4), nn.ReLU(), Basic(4)),
        (3, 8, 8),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_merge_that_is_left_is_named_with_its_reason(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    conversion = convert(healthy(make()), torch.randn(2, *shape, dtype=torch.float64), to="plain")
    found = missed(conversion.report)
    nodes = {n.name: n for n in conversion.program.calls()}
    assert left(conversion.program) == set(found)
    assert found, "the example leaves some merge"
    for node, remark in found.items():
        assert remark.module == nodes[node].meta.get("module", "")
        assert len(remark.message) > 20


def test_the_layer_that_blocks_is_named() -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS["conv-norm"]
    report = explain(healthy(make()), torch.randn(2, *shape, dtype=torch.float64), to="plain")
    reasons = {r.module: r.message for r in missed(report).values()}
    assert set(reasons) == {"1", "2"}
    assert all(reasons[m].startswith(f"layer_norm at '{m}.norm' divides by statistics") for m in reasons)


def test_an_activation_that_blocks_is_named() -> None:
    torch.manual_seed(0)
    model = Lambda(lambda m, x: x + m.b(m.act(m.a(x))), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1), act=nn.Tanh())
    report = explain(model, torch.randn(2, 3, 4, 4), to="plain")
    (remark,) = missed(report).values()
    assert remark.message == "tanh at 'act' changes every value, so that nothing can be carried past it"


def test_a_max_pool_comes_with_its_hint() -> None:
    torch.manual_seed(0)
    model = Lambda(lambda m, x: m.a(F.relu(x)) + F.max_pool2d(F.relu(x), 2), a=nn.Conv2d(3, 3, 2, 2))
    report = explain(model, torch.randn(2, 3, 8, 8), to="plain")
    (remark,) = missed(report).values()
    assert remark.message.endswith("--max-pool relu spells it with ReLUs")
    assert explain(model, torch.randn(2, 3, 8, 8), to="plain", max_pool="relu").plain


def span_values() -> nn.Sequential:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    blocks = nn.Sequential(Basic(8), Basic(8), Bottleneck(8, 4))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1))


def test_blocks_add_up() -> None:
    torch.manual_seed(0)
    report = convert(healthy(span_values()).float(), torch.randn(2, 3, 8, 8), to="plain").report
    blocks = report.blocks
    assert [b["module"] for b in blocks] == ["1.0", "1.1", "1.2"]
    assert [b["layers"] for b in blocks] == [2, 2, 3]
    assert [b["groups"] for b in blocks] == [[1, 1], [1, 1], [1, 3, 1]]
    assert [b["carry"] for b in blocks] == ["dense", "dense", "grouped"]
    assert all(b["carried"] == ["unchanged"] for b in blocks)
    assert blocks[0]["macs_after"] == 2 * blocks[0]["macs_before"] == 2 * 2 * 8 * 8 * 8 * 8 * 9
    assert blocks[0]["params_before"] == 2 * (8 * 8 * 9 + 8)
    passed = [r for r in report.remarks if r.rule == "carry-residual" and r.kind == "passed"]
    for remark, block in zip(passed, blocks, strict=True):
        assert block["macs_after"] - block["macs_before"] == remark.macs
        assert block["params_after"] - block["params_before"] == remark.params
    grown = sum(b["macs_after"] - b["macs_before"] for b in blocks)
    assert grown == report.after.macs - report.before.macs
    assert json.loads(json.dumps(report.as_dict()))["blocks"] == blocks


def test_fused_has_no_blocks() -> None:
    assert explain(span_values(), torch.randn(2, 3, 8, 8)).as_dict()["blocks"] == []


def test_facts_say_what_is_carried_and_how() -> None:
    torch.manual_seed(0)
    signed = Lambda(lambda m, x: x + m.b(F.relu(m.a(x))), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
    model = nn.Sequential(signed, nn.ReLU6(), Basic(3))
    x = torch.randn(2, 3, 4, 4)

    def facts(**options: str) -> list[str]:
        remarks = explain(model, x, to="plain", **options).remarks
        return [r.message for r in remarks if r.rule == "carry-residual" and r.kind == "analysis"]

    first, second = facts()
    assert first == "the input ('input_1') lies in (-inf, inf); it is carried past activations by slopes"
    assert second == "the input (hardtanh at '0.b') lies in [0, 6]; it is carried past activations unchanged"
    assert facts(signed="relu")[0].endswith("it is carried past activations in pairs")


def text(parts: Any) -> str:
    console = Console(width=160, record=True, force_terminal=False)
    with console.capture() as shown:
        for part in parts:
            console.print(part)
    return shown.get()


def test_what_is_printed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*span_values()[:2], ConvNorm(8), ConvNorm(8))
    report = convert(healthy(model).float(), torch.randn(2, 3, 8, 8), to="plain").report.with_(outputs=("out.pt2",))
    row = report.as_dict()
    short = text(render_conversion(row, "", listed=[]))
    assert "chains: 3" in short
    assert "1.0, 1.1" in short, "blocks of one price share a line"
    assert "1-3-1" in short
    assert "merges and gates that stay: 2" in short
    assert "2, 3: layer_norm at '…' divides by statistics" in short
    long = text(render_explanation(row, "", listed=[], missed=[r for r in row["remarks"] if r["kind"] == "missed"]))
    assert "1.0, 1.1" not in long
    assert "lies in" not in short + long, "facts are shown when they are asked for"


def test_the_path_that_modules_share() -> None:
    assert shared_path(["layer1.0.conv1", "layer1.0", "layer1.0.bn2", ""]) == "layer1.0"
    assert shared_path(["layer1.0.conv1", "layer1.1"]) == "layer1"
    assert shared_path(["a.b", "c"]) == ""
    assert shared_path([]) == ""
