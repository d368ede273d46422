"""Texts become source in one way, names are written plainly, and what is written is looked at once more as code."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from reparam.emit import finalize
from reparam.emit.source import write_source
from reparam.emit.source.expressions import WIDTH, comment, docstring, fold, literal, path_text, quoted
from reparam.emit.source.gate import check_source
from reparam.errors import InputError
from reparam.loading.archive import inspect_archive, load_exported
from reparam.utils import is_plain_path, name_complaint
from support.emit_source_cases import IMAGE, Residual, capture_program, import_file, round_trip, statistics
from support.payloads import PAYLOADS

TEXTS = st.one_of(st.text(max_size=80), st.sampled_from(PAYLOADS), st.text("\"'\\\n\r\t{}#()[]", max_size=40))


@given(TEXTS)
def test_a_text_is_a_literal_that_reads_back(text: str) -> None:
    written = quoted(text)
    assert written.isascii() and written.isprintable() and ast.literal_eval(written) == text
    assert literal(text).text == written
    tree = ast.parse(f"self{path_text('', text)}" if not text.isidentifier() else "self", mode="eval")
    assert not any(isinstance(node, ast.Call) for node in ast.walk(tree))


@given(TEXTS)
def test_a_comment_is_one_line_that_is_never_folded(text: str) -> None:
    line = comment(text)
    assert line.startswith("#") and line.isascii() and line.isprintable() and len(line) <= WIDTH
    assert fold(line, 8) == [" " * 8 + line]


@given(TEXTS)
def test_a_docstring_is_one_text(text: str) -> None:
    (statement,) = ast.parse("\n".join(docstring(f"Input: {text}.", 0))).body
    assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    assert isinstance(statement.value.value, str)


class Odd(nn.Module):
    """Its layers have every payload for a name."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for name in names})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        results = {}
        for name, layer in self.layers.items():
            x = torch.tanh(layer(x)) * x
            results[name] = x
        return results


def test_layers_of_a_module_may_have_any_plain_name(tmp_path: Path) -> None:
    """A live module is trusted, its names are not: what is written of it is ASCII, and computes the same."""
    plain = [
        p for p in PAYLOADS if p and name_complaint(p) is None and "." not in p and not hasattr(nn.ModuleDict(), p)
    ]
    module = statistics(Odd(plain)).eval()
    x = torch.randn(2, 3, 4, 4)
    result = reparam.convert(module, x)
    _, text = round_trip(result.program, tmp_path / "source", x)
    assert text.isascii() and len(plain) > 5
    result.save(tmp_path / "odd.pt2")
    state = torch.export.load(tmp_path / "odd.pt2").state_dict
    assert state and all(is_plain_path(name) for name in state)


@pytest.mark.parametrize("name", [p for p in PAYLOADS if p and name_complaint(p) and "." not in p], ids=ascii)
def test_names_that_torch_would_paste_into_code_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="has a part whose name"):
        reparam.convert(Odd([name]).eval(), torch.randn(2, 3, 4, 4))


def test_what_is_written_of_odd_names_passes_the_inspection(tmp_path: Path) -> None:
    module = statistics(Odd(["a b", "x->y", "слой", "exec", "a/b"])).eval()
    result = reparam.convert(module, torch.randn(2, 3, 4, 4))
    result.save(tmp_path / "odd.pt2")
    with (tmp_path / "odd.pt2").open("rb") as file:
        inspect_archive(file, "odd.pt2")
    loaded = load_exported(tmp_path / "odd.pt2").module(check_guards=False)
    x = torch.randn(3, 3, 4, 4)
    got, want = loaded(x), result.module(x)
    assert list(got) == list(want) and all(torch.equal(got[k], want[k]) for k in want)


def test_names_that_a_module_has_already_are_not_taken(tmp_path: Path) -> None:
    program = capture_program(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)), torch.randn(2, 3))
    taken = ["forward.weight", "train.bias", "_parameters.weight", "load_state_dict.bias"]
    for old, name in zip(list(program.constants), taken, strict=True):
        program.constants[old] = replace(program.constants[old], origin=name)
    model, _ = round_trip(finalize(program), tmp_path, torch.randn(2, 3))
    assert {k.partition(".")[0] for k in model.state_dict()} == {"forward_", "_parameters_"}


# ---- the gate ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("genuine")
    path, _ = write_source(finalize(capture_program(statistics(Residual()), torch.randn(IMAGE))), folder)
    text = path.read_text()
    import_file(path)
    check_source(text, "Model")
    return text


AT_MODULE = "\n\nclass Model(Block):"
IN_CONSTRUCTOR = "        self.conv1 = "
IN_FORWARD = "        x = self.relu("
IN_CLASS = "    def forward("


def planted(text: str, place: str, code: str) -> str:
    assert text.count(place) >= 1
    return text.replace(place, code + place if place == AT_MODULE else f"{code}\n{place}", 1)


@pytest.mark.parametrize(
    "place, code",
    [
        (AT_MODULE, "\nimport os"),
        (AT_MODULE, "\nfrom os import system"),
        (AT_MODULE, "\nimport torch as os"),
        (AT_MODULE, "\nprint()"),
        (AT_MODULE, "\n'a text'"),
        (AT_MODULE, "\nx = 1"),
        (AT_MODULE, "\nclass Other:\n    pass"),
        (AT_MODULE, "\ndef other():\n    pass"),
        (AT_MODULE, "\n@print"),
        (AT_MODULE, "\n# \u202e"),
        (AT_MODULE, "\n\x0c"),
        (IN_CONSTRUCTOR, "        print()"),
        (IN_CONSTRUCTOR, "        self.a = print()"),
        (IN_CONSTRUCTOR, "        self.a = nn.Module.__subclasses__()"),
        (IN_CONSTRUCTOR, "        self.a = nn.functional.relu(1)"),
        (IN_CONSTRUCTOR, "        self.a = nn.Linear(print(), 1)"),
        (IN_CONSTRUCTOR, "        self.a = nn.Parameter(torch.load('x'))"),
        (IN_CONSTRUCTOR, "        self.forward = nn.Linear(1, 1)"),
        (IN_CONSTRUCTOR, "        self.__class__ = nn.Linear(1, 1)"),
        (IN_CONSTRUCTOR, "        self.a[print()] = nn.Linear(1, 1)"),
        (IN_CONSTRUCTOR, "        torch.a = nn.Linear(1, 1)"),
        (IN_CONSTRUCTOR, "        self.apply(print)"),
        (IN_CONSTRUCTOR, "        self.to(print())"),
        (IN_CONSTRUCTOR, "        self.a = self.b = nn.Linear(1, 1)"),
        (IN_CONSTRUCTOR, "        import os"),
        (IN_CLASS, "    a = 1"),
        (IN_CLASS, "    print()"),
        (IN_CLASS, "    def other(self):\n        pass\n"),
        (IN_CLASS, "    @property"),
        (IN_FORWARD, "        print(x)"),
        (IN_FORWARD, "        import os"),
        (IN_FORWARD, "        x = print(x)"),
        (IN_FORWARD, "        x = __import__('os')"),
        (IN_FORWARD, "        x = torch.load('x')"),
        (IN_FORWARD, "        x = torch.ops.load_library('x')"),
        (IN_FORWARD, "        x = torch.ops.aten.from_file.default('x')"),
        (IN_FORWARD, "        x = torch.ops.custom.thing.default(x)"),
        (IN_FORWARD, "        x = torch.hub.load(x)"),
        (IN_FORWARD, "        x = torch.os.system('x')"),
        (IN_FORWARD, "        x = F.os.system('x')"),
        (IN_FORWARD, "        x = operator.attrgetter('x')"),
        (IN_FORWARD, "        x = math.__loader__(x)"),
        (IN_FORWARD, "        x = x.__class__"),
        (IN_FORWARD, "        x = x.tofile('x')"),
        (IN_FORWARD, "        x = x.apply_(x)"),
        (IN_FORWARD, "        x = x.to(**x)"),
        (IN_FORWARD, "        x = x.to(*x)"),
        (IN_FORWARD, "        x = self.apply(x)"),
        (IN_FORWARD, "        x = self.__dict__"),
        (IN_FORWARD, "        x = [y for y in x]"),
        (IN_FORWARD, "        x = (lambda: x)()"),
        (IN_FORWARD, "        x = f'{x}'"),
        (IN_FORWARD, "        x = (y := x)"),
        (IN_FORWARD, "        x = x if x else x"),
        (IN_FORWARD, "        x = b'x'"),
        (IN_FORWARD, "        x.data = x"),
        (IN_FORWARD, "        torch = x"),
        (IN_FORWARD, "        del x"),
        (IN_FORWARD, "        raise x"),
        (IN_FORWARD, "        x += x"),
        (IN_FORWARD, "        x = unknown"),
        (IN_FORWARD, "        block = torch.nn"),
        (IN_FORWARD, "        for x in x: x = x"),
        (IN_FORWARD, "        exec(x)"),
    ],
)
def test_what_the_emitter_does_not_write_is_refused(place: str, code: str, genuine: str) -> None:
    text = planted(genuine, place, code)
    with pytest.raises(InputError, match=r"line \d+ of the source that would be written is not what reparam writes"):
        check_source(text, "Model")


@pytest.mark.parametrize(
    "old, new",
    [
        ("path = Path(Path(__file__)", "print(); path = Path(Path(__file__)"),
        ("return model.eval()", "return eval(model)"),
        ('"rb"', '"wb"'),
        ("dtypes = {", 'dtypes = {"F99": torch.load, '),
        ("dtypes = {", "dtypes = {print(): torch.float32, "),
        ("return getattr(self, str(key))", "return eval(key)"),
        ("class Model(Block)", "class Model(Block, metaclass=print)"),
        ("class Model(Block)", "class Model(Path)"),
        ("x: Tensor)", "x: Tensor = print())"),
        ("x: Tensor)", "x: print())"),
        ("x: Tensor)", "*x)"),
        ("-> Tensor:", "-> print():"),
        ("def __init__(self)", "def __init__(self, x=print())"),
        ("super().__init__()", "super().__init__(print())"),
    ],
)
def test_the_known_parts_are_the_known_ones(old: str, new: str, genuine: str) -> None:
    assert old in genuine
    with pytest.raises(InputError, match="is not what reparam writes"):
        check_source(genuine.replace(old, new), "Model")


def test_an_emitter_that_pastes_names_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate holds by itself: with comments that are pasted, nothing is written."""
    module = Odd(["a", "b"])
    program = capture_program(module, torch.randn(2, 3, 4, 4))
    for node in program.calls():
        node.meta["module"] = 'a\n        exec("x").b'
    monkeypatch.setattr("reparam.emit.source.class_text.comment", lambda text: f"# {text}")
    with pytest.raises(InputError, match="is not what reparam writes"):
        write_source(program, tmp_path / "source")
    assert not (tmp_path / "source").exists()


def test_a_name_for_every_payload_is_refused_or_harmless(tmp_path: Path) -> None:
    values: list[Any] = [path_text("self", f"a.{p}") for p in PAYLOADS]
    for value in values:
        node = ast.parse(value, mode="eval").body
        assert isinstance(node, ast.Subscript | ast.Attribute)
