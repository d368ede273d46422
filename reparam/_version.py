"""The version, written here and nowhere else; `pyproject.toml` and the reports read it."""

from __future__ import annotations

__version__ = "0.1.0"
