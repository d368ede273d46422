"""Packages that are there or missing as a test wants it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reparam.cli import doctor
from reparam.engines import format
from reparam.engines.formats import tensorrt
from reparam.engines.tensorrt import bindings
from reparam.utils import PackageState

READERS = (doctor, format, tensorrt, bindings)  # the modules that ask whether a package imports


def pretend(monkeypatch: pytest.MonkeyPatch, state_of: Callable[[str], PackageState]) -> None:
    """What `state_of` says of a package holds everywhere."""
    for module in READERS:
        monkeypatch.setattr(module, "check_package", state_of)
