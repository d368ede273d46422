"""write_source: the files run alone, compute the program, keep the names, train, are written whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.emit import finalize
from reparam.emit.source import write_source
from reparam.errors import InputError, MachineError
from reparam.ir import Program, evaluate
from support.choice import crossed
from support.emit_source_cases import (
    IMAGE,
    NETWORKS,
    Attention,
    Residual,
    capture_program,
    check_equal,
    check_text,
    check_trains,
    import_file,
    round_trip,
    statistics,
)


@pytest.mark.parametrize("name, fuse", crossed(NETWORKS, [False, True]))
def test_written_network_computes_the_program(name: str, fuse: bool, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    args = inputs()
    model = statistics(build())
    program = capture_program(model, *args, fuse=fuse)
    written, _ = round_trip(program, tmp_path / "new" / "folder", *args)
    if not fuse:  # every weight that the graph reads has its own name
        kept = {c.origin for c in program.constants.values() if not c.origin.startswith("lifted_tensor")}
        assert kept <= set(written.state_dict()) and kept <= set(model.state_dict())
        for key in kept:
            assert torch.equal(written.state_dict()[key], model.state_dict()[key])
        trainable = {c.origin for c in program.constants.values() if c.trainable}
        assert {n for n, p in written.named_parameters() if p.requires_grad} == trainable
    one = pytree.tree_map(lambda v: v[:1] if isinstance(v, Tensor) else v, args)
    written.requires_grad_(False)
    check_equal(written(*one), evaluate(program, pytree.tree_leaves(one), None))


@pytest.mark.parametrize("name", ["residual", "tied conv", "attention", "grouped"])
def test_finalized_programs_are_written_alike(name: str, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    args = inputs()
    program = capture_program(statistics(build()), *args, fuse=True)
    _, text = round_trip(program, tmp_path / "raw", *args, checked=False)
    _, final = round_trip(finalize(program), tmp_path / "final", *args, checked=False)
    assert text == final


# ---- dtypes, loading, training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "buffers", "grouped"])
@pytest.mark.parametrize("fuse", [False, True])
def test_bfloat16(name: str, fuse: bool, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    args = tuple(a.bfloat16() for a in inputs())
    model = statistics(build()).bfloat16()
    written, text = round_trip(capture_program(model, *args, fuse=fuse), tmp_path, *args)
    assert {p.dtype for p in written.parameters()} == {torch.bfloat16}
    assert "self.to(torch.bfloat16)" in text
    fresh = import_file(tmp_path / "model.py").Model()
    assert {n: v.dtype for n, v in fresh.state_dict().items()} == {n: v.dtype for n, v in written.state_dict().items()}


def test_mixed_dtypes(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low = nn.Linear(4, 4, dtype=torch.float16)
            self.full = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.randn(4, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.full(self.low(x).float()) * self.scale

    x = torch.randn(2, 4, dtype=torch.float16)
    written, text = round_trip(capture_program(Net(), x), tmp_path, x)
    assert "nn.Linear(4, 4, dtype=torch.float16)" in text and "self.to(" not in text
    fresh = import_file(tmp_path / "model.py").Model()
    assert [v.dtype for v in fresh.state_dict().values()] == [v.dtype for v in written.state_dict().values()]


def test_loads_without_the_safetensors_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(IMAGE)
    program = capture_program(statistics(Residual()).bfloat16(), x.bfloat16())
    program.constants |= {"empty": program.constants["head.bias"]}
    written, _ = round_trip(program, tmp_path, x.bfloat16())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    module = import_file(tmp_path / "model.py")
    for key, value in module.load(tmp_path).state_dict().items():
        assert value.dtype == written.state_dict()[key].dtype and torch.equal(value, written.state_dict()[key])


@pytest.mark.parametrize("name", ["residual", "tokens", "tied weight", "buffers", "attention", "branches"])
def test_trains(name: str, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    args = inputs()
    written, _ = round_trip(capture_program(statistics(build()), *args, fuse=True), tmp_path, *args, checked=False)
    check_trains(written, args)


def test_negative_control_a_changed_weight_changes_the_output(tmp_path: Path) -> None:
    x = torch.randn(IMAGE)
    program = capture_program(statistics(Residual()), x, fuse=True)
    round_trip(program, tmp_path, x)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["conv1.weight"][0, 0, 0, 0] += 0.5
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.no_grad(), pytest.raises(AssertionError):
        check_equal(import_file(tmp_path / "model.py").load()(x), evaluate(program, (x,), None))


def test_missing_weight_is_an_error(tmp_path: Path) -> None:
    x = torch.randn(IMAGE)
    write_source(capture_program(Residual(), x), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["head.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="Missing key"):
        import_file(tmp_path / "model.py").load()


# ---- real networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, fuse", crossed(["torchvision/resnet18", "timm/test_vit", "timm/test_byobnet"], [False, True])
)
def test_real_networks(source: str, fuse: bool, tmp_path: Path) -> None:
    library, name = source.split("/")
    if library == "torchvision":
        model = pytest.importorskip("torchvision").models.get_model(name, weights=None)
    else:
        model = pytest.importorskip("timm").create_model(name, pretrained=False)
    model = statistics(model)
    size = model.pretrained_cfg["input_size"][-1] if library == "timm" else 64
    x = torch.randn(2, 3, size, size)
    program = capture_program(model, x, fuse=fuse)
    written, text = round_trip(program, tmp_path, x)
    assert "torch.ops" not in text
    if not fuse:
        assert set(written.state_dict()) == set(model.state_dict())
    else:
        assert len(set(written.state_dict()) & set(model.state_dict())) > len(written.state_dict()) / 2
    check_trains(written, (x,))


# ---- files ---------------------------------------------------------------------------------------------------------


def small_program() -> Program:
    return capture_program(nn.Linear(3, 2), torch.randn(2, 3))


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    write_source(small_program(), tmp_path)
    before = (tmp_path / "model.py").read_text()
    with pytest.raises(InputError, match="exists already"):
        write_source(small_program(), tmp_path, class_name="Other")
    assert (tmp_path / "model.py").read_text() == before
    write_source(small_program(), tmp_path, class_name="Other", force=True)
    assert "class Other(" in (tmp_path / "model.py").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.py", "model.safetensors"]


@pytest.mark.parametrize("name", ["not a name", "class", "Block", "torch", ""])
def test_bad_class_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be the name"):
        write_source(small_program(), tmp_path, class_name=name)
    assert not list(tmp_path.iterdir())


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        write_source(small_program(), tmp_path / "out")
    with pytest.raises(MachineError, match="nothing was written"):
        write_source(small_program(), tmp_path / "out" / "deeper")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("failing", ["model.safetensors", "model.py"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_leaves_nothing_behind(
    failing: str, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "b"
    if existing:
        write_source(small_program(), folder)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).parent == folder and Path(target).name == failing:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(MachineError, match="No space left on device; nothing was written"):
        write_source(small_program(), folder, force=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert existing or not (tmp_path / "a").exists()


def test_a_full_disk_while_the_weights_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def fail(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(MachineError, match="No space left"):
        write_source(small_program(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_weight_that_does_not_fit_its_dtype(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1)).half()
    nn.init.constant_(model[0].weight, 6e4)
    nn.init.constant_(model[1].weight, 100.0)
    program = capture_program(model, torch.randn(2, 1, 3, 3).half(), fuse=True)
    with pytest.raises(InputError, match="does not fit float16"):
        write_source(program, tmp_path / "out")


def test_a_dtype_that_the_file_cannot_hold(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.phase).abs()

    with pytest.raises(InputError, match="complex128"):
        write_source(capture_program(Net(), torch.randn(2, 3)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_program_gives_the_same_files(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 8)
    model = Attention()
    for name in ("a", "b"):
        write_source(capture_program(model, x, fuse=True), tmp_path / name)
    for file in ("model.py", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_note_stays_inside_its_comment(tmp_path: Path) -> None:
    path, _ = write_source(small_program(), tmp_path, note='line one\nimport os  # """ ' + "word " * 60)
    text = check_text(path)
    assert "\nimport os" not in text and "from line one import os" in text
