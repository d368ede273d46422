"""Whole networks in files: read, rewritten, compared with the file, and written again under the same names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import reparam
from reparam.errors import InputError, NotEquivalentError
from reparam.loading import load
from reparam.onnx_input import ImportedModel, import_onnx
from support.choice import mostly_in_sweeps
from support.onnx_graphs import imported, model, node
from support.onnx_nets import NETS, SIZE, Zoo, by_export, by_tracing, by_us, example, network


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each network, by tracing."""
    folder: Path = tmp_path_factory.mktemp("files")
    for name in NETS:
        by_tracing(network(name), folder / f"{name}.onnx")
    return folder


def outputs(result: object) -> list[torch.Tensor]:
    assert isinstance(result, dict)
    return list(result.values())


@pytest.mark.parametrize("name", NETS)
def test_a_traced_network_is_fused(name: str, files: Path) -> None:
    result = reparam.convert(files / f"{name}.onnx")
    report, net, x = result.report, network(name), example(3)
    assert report.before.norms == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert report.before.norms > 0 and report.after.norms == 0
    file = report.evidence.file  # type: ignore[union-attr]
    assert file is not None and 0 < file.error < 1e-6 and file.trials >= 8
    with torch.no_grad():
        wanted = net(x)
        found = outputs(result.module(x))
    for mine, theirs in zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "repvgg"])
def test_a_traced_network_becomes_plain(name: str, files: Path) -> None:
    report = reparam.convert(files / f"{name}.onnx", to="plain").report
    assert report.plain and report.before.merges > 0 and report.after.merges == 0
    assert report.evidence is not None and report.evidence.file is not None


def test_norms_keep_the_names_of_their_layers(files: Path) -> None:
    report = reparam.explain(files / "resnet.onnx")
    folded = {r.module for r in report.remarks if r.rule == "fold-batch-norm" and r.kind == "passed"}
    assert {"stem.1", "layer1.a.1", "layer2.skip.1"} <= folded
    weights = dict(import_onnx(files / "resnet.onnx").named_parameters())
    assert {"stem.0.weight", "layer1.a.1.bias", "fc.weight"} <= weights.keys()
    assert torch.equal(weights["fc.weight"], network("resnet").fc.weight)  # type: ignore[arg-type]


def test_what_the_newer_exporter_writes_is_read(tmp_path: Path) -> None:
    by_export(network("resnet"), tmp_path / "net.onnx")
    result = reparam.convert(tmp_path / "net.onnx")
    assert result.report.before.norms == 6 and result.report.after.norms == 0
    assert "layer2.skip.1" in {r.module for r in result.report.remarks if r.rule == "fold-batch-norm"}
    x = example(5)
    with torch.no_grad():
        assert torch.allclose(outputs(result.module(x))[0], network("resnet")(x), atol=1e-5)


def test_a_file_of_an_old_zoo_is_read_and_written_again(tmp_path: Path) -> None:
    Zoo().save(tmp_path / "zoo.onnx")
    plain = reparam.convert(tmp_path / "zoo.onnx", to="plain").report
    assert plain.plain and plain.before.norms == 5 and plain.after.norms == 0
    exported = reparam.export(tmp_path / "zoo.onnx", path=tmp_path / "fused.onnx")
    assert exported.check.ran
    again = onnx.load(exported.path)
    assert [i.name for i in again.graph.input] == ["data_0"] and [o.name for o in again.graph.output] == ["prob:0"]
    assert not any(n.op_type == "BatchNormalization" for n in again.graph.node)
    second = reparam.convert(exported.path).report  # our own export, read again
    assert second.after.convs == 5 and second.before.norms == 0 and second.evidence is not None
    assert reparam.verify(tmp_path / "zoo.onnx", exported.path, trials=2, adversarial=False).equivalent


def test_names_that_python_lacks_stay_the_names_of_inputs(tmp_path: Path) -> None:
    by_tracing(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), tmp_path / "net.onnx", opset=11, names=False
    )
    assert [i.name for i in onnx.load(tmp_path / "net.onnx").graph.input] == ["input.1"]
    exported = reparam.export(tmp_path / "net.onnx", path=tmp_path / "fused.onnx")
    assert [i.name for i in onnx.load(exported.path).graph.input] == ["input.1"]
    assert exported.conversion.program.inputs[0].name == "input_1"
    assert "fixes the batch of 'input.1' at 2" in exported.report.remarks[0].message


NAMES = ["class", "None", "none", "self", "Self", "lambda", "__class__", "__", "_", "..", "../x", "a b", "é", "1", "X"]


@pytest.mark.parametrize("name", mostly_in_sweeps(NAMES, "class", "self", "__class__", "../x", "é"))
def test_an_input_of_any_name_is_converted_and_written_as_source(name: str, tmp_path: Path) -> None:
    """Words of Python, and names that its classes have for themselves, are none for parameters."""
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    made = model([node("Conv", [name, "w"], ["y"])], {name: (1, 3, 8, 8)}, constants={"w": weight})
    onnx.save(made, tmp_path / "net.onnx")
    result = reparam.convert(tmp_path / "net.onnx")
    result.save_source(tmp_path / "source")
    result.save(tmp_path / "net.pt2")
    for other in ("net.pt2", "net.onnx"):
        assert reparam.verify(tmp_path / "net.pt2", tmp_path / other, trials=1, adversarial=False).equivalent
    source = load(tmp_path / "source", trust=True)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(source.module(x), result.module(x))
    exported = reparam.export(tmp_path / "net.onnx", path=tmp_path / "again.onnx")
    assert [i.name for i in onnx.load(exported.path).graph.input] == [name]


@pytest.mark.parametrize(
    "names",
    [("X", "x"), ("x", "X"), ("x", "x_1", "X"), ("X", "x_", "x"), ("a.b", "a_b"), ("class", "Class"), ("None", "none")],
    ids="-".join,
)
def test_inputs_whose_names_differ_by_little_stay_apart_and_keep_them(names: tuple[str, ...], tmp_path: Path) -> None:
    """torch spells names in small letters, and its graphs confuse parameters that are one name then."""
    nodes = [node("Sub", [names[0], names[1]], ["d"])]
    nodes += [node("Mul", ["d", name], ["d2"]) for name in names[2:]]
    nodes += [node("Conv", ["d2" if names[2:] else "d", "w"], ["y"])]
    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    made = model(nodes, {name: ("n", 3, 4, 4) for name in names}, constants={"w": weight})
    onnx.save(made, tmp_path / "net.onnx")
    exported = reparam.export(tmp_path / "net.onnx", path=tmp_path / "again.onnx")
    assert tuple(i.name for i in onnx.load(exported.path).graph.input) == names
    assert reparam.verify(tmp_path / "net.onnx", exported.path, trials=1, adversarial=False).equivalent
    exported.conversion.save_source(tmp_path / "source")
    inputs = [torch.randn(2, 3, 4, 4) for _ in names]
    source = load(tmp_path / "source", trust=True)
    torch.testing.assert_close(source.module(*inputs), exported.conversion.module(*inputs))
    if all(name.isidentifier() for name in names):
        kept = reparam.convert(tmp_path / "net.onnx", dynamic=[f"{name}:0=batch" for name in names])
        assert all(isinstance(s.shape[0], str) for s in kept.program.inputs)


def test_free_axes_are_those_of_the_file(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1], strides=[2, 2]), node("Shape", ["h"], ["s"])]
    nodes += [node("Resize", ["x", "", "", "s"], ["r"], mode="linear"), node("Add", ["r", "h"], ["y"])]
    weights = {"w": network("resnet").stem[0].weight[:3].detach().numpy()}  # type: ignore[index, union-attr]
    proto = model(nodes, {"x": ["n", 3, "h", "w"]}, constants=weights)
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="leaves height and width of its input 'x' free; pass a shape"):
        reparam.convert(tmp_path / "net.onnx")
    result = reparam.convert(tmp_path / "net.onnx", torch.randn(2, 3, 20, 24), dynamic=("batch", "height", "width"))
    assert [isinstance(n, str) for n in result.program.inputs[0].shape] == [True, False, True, True]
    assert outputs(result.module(torch.randn(1, 3, 31, 40)))[0].shape == (1, 3, 16, 20)
    fixed = model(nodes, {"x": ["n", 3, 20, 24]}, constants=weights)
    (tmp_path / "fixed.onnx").write_bytes(fixed.SerializeToString())
    with pytest.raises(InputError, match="fixes the height of 'x' at 20, so that it cannot stay free"):
        reparam.convert(tmp_path / "fixed.onnx", dynamic=("height",))


def test_a_batch_that_only_seems_free_is_fixed(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "s"], ["f"]), node("Gemm", ["f", "w"])]
    weights = {"w": network("resnet").fc.weight.detach().numpy().T.copy(), "s": np.array([1, 12])}  # type: ignore[union-attr, operator]
    (tmp_path / "net.onnx").write_bytes(model(nodes, {"x": ["n", 3, 2, 2]}, constants=weights).SerializeToString())
    report = reparam.convert(tmp_path / "net.onnx").report
    assert "the batch is fixed at 1, although the file says that it is free" in report.remarks[0].message
    with pytest.raises(InputError, match=r"the batch cannot stay free, although the file says so: .*; leave it out"):
        reparam.convert(tmp_path / "net.onnx", dynamic=("batch",))


def test_a_batch_that_the_file_fixes_is_refused_where_it_was_asked_for(tmp_path: Path) -> None:
    by_tracing(nn.Conv2d(3, 4, 1).eval(), tmp_path / "net.onnx", opset=11, names=False)
    for dynamic in (("batch",), ("input:0=batch",)):
        with pytest.raises(InputError, match="the file fixes the batch of 'input' at 2, so that it cannot stay free"):
            reparam.convert(tmp_path / "net.onnx", dynamic=dynamic)


def test_a_local_function_is_written_out(tmp_path: Path) -> None:
    body = [node("Sigmoid", ["a"], ["b"]), node("Mul", ["a", "b"], ["c"])]
    function = onnx.helper.make_function("own", "Swish", ["a"], ["c"], body, [onnx.helper.make_opsetid("", 17)])
    call = onnx.helper.make_node("Swish", ["x"], ["y"], domain="own")
    net = imported(model([call], {"x": [2, 3]}, functions=[function]), tmp_path)
    x = torch.randn(2, 3)
    assert torch.allclose(net(x)["y"], torch.nn.functional.silu(x))


def test_a_wrong_reading_is_noticed(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = import_onnx(files / "mobilenet.onnx")
    with torch.no_grad():
        net.get_parameter("classifier.1.weight")[0, 0] += 1e-3
    with pytest.raises(NotEquivalentError, match="what was read from the file is not what onnxruntime"):
        reparam.convert(net)


def test_a_loaded_file_knows_its_shapes(files: Path) -> None:
    loaded = load(files / "resnet.onnx")
    assert isinstance(loaded.module, ImportedModel) and loaded.input_shapes == ((3, SIZE, SIZE),)
    with pytest.raises(InputError, match=r"resnet\.onnx holds its architecture already"):
        load(files / "resnet.onnx", arch="torchvision/resnet18")


@pytest.mark.sweep
@pytest.mark.parametrize("write", [by_tracing, by_export, by_us])
@pytest.mark.parametrize(
    "spec", ["torchvision/resnet50", "torchvision/mobilenet_v2", "timm/repvgg_a0", "torchvision/densenet121"]
)
def test_networks_of_full_size(spec: str, write: Callable[..., None], tmp_path: Path) -> None:
    from reparam.loading import build_architecture, randomize_statistics

    net = build_architecture(spec, {}, seed=0).module.eval()
    x = torch.randn(2, 3, 64, 64)
    randomize_statistics(net, (x,), 0)
    file = tmp_path / "net.onnx"
    write(net, file, x)
    report = reparam.convert(file).report
    foldable = sum(r.rule == "fold-batch-norm" and r.kind == "missed" for r in report.remarks)
    assert (report.before.norms > 0 or write is by_us) and report.after.norms == foldable
    assert report.evidence is not None and report.evidence.file is not None
    assert foldable == 0 or spec == "torchvision/densenet121"
    plain = reparam.convert(file, to="plain").report
    assert plain.plain and plain.after.norms == 0
