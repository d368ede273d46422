"""Files of every kind that is read, with a text of ours in place of any one of theirs.

Each `Kind` makes a genuine file, lists the places of all texts in it, and writes it again with another text in one
place. Nothing here is read back; what comes of it is for the tests.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

Place = tuple[Any, ...]


class Branch(nn.Module):
    """Enough calls for a stage of its own in the written source."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.two = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.two(torch.tanh(self.norm(self.one(x))))) * x


class Net(nn.Module):
    """Two stages, a constant, a dict of results, a text among the arguments of an operator."""

    input_shapes = ((3, 8, 8),)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Branch(), Branch()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.b(self.a(x))
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")
        return {"logits": self.fc(nn.functional.gelu(x, approximate="tanh").mean((2, 3))), "map": x}


def genuine() -> Net:
    """The network, with the same weights every time."""
    torch.manual_seed(3)
    return Net().eval()


def make() -> Net:
    """The architecture of the checkpoints: `--arch support.planting:make`."""
    return Net()


# ---- texts in JSON -----------------------------------------------------------------------------------------------


def json_places(value: Any, above: Place = ()) -> Iterator[Place]:
    """The place of every text, and of every key (which ends in None)."""
    if isinstance(value, str):
        yield above
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield (*above, key, None)
            yield from json_places(inner, (*above, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from json_places(inner, (*above, i))


def json_planted(value: Any, place: Place, text: str) -> Any:
    """A copy with `text` in that place."""
    made = copy.deepcopy(value)
    key = place[-1] is None
    *way, last = place[:-1] if key else place
    target = made
    for step in way:
        target = target[step]
    if key:
        target[text] = target.pop(last)
    else:
        target[last] = text
    return made


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


# ---- kinds of files ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """places: of all texts. write: the file (and what lies beside it) with a text in a place, or None as it is."""

    name: str
    places: Callable[[], list[Place]]
    write: Callable[[Path, Place | None, str], Path]


def _zip(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name.encode("utf-8", "replace").decode(), content)
    return buffer.getvalue()


def _entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class Program:
    """A `.pt2`: every text of its JSON, the names of its records, its small records of text."""

    def __init__(self) -> None:
        buffer = io.BytesIO()
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        exported = torch.export.export(genuine(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes, strict=False)
        torch.export.save(exported, buffer, extra_files={"note.txt": "a note"})
        self.entries = _entries(buffer.getvalue())

    def places(self) -> list[Place]:
        found: list[Place] = []
        for entry, content in self.entries.items():
            weights = "/weight_" in entry or "/tensor_" in entry  # numbers, no texts
            found += [(entry, None), *([] if weights else [(entry,)])]
            if entry.endswith(".json"):
                found += [(entry, *place) for place in json_places(json.loads(content))]
        return found

    def write(self, folder: Path, place: Place | None, text: str) -> Path:
        entries = dict(self.entries)
        if place is not None:
            entry, *way = place
            if way == [None]:  # the name of the record
                root, _, _ = entry.partition("/")
                entries = {(f"{root}/{text}" if k == entry else k): v for k, v in entries.items()}
            elif not way:
                entries[entry] = text.encode("utf-8", "surrogatepass")
            else:
                entries[entry] = dumped(json_planted(json.loads(entries[entry]), tuple(way), text))
        path = folder / "net.pt2"
        path.write_bytes(_zip(entries))
        return path


class State:
    """A checkpoint: each key, a further key, keys beside the state dict. layout: of the file."""

    def __init__(self, layout: str) -> None:
        self.layout = layout
        self.state = genuine().state_dict()

    def places(self) -> list[Place]:
        return [*((key,) for key in self.state), ("further",), ("beside", "further"), ("beside", "holder")]

    def write(self, folder: Path, place: Place | None, text: str) -> Path:
        state: dict[str, Any] = {(text if (k,) == place else k): v for k, v in self.state.items()}
        if place == ("further",):
            state[text] = torch.ones(2)
        if place == ("beside", "further"):
            state = {text: {"lr": text}, "state_dict": state}
        if place == ("beside", "holder"):
            state = {text: state}
        if self.layout == "safetensors":
            plain = {k: v.contiguous() for k, v in state.items() if isinstance(v, Tensor)} or self.state
            content = save_safetensors({k.encode("utf-8", "replace").decode(): v for k, v in plain.items()})
            (folder / "net.safetensors").write_bytes(content)
            return folder / "net.safetensors"
        torch.save(state, folder / "net.pt", _use_new_zipfile_serialization=self.layout == "zip")
        return folder / "net.pt"


class Header:
    """A safetensors file: every text of its header, the notes of its metadata among them."""

    def __init__(self) -> None:
        content = save_safetensors(genuine().state_dict(), metadata={"format": "pt", "note": "a note"})
        length = int.from_bytes(content[:8], "little")
        self.header, self.values = json.loads(content[8 : 8 + length]), content[8 + length :]

    def places(self) -> list[Place]:
        return list(json_places(self.header))

    def write(self, folder: Path, place: Place | None, text: str) -> Path:
        header = dumped(self.header if place is None else json_planted(self.header, place, text))
        path = folder / "net.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + self.values)
        return path


class Config:
    """A config.json beside a safetensors file, as hubs have them."""

    config: ClassVar[dict[str, Any]] = {"architectures": ["Net"], "_name_or_path": "x", "auto_map": {"a": "b"}}

    def places(self) -> list[Place]:
        return list(json_places(self.config))

    def write(self, folder: Path, place: Place | None, text: str) -> Path:
        made = self.config if place is None else json_planted(self.config, place, text)
        (folder / "config.json").write_bytes(dumped(made))
        return Header().write(folder, None, "")


def onnx_model() -> onnx.ModelProto:
    """A small graph with everything that has a name."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y, z = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("y", "z"))
    nodes = [
        helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["h"], name="fc/Gemm", transB=1, doc_string="a note"),
        helper.make_node("Gelu", ["h"], ["y"], name="act/Gelu", approximate="tanh"),
        helper.make_node("Softmax", ["h"], ["z"], name="out/Softmax", axis=1),
    ]
    weights = [
        numpy_helper.from_array(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "fc.weight"),
        numpy_helper.from_array(np.zeros(4, np.float32), "fc.bias"),
    ]
    graph = helper.make_graph(nodes, "graph", [x], [y, z], weights, doc_string="a note")
    graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 4]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name="someone")
    model.ir_version = 10
    model.doc_string = "a note"
    helper.set_model_props(model, {"reparam.precision": "fp32", "key": "value"})
    nodes[0].metadata_props.add(key="key", value="value")
    return model


class Onnx:
    """An ONNX file: every text and every byte string of the message. manifest: plants in the manifest beside it."""

    def __init__(self, manifest: bool = False) -> None:
        self.model, self.manifest = onnx_model(), manifest
        self.row: dict[str, Any] = {
            "schema": 1,
            "file": "net.onnx",
            "sha256": "0" * 64,
            "side": {"net.onnx.data": "0" * 64},
            "format": "onnx",
            "build": {"runtime": "rtx"},
            "inputs": [{"name": "x", "shape": ["batch", 3], "dtype": "float32"}],
            "labels": ["cat", "dog"],
            "preprocessing": {"interpolation": "bilinear", "of": "x"},
        }

    def places(self) -> list[Place]:
        return list(json_places(self.row)) if self.manifest else list(_message_places(self.model))

    def write(self, folder: Path, place: Place | None, text: str) -> Path:
        path = folder / "net.onnx"
        made, row = onnx.ModelProto(), self.row
        made.CopyFrom(self.model)
        if self.manifest and place is not None:
            row = json_planted(row, place, text)
        elif place is not None:
            _plant(made, place, text)
        path.write_bytes(made.SerializeToString())
        if self.manifest:
            (folder / "net.onnx.json").write_bytes(dumped(row))
        return path


def _message_places(message: Any, above: Place = ()) -> Iterator[Place]:
    for field, value in message.ListFields():
        items = enumerate(value) if field.is_repeated else [(None, value)]
        for i, item in items:
            here = (*above, (field.name, i))
            if field.message_type is not None:
                yield from _message_places(item, here)
            elif isinstance(item, str | bytes) and field.name != "raw_data":
                yield here


def _plant(message: Any, place: Place, text: str) -> None:
    for name, index in place[:-1]:
        message = getattr(message, name) if index is None else getattr(message, name)[index]
    name, index = place[-1]
    old = getattr(message, name) if index is None else getattr(message, name)[index]
    plain = text.encode("utf-8", "replace")
    value: Any = plain if isinstance(old, bytes) else plain.decode()
    if index is None:
        setattr(message, name, value)
    else:
        getattr(message, name)[index] = value


def kinds() -> dict[str, Kind]:
    """Every kind by its name."""
    makers: dict[str, Any] = {
        "program": Program(),
        "zip": State("zip"),
        "legacy": State("legacy"),
        "safetensors": State("safetensors"),
        "header": Header(),
        "config": Config(),
        "onnx": Onnx(),
        "manifest": Onnx(manifest=True),
    }
    return {name: Kind(name, maker.places, maker.write) for name, maker in makers.items()}
