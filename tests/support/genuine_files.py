"""A small genuine file of every kind that is read, and what lies beside it: what the mutators begin with."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch

from .planting import kinds, onnx_model

SUFFIXES: Mapping[str, str] = {
    "zip": "pt",
    "legacy": "pt",
    "script": "pt",
    "safetensors": "safetensors",
    "program": "pt2",
    "onnx": "onnx",
    "external": "onnx",
    "manifest": "onnx.json",
    "openvino": "xml",
    "package": "aoti.pt2",
    "engine": "engine",
    "npy": "npy",
    "npz": "npz",
    "png": "png",
    "jpeg": "jpg",
    "webp": "webp",
    "bmp": "bmp",
    "moves": "json",
}
IMAGES = ("png", "jpeg", "webp", "bmp")


@functools.cache
def seed_of(kind: str) -> bytes:
    """The genuine file that is mutated."""
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, np.arange(6, dtype=np.float32).reshape(2, 3))
    elif kind == "npz":
        np.savez(buffer, x=np.arange(6, dtype=np.float32).reshape(2, 3), y=np.ones(3, np.int64))
    elif kind in IMAGES:
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 255, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, kind)
    elif kind == "script":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    elif kind == "package":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in ("archive_format", "data/aotinductor/model/net.so", "data/aotinductor/model/net.json"):
                archive.writestr(f"net/{name}", "{}")
    elif kind == "engine":
        return b"ftrt" + bytes(range(200))
    elif kind == "moves":
        return json.dumps({"moves": [["a", [1, 2, 3, 4]], ["b/c", [1, 2, 3, 4]]], "made": ["b"]}).encode()
    elif kind in ("external", "openvino"):
        return _pair(kind)[0]
    else:
        return _planted(kind)
    return buffer.getvalue()


def _planted(kind: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = kinds()[kind].write(Path(folder), None, "")
        return Path(f"{path}.json").read_bytes() if kind == "manifest" else path.read_bytes()


@functools.cache
def _pair(kind: str) -> tuple[bytes, bytes]:
    """A model and its weights, in two files."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        source: Any = folder / "net.onnx"
        onnx.save_model(
            onnx_model(), str(source), save_as_external_data=True, location="net.onnx.data", size_threshold=0
        )
        if kind == "external":
            return source.read_bytes(), (folder / "net.onnx.data").read_bytes()
        from reparam.engines import convert_onnx

        convert_onnx(source, folder / "net.xml")
        return (folder / "net.xml").read_bytes(), (folder / "net.bin").read_bytes()


def beside(kind: str) -> dict[str, bytes]:
    """What lies beside the file that is mutated, by its name."""
    match kind:
        case "external":
            return {"net.onnx.data": _pair(kind)[1]}
        case "openvino":
            return {"net.bin": _pair(kind)[1]}
        case "manifest":
            return {"net.onnx": seed_of("onnx")}
        case "package" | "engine":
            row = {"schema": 1, "file": f"net.{SUFFIXES[kind]}", "sha256": "0" * 64, "side": {}, "format": "aoti"}
            return {f"net.{SUFFIXES[kind]}.json": json.dumps(row).encode()}
    return {}
