"""The architecture that a file names: training scripts save what they were started with beside the weights."""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Mapping
from typing import Any

from .pickle_machine import Made

_NAMES = ("arch", "architecture", "model_name", "model")
_ARGUMENTS = ("args", "opt", "hparams", "hyper_parameters", "config", "cfg")
_OBJECTS = (argparse.Namespace, types.SimpleNamespace)  # in files that are trusted
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{1,99}")


def told_names(value: Any) -> tuple[str, ...]:
    """What a file calls its architecture, and what its arguments do: `arch`, `args.model`; nothing where it does not.

    value: that the file holds, or a stand-in for it.
    """
    top = _entries(value)
    holders = [top, *(_entries(top.get(name)) for name in _ARGUMENTS)]
    found = [holder.get(name) for holder in holders for name in _NAMES]
    return tuple(dict.fromkeys(name for name in found if isinstance(name, str) and _NAME.fullmatch(name)))


def _entries(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Made):
        attributes = value.state.pairs if isinstance(value.state, Made) else []
        return {k: v for k, v in (*value.pairs, *attributes) if isinstance(k, str)}
    if isinstance(value, _OBJECTS):
        return vars(value)
    return value if isinstance(value, dict) else {}
