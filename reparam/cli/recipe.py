"""Recipes: a deployment as a file, step by step, each step a verb with its options, checked before any of them runs."""

from __future__ import annotations

import difflib
import enum
import functools
import inspect
import json
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.models import OptionInfo

from reparam._version import __version__
from reparam.errors import InputError, UnsafeFileError
from reparam.utils import refuse_existing, write_atomically

from .recipe_file import Lines, read_lines, require_packages

VERSION = 1
NOT_STEPS = ("apply", "passes", "doctor", "view")  # verbs that make nothing
WORDS = {  # in place of those of pydantic
    "too_short": "is empty",
    "dict_type": "should have a name and a value on each line, such as `to: plain`",
    "model_type": "should have a name and a value on each line, such as `to: plain`",
    "list_type": "should be a list",
}
SITUATION = ("ctx", "force", "quiet", "debug", "write_recipe")  # parameters of a run, not of what is made
FIELD = "option_"
MAPPINGS = ("arch_args", "options")  # how parameters begin that take a mapping as JSON
SHOWN = 5  # complaints of one file
CODE = ("arch", "arch_a", "arch_b", "metric")  # parameters that may name Python of the user's own


@dataclass(frozen=True)
class Step:
    """One step. verb: its name. call: what runs it, after `ctx`. line: of the file.

    lines: of each value of a parameter, one where it has one value alone.
    """

    verb: str
    values: Mapping[str, Any]
    call: Callable[..., Any]
    line: int
    lines: Mapping[str, tuple[int, ...]]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Every parameter of the verb with its value, defaults too."""
        empty = inspect.Parameter.empty
        known = inspect.signature(self.call).parameters.items()
        return {n: p.default for n, p in known if p.default is not empty} | dict(self.values)

    def describe(self) -> str:
        """The verb with its options."""
        words = [f"{n.replace('_', '-')}: {_plain(v)}" for n, v in self.values.items()]
        return f"{self.verb} ({', '.join(words)})"


@dataclass(frozen=True)
class Recipe:
    """The steps in order."""

    path: Path
    steps: tuple[Step, ...]


# ---- reading -----------------------------------------------------------------------------------------------------


def read_recipe(path: Path, verbs: Mapping[str, Callable[..., Any]], *, trust: bool = False) -> Recipe:
    """The recipe in a YAML file, every option of every step checked.

    verbs: the functions that run them, by their names. Raises InputError with the line for whatever does not fit, and
    UnsafeFileError, unless `trust`, for a recipe that runs code: one with `trust: true`, or with an architecture or a
    metric of Python's.
    """
    found = read_lines(path)
    _check_document(found, verbs)
    steps, complaints = [], []
    for i, item in enumerate(found.value["steps"]):
        ((verb, given),) = item.items()
        place = ("steps", i, verb)
        values, wrong = _checked(verbs[verb], given if given is not None else {})
        complaints += [(found.line((*place, *where)), f"{verb}: {text}") for where, text in wrong]
        steps.append(Step(verb, values, verbs[verb], found.line(place), _lines(found, place, values)))
    refuse(path, complaints)
    if not trust:
        _refuse_code(path, steps)
    return Recipe(path, tuple(steps))


def refuse(path: Path, complaints: Sequence[tuple[int, str]]) -> None:
    """Raises InputError with the complaints about a recipe, each with its line; nothing where there are none."""
    if complaints:
        told = [f"line {line}: {text}" for line, text in complaints[:SHOWN]]
        more = f"; and {len(complaints) - SHOWN} more" if len(complaints) > SHOWN else ""
        raise InputError(f"{path}, {'; '.join(told)}{more}")


def _lines(found: Lines, place: tuple[str | int, ...], values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The line of each value of a step, under the name of its parameter."""
    lines = {}
    for name, value in values.items():
        key = next(k for k in (name, name.replace("_", "-")) if (*place, k) in found.lines)
        count = len(value) if isinstance(value, list) else 1
        lines[name] = tuple(found.line((*place, key, i)) for i in range(count))
    return lines


def _check_document(found: Lines, verbs: Mapping[str, Any]) -> None:
    """Raises InputError unless the file is `recipe: 1` with a list of steps, each a verb with its options."""
    from pydantic import BaseModel, ConfigDict, Field, ValidationError

    class Document(BaseModel):
        model_config = ConfigDict(extra="forbid")
        recipe: typing.Literal[1]
        steps: list[dict[str, dict[str, Any] | None]] = Field(min_length=1)

    try:
        Document.model_validate(found.value)
    except ValidationError as error:
        first = error.errors()[0]
        place = tuple(p for p in first["loc"] if isinstance(p, str | int))
        raise found.error(place, _complaint(first, list(Document.model_fields))) from error
    for i, item in enumerate(found.value["steps"]):
        if len(item) != 1:
            raise found.error(("steps", i), f"a step is one verb with its options, and here are {len(item)}")
        (verb,) = item
        if verb not in verbs:
            near = difflib.get_close_matches(verb, verbs, n=3, cutoff=0.0)
            raise found.error(("steps", i, verb), f"'{verb[:40]}' is no step; the nearest are {', '.join(near)}")


def _checked(verb: Callable[..., Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[Any, str]]]:
    """The arguments of a verb as its function takes them, and what is wrong: the place and a sentence."""
    from pydantic import ValidationError

    model, names = _model_of(verb)
    keys = {k.replace("_", "-"): k for k in given}
    twice = [k for k in given if keys[k.replace("_", "-")] != k]
    if twice:
        return {}, [((twice[0],), f"'{twice[0][:40]}' is there twice")]
    try:
        made = model.model_validate({alias: given[k] for alias, k in keys.items()})
    except ValidationError as error:
        wrong = []
        for item in error.errors():
            where = tuple(keys.get(p, p) if isinstance(p, str) else p for p in item["loc"][:1])
            wrong.append((where, _complaint(item, list(names))))
        return {}, wrong
    return {names[alias]: getattr(made, FIELD + names[alias]) for alias in keys}, []


def _model_of(verb: Callable[..., Any]) -> tuple[Any, dict[str, str]]:
    """The pydantic model of a verb's options, and their names in recipes with those of the function's parameters.

    A field is called like its parameter with `FIELD` before it, since pydantic has names of its own.
    """
    from pydantic import BeforeValidator, ConfigDict, Field, create_model

    hints = typing.get_type_hints(verb, include_extras=True)
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, parameter in inspect.signature(verb).parameters.items():
        if name in SITUATION:
            continue
        kind, info = _split(hints[name])
        limits: dict[str, Any] = {} if info is None else {"ge": info.min, "le": info.max}
        alias = name.replace("_", "-")
        required = parameter.default is inspect.Parameter.empty
        names[alias] = name
        loosened = BeforeValidator(functools.partial(_loosened, kind=kind, mapping=name.startswith(MAPPINGS)))
        checked: Any = typing.Annotated[kind, loosened]
        fields[FIELD + name] = (checked, Field(default=... if required else parameter.default, alias=alias, **limits))
    config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    return create_model(verb.__name__, __config__=config, **fields), names


def _split(hint: Any) -> tuple[Any, OptionInfo | None]:
    """The type of a parameter, and its option."""
    if typing.get_origin(hint) is not typing.Annotated:
        return hint, None
    kind, *extras = typing.get_args(hint)
    return kind, next((e for e in extras if isinstance(e, OptionInfo)), None)


def _loosened(value: Any, *, kind: Any, mapping: bool) -> Any:
    """A value as an option takes it: a list as `a,b`, one of several as a list of one, and a `mapping` as JSON."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if any(typing.get_origin(k) is list for k in kinds):
        numbers = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        return [_joined(value)] if numbers else [_joined(v) for v in (value if isinstance(value, list) else [value])]
    if mapping and isinstance(value, dict):
        return json.dumps(value)
    return _joined(value) if str in kinds else value


def _joined(value: Any) -> Any:
    plain = isinstance(value, list) and all(isinstance(v, str | int | float) for v in value)
    return ",".join(map(str, value)) if plain else value


def _complaint(error: Mapping[str, Any], names: Sequence[str]) -> str:
    """What pydantic says, in a sentence."""
    name = next((str(p) for p in reversed(error["loc"]) if isinstance(p, str)), "the recipe")[:40]
    if error["type"] == "extra_forbidden":
        near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.0))
        return f"there is no '{name}'; the nearest are {near}"
    if error["type"] == "missing":
        return f"'{name}' is missing"
    if error["type"] in WORDS:
        return f"'{name}' {WORDS[error['type']]}"
    text = error["msg"].removeprefix("Input ").removeprefix("should ")
    given = error.get("input")
    shown = f", not {given!r:.60}" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"'{name}' should {text}{shown}" if error["msg"].startswith("Input should") else f"'{name}': {text}{shown}"


def _refuse_code(path: Path, steps: Sequence[Step]) -> None:
    """Raises UnsafeFileError for the first option that runs code of somebody's."""
    for step in steps:
        for name, value in step.values.items():
            own = name in CODE and isinstance(value, str) and ":" in value and "/" not in value
            if own or (name == "trust" and value):
                (line,) = step.lines[name]
                what = f"runs Python of {value[:60]}" if own else "loads files that can run code"
                raise UnsafeFileError(
                    f"{path}, line {line}: the step {step.verb} {what}; read it, and then pass --trust"
                )


# ---- writing -----------------------------------------------------------------------------------------------------


def check_target(context: typer.Context) -> Path | None:
    """The file of --write-recipe, checked before the work; None where there is none.

    Raises InputError, and MachineError where what recipes need is not installed.
    """
    path: Path | None = context.params.get("write_recipe")
    if path is None:
        return None
    require_packages()
    if path.is_dir() or not path.parent.is_dir():
        kind = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {path.parent}"
        raise InputError(f"--write-recipe {path} {kind}; name a file")
    refuse_existing(path, force=bool(context.params.get("force")))
    others = (v for n, value in context.params.items() if n != "write_recipe" for v in _each(value))
    if clash := next((v for v in others if os.path.abspath(v) == os.path.abspath(path)), None):
        raise InputError(f"--write-recipe {path} would overwrite {clash}; name another file")
    return path


def _each(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [str(v) for v in values if isinstance(v, str | Path)]


def write_recipe(context: typer.Context, path: Path) -> None:
    """Stages or writes the recipe that repeats the run of a verb: the options that were given.

    Raises MachineError where what recipes need is not installed.
    """
    require_packages()
    import yaml

    given = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if name not in SITUATION and source is not None and source.name == "COMMANDLINE":
            given[name.replace("_", "-")] = _plain(value)
    document = {"recipe": VERSION, "steps": [{str(context.info_name): given}]}
    body = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)
    content = f"# reparam {__version__}: run `reparam apply` where these paths begin\n{body}".encode()
    write_atomically(path, lambda file: file.write(content), force=True)


def _plain(value: Any) -> Any:
    """A value of YAML."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
