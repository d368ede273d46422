"""A recipe as YAML: plain values with the lines that they stand on, and nothing that YAML could run or repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reparam.errors import InputError, MachineError
from reparam.utils import first_line, opened, size_of

MOST_BYTES, DEEPEST = 1 << 20, 20
KEYS = {"int", "float", "bool", "null", "str"}
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Lines:
    """The content of a recipe. lines: of each value, by the keys and indices that lead to it."""

    path: Path
    value: Any
    lines: Mapping[Place, int]

    def line(self, place: Sequence[str | int]) -> int:
        """The line of a value, or of the nearest around it that is there."""
        keys = tuple(place)
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)

    def error(self, place: Sequence[str | int], text: str) -> InputError:
        """An error that names the file and the line."""
        return InputError(f"{self.path}, line {self.line(place)}: {text}")


def require_packages() -> None:
    """Raises MachineError, with the command that helps, where what recipes need is not installed."""
    try:
        import pydantic
        import yaml

        assert pydantic and yaml
    except ImportError as error:
        raise MachineError("recipes need pydantic and pyyaml; pip install 'reparam[recipe]'") from error


def read_lines(path: Path) -> Lines:
    """The values of a YAML file. Raises InputError with the line for what is no plain YAML."""
    require_packages()
    import yaml

    with opened(path) as file:
        if size_of(file) > MOST_BYTES:
            raise InputError(f"{path} has {size_of(file)} bytes, too many for a recipe")
        content = file.read()
    try:
        text = content.decode("utf-8")
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken | yaml.AnchorToken):
                line = token.start_mark.line + 1
                raise InputError(f"{path}, line {line}: anchors and aliases are not read here; write the value again")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        told = getattr(error, "problem", None) or first_line(error)
        raise InputError(f"{path}, line {mark.line + 1 if mark is not None else 1}: {told}") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply for a recipe") from error
    if root is None:
        raise InputError(f"{path} is empty; a recipe begins with recipe: 1 and steps:")
    lines: dict[Place, int] = {}
    return Lines(path, _value(root, (), lines, path), lines)


def _value(node: Any, place: Place, lines: dict[Place, int], path: Path) -> Any:
    import yaml

    line = node.start_mark.line + 1
    lines.setdefault(place, line)
    if len(place) > DEEPEST:
        raise InputError(f"{path}, line {line}: it is nested too deeply for a recipe")
    kind = node.tag.rpartition(":")[2]
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(item, (*place, i), lines, path) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and kind == "map":
        found: dict[str, Any] = {}
        for key, item in node.value:
            name = _key(key, path)
            if name in found:
                raise InputError(f"{path}, line {key.start_mark.line + 1}: '{name[:40]}' is there twice")
            lines[(*place, name)] = key.start_mark.line + 1
            found[name] = _value(item, (*place, name), lines, path)
        return found
    if not isinstance(node, yaml.ScalarNode) or not node.tag.startswith("tag:yaml.org,2002:"):
        raise InputError(f"{path}, line {line}: the tag {node.tag[:60]} is not read here")
    if kind not in KEYS and kind not in ("timestamp", "merge", "value"):
        raise InputError(f"{path}, line {line}: the tag {node.tag[:60]} is not read here")
    if kind not in KEYS or kind == "str":
        return str(node.value)
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}, line {line}: {node.value[:40]!r} is no {kind}") from error


def _key(node: Any, path: Path) -> str:
    """A key as it is written: `on` and `1` are names here."""
    import yaml

    if not isinstance(node, yaml.ScalarNode) or node.value == "<<":
        raise InputError(f"{path}, line {node.start_mark.line + 1}: the key is no plain name")
    return str(node.value)
