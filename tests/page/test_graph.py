"""What a page knows of graphs: their calls, which of them belong together, and what their modules hold."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import reparam
from reparam.compare import diff_calls, read_calls
from reparam.engines import ListedCall
from reparam.ir import census
from reparam.page.conversions import stage_rows
from reparam.page.graph import Call, Graph, prefixes, read_listed, read_program
from reparam.page.links import links_of_diff, links_of_remarks, listed_names
from reparam.page.stages import figures, stages_of, tree_of
from reparam.report import Remark
from support.helpers import program_of
from support.pages import chain, conversion


def named(graph: Graph, op: str, module: str) -> Call:
    return next(c for c in graph.calls if c.op == op and c.module == module)


# ---- calls -------------------------------------------------------------------------------------------------------


def test_a_program_is_read_with_all_that_is_shown() -> None:
    graph = read_program(conversion().original)
    conv = named(graph, "conv2d", "stage.0.conv1")
    assert (conv.shape, conv.dtype, conv.settings, conv.kind) == ("Nx4x8x8", "float32", "padding=1", "layer")
    weight, bias = conv.weights
    value = conversion().original.constants["stage.0.conv1.weight"].value.detach()
    assert (weight.name, weight.shape, weight.dtype) == ("stage.0.conv1.weight", "4x4x3x3", "float32")
    assert (weight.low, weight.high) == (float(value.min()), float(value.max())) and bias.shape == "4"
    assert (conv.macs, conv.params) == (8 * 8 * 4 * 4 * 9, 4 * 4 * 9 + 4)
    first, last = graph.calls[0], graph.calls[-1]
    assert (first.kind, first.op, last.kind, last.reads) == ("input", "x", "output", (graph.calls[-2].name,))
    kinds = [c.kind for c in graph.calls]
    assert kinds.count("merge") == 2 and kinds.count("norm") == 5


def test_the_sums_are_those_of_the_report() -> None:
    for program in (conversion().original, conversion().program):
        counts, found = census(program), figures(list(read_program(program).calls))
        assert (found.calls, found.merges, found.gates) == (counts.nodes, counts.merges, counts.gates)
        assert (found.macs, found.params) == (counts.macs, counts.params)


def test_a_tied_weight_counts_once_and_a_gate_is_a_gate() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * torch.sigmoid(self.conv(x.mean((2, 3), keepdim=True)))

    graph = read_program(program_of(Gated().eval(), torch.randn(2, 3, 5, 5)))
    assert [c.params for c in graph.calls if c.op == "conv2d"] == [12, 0]
    assert [c.kind for c in graph.calls if c.op == "mul"] == ["gate"]


def test_values_of_several_tensors_and_integers_are_shown() -> None:
    class Parts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, 1)
            return a + b.argmax(1, keepdim=True)

    graph = read_program(program_of(Parts().eval(), torch.randn(2, 4, 5, 5)))
    assert any("int64" in c.dtype for c in graph.calls)
    assert all(c.shape for c in graph.calls if c.kind != "output")


def test_the_calls_of_a_list_are_joined_by_the_values_that_they_read() -> None:
    weight = torch.tensor([[[[2.0]]]])
    graph = read_listed(
        [
            ListedCall("a", "conv2d(1x1x1x1, bias, padding=1)", "Nx1x4x4", "conv2d a.w", (weight,), ("p",), ("x",)),
            ListedCall("b", "relu", "Nx1x4x4", "", (), ("q",), ("p",)),
            ListedCall("", "add", "Nx1x4x4", "", (), ("r",), ("q", "x")),
        ]
    )
    assert [c.op for c in graph.calls] == ["x", "conv2d", "relu", "add"]
    assert graph.edges == [(0, 1), (1, 2), (2, 3), (0, 3)]
    assert graph.calls[1].settings == "bias, padding=1" and graph.calls[3].kind == "merge"
    assert graph.calls[1].weights[0].high == 2.0 and not graph.costs


def test_a_module_path_is_no_deeper_than_can_be_drawn() -> None:
    assert prefixes("a.b.c") == ["a", "a.b", "a.b.c"] and prefixes("") == []
    assert len(prefixes(".".join("x" * 5000))) == 24


# ---- links -------------------------------------------------------------------------------------------------------


def test_a_region_is_what_rewrites_made_of_what() -> None:
    found = conversion()
    before, after = read_program(found.original), read_program(found.program)
    links = links_of_remarks(before, after, found.report.remarks)
    conv, norm = named(before, "conv2d", "stage.0.conv1"), named(before, "batch_norm", "stage.0.norm1")
    made = named(after, "conv2d", "stage.0.conv1")
    region = links.before[conv.name]
    assert links.before[norm.name] == links.after[made.name] == region < links.regions
    assert [links.status_before[conv.name], links.status_after[made.name]] == ["gone", "new"]
    other = named(after, "conv2d", "stage.1.conv1")
    assert links.after[other.name] != region
    twin = named(before, "tanh", "tanh")
    assert links.before[twin.name] == links.after[twin.name] >= links.regions
    assert links.status_before[twin.name] == "same"
    passed = [r for r, remark in zip(links.remarks, found.report.remarks, strict=True) if remark.kind == "passed"]
    assert region in passed and None not in passed


def test_what_rewrites_one_after_the_other_touch_is_one_region() -> None:
    graphs = (Graph((Call("a", "a", "", "", "", "", "other"), Call("b", "b", "", "", "", "", "other"))),
              Graph((Call("d", "d", "", "", "", "", "other"),)))  # fmt: skip
    remarks = [
        Remark("passed", "one", "", "a", "", 0.0, links=((("a",), ("c",)),)),
        Remark("passed", "two", "", "b", "", 0.0, links=((("b", "c"), ("d",)),)),
        Remark("missed", "three", "", "d", ""),
    ]
    links = links_of_remarks(*graphs, remarks)
    assert (links.before, links.after, links.regions) == ({"a": 0, "b": 0}, {"d": 0}, 1)
    assert links.remarks == (0, 0, None)


def test_a_rewrite_of_the_whole_network_is_linked_call_by_call() -> None:
    conv = nn.Conv2d(3, 6, 3)
    with torch.no_grad():
        conv.weight[::2], conv.bias[::2] = 0, 0
    net = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Tanh()).eval()
    found = reparam.convert(net, torch.randn(2, 3, 6, 6))
    remark = next(r for r in found.report.remarks if r.rule == "shrink" and r.kind == "passed")
    assert len(remark.links) >= 3 and all(len(old) == 1 for old, _ in remark.links)
    links = links_of_remarks(read_program(found.original), read_program(found.program), found.report.remarks)
    assert len(set(links.before.values())) > 3


def test_a_diff_is_linked_row_by_row() -> None:
    found = conversion()
    left, right = read_calls(found.original), read_calls(found.program)
    names = [[c.results[0] for c in side] for side in (left, right)]
    links = links_of_diff(diff_calls(left, right), *names)
    before = read_program(found.original)
    norm = named(before, "batch_norm", "stage.0.norm1")
    assert links.status_before[norm.name] == "gone" and links.before[norm.name] < links.regions
    tanh = named(before, "tanh", "tanh")
    assert links.before[tanh.name] == links.after[tanh.name] >= links.regions
    assert set(links.before) == set(names[0]) and set(links.after) == set(names[1])
    assert listed_names(2) == ["call 0", "call 1"]


# ---- modules -----------------------------------------------------------------------------------------------------


def test_the_tree_has_the_figures_of_every_module() -> None:
    found = conversion()
    root = tree_of(read_program(found.original), read_program(found.program))
    assert [m.path for m in root.children] == ["stem", "stage", "tanh", "last"]
    stage = root.children[1]
    assert (stage.before.calls, stage.after.calls, stage.before.merges) == (14, 10, 2)
    assert [m.name for m in stage.children] == ["0", "1"] and stage.children[0].depth == 2
    assert stage.before.macs == sum(m.before.macs for m in stage.children)


def test_the_table_of_stages_has_blocks_that_hold_merges() -> None:
    rows = [m.path for m in stages_of(tree_of(chain(40), chain(40)))]
    assert rows[:3] == ["net", "net.0", "net.0.0"] and "net.0.0.conv2d" not in rows


def test_a_module_at_the_top_has_a_row_though_its_only_child_has_none() -> None:
    net = nn.Sequential(OrderedDict(stem=nn.Sequential(nn.Conv2d(3, 4, 3)), relu=nn.ReLU(), last=nn.Conv2d(4, 2, 1)))
    graph = read_program(reparam.convert(net, torch.rand(2, 3, 8, 8)).program)
    rows = stages_of(tree_of(graph, graph))
    assert [m.path for m in rows] == ["stem", "relu", "last"]
    assert sum(m.after.params for m in rows) == sum(p.numel() for p in net.parameters())


def test_a_row_is_named_below_the_nearest_row_that_it_belongs_to() -> None:
    """`layer1` has all that its only block has, and no row of its own: the block must not look like one of `relu`."""
    made = reparam.convert(reparam.load(None, arch="reparam/resnet_small"))
    rows = stage_rows(tree_of(read_program(made.original), read_program(made.program)))
    names = [(r.path, r.depth) for r in rows]
    assert names == [
        ("conv1", 1), ("bn1", 1), ("relu", 1), ("layer1.0", 1), ("layer2", 1), (".0", 2), (".1", 2), ("layer3.0", 1),
        ("avgpool", 1), ("fc", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["a..b", ".a", "a.", "..", "a" * 3000])
def test_odd_paths_have_their_place_in_the_tree(path: str) -> None:
    graph = Graph((Call("c", "relu", "", path, "N", "float32", "activation"),))
    root = tree_of(graph, graph)
    assert root.before.calls == 1 and root.children


def test_what_an_onnx_file_computes_of_weights_alone_is_no_input() -> None:
    onnx = pytest.importorskip("onnx")
    from reparam.engines.onnx.listing import onnx_calls

    make = onnx.helper
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), np.int8), "w")
    scale = onnx.numpy_helper.from_array(np.array(0.5, np.float32), "s")
    nodes = [
        make.make_node("DequantizeLinear", ["w", "s"], ["wide"]),
        make.make_node("Conv", ["x", "wide"], ["y"]),
        make.make_node("Add", ["y", "y"], ["z"]),
    ]
    ports = [
        make.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", c, 5, 5]) for n, c in (("x", 3), ("z", 4))
    ]
    model = make.make_model(make.make_graph(nodes, "g", ports[:1], ports[1:], [weight, scale]))
    graph = read_listed(onnx_calls(model))
    assert [(c.op, c.kind) for c in graph.calls] == [("x", "input"), ("conv2d", "layer"), ("add", "other")]
    assert graph.edges == [(0, 1), (1, 2)]


def test_a_weight_of_an_int8_file_is_that_of_its_layer() -> None:
    onnx = pytest.importorskip("onnx")
    from reparam.engines.onnx.listing import onnx_calls

    make, tensor = onnx.helper, onnx.numpy_helper.from_array
    stored = np.arange(-6, 6, dtype=np.int8).reshape(4, 3, 1, 1)
    scale, zero = np.array([0.5, 1.0, 2.0, 4.0], np.float32), np.array([0, 1, -1, 0], np.int8)
    weights = [
        tensor(stored, "stem.conv.weight_quantized"), tensor(scale, "s"), tensor(zero, "z"),
        tensor(np.ones(4, np.float32), "stem.conv.bias"),
    ]  # fmt: skip
    nodes = [
        make.make_node("DequantizeLinear", ["stem.conv.weight_quantized", "s", "z"], ["wide"], axis=0),
        make.make_node("Conv", ["x", "wide", "stem.conv.bias"], ["y"]),
    ]
    ports = [make.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, c, 5, 5]) for n, c in (("x", 3), ("y", 4))]
    (call,) = onnx_calls(make.make_model(make.make_graph(nodes, "g", ports[:1], ports[1:], weights)))
    assert (call.module, call.op) == ("stem.conv", "conv2d(4x3x1x1, bias)")
    assert call.anchor == "conv2d stem.conv.weight"
    wanted = (stored.astype(np.float32) - zero.reshape(-1, 1, 1, 1)) * scale.reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(call.weights[0].numpy(), wanted)
