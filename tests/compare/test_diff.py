"""`diff`: the rows are both graphs, in order, and every difference is marked as what it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from reparam import conversion
from reparam.capture import from_exported
from reparam.compare import ProgramDiff, program_diff, read_calls
from reparam.compare.program_diff import Row, align, diff_programs
from reparam.emit import export_program
from reparam.engines import ListedCall
from reparam.errors import InputError
from reparam.ir import Program
from support.helpers import program_of


class Block(nn.Module):
    """Two convolutions with norms and a skip, then a classifier."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(depth))
        for norm in self.norms:
            nn.init.normal_(norm.bias)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)) + x)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def block(depth: int = 2) -> Program:
    torch.manual_seed(0)
    return program_of(Block(depth).eval(), torch.randn(2, 4, 8, 8))


def statuses(found: ProgramDiff) -> str:
    return "".join(program_diff._MARKS[r.status] for r in found.rows)


def test_a_program_is_the_same_as_itself() -> None:
    found = diff_programs(block(), block())
    assert set(statuses(found)) == {" "}
    assert found.text(120).plain == f"{'... 10 unchanged':^119}".rstrip() + "\n"
    assert len(found.text(120, full=True).plain.splitlines()) == 10
    assert found.counted().startswith("10 unchanged, 0 with other weights (w), 0 changed")


def test_any_two_models_side_by_side(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.randn(2, 3, 8, 8)
    made = reparam.convert(net, x)
    made.save(tmp_path / "net.pt2")
    for other in (made, made.module, made.program, tmp_path / "net.pt2", torch.export.load(tmp_path / "net.pt2")):
        found = reparam.diff(net, other, x)
        assert found.counts == {"same": 1, "weights": 1, "changed": 0, "removed": 1, "added": 0}, other
    assert reparam.diff(made, net, input_shapes=[(3, 8, 8)]).counts["added"] == 1
    assert reparam.diff(made, net).counts["added"] == 1  # the converted network tells what it takes
    assert repr(found) == "<ProgramDiff: 2 of 3 rows differ; same 1, weights 1, changed 0, removed 1, added 0>"
    assert found.to_dict()["counts"] == found.counts
    assert str(found).endswith(found.counted())
    assert "conv2d" in str(found)


class Kinds(nn.Module):
    """Layers and operators of the kinds that torch and ONNX write differently."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.wide = nn.Linear(8, 5)
        self.token = nn.Parameter(torch.randn(1, 1, 5))
        self.head = nn.Linear(85, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.avg_pool2d(self.conv(x).relu(), 2), 3, stride=2, padding=1)
        y = torch.cat((y, F.hardswish(y) * 2.5), 3)
        y = y * F.hardsigmoid(F.adaptive_avg_pool2d(y, 1))
        tokens = self.wide(self.norm(y.flatten(2).transpose(1, 2)))
        tokens = torch.cat((self.token.expand(x.shape[0], -1, -1), tokens[:, :16]), 1)
        last: Tensor = self.head(tokens.flatten(1)).clamp(0, 6).softmax(1)
        return last


def test_a_program_is_aligned_with_its_onnx_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Kinds().eval(), torch.randn(2, 3, 16, 16)
    reparam.convert(net, x).save(tmp_path / "net.pt2")
    reparam.export(net, x, path=tmp_path / "net.onnx")
    found = reparam.diff(tmp_path / "net.pt2", tmp_path / "net.onnx")
    other = [(r.status, r.left and r.left.op, r.right and r.right.op) for r in found.rows if r.status != "same"]
    assert other == [
        ("added", None, "reshape"),  # the simplifier makes rows of the tokens, for which ONNX has a layer with a bias
        ("changed", "linear(5x8, bias)", "linear(5x8, bias)"),
        ("added", None, "reshape"),
        ("changed", "slice(dim=1, start=0, end=16)", "slice(1)"),
    ]
    with torch.no_grad():
        net.conv.bias += 1
    reparam.convert(net, x).save(tmp_path / "other.pt2")
    assert reparam.diff(tmp_path / "other.pt2", tmp_path / "net.onnx").counts["weights"] == 1


def test_what_cannot_be_aligned(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a is "):
        reparam.diff(3, 4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="input's shape is not known"):
        reparam.diff(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(InputError, match="no file"):
        reparam.diff(tmp_path / "none.pt2", nn.Linear(2, 2))


def test_one_moved_weight_is_marked() -> None:
    """The negative control: structure alone would call these the same."""
    a, b = block(), block()
    constant = b.constants["convs.1.weight"].value
    with torch.no_grad():
        constant[0, 0, 0, 0] += 1e-7
    found = diff_programs(a, b)
    (row,) = [r for r in found.rows if r.status != "same"]
    assert row.status == "weights"
    assert row.left is not None
    assert row.left.module == "convs.1"


def test_a_conversion_side_by_side() -> None:
    torch.manual_seed(0)
    result = conversion.convert(Block().eval(), torch.randn(2, 4, 8, 8))
    found = diff_programs(result.original, result.program)
    text = found.text(160).plain
    assert found.counts == {"same": 4, "weights": 0, "changed": 2, "removed": 4, "added": 0}
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == (
        "convs.0 | conv2d(4x4x3x3, padding=1) | Nx4x8x8 ~ convs.0 | conv2d(4x4x3x3, bias, padding=1) | Nx4x8x8"
    )
    assert lines[1] == "norms.0 | batch_norm(4, eps=1e-05) | Nx4x8x8 -"
    assert lines[2] == ". | add | Nx4x8x8 -"
    assert lines[3] == ". | relu | Nx4x8x8 . | relu | Nx4x8x8"


def test_an_archive_that_forgot_its_modules_is_aligned_by_weight_names() -> None:
    torch.manual_seed(0)
    result = conversion.convert(Block(3).eval(), torch.randn(2, 4, 8, 8))
    exported = export_program(result.program)
    for node in exported.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    reloaded = from_exported(exported).program
    assert {n.meta["module"] for n in reloaded.calls()} == {""}
    assert diff_programs(result.original, reloaded).counts == diff_programs(result.original, result.program).counts
    assert set(statuses(diff_programs(result.program, reloaded))) == {" "}


def test_a_layer_more_is_found_between_the_others() -> None:
    found = diff_programs(block(1), block(2))
    assert found.counts["added"] == 4
    assert found.counts["removed"] == 0
    assert [r.right.module for r in found.rows if r.status == "added" and r.right and r.right.module] == [
        "convs.1",
        "norms.1",
    ]


def test_a_narrow_table_keeps_the_mark_and_the_end_of_the_module() -> None:
    call = ListedCall("stages.3.blocks.11.conv_dw", "conv2d(384x1x3x3, stride=2, padding=1, groups=384)", "Nx384x7x7")
    assert call.text(200).startswith("stages.3.blocks.11.conv_dw | conv2d(")
    short = call.text(70)
    assert short.startswith("..s.11.conv_dw | conv2d(")
    assert len(short) <= 70
    row = ProgramDiff((Row("changed", call, call),)).text(83).plain
    assert row[41] == "~"


def test_json_has_the_rows() -> None:
    found = diff_programs(block(1), block(2)).as_dict()
    assert found["rows"][0] == {
        "status": "same",
        "left": {"module": "convs.0", "op": "conv2d(4x4x3x3, padding=1)", "shape": "Nx4x8x8"},
        "right": {"module": "convs.0", "op": "conv2d(4x4x3x3, padding=1)", "shape": "Nx4x8x8"},
    }
    assert sum(found["counts"].values()) == len(found["rows"])


def test_defaults_that_are_spelled_out_are_no_difference() -> None:
    from torch.nn import functional

    class Spelled(nn.Module):
        def __init__(self, spelled: bool) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3, 1, 1))
            self.spelled = spelled

        def forward(self, x: Tensor) -> Tensor:
            if self.spelled:
                return functional.conv2d(x, self.weight, None, (1, 1), (0, 0), (1, 1), 1)
            return functional.conv2d(x, self.weight)

    x = torch.randn(2, 3, 4, 4)
    assert statuses(diff_programs(program_of(Spelled(True), x), program_of(Spelled(False), x))) == " "


def test_long_stretches_without_a_common_layer_are_not_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_diff, "ALIGNABLE", 3)
    calls = [ListedCall("", "relu", "N"), ListedCall("", "relu", "N")]
    assert [r.status for r in align(calls, calls)] == ["removed", "removed", "added", "added"]


CALLS = st.lists(
    st.builds(
        ListedCall,
        module=st.sampled_from(["a", "b", ""]),
        op=st.sampled_from(["relu", "add", "conv2d(3x3)", "conv2d(1x1)"]),
        shape=st.sampled_from(["N", "Nx2"]),
        anchor=st.sampled_from(["", "", "w1", "w2", "w3"]),
    ),
    max_size=12,
)


@given(CALLS, CALLS)
def test_the_rows_are_both_sequences_in_order(left: Sequence[ListedCall], right: Sequence[ListedCall]) -> None:
    rows = align(left, right)
    assert [r.left for r in rows if r.left is not None] == list(left)
    assert [r.right for r in rows if r.right is not None] == list(right)
    for row in rows:
        assert (row.left is None) == (row.status == "added")
        assert (row.right is None) == (row.status == "removed")
        if row.left is not None and row.right is not None:
            same = (row.left.op, row.left.shape) == (row.right.op, row.right.shape)
            assert row.status == ("same" if same else "changed")


def test_constant_computations_are_left_out() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.scale.exp() + 1)

    assert [c.op.partition("(")[0] for c in read_calls(program_of(Scaled(), torch.randn(2, 3)))] == ["mul"]
