"""Recipes: written by every verb, repeated by `apply`, checked as a whole before anything runs, and never trusted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml

import reparam
from reparam.cli.app import app
from reparam.cli.recipe import NOT_STEPS, _model_of, read_recipe
from reparam.errors import InputError, UnsafeFileError
from support.cli_helpers import TINY, files, prepare_folder, refuse, run, succeed

COMMAND = typer.main.get_command(app)
VERBS = {n: c.callback.__wrapped__ for n, c in COMMAND.commands.items() if n not in NOT_STEPS}  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network, its checkpoint and samples."""
    found = prepare_folder(tmp_path, monkeypatch)
    np.save("x.npy", np.random.default_rng(0).normal(size=(20, 3, 16, 16)).astype(np.float32))
    return found


def recipe(text: str, name: str = "r.yaml") -> Path:
    Path(name).write_text(text)
    return Path(name)


SIDES = ("--arch-a", "cli_nets:tiny", "--arch-b", "cli_nets:tiny")
CONVERT = """recipe: 1
steps:
- convert:
    model: tiny.pt
    arch: cli_nets:tiny
    output: a.pt2
- export:
    model: a.pt2
    format: onnx
    output: a.onnx
    input-shape: [3, 16, 16]
"""


# ---- writing and repeating -------------------------------------------------------------------------------------------


def test_a_run_is_repeated_to_the_same_bytes(folder: Path) -> None:
    words = ("--precision", "fp16", "--min-sqnr", "30", "-o", "q.onnx", "--write-recipe", "r.yaml")
    succeed("export", *TINY, "--format", "onnx", *words)
    found = yaml.safe_load(Path("r.yaml").read_text())
    assert found == {
        "recipe": 1,
        "steps": [
            {
                "export": {
                    "model": "tiny.pt", "arch": "cli_nets:tiny", "format": "onnx", "precision": "fp16",
                    "min-sqnr": 30.0, "output": "q.onnx",
                }
            }
        ],
    }  # fmt: skip
    first = Path("q.onnx").read_bytes()
    sentence = refuse(2, "apply", "r.yaml", "--trust", "--quiet")
    assert sentence == "r.yaml, line 4, export: q.onnx exists already; --force overwrites it"
    Path("q.onnx").unlink()
    Path("q.onnx.json").unlink()
    succeed("apply", "r.yaml", "--trust", "--quiet")
    assert Path("q.onnx").read_bytes() == first


@pytest.mark.parametrize(
    "words",
    [
        ("convert", *TINY, "--dynamic", "none", "-o", "c.pt2"),
        ("verify", "tiny.pt", "tiny.pt", "--arch-a", "cli_nets:tiny", "--arch-b", "cli_nets:tiny", "--no-adversarial"),
        ("bench", "tiny.pt", "--arch", "cli_nets:tiny", "--rounds", "3", "--no-memory", "--input-shape", "3,16,16"),
        ("recalibrate", *TINY, "--calibrate", "x.npy", "-o", "n.pt"),
        ("explain", *TINY, "--graph", "--to", "plain", "--max-cost", "5.0", "--remarks", "missed"),
        ("diff", "tiny.pt", "tiny.pt", *SIDES, "--full"),
        ("analyze", "tiny.pt", "-", *TINY[1:], "--arch-b", "cli_nets:tiny", "--what", "moments,norm", "--batch", "4"),
        ("init", *TINY, "--method", "bn-scale", "--options", '{"gamma": 0.2}', "-o", "n.pt"),
    ],
)
def test_every_verb_writes_a_recipe_that_says_what_was_asked(words: tuple[str, ...]) -> None:
    succeed(*words, "--write-recipe", "r.yaml", "--quiet", "--seed", "7")
    (step,) = read_recipe(Path("r.yaml"), VERBS, trust=True).steps
    again = [str(step.verb)]
    given = dict(step.values)
    assert step.verb == words[0] and given.pop("seed") == 7 and not {"quiet", "write_recipe", "force"} & set(given)
    for name, value in given.items():
        texts = value if isinstance(value, list) else [value]
        again += [str(getattr(t, "value", t)) for t in texts if not isinstance(t, bool)]
        again += [f"--{'' if t else 'no-'}{name.replace('_', '-')}" for t in texts if isinstance(t, bool)]
    flags = {"-o", "--arch", "--dynamic", "--rounds", "--input-shape", "--calibrate", "--arch-a", "--arch-b"}
    flags |= {"--to", "--max-cost", "--remarks", "--what", "--batch", "--method", "--options"}
    assert sorted(again) == sorted(w for w in words if w not in flags)


@pytest.mark.parametrize(
    "words",
    [
        ("explain", *TINY, "--to", "plain", "--remarks", "missed,passed", "--json", "o.json"),
        ("diff", "tiny.pt", "-", *SIDES, "--seed", "3", "--json", "o.json"),
        ("analyze", "tiny.pt", "-", *TINY[1:], "--arch-b", "cli_nets:tiny", "--calibrate", "x.npy", "--json", "o.json"),
        ("init", *TINY, "--method", "bn-scale", "--options", '{"gamma": 0.2}', "--seed", "3", "-o", "o.pt"),
        ("run", *TINY, "--input", "x.npy", "-o", "o.npy"),
        ("run", *TINY, "--input", "input=x.npy", "-o", "o.npz"),
    ],
)
def test_what_a_verb_writes_is_checked_and_repeats_its_run(words: tuple[str, ...]) -> None:
    output = Path(words[-1])
    succeed(*words, "--write-recipe", "r.yaml")
    first = output.read_bytes()
    output.unlink()
    before = files(Path())
    assert f"step 1 of 1, line 4: {words[0]} (" in succeed("apply", "r.yaml", "--check", "--trust").stdout
    assert files(Path()) == before
    assert succeed("apply", "r.yaml", "--trust", "--quiet").stdout == ""
    assert without_seconds(output) == (json.loads(first) | {"seconds": None} if output.suffix == ".json" else first)


def without_seconds(path: Path) -> object:
    """The content of a file; of a report, without the times in it."""
    return json.loads(path.read_text()) | {"seconds": None} if path.suffix == ".json" else path.read_bytes()


def test_every_verb_that_makes_something_can_write_a_recipe_and_every_verb_can_be_a_step() -> None:
    assert set(VERBS) == set(COMMAND.commands) - set(NOT_STEPS)  # type: ignore[attr-defined]
    for name, verb in VERBS.items():
        assert "write_recipe" in {p.name for p in COMMAND.commands[name].params}, name  # type: ignore[attr-defined]
        model, names = _model_of(verb)
        assert set(names.values()) == {f.removeprefix("option_") for f in model.model_fields}


def test_steps_follow_each_other_and_the_report_lists_them() -> None:
    recipe(CONVERT)
    before = files(Path())
    shown = succeed("apply", "r.yaml", "--check", "--trust").stdout
    assert files(Path()) == before and "step 2 of 2, line 7: export (model: a.pt2, format: onnx" in shown
    found = json.loads(succeed("apply", "r.yaml", "--trust", "--json", "-").stdout)
    assert {"a.pt2", "a.onnx", "a.onnx.json"} <= files(Path())
    assert [(s["verb"], s["line"]) for s in found["steps"]] == [("convert", 3), ("export", 7)] and found["ran"] is True


def test_what_a_step_writes_to_standard_output_is_all_that_is_there() -> None:
    recipe(CONVERT.replace("    output: a.pt2", "    output: a.pt2\n    json: '-'"))
    result = succeed("apply", "r.yaml", "--trust")
    assert json.loads(result.stdout)["outputs"] == ["a.pt2"]


def test_a_gate_ends_the_recipe_with_its_step_and_line() -> None:
    verify = "- verify:\n    a: '-'\n    arch-a: cli_nets:tiny\n    b: a.pt2\n    adversarial: false\n"
    recipe(CONVERT[: CONVERT.index("- export")] + verify)
    result = run("apply", "r.yaml", "--trust", "--quiet")
    assert result.exit_code == 1 and (Path() / "a.pt2").exists()
    assert (
        "\nreparam: r.yaml, line 7, verify: cli_nets:tiny (random weights, seed 0) and a.pt2 are not" in result.stderr
    )
    assert result.stderr.endswith("; a.pt2 was written before\n")


UNNAMED = """recipe: 1
steps:
- convert:
    model: tiny.pt
    arch: cli_nets:tiny
- export:
    model: tiny-fused.pt2
    format: onnx
    precision: int8
    calibrate: x.npy
- run:
    model: tiny-fused-fused-int8.onnx
    input: input=x.npy
    output: y.npz
- init:
    model: tiny.pt
    arch: cli_nets:tiny
    method: bn-scale
    options: {gamma: 0.2}
- bench:
    models:
    - tiny-bn-scale.pt
    - tiny-fused.pt2
    arch: cli_nets:tiny
    data: x.npy
"""


def test_files_that_are_missing_are_told_with_their_lines_before_anything_runs() -> None:
    recipe(UNNAMED)
    succeed("apply", "r.yaml", "--check", "--trust")  # all that is not there is made by a step before
    recipe(UNNAMED.replace("- tiny-bn-scale.pt", "- away/tiny-bn-scale.pt"))
    before = files(Path())
    for words in (("--check",), ()):
        assert refuse(2, "apply", "r.yaml", "--trust", *words) == (
            "r.yaml, line 22: bench: there is no away/tiny-bn-scale.pt, as models says, and no step before makes it"
        )
    recipe(UNNAMED.replace("calibrate: x.npy", "calibrate: no.npy").replace("input=x.npy", "input=no.npy"))
    assert refuse(2, "apply", "r.yaml", "--check", "--trust") == (
        "r.yaml, line 10: export: there is no no.npy, as calibrate says, and no step before makes it; "
        "line 13: run: there is no no.npy, as input says, and no step before makes it"
    )
    assert files(Path()) == before


def test_a_step_without_a_model_is_told_before_anything_runs() -> None:
    recipe(CONVERT + "- explain:\n- explain:\n    arch: cli_nets:tiny\n")
    assert refuse(2, "apply", "r.yaml", "--trust") == "r.yaml, line 12: explain: it says no model; give model, or arch"
    assert not Path("a.pt2").exists()


def test_a_step_does_not_read_what_a_later_one_makes() -> None:
    export, convert = (
        CONVERT[CONVERT.index("- export") :],
        CONVERT[CONVERT.index("- convert") : CONVERT.index("- export")],
    )
    recipe(f"recipe: 1\nsteps:\n{export}{convert}")
    sentence = "r.yaml, line 4: export: there is no a.pt2, as model says, and no step before makes it"
    assert refuse(2, "apply", "r.yaml", "--check", "--trust") == sentence


def test_two_steps_do_not_write_one_file() -> None:
    convert = CONVERT[CONVERT.index("- convert") : CONVERT.index("- export")]
    recipe(f"recipe: 1\nsteps:\n{convert}{convert}")
    line = 3 + convert.count("\n")
    sentence = f"r.yaml, line {line}: convert: it writes a.pt2, as a step before does"
    assert refuse(2, "apply", "r.yaml", "--check", "--trust") == sentence


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    format: onnx\n", "", "r.yaml, line 7: export: 'format' is missing"),
        ("format: onnx", "formt: onnx", "line 9: export: there is no 'formt'; the nearest are format, "),
        ("output: a.pt2", "to: flat", "line 6: convert: 'to' should be 'fused' or 'plain', not 'flat'"),
        ("output: a.pt2", "seed: -1", "line 6: convert: 'seed' should be greater than or equal to 0, not -1"),
        ("output: a.pt2", "output: a.pt2\n- explain: 3", "line 7: 'explain' should have a name and a value"),
        ("output: a.pt2", "seed: many", "line 6: convert: 'seed' should be a valid integer"),
        ("output: a.pt2", "quiet: true", "line 6: convert: there is no 'quiet'"),
        ("output: a.pt2", "dynamic: {a: 1}", "line 6: convert: 'dynamic' should be a valid string"),
        ("output: a.pt2", "input_shape: x\n    input-shape: x", "line 6: convert: 'input_shape' is there twice"),
        ("output: a.pt2", "model: b.pt", "line 6: 'model' is there twice"),
        ("output: a.pt2", "model: *x", "line 6: anchors and aliases are not read here"),
        ("output: a.pt2", "output: &x a.pt2", "line 6: anchors and aliases are not read here"),
        ("output: a.pt2", "output: !!python/name:os.system x", "line 6: the tag tag:yaml.org,2002:python/name"),
        ("output: a.pt2", "output: !!binary aGk=", "line 6: the tag tag:yaml.org,2002:binary is not read here"),
        ("output: a.pt2", "output: [a", "line 7: "),
        ("output: a.pt2", "? [a]\n    : b", "line 6: the key is no plain name"),
        ("- convert:", "- convrt:", "line 3: 'convrt' is no step; the nearest are convert, "),
        ("- convert:", "- apply:", "line 3: 'apply' is no step"),
        ("- export:", "- export: {}\n  run:", "line 7: a step is one verb with its options, and here are 2"),
        ("recipe: 1", "recipe: 2", "line 1: 'recipe' should be 1, not 2"),
        ("recipe: 1\n", "", "line 1: 'recipe' is missing"),
        ("recipe: 1", "recipe: 1\nname: x", "line 2: there is no 'name'; the nearest are"),
    ],
)
def test_what_does_not_fit_is_told_with_its_line(old: str, new: str, message: str) -> None:
    recipe(CONVERT.replace(old, new, 1))
    assert message in refuse(2, "apply", "r.yaml", "--trust", "--check")


def test_what_a_step_itself_finds_is_told_with_the_line_of_the_step() -> None:
    recipe("recipe: 1\n\nsteps:\n- export:\n    model: tiny.pt\n    format: 3\n")
    sentence = refuse(2, "apply", "r.yaml", "--quiet")
    assert sentence.startswith("r.yaml, line 4, export: '3' is not a format; choose from")


def test_several_complaints_come_at_once() -> None:
    recipe(CONVERT.replace("output: a.pt2", "to: flat").replace("format: onnx", "x: 1"))
    sentence = refuse(2, "apply", "r.yaml", "--check")
    assert sentence.count("line ") == 3 and "line 6: convert" in sentence and "line 9: export: there is no" in sentence


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.yaml is empty; copy or save it again"),
        (b"# nothing\n", "r.yaml is empty; a recipe begins with recipe: 1 and steps:"),
        (b"\xff\xfe", "r.yaml is not text in UTF-8"),
        (b"steps: \x01", "line 1: unacceptable character #x0001: special characters are not allowed"),
        (b"[" * 1000, "nested too deeply"),
        (b"recipe: 1\nsteps: []", "line 2: 'steps'"),
        (b"- 1", "line 1: "),
        (b"recipe: 1\nsteps:\n- convert: 3", "line 3: "),
        (b"x: " + b"1" * (1 << 20), "too many for a recipe"),
    ],
)
def test_files_that_are_no_recipes(content: bytes, message: str) -> None:
    Path("r.yaml").write_bytes(content)
    assert message in refuse(2, "apply", "r.yaml")


def test_values_are_read_as_options_take_them() -> None:
    text = "recipe: 1\nsteps:\n- bench:\n    models: [a.pt]\n    batch: [1, 8]\n    input_shape: [3, 4]\n"
    text += "    data: 2026-01-01\n"
    text += "    arch-args: {n: 1}\n    max-drop: 1\n    fastest: yes\n    mean: 0.5\n    json: '-'\n"
    (step,) = read_recipe(recipe(text), VERBS).steps
    assert step.values == {
        "models": ["a.pt"], "batch": "1,8", "input_shape": ["3,4"], "data": "2026-01-01", "arch_args": '{"n": 1}',
        "max_drop": 1.0, "fastest": True, "mean": "0.5", "json": "-",
    }  # fmt: skip


@pytest.mark.parametrize("line", ["arch: os:system", "trust: true", "metric: os:getcwd"])
def test_a_recipe_that_runs_code_is_refused_without_trust(line: str) -> None:
    recipe(f"recipe: 1\nsteps:\n- bench:\n    models: [tiny.pt]\n    {line}\n")
    sentence = refuse(2, "apply", "r.yaml")
    assert sentence.startswith("r.yaml, line 5: the step bench ") and sentence.endswith(
        "read it, and then pass --trust"
    )


def test_a_recipe_is_not_written_over_something_and_needs_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("convert", *TINY, "-o", "c.pt2")
    assert "would overwrite tiny.pt" in refuse(2, *words, "--write-recipe", "tiny.pt", "--force")
    assert "would overwrite c.pt2" in refuse(2, *words, "--write-recipe", "c.pt2")
    assert "there is no folder no" in refuse(2, *words, "--write-recipe", "no/r.yaml")
    recipe(CONVERT)
    assert "exists already" in refuse(2, *words, "--write-recipe", "r.yaml")
    monkeypatch.setitem(sys.modules, "yaml", None)
    message = "recipes need pydantic and pyyaml; pip install 'reparam[recipe]'"
    assert refuse(3, *words, "--write-recipe", "new.yaml") == message
    assert refuse(3, "apply", "r.yaml") == message
    with pytest.raises(InputError):
        monkeypatch.undo()
        read_recipe(Path("missing.yaml"), VERBS)


def test_recipes_from_python(capfd: pytest.CaptureFixture[str]) -> None:
    Path("deploy.yaml").write_text(
        "recipe: 1\nsteps:\n- convert:\n    model: tiny.pt\n    arch: cli_nets:tiny\n    input-shape: 3,16,16\n"
        "    output: made.pt2\n- verify:\n    a: made.pt2\n    b: made.pt2\n"
    )
    with pytest.raises(UnsafeFileError, match="line 5: the step convert"):
        reparam.apply("deploy.yaml")
    assert [s["verb"] for s in reparam.apply("deploy.yaml", check=True, trust=True)["steps"]] == ["convert", "verify"]
    assert not Path("made.pt2").exists()
    report = reparam.apply(Path("deploy.yaml"), trust=True)
    assert report["ran"] and Path("made.pt2").exists() and capfd.readouterr().out == ""
    with pytest.raises(InputError, match=r"made.pt2.*exists"):
        reparam.apply("deploy.yaml", trust=True)
    assert reparam.apply("deploy.yaml", trust=True, force=True)["steps"][0]["line"] == 3
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        reparam.apply("nothing.yaml")
    with pytest.raises(InputError, match="the recipe is an int"):
        reparam.apply(3)  # type: ignore[arg-type]
