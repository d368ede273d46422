"""The names that the TensorRT backend uses exist in tensorrt_rtx, and in the real bindings of tensorrt.

Those bindings import without a GPU once the libraries that they are linked with are stood in for: what they take from
them are functions that only run later.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ("bindings.py", "build.py", "runtime.py")
CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ITensor",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "TensorIOMode",
)
FOR_RTX_ALONE = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
STAND_INS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LISTING = """
import json, sys
module = __import__(sys.argv[1])
print(json.dumps({"": dir(module), **{n: dir(getattr(module, n)) for n in sys.argv[2:]}}))
"""

pytest.importorskip("tensorrt_rtx", reason="pip install 'reparam[rtx]'")


def used() -> tuple[set[str], set[str]]:
    """Names taken from the module itself, and every attribute besides, in the files of the backend."""
    own: set[str] = set()
    other: set[str] = set()
    for name in FILES:
        for node in ast.walk(ast.parse((ROOT / "reparam" / "engines" / "tensorrt" / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                direct = isinstance(node.value, ast.Name) and node.value.id == "trt"
                (own if direct else other).add(node.attr)
            if isinstance(node, ast.FunctionDef):  # those of the classes that TensorRT calls
                other.add(node.name)
    return own - {"__name__"}, other


def names_of(module: str, **environment: str) -> dict[str, set[str]]:
    """What a module and its classes have, in a process of its own."""
    command = [sys.executable, "-c", LISTING, module, *CLASSES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    listed: dict[str, list[str]] = json.loads(done.stdout)
    return {owner: set(names) for owner, names in listed.items()}


@pytest.fixture(scope="module")
def rtx() -> dict[str, set[str]]:
    return names_of("tensorrt_rtx")


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    compiler = shutil.which("gcc")
    if importlib.util.find_spec("tensorrt_bindings") is None or compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux, gcc and tensorrt-cu13-bindings")
    folder = tmp_path_factory.mktemp("stand-ins")
    source = folder / "all.c"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in STAND_INS))
    for library in LIBRARIES:
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / library), str(source)], check=True)
    return names_of("tensorrt_bindings", LD_LIBRARY_PATH=str(folder))


def missing(names: dict[str, set[str]], reference: dict[str, set[str]]) -> set[str]:
    """What the backend uses of `reference` and `names` lacks."""
    own, other = used()
    found = {n for n in own if n not in names[""]}
    for owner in CLASSES:
        found |= {f"{owner}.{n}" for n in other & reference[owner] - names[owner] if not n.startswith("__")}
    return {n for n in found if n.rpartition(".")[2] not in FOR_RTX_ALONE}


def test_the_backend_uses_names_of_every_class(rtx: dict[str, set[str]]) -> None:
    own, other = used()
    assert own >= {"Builder", "OnnxParser", "Runtime", "IProgressMonitor", "BuilderFlag"}
    assert other >= {"build_serialized_network", "execute_async_v3", "get_tensor_profile_shape", "phase_start", "log"}
    assert own <= rtx[""]
    for owner in set(CLASSES) - {"NetworkDefinitionCreationFlag", "DataType"}:  # those are asked for by strings
        assert other & rtx[owner], owner


def test_tensorrt_has_every_name(rtx: dict[str, set[str]], bindings: dict[str, set[str]]) -> None:
    assert missing(bindings, rtx) == set()
    assert "ComputeCapability" not in bindings[""]  # it builds for the GPU that it runs on
    assert bindings["DataType"] >= {"FLOAT", "HALF", "BF16", "INT64", "INT32", "INT8", "UINT8", "BOOL"}
    assert "STRONGLY_TYPED" in bindings["NetworkDefinitionCreationFlag"]


def test_a_name_that_is_gone_is_found(rtx: dict[str, set[str]]) -> None:
    other: dict[str, Any] = {owner: set(names) for owner, names in rtx.items()}
    other["IExecutionContext"] -= {"execute_async_v3"}
    other[""] -= {"TensorIOMode"}
    assert missing(other, rtx) == {"IExecutionContext.execute_async_v3", "TensorIOMode"}
