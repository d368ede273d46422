"""Holds a refactoring to the exact behaviour: records what reparam does with many networks, and compares two records.

    golden.py record --out DIR    run every case; a case that DIR already holds is skipped
    golden.py compare A B         every difference, at the place where it is; exit code 1 if there is any
    golden.py against REV         record REV (kept under .golden/) and the working tree, and compare them

Only the command line of reparam is used, in this process, so the same script runs on an old and on a new tree. Networks
have random weights from a seed. What a case says and writes is recorded whole, refusals and their sentences too. Left
out are timings, temporary paths and reparam's version.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import gc
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

ROOT = Path(__file__).resolve().parent.parent
ABOUT = "about.json"
PACKAGES = "torch torchvision timm numpy safetensors onnx onnx-ir onnxscript onnxsim onnxruntime openvino"
UNTOLD = ("seconds", "reparam", "tree", "script")  # keys of reports and of ABOUT that are not compared
SIZES = (32, 64)  # of the images x32.npy and x64.npy, which every case finds
LONG = 1000  # characters of an ONNX node; of a longer one the rest is recorded by its sha256
say = functools.partial(print, file=sys.stderr, flush=True)
shown = functools.partial(json.dumps, ensure_ascii=False)

NETWORKS = {
    "torchvision": "resnet18 resnext50_32x4d mobilenet_v2 mobilenet_v3_small regnet_x_400mf vgg11_bn densenet121 "
    "inception_v3 googlenet shufflenet_v2_x0_5 squeezenet1_1 efficientnet_b0 convnext_tiny swin_t",
    "timm": "repvgg_a0 mobileone_s0 fastvit_t8 repvit_m0_9 ghostnet_050 seresnet18 resnetv2_18 nf_resnet26 vovnet39a "
    "darknet17 cspdarknet53 dla34 levit_128s convmixer_768_32 mixer_s32_224 resnet26d vit_tiny_patch16_224",
    "reparam": "acnet_small autoinit_net_small dbbnet_small gaussian_preact_small mocapsnet_small nfnet_small "
    "point_conv_small preact_resnet_small prelu_net_small proxy_norm_resnet_small revnet_small "
    "set_transformer_pp_small wrn_groupnorm_ws_small zero_net_small",
}
SPECS = tuple(f"{source}/{name}" for source, names in NETWORKS.items() for name in names.split())
OWN_SHAPES = {"inception_v3": "3,96,96", "levit_128s": "3,224,224", "convmixer_768_32": "3,32,32"}
RESIZED = ("timm/mixer_s32_224", "timm/vit_tiny_patch16_224")  # take another size of image only when told
CONVERTED = "--output out.pt2 --source source --remarks passed,missed,analysis --json report.json"
LITTLE = "reparam/mobilenet_v2_small"
CHECKPOINT = "checkpoint"  # a step of this script: the state dict of a network of torchvision, which is loaded by then


def network(spec: str) -> str:
    """The options that name an architecture, with a small shape for those of the zoos."""
    shape = "" if spec.startswith("reparam/") else f"--input-shape {OWN_SHAPES.get(spec.partition('/')[2], '3,64,64')}"
    return " ".join(["--arch", spec, shape, """--arch-args '{"img_size": 64}'""" if spec in RESIZED else ""])


def case(options: str, text: str) -> tuple[str, list[str]]:
    """A name, and command lines of reparam, which run one after the other in a folder of their own."""
    return "-".join(re.findall(r"\w+", options.replace("x64.npy", ""))), re.split("[;\n]", text.strip())


def conversion(spec: str, options: str) -> tuple[str, list[str]]:
    """`convert` with everything that it can write."""
    return case(f"convert {spec} {options}", f"convert {network(spec)} {options} {CONVERTED}")


def exported(spec: str, kind: str, options: str) -> tuple[str, list[str]]:
    """`export`, and a run of the file."""
    file = {"onnx": "net.onnx", "openvino": "net.xml"}[kind]
    step = f"export {network(spec)} --format {kind} {options} --output {file} --json report.json"
    return case(f"export {kind} {spec} {options}", f"{step}; run {file} --input x64.npy --output y.npz")


VERBS = f"""
convert {network(LITTLE)} {CONVERTED}; run out.pt2 --input x32.npy --output y.npy
verify - out.pt2 --arch-a {LITTLE} --json verify.json; verify - out.pt2 --arch-a {LITTLE} --seed 1
verify source out.pt2; verify source out.pt2 --trust; run source --trust --input x32.npy --output z.npy
diff - out.pt2 --arch-a {LITTLE} --full --json diff.json; convert out.pt2 --output out.pt2
convert out.pt2 --to plain --json plain.json; explain {network("timm/resnetv2_18")} --to plain --json explain.json
passes --json passes.json; passes carry-residual"""
FROM_CHECKPOINT = f"""
explain {network("torchvision/mobilenet_v3_small")} --to plain; {CHECKPOINT} mobilenet_v3_small net.pt
convert net.pt --input-shape 3,64,64 --json report.json; convert net.pt --arch torchvision/resnet18 --output wrong.pt2
verify net.pt net-fused.pt2 --arch-a torchvision/mobilenet_v3_small --json verify.json"""
REFUSALS_AND_HELP = """
convert; unknown; convert --arch torchvision/resnet17; convert --arch resnet18; convert --arch torchvision/raft_small
convert --arch timm/repvgg_a0 --input-shape 4,64,64; convert --arch timm/repvgg_a0 --input-shape 3,x
convert --arch timm/repvgg_a0 --arch-args '{"depht": 3}'; convert --arch timm/repvgg_a0 --carry split
convert missing.pt; convert x32.npy; export --arch timm/repvgg_a0 --format onnx --precision int8
export --arch timm/repvgg_a0 --format tflite; passes fold-nothing
--help; --version; convert --help; explain --help; verify --help; diff --help; export --help; run --help; bench --help
passes --help; doctor --help"""
CASES = dict(
    [
        *(conversion(spec, f"--to {to}") for spec in SPECS for to in ("fused", "plain")),
        conversion("torchvision/resnet18", "--to plain --carry dense"),
        conversion("timm/resnetv2_18", "--to plain --carry split=4"),
        conversion("timm/dla34", "--to plain --max-pool relu"),
        conversion("torchvision/mobilenet_v2", "--to plain --signed relu"),
        conversion("timm/repvgg_a0", "--to fused --dtype float16"),
        conversion("reparam/preact_resnet_small", "--to plain --dynamic batch,height,width"),
        exported("torchvision/resnet18", "onnx", "--precision fp32"),
        exported("timm/fastvit_t8", "onnx", "--precision fp16"),
        exported("timm/mobileone_s0", "onnx", "--precision int8 --equalize --calibrate x64.npy"),
        exported("torchvision/resnet18", "openvino", "--precision fp32"),
        exported("timm/repvgg_a0", "openvino", "--precision fp16 --to plain"),
        case("verbs", VERBS),
        case("checkpoint", FROM_CHECKPOINT),
        case("refusals and help", REFUSALS_AND_HELP),
    ]
)


def disturb_weights() -> None:
    """From now on no network is built with constant weights: a fresh norm is the identity and would hide mistakes.

    A scale v becomes v U(0.5, 1.5), a tenth of it negated; zeros N(0, 0.1); running statistics likewise.
    """

    def fill(tensor: Tensor, val: float) -> Tensor:
        with torch.no_grad():
            sign = tensor.clone().uniform_().sub_(0.1).sign_()
            return tensor.uniform_(0.5, 1.5).mul_(sign).mul_(val) if val else tensor.normal_(0, 0.1)

    def fill_statistics(norm: _NormBase) -> None:
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)

    changed: dict[str, Any] = {"constant_": fill, "ones_": lambda t: fill(t, 1), "zeros_": lambda t: fill(t, 0)}
    vars(nn.init).update(changed)
    setattr(_NormBase, "reset_running_stats", fill_statistics)  # noqa: B010  # an assignment has the wrong type


def run_step(step: str) -> dict[str, Any]:
    """Runs one command line in this process: its exit code, and the lines that it printed."""
    from reparam.cli import main

    torch.manual_seed(0)
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["reparam", *shlex.split(step)]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if sys.argv[1] == CHECKPOINT:
                torch.save(sys.modules["torchvision"].models.get_model(sys.argv[2]).state_dict(), sys.argv[3])
            else:
                main()
    except SystemExit as end:
        code = end.code
    except Exception as error:
        code = f"{type(error).__name__}: {error}"
    if isinstance(code, int) and code > 128:
        raise KeyboardInterrupt  # a signal arrived: this is nothing to record
    lines = [line.rstrip() for line in out.getvalue().splitlines() if not line.startswith("seconds:")]
    return {"command": " ".join(step.split()), "code": code, "stdout": lines, "stderr": err.getvalue().splitlines()}


def run_case(lines: Sequence[str]) -> dict[str, Any]:
    """Runs the steps in a temporary folder; describes what they printed and every file that they left."""
    import reparam

    with tempfile.TemporaryDirectory(prefix="golden-") as name, contextlib.chdir(name):
        for size in SIZES:
            np.save(f"x{size}.npy", np.random.default_rng(size).standard_normal((4, 3, size, size), np.float32))
        steps = [run_step(s) for s in lines]
        files = {str(p): describe(p) for p in sorted(Path().rglob("*.*")) if not re.search(r"^x\d|\.pt$", p.name)}
        hidden = {str(Path.cwd()): "DIR", f"reparam {reparam.__version__}": "reparam VERSION"}
    return {"steps": cleared(steps, hidden), "files": cleared(files, hidden)}


def cleared(value: Any, hidden: Mapping[str, str]) -> Any:
    """`value` without the keys UNTOLD, and with each text of `hidden` replaced, in keys too."""
    if isinstance(value, Mapping):
        return {cleared(k, hidden): cleared(v, hidden) for k, v in value.items() if k not in UNTOLD}
    if isinstance(value, list):
        return [cleared(v, hidden) for v in value]
    if isinstance(value, str):
        for old, new in hidden.items():
            value = value.replace(old, new)
    return value


def describe(path: Path) -> Any:
    """What a file holds: text line by line, weights by their sha256, graphs as text."""
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix in (".py", ".xml"):
        return path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".pt2":
        return describe_program(path)
    whole = {"file": sha256(path.read_bytes())}
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return whole | {"weights": describe_state(load_file(path))}
    return whole | {"model": describe_onnx(path)} if path.suffix == ".onnx" else whole


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def describe_state(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Dtype, shape and sha256 of the bytes of each tensor."""
    flat = {name: t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in state.items()}
    return {name: f"{t.dtype} {tuple(t.shape)} {sha256(flat[name])}" for name, t in state.items()}


def describe_program(path: Path) -> dict[str, Any]:
    """A `.pt2`: graph, signature and weights. Its bytes also hold where in the sources each node arose."""
    program = torch.export.load(path)
    signature = program.graph_signature
    return {
        "graph": str(program.graph).splitlines(),
        "signature": [str(s) for s in (*signature.input_specs, *signature.output_specs)],
        "ranges": {str(symbol): str(limits) for symbol, limits in program.range_constraints.items()},
        "weights": describe_state({**program.state_dict, **program.constants}),
    }


def describe_onnx(path: Path) -> dict[str, Any]:
    """Everything that the model says, so that other bytes can be told from another graph."""
    import onnx
    from google.protobuf.json_format import MessageToDict

    def text(message: Any) -> str:
        whole = json.dumps(MessageToDict(message), sort_keys=True)
        return whole if len(whole) < LONG else f"{whole[:LONG]} ... {sha256(whole.encode())}"

    model = onnx.load(path)
    parts = ("input", "output", "value_info", "quantization_annotation", "node", "sparse_initializer")
    return {
        "about": f"{model.producer_name} {model.ir_version} {model.doc_string} {model.graph.name}",
        "opset": [text(o) for o in model.opset_import],
        "metadata": {p.key: p.value for p in model.metadata_props},
        "functions": [text(f) for f in model.functions],
        **{part: [text(message) for message in getattr(model.graph, part)] for part in parts},
        "weights": [
            f"{t.name} {t.data_type} {[*t.dims]} {sha256(t.SerializeToString())}" for t in model.graph.initializer
        ],
    }


def about() -> dict[str, Any]:
    """What a record depends on beside the tree."""
    packages = {name: metadata.version(name) for name in PACKAGES.split()}
    return {"script": sha256(Path(__file__).read_bytes()), "python": sys.version.split()[0], "packages": packages}


def record(folder: Path, tree: Path | None, only: str) -> int:
    """Runs the cases that `folder` lacks. With `tree`, reparam must be the one in there."""
    import reparam

    os.environ.pop("COLUMNS", None)  # would set the width of tables
    found = Path(reparam.__file__ or "").resolve().parent
    if tree is not None and found != tree.resolve() / "reparam":
        say(f"reparam was imported from {found}, not from {tree}; set PYTHONPATH to the tree")
        return 2
    say(f"recording {found}")
    write_json(folder / ABOUT, {"tree": str(found), **about()})
    torch.set_num_threads(1)
    disturb_weights()
    wanted = [name for name in CASES if re.search(only, name) and not (folder / f"{name}.json").exists()]
    start = time.perf_counter()
    for number, name in enumerate(wanted, 1):
        before = time.perf_counter()
        told = run_case(CASES[name])
        write_json(folder / f"{name}.json", told)
        codes = " ".join(str(s["code"]) for s in told["steps"])
        say(f"{number}/{len(wanted)} {name}: {time.perf_counter() - before:.1f} s, exit codes {codes}")
        gc.collect()
    say(f"{len(wanted)} cases in {time.perf_counter() - start:.0f} s")
    return 0


def write_json(path: Path, value: Any) -> None:
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def compare(a: Path, b: Path, renames: Mapping[str, str]) -> int:
    """Prints every difference; returns 1 if there is any. renames: texts of `a` and what `b` has instead."""
    names = sorted({p.stem for folder in (a, b) for p in folder.glob("*.json")})
    differing = set()
    for name in names:
        old, new = (read_json(folder / f"{name}.json") for folder in (a, b))
        lines = differences(cleared(old, renames), cleared(new, {}), name)
        for line in lines if old and new else [f"{name}: only in {a if old else b}"]:
            print(line)
            differing.add(name)
    print(f"{len(differing)} of {len(names)} files differ")
    return int(bool(differing) or not names)


def read_json(path: Path) -> dict[str, Any]:
    """What the file holds; nothing where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def differences(old: Any, new: Any, where: str) -> Iterator[str]:
    """One line for each difference, which begins with its place. Places in lists count in `old`."""
    if isinstance(old, dict) and isinstance(new, dict):
        if [k for k in old if k in new] != [k for k in new if k in old]:
            yield f"{where}: in another order: {shown([*old])} -> {shown([*new])}"
        for key in {**old, **new}:
            if key in old and key in new:
                yield from differences(old[key], new[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}: only in {'A' if key in old else 'B'}: {shown({**old, **new}[key])}"
    elif isinstance(old, list) and isinstance(new, list):
        left, right = [shown(item) for item in old], [shown(item) for item in new]
        for kind, i, j, k, m in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
            if kind == "replace" and j - i == m - k:
                for n in range(j - i):
                    yield from differences(old[i + n], new[k + n], f"{where}[{i + n}]")
            elif kind != "equal":
                yield from (f"{where}[{n}]: only in A: {left[n]}" for n in range(i, j))
                yield from (f"{where}[{i}]: only in B: {right[n]}" for n in range(k, m))
    elif shown(old) != shown(new):
        yield f"{where}: {shown(old)} -> {shown(new)}"


def against(revision: str, renames: Mapping[str, str]) -> int:
    """Compares the working tree with a revision, whose record is kept until this script or a package changes."""
    sha = git("rev-parse", "--verify", f"{revision}^{{commit}}")
    kept, fresh = (ROOT / ".golden" / name for name in (sha, "working"))
    if any(read_json(kept / ABOUT).get(k) != v for k, v in about().items()):
        shutil.rmtree(kept, ignore_errors=True)
    if any(not (kept / f"{name}.json").exists() for name in CASES):
        with tempfile.TemporaryDirectory(prefix="golden-") as folder:
            tree = Path(folder).resolve() / "tree"
            git("worktree", "add", "--detach", str(tree), sha)
            try:
                code = record_apart(tree, kept)
            finally:
                git("worktree", "remove", "--force", str(tree))
        if code:
            return code
    shutil.rmtree(fresh, ignore_errors=True)
    return record_apart(ROOT, fresh) or compare(kept, fresh, renames)


def record_apart(tree: Path, folder: Path) -> int:
    """Records `tree` in a process of its own, which imports reparam from there."""
    command = [sys.executable, __file__, "record", "--out", str(folder), "--tree", str(tree)]
    return subprocess.call(command, env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"})


def git(*arguments: str) -> str:
    """What git prints, run in this repository."""
    return subprocess.check_output(["git", *arguments], cwd=ROOT, text=True).strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record", help="run every case that the folder lacks")
    recording.add_argument("--out", type=Path, required=True, metavar="DIR")
    recording.add_argument("--tree", type=Path, help="fail unless reparam is imported from this folder")
    recording.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    comparing = verbs.add_parser("compare", help="compare two records")
    comparing.add_argument("a", type=Path)
    comparing.add_argument("b", type=Path)
    holding = verbs.add_parser("against", help="compare the working tree with a revision")
    holding.add_argument("revision", metavar="REV")
    for verb in (comparing, holding):
        verb.add_argument("--rename", action="append", default=[], metavar="OLD=NEW", help="what B has for a text of A")
    args = parser.parse_args()
    if args.verb == "record":
        return record(args.out.resolve(), args.tree, args.only)
    renames = dict(text.split("=", 1) for text in args.rename if "=" in text)
    if len(renames) < len(args.rename):
        parser.error("write --rename OLD=NEW, and each OLD once")
    return compare(args.a, args.b, renames) if args.verb == "compare" else against(args.revision, renames)


if __name__ == "__main__":
    sys.exit(main())
