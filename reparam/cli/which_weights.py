"""The options that say which weights of a file are meant, or which published ones: of every verb that takes a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from reparam.errors import InputError

_PRETRAINED = "--pretrained"
_DEFAULT = "default"
_KEY = "Which weights of the file, where it has several: state_dict_ema, teacher, ema.module."
_PREFIX = "Prefix of the tensors' names, such as model.; others are left out."
_PUBLISHED = "In place of MODEL: published weights of --arch, by their name; the usual ones when it is left out."

Key = Annotated[str | None, typer.Option("--key", metavar="NAME", help=_KEY)]
Prefix = Annotated[str | None, typer.Option("--prefix", metavar="NAME.", help=_PREFIX)]
Pretrained = Annotated[str | None, typer.Option("--pretrained", metavar="[NAME]", help=_PUBLISHED)]
KeyA = Annotated[str | None, typer.Option("--key-a", metavar="NAME", help=f"For A: {_KEY}")]
KeyB = Annotated[str | None, typer.Option("--key-b", metavar="NAME", help=f"For B: {_KEY}")]
PrefixA = Annotated[str | None, typer.Option("--prefix-a", metavar="NAME.", help=f"For A: {_PREFIX}")]
PrefixB = Annotated[str | None, typer.Option("--prefix-b", metavar="NAME.", help=f"For B: {_PREFIX}")]
PretrainedA = Annotated[
    str | None, typer.Option("--pretrained-a", metavar="[NAME]", help="Where A is -: published weights of --arch-a.")
]
PretrainedB = Annotated[
    str | None, typer.Option("--pretrained-b", metavar="[NAME]", help="Where B is -: published weights of --arch-b.")
]


@dataclass(frozen=True)
class Weights:
    """Which weights are meant; see `reparam.loading.load`."""

    key: str | None = None
    prefix: str | None = None
    pretrained: str | None = None


ANY = Weights()


def refuse_missing(*models: str | None) -> None:
    """Raises InputError for files that are not there, which is told before torch is imported: that takes seconds."""
    for model in models:
        if not model or model == "-":
            continue
        try:
            os.stat(model)
        except FileNotFoundError as error:
            other = "" if Path(model).suffix in (".pt2", ".onnx") else ", or give an architecture with --arch"
            raise InputError(f"there is no file {model}; check the name{other}") from error
        except (OSError, ValueError):  # the loader says what it is
            continue


def spelled_out(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the usual weights named where `--pretrained` has no name behind it."""
    found: list[str] = []
    for i, word in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else "-"
        bare = word in (_PRETRAINED, f"{_PRETRAINED}-a", f"{_PRETRAINED}-b") and after.startswith("-")
        found.append(f"{word}={_DEFAULT}" if bare else word)
    return found
