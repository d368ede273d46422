"""What the steps of a recipe read and write, so that a missing file is told before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from reparam.engines import manifest_path
from reparam.engines.formats import find_format
from reparam.errors import ReparamError

from .initial import REWRITING
from .outputs import checkpoint_suffix, default_output, export_label
from .recipe import Recipe, Step, refuse

READ = ("model", "a", "b", "models", "input", "data", "calibrate", "labels", "config")  # parameters that name files
WRITTEN = ("output", "source", "json", "html", "csv", "svg", "resume")
SHARED = ("resume", "svg")  # folders that several steps may write into
NO_FILE = ("-", "folders")  # random weights or standard output; the labels that folders are


def check_files(recipe: Recipe) -> None:
    """Raises InputError, with the lines, for steps without a model, for files that a step reads, and that neither
    exist nor are written before, and for those that two steps write.

    Nothing is opened. An output that a step does not name has the name that its verb gives it.
    """
    made: set[str] = set()
    complaints = []
    for step in recipe.steps:
        if "model" in step.settings and not step.settings["model"] and not step.settings.get("arch"):
            complaints.append((step.line, f"{step.verb}: it says no model; give model, or arch"))
        for name, file, line in _read(step):
            if not os.path.exists(file) and not _is_made(file, made):
                told = f"there is no {file}, as {name} says, and no step before makes it"
                complaints.append((line, f"{step.verb}: {told}"))
        written = {os.path.abspath(file): file for file in _written(step)}
        shared = {os.path.abspath(str(step.values[n])) for n in SHARED if step.values.get(n) is not None}
        again = next((file for path, file in written.items() if path in made and path not in shared), None)
        if again is not None:
            complaints.append((step.line, f"{step.verb}: it writes {again}, as a step before does"))
        made |= set(written)
    refuse(recipe.path, complaints)


def _is_made(file: str, made: set[str]) -> bool:
    """Whether a step before writes it, or the folder that it lies in."""
    path = Path(os.path.abspath(file))
    return any(str(p) in made for p in (path, *path.parents))


def _read(step: Step) -> Iterator[tuple[str, str, int]]:
    """Each file that a step reads: its option, its name and its line."""
    for name in READ:
        value = step.values.get(name)
        files = value if isinstance(value, list) else [value]
        for file, line in zip(files, step.lines.get(name, ()), strict=False):
            text = str(file)
            if file is None or text in NO_FILE:
                continue
            if name == "input" and not os.path.exists(text):
                text = text.partition("=")[2] or text
            yield name.replace("_", "-"), text, line


def _written(step: Step) -> Iterator[str]:
    for name in WRITTEN:
        value = step.values.get(name)
        if value is not None and str(value) not in NO_FILE:
            yield str(value)
    output = step.values.get("output") or _unnamed_output(step)
    if output is not None:
        yield str(output)
        yield str(manifest_path(Path(output)))


def _unnamed_output(step: Step) -> Path | None:
    """The output of a step that does not name it; None where the verb has none, or will say that it cannot be named."""
    given = step.settings
    model, arch = given.get("model"), given.get("arch")
    try:
        match step.verb:
            case "convert":
                return default_output(model, arch, given["to"].value)
            case "prune":
                return default_output(model, arch, "pruned")
            case "recalibrate":
                return default_output(model, arch, "recalibrated", checkpoint_suffix(model))
            case "init":
                suffix = ".pt2" if given["method"] in REWRITING else checkpoint_suffix(model)
                return default_output(model, arch, given["method"].value, suffix)
            case "export":
                label = export_label(given["to"].value, given["precision"].value)
                return default_output(model, arch, label, find_format(given["format"]).suffix)
    except ReparamError:
        return None
    return None
