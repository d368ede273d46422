"""Records, storages and headers agree, or the file is refused by the name of the tensor, before a value is read."""

from __future__ import annotations

import io
import json
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from reparam.errors import InputError, UnsafeFileError
from reparam.loading.archive import load_exported
from reparam.loading.checkpoint import load_checkpoint
from reparam.loading.model import load
from support.rebuilt import rebuilt

STATE = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.arange(3.0), "b.weight": torch.ones(5)}
Entries = dict[str, bytes]


def entries_of(value: Any) -> Entries:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


def write(path: Path, entries: Entries, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def changed(path: Path, change: Callable[[Entries], None]) -> Path:
    entries = entries_of(STATE)
    change(entries)
    return write(path, entries)


def record(name: str, content: bytes | None) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        if content is None:
            del entries[f"archive/{name}"]
        else:
            entries[f"archive/{name}"] = content

    return change


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_checkpoint(path)


def test_an_unchanged_file_is_taken_with_or_without_checksums(tmp_path: Path) -> None:
    write(tmp_path / "same.pt", entries_of(STATE))
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(STATE, tmp_path / "without.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    for name in ("same.pt", "without.pt"):
        state = load_checkpoint(tmp_path / name).state
        assert all(torch.equal(state[k], v) for k, v in STATE.items())


@pytest.mark.parametrize(
    "change, message",
    [
        (record("data/0", bytes(44)), r"the record of 'a\.weight' holds 44 bytes, where 48 are declared"),
        (record("data/0", bytes(52)), r"the record of 'a\.weight' holds 52 bytes"),
        (record("data/1", b""), r"the record of 'a\.bias' holds 0 bytes"),
        (record("data/2", None), r"the record of 'b\.weight' is missing"),
        (record("data.pkl", b"\x80\x02}."), "holds no state dict"),
        (record("data.pkl", b"\x80\x02}"), "is damaged"),
        (record("data.pkl", b""), "is damaged"),
    ],
)
def test_records_of_a_zip_checkpoint(change: Callable[[Entries], None], message: str, tmp_path: Path) -> None:
    refused(changed(tmp_path / "x.pt", change), message)


def test_a_changed_byte_is_found_by_the_checksum(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pt")
    content = bytearray((tmp_path / "x.pt").read_bytes())
    content[content.index(STATE["a.weight"].numpy().tobytes()) + 5] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    refused(tmp_path / "x.pt", r"the record of 'a\.weight' is not what was written")


FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 12)


@pytest.mark.parametrize(
    "content, message",
    [
        (rebuilt(FLOATS, 0, (3, 4), (4, 1)), ""),
        (rebuilt(FLOATS, 1, (3, 4), (4, 1)), "'w' takes 13 values from a record of 12"),
        (rebuilt(FLOATS, 0, (3, 4), (8, 1)), "'w' takes 20 values from a record of 12"),
        (rebuilt(FLOATS, 0, (1 << 60,), (1,)), "'w' takes 1152921504606846976 values"),
        (rebuilt(FLOATS, 0, (1 << 62,), (1,)), "'w' has an impossible shape"),
        (rebuilt(FLOATS, 0, (-1,), (1,)), "'w' has an impossible shape"),
        (rebuilt(FLOATS, -1, (3,), (1,)), "'w' has an impossible shape"),
        (rebuilt(FLOATS, 0, (3, 4), (1,)), "'w' has an impossible shape"),
        (rebuilt(FLOATS, 0, ("3",), (1,)), "'w' has an impossible shape"),
        (rebuilt(FLOATS, 0, (3,), (-1,)), "'w' has an impossible shape"),
        (rebuilt((*FLOATS[:4], 1 << 60), 0, (3,), (1,)), "the record of 'w' holds 48 bytes"),
        (rebuilt((*FLOATS[:4], -1), 0, (3,), (1,)), "a storage that torch does not write"),
        (rebuilt(("storage", torch.FloatStorage, "../0", "cpu", 12), 0, (3,), (1,)), "the record of 'w' is missing"),
        (rebuilt(("module", torch.FloatStorage, "0", "cpu", 12), 0, (3,), (1,)), "a storage that torch does not write"),
        (rebuilt((*FLOATS, None, 1), 0, (3,), (1,)), "a storage that torch does not write"),
    ],
)
def test_tensors_stay_in_their_storages(content: bytes, message: str, tmp_path: Path) -> None:
    path = changed(tmp_path / "x.pt", record("data.pkl", content))
    if message:
        refused(path, message)
    else:
        assert torch.equal(load_checkpoint(path).state["w"], STATE["a.weight"])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: torch.eye(3).to_sparse(), "a sparse tensor in 'w'"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "a quantised tensor in 'w'"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor in 'w'"),
    ],
)
def test_kinds_of_tensors_that_no_network_takes(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "w": make()}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", message)


def test_a_repeated_value_is_never_spread_out(tmp_path: Path) -> None:
    """Shapes before values: 2**36 elements that are stored once do not fit, and are not looked at."""
    torch.save({"weight": torch.zeros(1).expand(1 << 36), "bias": torch.ones(2)}, tmp_path / "x.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="wrong shape weight"):
        load(tmp_path / "x.pt", arch="torch.nn:Linear", arch_args={"in_features": 2, "out_features": 2})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    torch.save({"weight": torch.ones(1).expand(2, 2), "bias": torch.ones(2)}, tmp_path / "fits.pt")
    arch_args = {"in_features": 2, "out_features": 2}
    module = load(tmp_path / "fits.pt", arch="torch.nn:Linear", arch_args=arch_args).module
    assert module.get_parameter("weight").is_contiguous()


# ---- places in the archive ---------------------------------------------------------------------------------------


def central_entry(content: bytearray, name: bytes) -> int:
    """Where an entry's record in the list of entries begins."""
    return content.rindex(name) - 46


def test_entries_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", entries_of(STATE))
    content = bytearray(path.read_bytes())
    first, second = (central_entry(content, f"archive/data/{n}".encode()) for n in (0, 1))
    content[second + 42 : second + 46] = content[first + 42 : first + 46]  # both point to one local header
    path.write_bytes(content)
    with pytest.raises(UnsafeFileError, match=r"overlaps another|is not where the list"):
        load_checkpoint(path)


def test_two_sizes_for_one_entry_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", entries_of(STATE))
    content = bytearray(path.read_bytes())
    at = central_entry(content, b"archive/data/0")
    content[at + 24 : at + 28] = struct.pack("<I", 400)  # the size when unpacked
    path.write_bytes(content)
    with pytest.raises(UnsafeFileError, match="states two sizes"):
        load_checkpoint(path)


def test_what_stands_before_the_archive_is_refused(tmp_path: Path) -> None:
    """zipfile reads an archive behind other bytes; torch does not, or reads another one."""
    inner = write(tmp_path / "inner.pt", entries_of(STATE)).read_bytes()
    (tmp_path / "x.pt").write_bytes(write(tmp_path / "outer.pt", entries_of({"w": torch.ones(9)})).read_bytes() + inner)
    with pytest.raises(InputError):
        load_checkpoint(tmp_path / "x.pt")


def test_archives_that_unpack_to_many_times_their_size_are_refused(tmp_path: Path) -> None:
    entries = entries_of(STATE)
    entries["archive/data/9"] = bytes(30 << 20)
    path = write(tmp_path / "bomb.pt", entries, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeFileError, match="unpacks to"):
        load_checkpoint(path)
    pattern = np.random.default_rng(0).bytes(1 << 14)
    for n in range(10, 26):
        entries[f"archive/data/{n}"] = pattern * (1 << 11)  # about 1 : 100 each, 512 MiB in all
    del entries["archive/data/9"]
    with pytest.raises(UnsafeFileError, match="unpacks to"):
        load_checkpoint(write(tmp_path / "many.pt", entries, zipfile.ZIP_DEFLATED))


# ---- files of torch before 1.6 -----------------------------------------------------------------------------------


def old(path: Path, change: Callable[[bytearray], None] = lambda content: None) -> Path:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def test_old_files(tmp_path: Path) -> None:
    assert torch.equal(load_checkpoint(old(tmp_path / "x.pt")).state["a.bias"], STATE["a.bias"])
    values = STATE["a.weight"].numpy().tobytes()

    def other_count(content: bytearray) -> None:
        at = content.index(values) - 8
        content[at : at + 8] = struct.pack("<q", 1 << 60)

    refused(old(tmp_path / "count.pt", other_count), "values, where 12 are declared")
    for cut in (5, 30, 70):
        path = old(tmp_path / f"cut{cut}.pt", lambda content, cut=cut: content.__delitem__(slice(-cut, None)))
        refused(path, "is cut short|are cut short|values, where|are missing")
    refused(old(tmp_path / "head.pt", lambda content: content.__delitem__(slice(300, None))), "damaged")


# ---- safetensors -------------------------------------------------------------------------------------------------


def safetensors(change: Callable[[dict[str, Any]], Any], behind: bytes = b"") -> bytes:
    content = save(STATE, metadata={"format": "pt"})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header = change(header) or header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :] + behind


def entry(key: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[key].update(values)


@pytest.mark.parametrize(
    "content, message",
    [
        (safetensors(lambda h: None), ""),
        (safetensors(lambda h: None, b"x"), "its tensors take 80 bytes, where it holds 81"),
        (safetensors(lambda h: None)[:-1], "its tensors take 80 bytes, where it holds 79"),
        (safetensors(entry("a.weight", shape=[1 << 60])), r"'a\.weight' has \d+ bytes for the shape"),
        (safetensors(entry("a.weight", shape=[1 << 62, 4])), "impossible shape"),
        (safetensors(entry("a.weight", shape=[-3, -4])), "impossible shape"),
        (safetensors(entry("a.weight", shape=[True, 12])), "impossible shape"),
        (safetensors(entry("a.weight", dtype="F31")), "of the unknown type 'F31'"),
        (safetensors(entry("a.weight", data_offsets=[0, 48])), "do not follow those before them|bytes for the shape"),
        (safetensors(entry("a.weight", extra=1)), "is not described as a tensor"),
        (safetensors(entry("__metadata__", a=3)), "metadata is no mapping of texts"),
        (safetensors(lambda h: b"[" * 5000), "is not a safetensors file|nest too deep"),
        (safetensors(lambda h: b"{" + b'"a":{' * 5000), "nest too deep"),
        (safetensors(lambda h: json.dumps(h).replace("b.weight", "a.bias").encode()), "is there twice"),
        (safetensors(lambda h: b'{"a": 1' + b"0" * 5000 + b"}"), "is not JSON|is not described"),
        (struct.pack("<Q", 99 << 20) + b"{" + bytes(100), "its header states"),
    ],
)
def test_headers_of_safetensors(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    if message:
        refused(path, message)
    else:
        assert torch.equal(load_checkpoint(path).state["a.bias"], STATE["a.bias"])


# ---- .pt2 --------------------------------------------------------------------------------------------------------


def program(path: Path, change: Callable[[dict[str, Any]], None], size: int | None = None) -> Path:
    exported = torch.export.export(torch.nn.Linear(4, 3), (torch.randn(2, 4),), strict=False)
    torch.export.save(exported, path)
    with zipfile.ZipFile(path) as archive:
        entries = {n: archive.read(n) for n in archive.namelist()}
    name = next(n for n in entries if n.endswith("_weights_config.json"))
    config = json.loads(entries[name])
    change(config["config"]["weight"]["tensor_meta"])
    entries[name] = json.dumps(config).encode()
    if size is not None:
        entries[next(n for n in entries if n.endswith("weights/weight_0"))] = bytes(size)
    return write(path, entries)


@pytest.mark.parametrize(
    "change, size, message",
    [
        (lambda m: None, 44, "the record of 'weight' holds 44 bytes, where 48 are declared"),
        (lambda m: None, 0, "the record of 'weight' holds 0 bytes"),
        (lambda m: None, 49, "the record of 'weight' holds 49 bytes"),
        (lambda m: m.update(storage_offset={"as_int": 1}), None, "the record of 'weight' holds 48 bytes, where 52"),
        (lambda m: m.update(strides=[{"as_int": 4}, {"as_int": 7}]), None, "the record of 'weight' holds 48 bytes"),
        (lambda m: m.update(strides=[{"as_int": -4}, {"as_int": 1}]), None, "has the impossible shape"),
        (lambda m: m.update(sizes=[{"as_int": 3}]), None, "has the impossible shape"),
        (lambda m: m.update(sizes=[{"as_int": 1 << 40}, {"as_int": 4}], strides=[{"as_int": 0}] * 2), None, "repeats"),
    ],
)
def test_records_of_a_program(change: Any, size: int | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_exported(program(tmp_path / "x.pt2", change, size))


def test_a_changed_byte_of_a_program_is_found(tmp_path: Path) -> None:
    path = program(tmp_path / "x.pt2", lambda meta: None)
    load_exported(path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("weights/weight_0"))
        at = info.header_offset + 30 + len(info.filename)
    content[at + 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="its record weight_0 is not what was written"):
        load_exported(path)


# ---- files that are no files -------------------------------------------------------------------------------------


def test_pipes_devices_and_names_of_nothing(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "is not an ordinary file")
    refused(Path("/dev/zero"), "is not an ordinary file")
    refused(Path("a\0b.pt"), "cannot read")


def test_names_of_tensors_are_plain(tmp_path: Path) -> None:
    for name in ("a\nb", "a\x1b[31m", "a\u202eb", 'a"b', "a\\b", "\ud800", "x" * 2000):
        torch.save({name: torch.ones(1)}, tmp_path / "x.pt")
        refused(tmp_path / "x.pt", "has a tensor whose name")
    torch.save({"слой.0 x->y": torch.ones(1)}, tmp_path / "x.pt")
    assert list(load_checkpoint(tmp_path / "x.pt").state) == ["слой.0 x->y"]


def test_a_message_of_torch_that_is_no_text(tmp_path: Path) -> None:
    """torch quotes the version as it is, which then cannot be made a text."""
    refused(changed(tmp_path / "net.pt", record("version", b"\xff\xff")), "net.pt is damaged: ")


@pytest.mark.parametrize("content", [b"\x80\x02]2a.", b"\x80\x02\x8f(K\x01\x90."])
def test_no_advice_of_torch_to_run_code_is_passed_on(content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        for name, part in (("data.pkl", content), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"net/{name}", part)
    with pytest.raises(InputError) as raised:
        load_checkpoint(tmp_path / "net.pt")
    assert "net.pt is not a checkpoint" in str(raised.value) and "weights_only" not in str(raised.value)


@pytest.mark.parametrize("path", [3, b"\xff", "a" * 400, "a\0b", "", "\ud800", ["net.pt"]])
def test_what_is_no_path_is_told(path: Any) -> None:
    with pytest.raises(InputError, match=r"the model|there is no file"):
        load(path)
    with pytest.raises(InputError, match="arch_args is a list, not a mapping"):
        load("net.pt", arch_args=[1])  # type: ignore[arg-type]
