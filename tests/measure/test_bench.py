"""`bench` on samples: its accuracies are those of a plain script, and what it picks it can justify."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch import nn

import reparam
from reparam import BenchOptions, BenchTable
from reparam.errors import InputError
from support.cli_helpers import refuse, run, succeed
from support.digits import IMAGES, prepare_digits

QUICK = BenchOptions(rounds=3, memory=False)
ARCH = ("--arch", "digit_nets:net")
BENCH = ("bench", "base.pt", "fused.onnx", "int8.onnx", "pruned.onnx", *ARCH, "--data", "digits/")
FAST = ("--rounds", "3", "--no-memory", *IMAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trained network on digits, its fused, quantised and pruned forms as ONNX, and digits to judge them on."""
    with pytest.MonkeyPatch.context() as patch:
        made = tmp_path_factory.mktemp("digits")
        prepare_digits(made, patch, count=200)
        succeed("export", "base.pt", *ARCH, "--format", "onnx", "-o", "fused.onnx")
        words = ("--format", "onnx", "--precision", "int8", "--calibrate", "calibrate.npy")
        succeed("export", "base.pt", *ARCH, *words, "-o", "int8.onnx")
        words = ("--calibrate", "calibrate.npy", "--macs", "0.4", "--form", "residual", "--samples", "64")
        succeed("prune", "base.pt", *ARCH, *words, "-o", "pruned.pt2")
        succeed("export", "pruned.pt2", "--format", "onnx", "-o", "pruned.onnx")
        yield made


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def top1(model: str) -> float:
    """The accuracy of an ONNX file on the folder of digits, by onnxruntime alone."""
    session = ort.InferenceSession(model)
    right = total = 0
    for label, name in enumerate(sorted(p.name for p in Path("digits").iterdir())):
        for file in sorted(Path("digits", name).iterdir()):
            x = np.asarray(Image.open(file), np.float32)[None, None] / 255
            right += int(session.run(None, {session.get_inputs()[0].name: x})[0].argmax() == label)
            total += 1
    return right / total


def test_accuracies_are_those_of_a_plain_script_and_the_fastest_that_holds_is_picked() -> None:
    words = ("--max-drop", "1", "--fastest", "--json", "b.json", "--csv", "b.csv", "--force")
    result = succeed(*BENCH, *FAST, *words)
    found = json.loads(Path("b.json").read_text())
    models = {m["model"]: m for m in found["models"]}
    onnx = ("fused.onnx", "int8.onnx", "pruned.onnx")
    assert {n: models[n]["score"]["value"] for n in onnx} == {n: top1(n) for n in onnx}
    assert models["base.pt"]["score"]["value"] == models["fused.onnx"]["score"]["value"] > 0.8
    assert [m["precision"] for m in found["models"]] == ["fp32", "fp32", "int8", "fp32"]
    assert [m["bytes"] for m in found["models"]] == [Path(n).stat().st_size for n in models]
    assert models["base.pt"]["agreement"]["worst"] is None
    assert Path(models["pruned.onnx"]["agreement"]["worst"]["input"]).is_file()
    how = "as told: mean 0, std 1, size 8x8, bilinear"
    facts = {"source": "digits/", "samples": 200, "labels": "its folders", "note": "", "images": how}
    assert found["data"] == facts and f"images {how}" in result.stdout

    choice, rows = found["choice"], {r["model"]: r for r in found["rows"]}
    drops = {n: 100 * (models["base.pt"]["score"]["value"] - m["score"]["value"]) for n, m in models.items()}
    assert {n: m["drop"] for n, m in models.items()} == pytest.approx(drops)
    held = [n for n in models if drops[n] <= 1]
    assert set(choice["out"]) == set(models) - set(held)
    assert choice["model"] == min(held, key=lambda n: rows[n]["median_ms"])
    assert result.stdout.splitlines()[-1].startswith(f"ship {choice['model']}: the fastest of those whose top-1 drops")
    with Path("b.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(r["model"], float(r["score"])) for r in table] == [(n, m["score"]["value"]) for n, m in models.items()]
    assert table[3]["worst_input"].startswith("digits") and float(table[0]["median_ms"]) > 0


def test_a_gate_without_a_choice_fails_with_the_models_that_miss_it() -> None:
    result = run(*BENCH, *FAST, "--max-drop", "0", "--metric", "mine:Wrong", "--json", "-")
    assert result.exit_code == 2 and "there is no module 'mine'" in result.stderr
    Path("mine.py").write_text("def small(outputs, labels):\n    return -outputs.abs().mean(1)\n")
    result = run(*BENCH[:3], *BENCH[5:], *FAST, "--max-drop", "0.01", "--metric", "mine:small", "--json", "-")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["figure"] == "mine:small" and found["choice"]["model"] is None and not found["choice"]["out"]
    assert found["choice"]["why"] == "no model drops by more than 0.01 of mine:small"
    Path("texts.py").write_text("def half(outputs, labels):\n    return '0.5'\n")
    words = ("--metric", "texts:half", "--json", "-")
    assert refuse(2, *BENCH[:3], *BENCH[5:], *FAST, *words) == "the metric texts:half gave a str, not a number"
    result = run(*BENCH, *FAST, "--max-drop", "0")
    assert result.exit_code == 1 and "pruned.onnx drops by" in result.stderr.splitlines()[-1]
    assert "drops by" not in result.stdout and "top-1 %" in result.stdout


def test_the_peak_of_memory_is_that_of_the_values_and_not_of_the_code() -> None:
    """The first layer alone gives 4 * 2048 * 64 * 8 bytes; importing what runs it takes some 100 MB."""
    found = json.loads(succeed("bench", "fused.onnx", "--rounds", "3", "--batch", "2048", "--json", "-").stdout)
    assert 4 * 2048 * 64 * 8 < found["models"][0]["peak_bytes"] < 3e7


def test_the_table_in_python() -> None:
    table = reparam.bench(["fused.onnx", "pruned.onnx"], data="digits", fastest=True, options=options())
    assert isinstance(table, BenchTable)
    text = repr(table)
    assert text.splitlines()[0].split()[:4] == ["model", "precision", "top-1", "%"]
    assert f"ship {table.choice.model}: the fastest of all" in text if table.choice else False
    page = table._repr_html_()
    assert page.count("<tr>") == 3 and "<td>fused.onnx</td>" in page
    assert json.loads(json.dumps(table.to_dict()))["models"][0]["score"]["name"] == "top-1"
    again = reparam.bench({"<b>": "fused.onnx"}, options=QUICK)
    assert "&lt;b&gt;" in again._repr_html_() and "<b>" not in again._repr_html_()


def options(**others: Any) -> BenchOptions:
    return BenchOptions(rounds=3, memory=False, preprocessing={"mean": [0], "std": [1], "size": [8, 8]}, **others)


def test_samples_may_be_fewer_and_are_then_drawn_evenly() -> None:
    table = reparam.bench(["fused.onnx"], data="digits", options=options(samples=50))
    assert table.data is not None and table.data.samples == 50


def test_modules_conversions_and_exports_are_measured_alike() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    converted = reparam.convert(net, x[:2])
    exported = reparam.export(net, x[:2], path="net.onnx", options=reparam.ExportOptions(force=True))
    with torch.no_grad():
        labels = net(x).argmax(1)
    table = reparam.bench([converted, net, exported], data=[(x, labels)], options=QUICK)
    assert [m.model for m in table.models] == ["Conversion 0", "Sequential 1", "net.onnx"]
    assert [m.score.value for m in table.models if m.score is not None] == [1.0] * 3
    assert table.models[1].bytes == sum(v.numel() * v.element_size() for v in net.state_dict().values())
    assert table.data is not None and table.data.labels == "those in it"


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_labels_may_be_an_array_or_a_tensor(kind: Callable[[Any], Any]) -> None:
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval(), torch.randn(6, 1, 2, 2)
    with torch.no_grad():
        labels = net(x).argmax(1)
    options = reparam.BenchOptions(rounds=3, memory=False, input_shapes=[(1, 2, 2)])
    table = reparam.bench([net], data=kind(x), labels=kind(labels), options=options)
    assert table.models[0].score is not None and table.models[0].score.value == 1.0


def test_without_labels_a_drop_is_one_of_equal_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--data", "calibrate.npy", "--rounds", "3", "--no-memory", "--max-drop", "50", "--json", "-")
    found = json.loads(succeed("bench", "fused.onnx", "pruned.onnx", *words).stdout)
    drop = found["models"][1]["drop"]
    assert found["figure"] == "agreement"
    assert drop == pytest.approx(100 * (1 - found["models"][1]["agreement"]["share"]))


def test_images_go_in_as_a_manifest_says_and_two_that_differ_are_refused(tmp_path: Path) -> None:
    names = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path, mean in zip(names, (0.0, 0.5), strict=True):
        path.write_bytes(Path("fused.onnx").read_bytes())
        row = json.loads(Path("fused.onnx.json").read_text())
        row["preprocessing"] = {"mean": [mean], "std": [1.0], "size": [8, 8], "resize": 8}
        path.with_name(f"{path.name}.json").write_text(json.dumps(row))
    table = reparam.bench([names[0], "fused.onnx"], data="digits", options=QUICK)
    assert table.models[0].score is not None and table.models[0].score.value == top1("fused.onnx")
    with pytest.raises(InputError, match="state that images are prepared in different ways"):
        reparam.bench(names, data="digits", options=QUICK)


def test_label_maps_of_a_folder_give_the_intersection_over_union(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        for kind in ("images", "maps"):
            (tmp_path / kind).mkdir(exist_ok=True)
            pixels = generator.integers(0, 3, (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{name}.png")
    torch.manual_seed(0)
    net = nn.Conv2d(1, 3, 1)
    how = {"mean": [0], "std": [1], "size": [6, 6]}
    made = BenchOptions(rounds=3, memory=False, input_shapes=[(1, 6, 6)], preprocessing=how)
    table = reparam.bench([net], data=tmp_path / "images", labels=tmp_path / "maps", options=made)
    x, y = (
        torch.from_numpy(np.stack([np.asarray(Image.open(tmp_path / k / f"{n}.png")) for n in "abc"]))
        for k in ("images", "maps")
    )
    with torch.no_grad():
        guess = net(x[:, None].float() / 255).argmax(1)
    both = [((guess == c) & (y == c)).sum() / ((guess == c) | (y == c)).sum() for c in range(3)]
    assert table.figure == "mIoU" and table.models[0].score is not None
    assert table.models[0].score.value == pytest.approx(float(sum(both) / 3), abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--labels", "y.npy"), "labels and metrics are for samples; give some with --data"),
        (("--max-drop", "1"), "--max-drop is judged on samples"),
        (("--data", "digits", "--runtime", "openvino"), "--runtime is for times alone"),
        (("--data", "digits"), "digits holds images, but how this network wants them is not known"),
        (("--data", "calibrate.npy", "--labels", "folders"), "calibrate.npy is no folder of images"),
        (
            ("--data", "calibrate.npy", "--mean", "0.5", "--std", "0.5"),
            "calibrate.npy holds samples as they go in, and --mean and --std would change images alone",
        ),
        (("--data", "calibrate.npy", "--metric", "nothing"), "'nothing' is not a metric; write package.module:name"),
        (("--data", "calibrate.npy", "--metric", "json:nothing"), "module 'json' has no metric 'nothing'; the nearest"),
        (
            ("--data", "digits", "--mean", "0", "--std", "1", "--size", "5"),
            "fused.onnx takes images of 8x8, not of 5x5, as --size says",
        ),
        (("--csv", "-"), "--csv writes a file; name it, such as bench.csv"),
        (("--csv", "fused.onnx", "--force"), "fused.onnx would overwrite fused.onnx"),
    ],
)
def test_what_does_not_go_together(words: tuple[str, ...], message: str) -> None:
    assert refuse(2, "bench", "fused.onnx", *words, "--rounds", "3").startswith(message)


def test_wrong_arguments_in_python() -> None:
    for call, message in (
        (lambda: reparam.bench("fused.onnx"), "the models are a str"),
        (lambda: reparam.bench(["fused.onnx"], options=3), "options is an int"),  # type: ignore[arg-type]
        (lambda: reparam.bench(["fused.onnx", "fused.onnx"]), "a model is named twice"),
        (lambda: reparam.bench([]), "name at least one model"),
        (lambda: reparam.bench([3], data=[torch.zeros(1)]), "int 0 is an int"),  # type: ignore[list-item]
        (lambda: reparam.bench(["fused.onnx"], data="digits", max_drop=-1), "max_drop is -1"),
        (lambda: reparam.bench(["fused.onnx"], data="digits", metric=3), "the metric is an int"),
        (lambda: BenchOptions(samples=0), "samples is 0"),
    ):
        with pytest.raises(InputError, match=message):
            call()


# ---- labels as text --------------------------------------------------------------------------------------------------


def test_labels_may_be_lines_of_text() -> None:
    files = sorted(Path("digits").rglob("*.png"))
    classes = [int(f.parent.name) for f in files]
    names = [
        f"digit {['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'][c]}" for c in classes
    ]
    known = {name: i for i, name in enumerate(sorted(set(names)))}
    Path("numbers.txt").write_text("\n".join(map(str, classes)) + "\n\n")
    Path("names.txt").write_text("\n".join(names))
    np.save("by_name.npy", [known[name] for name in names])

    def score(labels: str) -> float:
        words = ("--data", "digits", *FAST, "--labels", labels, "--json", "-")
        value: float = json.loads(succeed("bench", "fused.onnx", *words).stdout)["models"][0]["score"]["value"]
        return value

    assert score("numbers.txt") == top1("fused.onnx")
    Path("marked.txt").write_text("\ufeff" + Path("numbers.txt").read_text())
    assert score("marked.txt") == top1("fused.onnx")
    assert score("names.txt") == score("by_name.npy") != score("numbers.txt")
    table = reparam.bench(["fused.onnx"], data="digits", labels=Path("numbers.txt"), options=options())
    assert table.models[0].score is not None and table.models[0].score.value == top1("fused.onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog\n" * 100, "the labels name 2 classes, and the first model has 10; give the numbers of the classes"),
        ("1\n\n2\n", "l.txt, line 2 is empty; give one class a line"),
        ("cat\n-1\n", "l.txt, line 2: '-1' is no class; give numbers from 0, or names"),
        ("1\n2\nx\n", "l.txt, line 3: 'x' is no class"),
        ("\ufeff1\n2\n-1\n", "l.txt, line 3: '-1' is no class"),
        ("0.5\n", "l.txt, line 1: '0.5' is no class"),
        ("1\n2\n", "there are 2 labels, but digits holds 200 samples"),
        ("\udcff", "l.txt is not text in UTF-8"),
    ],
)
def test_lines_that_are_no_labels(text: str, message: str) -> None:
    Path("l.txt").write_bytes(text.encode(errors="surrogateescape"))
    words = ("bench", "fused.onnx", "--data", "digits", *FAST, "--labels", "l.txt")
    assert refuse(2, *words).startswith(message)


def test_folders_that_are_not_all_classes_are_no_labels(tmp_path: Path) -> None:
    shutil.copytree("digits", tmp_path / "digits")
    shutil.rmtree(tmp_path / "digits" / "3")
    words = ("bench", "fused.onnx", "--data", str(tmp_path / "digits"), *FAST, "--labels", "folders")
    told = "the samples lie in 9 folders, and the first model has 10 classes; add an empty folder for each class"
    assert refuse(2, *words).startswith(told)
    (tmp_path / "digits" / "3").mkdir()
    table = reparam.bench(["fused.onnx"], data=tmp_path / "digits", labels="folders", options=options())
    assert table.models[0].score is not None and table.models[0].score.value > 0.8


def test_labels_that_are_not_those_of_the_folders_are_told() -> None:
    classes = [int(f.parent.name) for f in sorted(Path("digits").rglob("*.png"))]
    for labels, note in ((classes, ""), ([9, *classes[1:]], "1 of 200 labels are not those of the folders; the")):
        table = reparam.bench(["fused.onnx"], data="digits", labels=labels, options=options())
        assert table.data is not None and table.data.note.startswith(note) and bool(table.data.note) == bool(note)


def test_how_names_are_counted_is_told_and_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    shutil.copytree("digits", tmp_path / "digits")
    (tmp_path / "digits" / ".hidden").mkdir()
    shutil.copy(next(Path("digits").rglob("*.png")), tmp_path / "digits" / ".hidden" / "x.png")
    classes = [int(f.parent.name) for f in sorted(Path("digits").rglob("*.png"))]
    (tmp_path / "l.txt").write_text("\n".join("jihgfedcba"[c] for c in classes))
    table = reparam.bench(["fused.onnx"], data=tmp_path / "digits", labels=tmp_path / "l.txt", options=options())
    assert table.data is not None and table.data.samples == 200
    assert table.data.note.startswith("classes are counted in the order of their names: 0 a, 1 b, 2 c, 3 d, …; ")
    table = reparam.bench(["fused.onnx"], data=tmp_path / "digits", options=options())
    assert table.models[0].score is not None and table.models[0].score.value == top1("fused.onnx")


def test_a_copy_that_was_run_in_place_of_a_file_is_told_and_not_chosen() -> None:
    succeed("export", "base.pt", *ARCH, "--format", "onnx", "--precision", "bf16", "-o", "b16.onnx", "--force")
    table = reparam.bench(["fused.onnx", "b16.onnx"], data="digits", fastest=True, options=options())
    assert table.choice is not None and table.choice.model == "fused.onnx"
    assert table.choice.why.endswith("; not b16.onnx, of which a copy was run")
    assert table.data is not None and table.data.note.startswith("of b16.onnx a copy in float32 was run")
    alone = reparam.bench(["b16.onnx"], data="digits", fastest=True, options=options())
    assert alone.choice is not None and alone.choice.model == "b16.onnx"


# ---- what samples tell -----------------------------------------------------------------------------------------------


def test_the_shape_of_a_bare_module_is_that_of_the_samples(tmp_path: Path) -> None:
    colours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    x = torch.randn(6, 3, 8, 8)
    np.save(tmp_path / "x.npy", x.numpy())
    for data in (x, x.numpy(), [x[:2], x[2:]], iter([x[:2], x[2:]]), [(x, torch.zeros(6, dtype=torch.int64))]):
        table = reparam.bench([colours], data=data, options=QUICK)
        assert table.timing.shapes == ((3, 8, 8),) and table.data is not None and table.data.samples == 6
    for path in (tmp_path / "x.npy", tmp_path):
        assert reparam.bench([colours], data=path, options=QUICK).timing.shapes == ((3, 8, 8),)
    for net, channels in ((grey, 1), (colours, 3)):
        assert reparam.bench([net], data="digits", options=options()).timing.shapes == ((channels, 8, 8),)
    words = reparam.bench([nn.Embedding(9, 2)], data=torch.randint(0, 2, (5, 4)), options=QUICK)
    assert words.timing.shapes == ((4,),)


def test_several_inputs_are_told_apart_by_their_names_and_their_number() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
            return scale * a.flatten(1) + b

    a, b = torch.randn(4, 2, 3), torch.randn(4, 6)
    for data in ([(a, b)], {"b": b, "a": a}):
        assert reparam.bench([Two()], data=data, options=QUICK).timing.shapes == ((2, 3), (6,))


def test_messages_in_python_name_keywords() -> None:
    net = nn.Linear(3, 2)
    for call, message in (
        (lambda: reparam.bench([net]), "the input's shape is not known; pass it with input_shapes, for example"),
        (lambda: reparam.bench([net], max_drop=1), "max_drop is judged on samples; give some with data"),
        (lambda: reparam.bench([net], labels=[1]), "labels and metrics are for samples; give some with data"),
        (lambda: reparam.bench([net], data="digits"), "how this network wants them is not known; say it with preproc"),
        (lambda: reparam.bench([net], data=[], options=QUICK), "pass it with input_shapes"),
        (lambda: reparam.bench([net], options=torch.ones(3)), "options is a torch.Tensor, not BenchOptions"),  # type: ignore[arg-type]
        (lambda: reparam.export(net, path="x.onnx", options={}), "options is a dict, not ExportOptions"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError) as error:
            call()
        assert message in str(error.value) and "--" not in str(error.value)
