"""`.pt2` archives: what torch.export.save writes passes, what would run code is refused before torch sees it.

Each hostile archive plants a marker file when it succeeds. The refusal must leave no marker; where the name says so, a
control loads the same archive with `trust` and finds the marker, which shows that the attack is real.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from reparam.errors import InputError, UnsafeFileError
from reparam.loading.archive import inspect_archive, load_exported


class Small(nn.Module):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("scale", torch.ones(4, 1, 1))
        self.constant = torch.ones(2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        with torch.no_grad():
            doubled = x * 2
        h = nn.functional.relu(self.norm(self.conv(x + doubled))) * self.scale
        h = nn.functional.interpolate(h, scale_factor=2.0).flatten(1)
        return {"mean": h.mean(1) + self.constant.sum(), "rest": (h, h.shape[1] // 2)}


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "small.pt2"
    shapes = ({0: Dim("batch", min=1), 2: Dim.AUTO, 3: Dim.AUTO},)
    program = torch.export.export(Small().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes, strict=False)
    torch.export.save(program, path)
    return path


Entries = dict[str, bytes]


def entries_of(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, entries: Entries, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"small/{name}", content)
    return path


def changed(genuine: Path, path: Path, change: Callable[[Entries], None]) -> Path:
    entries = entries_of(genuine)
    change(entries)
    return write(path, entries)


def change_json(entries: Entries, name: str, change: Callable[[Any], Any]) -> None:
    value = json.loads(entries[name])
    entries[name] = json.dumps(change(value) or value).encode()


MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLE = "data/sample_inputs/model.pt"


def replaced(value: Any, old: str, new: str) -> Any:
    """`value` with every text (keys too) equal to `old` replaced."""
    if isinstance(value, dict):
        return {(new if k == old else k): replaced(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [replaced(v, old, new) for v in value]
    return new if value == old else value


class Touch:
    """Unpickling an instance creates the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_program_with_dynamic_sizes_passes_and_computes_the_same(genuine: Path) -> None:
    with genuine.open("rb") as file:
        summary = inspect_archive(file, "small.pt2")
    assert summary.models == ("model",)
    assert "torch.ops.aten.conv2d.default" in summary.targets
    x = torch.randn(3, 3, 10, 6)
    expected = torch.export.load(str(genuine)).module(check_guards=False)(x)
    result = load_exported(genuine).module(check_guards=False)(x)
    assert torch.equal(result["mean"], expected["mean"])
    assert result["rest"][1] == expected["rest"][1]


def test_a_rewritten_archive_without_changes_passes(genuine: Path, tmp_path: Path) -> None:
    load_exported(changed(genuine, tmp_path / "same.pt2", lambda entries: None))


def test_nested_inputs_without_sample_inputs_and_extra_files_pass(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor, y: dict[str, Tensor]) -> list[Tensor]:
            return [(x @ y["k"]).softmax(-1), torch.where(x > 0, x, -x)]

    program = torch.export.export(Nested(), (torch.randn(3, 4), {"k": torch.randn(4, 5)}), strict=False)
    program._example_inputs = None
    torch.export.save(program, tmp_path / "nested.pt2", extra_files={"reparam.json": "{}"})
    load_exported(tmp_path / "nested.pt2").module()


def without(name: str) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        del entries[name]

    return change


Attack = Callable[[Entries, Path], None]


def pickled_weight(entries: Entries, marker: Path) -> None:
    def change(config: Any) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    change_json(entries, WEIGHTS, change)
    entries["data/weights/weight_0"] = saved(Touch(marker))


def pickled_constant(entries: Entries, marker: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["constant"]["use_pickle"] = True

    change_json(entries, CONSTANTS, change)
    entries["data/constants/tensor_0"] = saved(Touch(marker))


def opaque_constant(entries: Entries, marker: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["constant"].update(path_name="opaque_obj_0", use_pickle=True, tensor_meta=None)

    change_json(entries, CONSTANTS, change)
    entries["data/constants/opaque_obj_0"] = pickle.dumps(Touch(marker))


def pickled_sample(entries: Entries, marker: Path) -> None:
    entries[SAMPLE] = saved(((Touch(marker),), {}))


def evaluated_size(entries: Entries, marker: Path) -> None:
    code = f"__import__('pathlib').Path('{marker}').touch()"

    def change(model: Any) -> None:
        values = model["graph_module"]["graph"]["tensor_values"]
        sizes = next(v["sizes"] for v in values.values() if any("as_expr" in s for s in v["sizes"]))
        next(s for s in sizes if "as_expr" in s)["as_expr"]["expr_str"] = code

    change_json(entries, MODEL, change)


def name_as_code(entries: Entries, marker: Path) -> None:
    code = f"x=__import__('pathlib').Path('{marker}').touch()"
    change_json(entries, MODEL, lambda model: replaced(model, "x", code))


def imported_container(entries: Entries, marker: Path) -> None:
    (marker.parent / "planted_module.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    context = json.dumps([{"__enum__": True, "fqn": "planted_module:A", "name": "B"}])

    def change(model: Any) -> None:
        signature = model["graph_module"]["module_call_graph"][0]["signature"]
        signature["out_spec"] = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])

    change_json(entries, MODEL, change)


def imported_default_factory(entries: Entries, marker: Path) -> None:
    (marker.parent / "planted_factory.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    context = {"default_factory_module": "planted_factory", "default_factory_name": "A", "dict_context": []}

    def change(model: Any) -> None:
        signature = model["graph_module"]["module_call_graph"][0]["signature"]
        spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}
        signature["in_spec"] = json.dumps([1, spec])

    change_json(entries, MODEL, change)


ATTACKS: list[Attack] = [
    pickled_weight,
    pickled_constant,
    opaque_constant,
    pickled_sample,
    evaluated_size,
    name_as_code,
    imported_container,
    imported_default_factory,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.__name__)
def test_an_archive_that_runs_code_is_refused_and_the_attack_is_real(
    attack: Attack, genuine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    marker = tmp_path / "marker"
    path = changed(genuine, tmp_path / "evil.pt2", lambda entries: attack(entries, marker))
    with pytest.raises(UnsafeFileError, match=r"evil\.pt2 is refused because .*--trust"):
        load_exported(path)
    assert not marker.exists()
    with contextlib.suppress(InputError):  # the control; torch may fail after it has run the code
        load_exported(path, trust=True)
    assert marker.exists(), "the control did not run the planted code: the test shows nothing"


def test_sample_inputs_that_are_no_plain_tensors_are_refused(genuine: Path, tmp_path: Path) -> None:
    def change(entries: Entries) -> None:
        entries[SAMPLE] = saved(((torch.eye(3).to_sparse(),), {}))

    with pytest.raises(UnsafeFileError, match="its sample inputs hold more than tensors and numbers"):
        load_exported(changed(genuine, tmp_path / "odd.pt2", change))


def test_a_guard_with_code_is_refused_and_the_attack_is_real(genuine: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    code = f"__import__('pathlib').Path('{marker}').touch() or True"
    path = changed(
        genuine,
        tmp_path / "evil.pt2",
        lambda entries: change_json(entries, MODEL, lambda model: {**model, "guards_code": [code]}),
    )
    with pytest.raises(UnsafeFileError, match="guards_code"):
        load_exported(path)
    assert not marker.exists()
    load_exported(path, trust=True).module()(torch.randn(2, 3, 8, 8))
    assert marker.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.load",
        "torch.ops.custom.thing.default",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.conv2d",
        "torch.ops.aten.no_such_thing.default",
        "torch.ops.higher_order.triton_kernel_wrapper_functional",
        "_operator.attrgetter",
        "_operator.setitem",
        "math.__loader__",
        "#planted:thing",
        "",
    ],
)
def test_only_operators_on_tensors_and_sizes_may_be_called(target: str, genuine: Path, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = target

    path = changed(genuine, tmp_path / "evil.pt2", lambda entries: change_json(entries, MODEL, change))
    with pytest.raises(UnsafeFileError, match=r"nodes\[0\].target"):
        load_exported(path)


@pytest.mark.parametrize(
    "entry, content, message",
    [
        ("data/aotinductor/model/model.so", b"\x7fELF", "a compiled library"),
        ("data/constants/custom_obj_0", b"x", "a custom object"),
        ("data/weights/model.pt", b"x", "pickled weights"),
        ("data/constants/model.pt", b"x", "pickled constants"),
        ("anything/else", b"x", "an unknown entry"),
        ("../escaped", b"x", "leaves its folder"),
        ("/absolute", b"x", "leaves its folder"),
        ("models\\model.json", b"x", "leaves its folder"),
        ("MODELS/model.json", b"x", "is there twice"),
    ],
)
def test_entries_that_torch_export_does_not_write_are_refused(
    entry: str, content: bytes, message: str, genuine: Path, tmp_path: Path
) -> None:
    path = changed(genuine, tmp_path / "evil.pt2", lambda entries: entries.update({entry: content}))
    with pytest.raises(UnsafeFileError, match=message):
        load_exported(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_second_entry_of_the_same_name_is_refused(genuine: Path, tmp_path: Path) -> None:
    path = changed(genuine, tmp_path / "evil.pt2", lambda entries: None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"small/{MODEL}", b"{}")
    with pytest.raises(UnsafeFileError, match="is there twice"):
        load_exported(path)


def test_a_decompression_bomb_is_refused(genuine: Path, tmp_path: Path) -> None:
    entries = entries_of(genuine)
    entries["extra/zeros"] = bytes(10 << 20)
    with pytest.raises(UnsafeFileError, match="unpacks to 10485760 bytes"):
        load_exported(write(tmp_path / "bomb.pt2", entries, zipfile.ZIP_DEFLATED))


def test_an_encrypted_entry_is_refused(genuine: Path, tmp_path: Path) -> None:
    path = changed(genuine, tmp_path / "evil.pt2", lambda entries: None)
    with zipfile.ZipFile(path) as archive:
        first = archive.start_dir  # the first record of the central directory; its flags are 8 bytes in
    content = bytearray(path.read_bytes())
    content[first + 8] |= 0x1
    path.write_bytes(content)
    with pytest.raises(UnsafeFileError, match="is encrypted"):
        load_exported(path)


def test_a_custom_object_in_the_signature_is_refused(genuine: Path, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        spec = {"custom_obj": {"arg": {"name": "x", "class_fqn": "__torch__.Planted"}, "custom_obj_name": "x"}}
        model["graph_module"]["signature"]["input_specs"].append(spec)

    path = changed(genuine, tmp_path / "evil.pt2", lambda entries: change_json(entries, MODEL, change))
    with pytest.raises(UnsafeFileError, match="is a custom object"):
        load_exported(path)


@pytest.mark.parametrize("value", [1, None, ["x"], {"as_tensor": {}}])
def test_json_of_the_wrong_types_is_refused(value: Any, genuine: Path, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = value

    path = changed(genuine, tmp_path / "evil.pt2", lambda entries: change_json(entries, MODEL, change))
    with pytest.raises(UnsafeFileError, match="at graph_module"):
        load_exported(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000])
def test_json_that_cannot_be_parsed_is_an_input_error(content: bytes, genuine: Path, tmp_path: Path) -> None:
    path = changed(genuine, tmp_path / "broken.pt2", lambda entries: entries.update({MODEL: content}))
    with pytest.raises(InputError, match="is not JSON"):
        load_exported(path)


@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_a_truncated_archive_is_an_input_error(kept: float, genuine: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt2"
    content = genuine.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=r"cut\.pt2 is damaged or cut short"):
        load_exported(path)


def test_a_missing_file_and_missing_parts_are_input_errors(genuine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        load_exported(tmp_path / "absent.pt2")
    path = changed(genuine, tmp_path / "part.pt2", without("data/weights/weight_0"))
    with pytest.raises(InputError, match="is missing from data/weights/"):
        load_exported(path)
    path = changed(genuine, tmp_path / "none.pt2", without(MODEL))
    with pytest.raises(InputError, match="holds no exported program"):
        load_exported(path)


def test_what_inspection_admits_but_torch_cannot_load_is_one_sentence(genuine: Path, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model["schema_version"]["major"] = 99

    path = changed(genuine, tmp_path / "future.pt2", lambda entries: change_json(entries, MODEL, change))
    with pytest.raises(InputError, match=r"is not a program that torch .* can load"):
        load_exported(path)
