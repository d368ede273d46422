"""The options of the target `plain`, and what they may be."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .errors import InputError

CARRY = ("auto", "grouped", "dense", "measured")
CHOICES: Mapping[str, tuple[str, ...]] = {"max_pool": ("keep", "relu"), "signed": ("prelu", "relu")}
_SPLIT = re.compile(r"split=(\d{1,4})")


def slices_of(carry: str) -> int | None:
    """G of split=G; None for every other way to carry channels. Raises InputError when `carry` is none."""
    found = _SPLIT.fullmatch(carry)
    if carry not in CARRY and (found is None or int(found[1]) < 2):
        raise InputError(f"unknown carry '{carry}'; choose from {', '.join(CARRY)} or split=G, with G = 2, 3, ...")
    return None if found is None else int(found[1])


def check_choices(choices: Mapping[str, str]) -> None:
    """Raises InputError for the first option that is not what it may be."""
    for name, choice in choices.items():
        if name == "carry":
            slices_of(choice)
        elif choice not in CHOICES[name]:
            raise InputError(f"unknown {name} '{choice}'; choose from {', '.join(CHOICES[name])}")
