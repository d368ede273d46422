"""Loading what the user names: formats, wrappers, dtypes, twins, and one clear sentence for everything else."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reparam.errors import InputError, UnsafeFileError
from reparam.loading import build_architecture, load, randomize_statistics
from reparam.loading.checkpoint import load_checkpoint
from support.choice import mostly_in_sweeps

SPEC = "timm/test_resnet"


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return randomize_statistics(build_architecture(SPEC, seed=1).module, [torch.randn(1, 3, 32, 32)])


@pytest.fixture(scope="module")
def state(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


def assert_same(module: nn.Module, other: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(module(x), other(x))


def with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("name", ["test_resnet.pt", "test_resnet.pth", "test_resnet.bin", "test_resnet.safetensors"])
def test_every_format_loads_with_the_architecture_inferred(name: str, module, state, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    loaded = load(path)
    assert (loaded.spec, loaded.arch_inferred, loaded.source) == (SPEC, True, path)
    assert (loaded.input_shapes, loaded.random_seed, loaded.twins) == (((3, 160, 160),), None, ())
    assert not any(m.training for m in loaded.module.modules())
    assert_same(loaded.module, module)


def test_the_content_decides_not_the_suffix(module, state, tmp_path: Path) -> None:
    save_file(state, tmp_path / "test_resnet.pt")
    assert_same(load(tmp_path / "test_resnet.pt").module, module)
    program = torch.export.export(module, (torch.randn(2, 3, 32, 32),), strict=False)
    torch.export.save(program, tmp_path / "program.pt2")
    (tmp_path / "program.pt2").rename(tmp_path / "program.pt")
    loaded = load(tmp_path / "program.pt")
    assert loaded.exported is not None
    assert (loaded.spec, loaded.input_shapes) == (None, ((3, 32, 32),))
    assert_same(loaded.module, module)
    with pytest.raises(InputError, match="holds its architecture already"):
        load(tmp_path / "program.pt", arch=SPEC)


@pytest.mark.parametrize("holder", ["state_dict", "model", "model_state_dict", "ema", "model_ema"])
def test_a_state_dict_is_found_where_training_scripts_put_it(holder: str, module, state, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, holder: state}, tmp_path / "best.pt")
    assert load_checkpoint(tmp_path / "best.pt").found_under == holder
    loaded = load(tmp_path / "best.pt", arch=SPEC)
    assert not loaded.arch_inferred
    assert loaded.notes == ()
    assert_same(loaded.module, module)


def test_which_of_two_state_dicts_is_used_is_said(module, state, tmp_path: Path) -> None:
    average = {"module": with_prefix({k: v * 0 for k, v in state.items()}, "module.")}
    torch.save({"model": state, "model_ema": average}, tmp_path / "both.pt")
    loaded = load(tmp_path / "both.pt", arch=SPEC)
    told = "the weights under 'model' are used; the file also holds model_ema; take it with --key model_ema"
    assert loaded.notes == (told,)
    assert_same(loaded.module, module)
    torch.save({"ema": {"module": state, "decay": 0.9}}, tmp_path / "nested.pt")
    assert load_checkpoint(tmp_path / "nested.pt").found_under == "ema.module"


PREFIXES = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.")


@pytest.mark.parametrize("prefix", mostly_in_sweeps(PREFIXES, "module.", "_orig_mod.module.", "model."))
def test_prefixes_of_wrappers_are_stripped(prefix: str, module, state, tmp_path: Path) -> None:
    torch.save(with_prefix(state, prefix), tmp_path / "test_resnet.pt")
    assert_same(load(tmp_path / "test_resnet.pt").module, module)
    assert_same(load(tmp_path / "test_resnet.pt", arch=SPEC).module, module)


def test_compiled_submodules_averages_and_other_entries(module, state, tmp_path: Path) -> None:
    inner = {key.replace("layer1.", "layer1._orig_mod.", 1): value for key, value in state.items()}
    torch.save(inner, tmp_path / "compiled.pt")
    assert_same(load(tmp_path / "compiled.pt", arch=SPEC).module, module)
    averaged = {"n_averaged": torch.tensor(5), **with_prefix(state, "module.")}
    torch.save(averaged, tmp_path / "averaged.pt")
    assert_same(load(tmp_path / "averaged.pt", arch=SPEC).module, module)
    torch.save(OrderedDict(**state, version=3, note="text"), tmp_path / "extras.pt")
    assert_same(load(tmp_path / "extras.pt", arch=SPEC).module, module)


def test_a_name_in_any_script_and_with_odd_characters(module, state, tmp_path: Path) -> None:
    for name in ("модель.pt", "my model (1).pt", "v1..2.pt"):
        assert_same(load(_saved(state, tmp_path / name), arch=SPEC).module, module)


def test_a_file_that_the_old_torch_wrote(module, state, tmp_path: Path) -> None:
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "test_resnet.pt", _use_new_zipfile_serialization=False)
    assert_same(load(tmp_path / "test_resnet.pt").module, module)


def test_a_repacked_archive_is_read_right_though_it_is_compressed(module, state, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "plain.pt")
    repacked = zipfile.ZipFile(tmp_path / "test_resnet.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pt") as source, repacked as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_same(load(tmp_path / "test_resnet.pt").module, module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_checkpoints_dtype_is_kept(dtype: torch.dtype, state, tmp_path: Path) -> None:
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    torch.save(cast, tmp_path / "test_resnet.pt")
    loaded = load(tmp_path / "test_resnet.pt").module
    assert {t.dtype for t in [*loaded.parameters(), *loaded.buffers()] if t.is_floating_point()} == {dtype}
    assert all(torch.equal(v, cast[k]) for k, v in loaded.state_dict().items())


def test_mixed_dtypes_become_the_one_that_holds_all_exactly(state, tmp_path: Path) -> None:
    mixed = {k: v.half() if v.dim() == 4 else v for k, v in state.items()}
    torch.save(mixed, tmp_path / "test_resnet.pt")
    loaded = load(tmp_path / "test_resnet.pt").module
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.get_parameter("conv1.0.weight"), mixed["conv1.0.weight"].float())


def test_weights_are_not_copied(state, tmp_path: Path) -> None:
    loaded = load(_saved(state, tmp_path / "test_resnet.pt"), arch=SPEC)
    parameters = list(loaded.module.parameters())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in parameters)
    storages = {p.untyped_storage().data_ptr() for p in parameters}
    assert len(storages) == len(parameters)


def _saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def test_another_number_of_classes_is_inferred_or_suggested(tmp_path: Path) -> None:
    small = build_architecture(SPEC, {"num_classes": 10}).module
    path = _saved(small.state_dict(), tmp_path / "test_resnet.pt")
    loaded = load(path)
    assert loaded.arch_args == {"num_classes": 10}
    assert_same(loaded.module, small)
    with pytest.raises(InputError) as error:
        load(path, arch=SPEC, arch_args={"num_classes": 1000})
    assert "wrong shape fc.weight (1000, 96), the file has (10, 96)" in str(error.value)
    assert "it fits with arch_args={'num_classes': 10}" in str(error.value)


def test_twins_are_told_from_other_names_of_the_same_network(tmp_path: Path) -> None:
    module = build_architecture("torchvision/resnet18").module
    loaded = load(_saved(module.state_dict(), tmp_path / "resnet18.pt"))
    assert (loaded.spec, loaded.equivalents, loaded.twins) == (
        "torchvision/resnet18",
        ("timm/resnet18",),
        ("timm/resnetblur18",),
    )
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), module(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4, bias=False)
        self.two = nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


def test_a_tied_weight_stays_one_and_may_be_stored_once(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    for number, stored in enumerate([["one.weight", "two.weight"], ["one.weight"], ["two.weight"]]):
        path = _saved({name: weight.clone() for name in stored}, tmp_path / f"tied{number}.pt")
        loaded = load(path, arch=f"{__name__}:Tied").module
        assert loaded.get_parameter("one.weight") is loaded.get_parameter("two.weight")
        assert torch.equal(loaded.get_parameter("two.weight"), weight)
    path = _saved({"one.weight": weight, "two.weight": weight + 1}, tmp_path / "untied.pt")
    with pytest.raises(InputError, match=r"'one.weight' and 'two.weight' are one weight .* but differ in untied\.pt"):
        load(path, arch=f"{__name__}:Tied")


def test_an_architecture_alone_has_random_weights_from_the_seed() -> None:
    loaded = load(None, arch=SPEC, arch_args={"num_classes": 4}, seed=7)
    assert (loaded.random_seed, loaded.source, loaded.spec, loaded.arch_inferred) == (7, None, SPEC, False)
    assert_same(loaded.module, build_architecture(SPEC, {"num_classes": 4}, seed=7).module)
    with pytest.raises(InputError, match="there is nothing to load"):
        load(None)


def test_keys_that_do_not_fit_are_named_and_counted(state, tmp_path: Path) -> None:
    changed = {k: v for k, v in state.items() if not k.startswith("layer4.")}
    changed["extra.weight"] = torch.ones(1)
    changed["conv1.0.weight"] = torch.ones(1, 1)
    with pytest.raises(InputError) as error:
        load(_saved(changed, tmp_path / "bad.pt"), arch=SPEC)
    message = str(error.value)
    assert "bad.pt does not fit timm/test_resnet: missing layer4.0" in message
    assert " and 12 more; unexpected extra.weight; wrong shape conv1.0.weight" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, state, tmp_path: Path) -> None:
    bad = {k: v.clone() for k, v in state.items()}
    bad["layer1.0.conv1.weight"][0, 0] = value
    with pytest.raises(
        InputError, match=r"bad\.pt has NaN or infinite values in 'layer1\.0\.conv1\.weight' \(1 of \d+"
    ):
        load(_saved(bad, tmp_path / "bad.pt"), arch=SPEC)


class Touch:
    """Unpickling an instance creates the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_runs_code_is_refused_with_what_it_would_run(new_format: bool, state, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    torch.save({"state_dict": state, "x": Touch(marker)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UnsafeFileError, match=r"would run .*pathlib.*trust=True"):
        load(path, arch=SPEC)
    assert not marker.exists()
    load(path, arch=SPEC, trust=True)
    assert marker.exists()  # the control: the payload works


def test_a_plain_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(Touch(marker), protocol=protocol))
        with pytest.raises(UnsafeFileError, match=r"would run .*pathlib"):
            load(path, arch=SPEC)
    assert not marker.exists()


def test_a_pickled_module_needs_trust(module, tmp_path: Path) -> None:
    path = _saved(nn.Sequential(nn.Linear(2, 3), nn.ReLU()).train(), tmp_path / "whole.pt")
    with pytest.raises(UnsafeFileError, match=r"would run torch\.nn\.modules"):
        load(path)
    loaded = load(path, trust=True)
    assert isinstance(loaded.module, nn.Sequential)
    assert not loaded.module.training
    assert load_checkpoint(_saved({"model": loaded.module}, path), trust=True).module is not None
    whole = load(_saved(module, path), arch=SPEC, trust=True)
    assert_same(whole.module, module)


def test_a_pickled_module_of_unknown_code_says_so(tmp_path: Path) -> None:
    class Local(nn.Linear):
        pass

    Local.__qualname__ = "Gone"
    globals()["Gone"] = Local
    path = _saved(Local(1, 1), tmp_path / "whole.pt")
    del globals()["Gone"]
    with pytest.raises(InputError, match="needs Python code that is not here"):
        load(path, trust=True)


def safetensors_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def onnx_bytes() -> bytes:
    return b"\x08\x0a\x12\x07pytorch\x1a\x032.0" + bytes(64)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zip_bytes(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def saved_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.pt", b"", "is empty"),
        ("a.pt", b"epoch,loss\n1,0.5\n" * 20, "is not a checkpoint: it is text"),
        ("a.pt", b"<!DOCTYPE html><html>404</html>", "it is a web page; the download failed"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        ("a.pt", bytes(range(200, 256)) * 3, "is not a checkpoint;"),
        ("a.pt", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("a.pt", onnx_bytes(), "a.pt holds its architecture already"),
        ("a.onnx", b"\x00\x01", "a.onnx holds its architecture already"),
        ("a.pt", tar_bytes(), "is in the tar format of torch 0.1"),
        ("a.pt", truncated(saved_bytes({"w": torch.zeros(1000)})), "is damaged or cut short"),
        ("a.pt2", truncated(saved_bytes({"w": torch.zeros(1000)})), "is damaged or cut short"),
        ("a.pt", b"\x80\x02garbage", "is not a checkpoint, or is damaged"),
        ("a.pt", zip_bytes("arr_0.npy", "arr_1.npy"), "is a zip archive but not a checkpoint"),
        ("a.pt", zip_bytes("a/data.pkl", "a/constants.pkl"), "is a TorchScript archive"),
        ("a.pt", zip_bytes("serialized_exported_program.json"), "was exported by an older torch"),
        ("a.pt2", zip_bytes("a/archive_format", "a/data/aotinductor/model.so"), "is a compiled library"),
        ("a.pt", zip_bytes("a/data.pkl", "a/data.pkl2", "b/version"), "leaves its folder"),
        ("a.pt", saved_bytes([1, 2]), "holds a list, not weights"),
        ("a.pt", saved_bytes(torch.ones(2)), "holds a torch.Tensor, not weights"),
        ("a.pt", saved_bytes({"optimizer": {}, "epoch": 3}), "holds no state dict; its entries are optimizer, epoch"),
        ("a.pt", saved_bytes({}), "holds no state dict, but an empty mapping; save"),
        ("a.safetensors", b"garbage garbage", "its header is damaged"),
        ("a.safetensors", safetensors_header(b"{not json"), "is not a whole safetensors file"),
        (
            "a.safetensors",
            safetensors_header({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(8)),
            "is not a whole safetensors file",
        ),
        ("a.safetensors", safetensors_header({}), "holds no state dict"),
        ("a.pt", saved_bytes({"fc.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}), "float8_e4m3fn"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_clear_sentence(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    arch_args = {"in_features": 2, "out_features": 2, "bias": False}
    with pytest.raises(InputError) as error:
        load(path, arch="torch.nn:Linear", arch_args=arch_args)
    assert message in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        load(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="is a folder; give the checkpoint file in it"):
        load(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_real_torchscript_archive_is_refused(tmp_path: Path) -> None:
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.randn(1, 2))
    torch.jit.save(scripted, str(tmp_path / "scripted.pt"))
    with pytest.raises(InputError, match="TorchScript archive, which is not supported"):
        load(tmp_path / "scripted.pt", trust=True)


def test_a_folded_buffer_that_is_not_stored_is_built(tmp_path: Path) -> None:
    """Buffers outside the state dict come from the constructor, in the checkpoint's dtype."""
    source = build_architecture("timm/test_vit_relpos").module
    state = {k: v.double() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    loaded = load(_saved(state, tmp_path / "test_vit_relpos.pt"))
    assert loaded.spec == "timm/test_vit_relpos"
    x = torch.randn(1, 3, 160, 160, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(loaded.module(x), source.double()(x), rtol=0, atol=1e-12)
