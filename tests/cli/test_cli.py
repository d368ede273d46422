"""`convert` and `explain`: what they print, what they write and where, and the report that scripts read."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from reparam import __version__
from reparam.cli.options import read_dynamic, read_remarks, read_shapes
from reparam.cli.outputs import default_output
from reparam.cli.work import describe_twins
from reparam.errors import InputError
from reparam.utils import batch_is_unasked
from support.cli_helpers import TINY, prepare_folder, refuse, succeed, tiny

VERBS = (
    "convert",
    "explain",
    "verify",
    "diff",
    "export",
    "run",
    "bench",
    "prune",
    "recalibrate",
    "apply",
    "init",
    "analyze",
    "view",
    "passes",
    "doctor",
)
REPORT_KEYS = {
    "schema", "reparam", "input", "outputs", "arch", "arch_inferred", "target", "equivalent", "plain", "before",
    "after", "blocks", "evidence", "remarks", "seconds",
}  # fmt: skip
CENSUS_KEYS = {"nodes", "merges", "gates", "convs", "norms", "params", "macs"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network and its checkpoint."""
    return prepare_folder(tmp_path, monkeypatch)


def written(path: Path) -> Any:
    return torch.export.load(str(path)).module()


# ---- help --------------------------------------------------------------------------------------------------------


def test_help_is_quick_to_import_and_lists_the_verbs_that_work() -> None:
    code = (
        "import sys\nfrom reparam.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code\n"
        "assert not {'torch', 'timm', 'torchvision', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert tuple(listed) == VERBS


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "no.pt"),
        ("explain", "no.pt"),
        ("export", "no.pt", "-f", "onnx"),
        ("verify", "-", "no.pt"),
        ("prune", "no.pt", "--calibrate", "x.npy"),
    ],
)
def test_a_file_that_is_not_there_is_told_before_torch_is_imported(words: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom reparam.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert e.code == 2\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "reparam: there is no file no.pt; check the name, or give an architecture with --arch\n"


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(verb: str) -> None:
    assert succeed(verb, "--help").stdout.startswith(f"Usage: reparam {verb}")


def test_no_words_print_the_help() -> None:
    assert succeed().stdout == succeed("--help").stdout


def test_version() -> None:
    assert succeed("--version").stdout == f"reparam {__version__}\n"


# ---- reading options ---------------------------------------------------------------------------------------------


def test_shapes_and_axes_are_read() -> None:
    assert read_shapes(["3,224,224", " 4x8 ", "7"]) == ((3, 224, 224), (4, 8), (7,))
    assert read_shapes([]) is None
    shapes = read_shapes(["3,224", "(16):int64", " 2x3 : bool "]) or ()
    assert list(map(str, shapes)) == ["3,224", "16:int64", "2,3:bool"]
    assert read_dynamic("batch, height,width,batch") == ("batch", "height", "width")
    assert read_dynamic("none") == ()
    assert read_dynamic(None) == ("batch",) and batch_is_unasked(read_dynamic(None))
    assert not batch_is_unasked(read_dynamic("batch"))


def test_remarks_are_chosen_by_kind_and_pattern() -> None:
    remark = {"kind": "missed", "rule": "merge-branches", "module": "layer1.0", "message": "strides differ"}
    assert read_remarks(None, None).keeps(remark)
    assert read_remarks("missed,passed", "^layer1").keeps(remark)
    assert not read_remarks("passed", None).keeps(remark)
    assert not read_remarks("missed", "layer2").keeps(remark)


@pytest.mark.parametrize(
    ("model", "arch", "expected"),
    [
        ("resnet50.pt", None, "resnet50-fused.pt2"),
        ("a/b/net.v1.safetensors", None, "a/b/net.v1-fused.pt2"),
        ("net.pth.tar", "timm/x", "net-fused.pt2"),
        ("weights", None, "weights-fused.pt2"),
        (".pt", None, ".pt-fused.pt2"),
        (None, "torchvision/resnet50", "resnet50-fused.pt2"),
        (None, "package.module:factory", "factory-fused.pt2"),
    ],
)
def test_the_output_is_named_after_the_input_or_the_architecture(model: str | None, arch: str, expected: str) -> None:
    assert default_output(model, arch, "fused") == Path(expected)


@pytest.mark.parametrize("model", [".", "..", "/", "./", "../"])
def test_a_folder_without_a_name_is_no_checkpoint(model: str) -> None:
    with pytest.raises(InputError, match="is a folder; give a checkpoint"):
        default_output(model, None, "fused")


# ---- convert -----------------------------------------------------------------------------------------------------


def test_convert_writes_beside_the_input_and_the_result_is_the_same_function(folder: Path) -> None:
    (folder / "models").mkdir()
    (folder / "tiny.pt").rename(folder / "models" / "tiny.pt")
    result = succeed("convert", "models/tiny.pt", "--arch", "cli_nets:tiny")
    assert "models/tiny.pt (cli_nets:tiny) -> models/tiny-fused.pt2" in result.stdout
    assert "equivalent: float64" in result.stdout
    assert [p.name for p in (folder / "models").iterdir() if p.name != "tiny.pt"] == ["tiny-fused.pt2"]
    torch.manual_seed(1)
    original, x = tiny(), torch.randn(5, 3, 16, 16)
    converted = written(folder / "models" / "tiny-fused.pt2")
    torch.testing.assert_close(converted(x), original(x), rtol=1e-5, atol=1e-6)
    assert not any("batch_norm" in str(n.target) for n in converted.graph.nodes)


def test_the_report_has_the_keys_of_the_contract(folder: Path) -> None:
    succeed("convert", *TINY, "-o", "out.pt2", "--json", "report.json", "--quiet", "--seed", "3")
    report = json.loads((folder / "report.json").read_text())
    assert set(report) == REPORT_KEYS
    assert set(report["before"]) == set(report["after"]) == CENSUS_KEYS
    assert (report["schema"], report["reparam"]) == (1, __version__)
    assert (report["input"], report["outputs"]) == ("tiny.pt", ["out.pt2"])
    assert (report["arch"], report["arch_inferred"], report["target"]) == ("cli_nets:tiny", False, "fused")
    assert report["equivalent"] is True
    assert (report["before"]["norms"], report["after"]["norms"]) == (2, 0)
    evidence = report["evidence"]
    assert evidence["float64_max_rel"] < 1e-12
    assert evidence["seed"] == 3
    assert evidence["trials"] >= 8
    assert evidence["float32_error_vs_truth"] > 0
    assert evidence["shapes"][0] == [1, 3, 16, 16]
    assert set(report["seconds"]) == {"load", "capture", "rewrite", "verify", "emit"}
    assert report["seconds"]["emit"] > 0
    rules = [r["rule"] for r in report["remarks"] if r["kind"] == "passed"]
    assert rules.count("fold-batch-norm") == 2


def test_nothing_but_the_report_is_on_standard_output() -> None:
    result = succeed("convert", "tiny.pt", "--arch", "cli_nets:noisy", "--json", "-")
    assert json.loads(result.stdout)["equivalent"] is True
    assert result.stderr == "a noisy module\n"


def test_quiet_prints_nothing(folder: Path) -> None:
    result = succeed("convert", *TINY, "--quiet")
    assert (result.stdout, result.stderr) == ("", "")
    assert (folder / "tiny-fused.pt2").exists()


def test_an_architecture_alone_has_random_weights_and_says_so(folder: Path) -> None:
    result = succeed("convert", "--arch", "cli_nets:tiny", "--arch-args", '{"features": 2}', "--seed", "7")
    assert "reparam: warning: cli_nets:tiny has random weights (seed 7)" in result.stderr
    assert "cli_nets:tiny (random weights, seed 7) -> tiny-fused.pt2" in result.stdout
    x = torch.randn(2, 3, 16, 16)
    first = written(folder / "tiny-fused.pt2")(x)
    assert first.shape[1] == 2
    succeed("convert", "--arch", "cli_nets:tiny", "--arch-args", '{"features": 2}', "--seed", "7", "--force")
    assert torch.equal(written(folder / "tiny-fused.pt2")(x), first)


def test_source_is_written_too_and_runs_with_torch_alone(folder: Path) -> None:
    result = succeed("convert", *TINY, "--source", "new/source", "--json", "report.json")
    assert "-> tiny-fused.pt2, new/source" in result.stdout
    assert json.loads((folder / "report.json").read_text())["outputs"] == ["tiny-fused.pt2", "new/source"]
    assert sorted(p.name for p in (folder / "new/source").iterdir()) == ["model.py", "model.safetensors"]


def test_the_dtype_of_the_weights(folder: Path) -> None:
    result = succeed("convert", *TINY, "--dtype", "bfloat16")
    assert "bfloat16 error against the float64 truth" in result.stdout
    dtypes = {v.dtype for v in written(folder / "tiny-fused.pt2").state_dict().values()}
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize(
    ("axes", "free"), [("none", set()), ("batch", {0}), ("batch,height,width", {0, 2, 3})], ids=["none", "batch", "all"]
)
def test_the_axes_that_stay_free(folder: Path, axes: str, free: set[int]) -> None:
    succeed("convert", *TINY, "--dynamic", axes)
    program = torch.export.load(str(folder / "tiny-fused.pt2"))
    (shape,) = [n.meta["val"].shape for n in program.graph.nodes if n.name in program.graph_signature.user_inputs]
    assert {i for i, s in enumerate(shape) if not isinstance(s, int)} == free
    assert axes != "none" or tuple(shape) == (1, 3, 16, 16)


def test_a_batch_that_the_model_fixes_is_refused_where_it_was_asked_for(folder: Path) -> None:
    (folder / "fixing.py").write_text(
        "import torch\nfrom cli_nets import nn, tiny\n\nclass Net(nn.Module):\n    input_shapes = ((3, 16, 16),)\n\n"
        "    def __init__(self):\n        super().__init__()\n        self.net = tiny()\n\n    def forward(self, x):\n"
        "        return torch.stack([self.net(row[None])[0] for row in x])\n"
    )
    torch.save({f"net.{name}": value for name, value in tiny().state_dict().items()}, folder / "fixing.pt")
    arch = ("fixing.pt", "--arch", "fixing:Net")
    for verb in (("convert",), ("explain",), ("export", "--format", "onnx")):
        assert "the batch cannot stay free" in refuse(2, *verb, *arch, "--dynamic", "batch")
        assert "the batch is fixed at" in succeed(*verb, *arch).stdout


def test_input_shape_is_what_the_network_is_captured_with(folder: Path) -> None:
    succeed("convert", "tiny.pt", "--arch", "cli_nets:shapeless", "--input-shape", "3,9,11", "--json", "r.json")
    assert json.loads((folder / "r.json").read_text())["evidence"]["shapes"][0] == [1, 3, 9, 11]


def test_a_network_on_integers_is_converted_and_verified(folder: Path) -> None:
    words = ("--arch", "cli_nets:words", "--input-shape", "5:int64")
    assert "dry run" in succeed("explain", *words).stdout
    succeed("convert", *words, "-o", "words.pt2", "--json", "r.json")
    report = json.loads((folder / "r.json").read_text())
    assert report["evidence"]["shapes"][0] == [1, 5] and report["after"]["norms"] == 1
    program = torch.export.load(str(folder / "words.pt2"))
    (value,) = [n.meta["val"] for n in program.graph.nodes if n.name in program.graph_signature.user_inputs]
    assert value.dtype == torch.int64 and tuple(value.shape[1:]) == (5,)
    result = succeed("verify", "-", "words.pt2", "--arch-a", "cli_nets:words")  # the shape is that of words.pt2
    assert "equivalent" in result.stdout and "shapes [1, 5], [7, 5]" in result.stdout


def test_a_program_can_be_converted_again(folder: Path) -> None:
    succeed("convert", *TINY)
    result = succeed("convert", "tiny-fused.pt2", "--input-shape", "3,5,5")
    assert "--input-shape is not used" in result.stderr
    assert "tiny-fused.pt2 (exported program) -> tiny-fused-fused.pt2" in result.stdout
    assert "rewrites: none" in result.stdout


def test_twins_raise_a_warning_unless_the_architecture_is_named(folder: Path) -> None:
    from reparam.loading import build_architecture

    torch.save(build_architecture("torchvision/resnet18").module.state_dict(), folder / "resnet18.pt")
    words = ("explain", "resnet18.pt", "--input-shape", "3,32,32", "--json", "-")
    result = succeed(*words)
    assert result.stderr.startswith("reparam: warning: resnet18.pt is taken as torchvision/resnet18")
    assert "fit timm/resnetblur18, which computes something else; name" in result.stderr
    assert describe_twins(["a", "b", "c"]) == "a, b and c, which compute something else"
    assert "--arch" in result.stderr
    assert json.loads(result.stdout)["arch_inferred"] is True
    named = succeed(*words, "--arch", "torchvision/resnet18")
    assert named.stderr == ""
    assert json.loads(named.stdout)["arch_inferred"] is False


# ---- explain -----------------------------------------------------------------------------------------------------


def test_explain_writes_nothing_and_does_not_claim_equivalence(folder: Path) -> None:
    before = sorted(p.name for p in folder.iterdir())
    result = succeed("explain", *TINY, "--json", "-")
    report = json.loads(result.stdout)
    assert report["equivalent"] is None
    assert report["outputs"] == []
    assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == before


def test_explain_shows_the_price_by_rule_and_the_refusals_by_reason() -> None:
    text = succeed("explain", "--arch", "cli_nets:stuck").stdout
    assert "dry run" in text
    assert "multiply-accumulates" in text
    assert "each rewrite was checked alone" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("fold-batch-norm ")]
    assert row[1] == "2"
    assert "not done: 1\n  fold-batch-norm: 1\n    0: " in text
    assert "sigmoid does not commute" in text


def test_refusals_are_grouped_by_rule_and_reason() -> None:
    from rich.console import Console

    from reparam.cli.render import render_explanation

    missed = [
        {"kind": "missed", "rule": "r", "module": f"block{i}", "node": "n", "message": "the [strides] differ"}
        for i in range(9)
    ]
    report = json.loads(succeed("explain", *TINY, "--json", "-").stdout) | {"remarks": missed}
    stream = io.StringIO()
    for part in render_explanation(report, "arch", listed=[], missed=missed):
        Console(file=stream, width=160).print(part)
    text = stream.getvalue()
    assert (
        "not done: 9\n  r: 9\n    block0, block1, block2, block3, block4, block5 and 3 more: the [strides] differ"
        in text
    )


def test_remarks_are_listed_and_filtered_in_text_and_json(folder: Path) -> None:
    words = ("--remarks", "passed", "--remarks-filter", "^fold-batch-norm$", "--json", "r.json")
    text = succeed("explain", *TINY, *words).stdout
    listed = [line for line in text.splitlines() if line.startswith("  passed [")]
    assert len(listed) == 2
    assert all("[fold-batch-norm]" in line and "max |Δ|" in line for line in listed)
    remarks = json.loads((folder / "r.json").read_text())["remarks"]
    assert [r["rule"] for r in remarks] == ["fold-batch-norm"] * 2
