"""What files say of each other: how images go in, and of which architecture the checkpoints among them are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reparam.data import Preprocessing
from reparam.engines import Runnable, known_preprocessing, manifest_path, read_manifest, sha256_of
from reparam.engines.formats import recognise
from reparam.errors import InputError
from reparam.loading import check_arguments
from reparam.utils import one_line

from .entry import Entry

GIVEN = "as told"


@dataclass(frozen=True)
class Images:
    """How images go in, and who says so, in words."""

    how: Preprocessing
    by: str

    def describe(self, fitted: Preprocessing) -> str:
        """A sentence's part. fitted: for the size that the models take."""
        mean, std = (",".join(f"{v:g}" for v in values) for values in (fitted.mean, fitted.std))
        size = "x".join(map(str, fitted.size))
        scaled = f" out of {fitted.resize}" if fitted.resize not in (None, min(fitted.size)) else ""
        return f"{self.by}: mean {mean}, std {std}, size {size}{scaled}, {fitted.interpolation}"


@dataclass(frozen=True)
class Told:
    """The architecture of a checkpoint, as a manifest says. by: the manifest's name."""

    spec: str
    arch_args: Mapping[str, Any]
    by: str

    @property
    def is_code(self) -> bool:
        """Whether it is Python of somebody's, and no network of a zoo."""
        return ":" in self.spec


def images_of(entries: Sequence[Entry]) -> Images | None:
    """How images go into the models, as their cards and manifests say; None where none does.

    Raises InputError where they say different things, and for a damaged manifest.
    """
    told: list[tuple[str, Images]] = []
    for entry in entries:
        known = known_preprocessing(entry.model, entry.path)
        if known is not None:
            told.append((entry.name, Images(Preprocessing.of(known), _whose(entry, known))))
    if not told:
        return None
    (name, first), *rest = told
    other = next((n for n, i in rest if i.how.fitted(*first.how.size) != first.how), None)
    if other is not None:
        raise InputError(
            f"{name} and {other} state that images are prepared in different ways; say how with --mean, --std and "
            "--size, or with --config"
        )
    return first


def _whose(entry: Entry, known: Mapping[str, Any]) -> str:
    if isinstance(entry.model, Runnable):
        return f"as {one_line(manifest_path(entry.path or Path(entry.name)).name)} says"
    whose = one_line(str(known.get("of", "")))
    if whose == "config.json":
        return f"as the config.json of {one_line(entry.name)} says"
    return f"as the published weights {whose} want them" if whose else f"as the card of {one_line(entry.name)} says"


def told_architectures(paths: Sequence[Path]) -> dict[Path, Told]:
    """The architecture of each file that an engine among them was made of, by its sha256, as the manifest says.

    Raises InputError for a damaged manifest, and for arguments that no network has.
    """
    manifests = [(p, row) for p in paths if recognise(p) is not None and (row := read_manifest(p)) is not None]
    made_of: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for path, row in manifests:
        source, told = row.get("source"), row.get("architecture")
        digest = source.get("sha256") if isinstance(source, dict) else None
        if isinstance(told, dict) and isinstance(digest, str):
            made_of.setdefault(digest, (manifest_path(path), told))
    rest = [p for p in paths if made_of and recognise(p) is None and p.is_file()]
    found = {p: made_of.get(sha256_of(p)) for p in rest}
    return {p: _read(*told) for p, told in found.items() if told is not None}


def _read(manifest: Path, told: Mapping[str, Any]) -> Told:
    spec, args = told.get("spec"), told.get("arch_args", {})
    if not isinstance(spec, str) or not isinstance(args, dict) or not 0 < len(spec) <= 200 or not spec.isprintable():
        raise InputError(f"{manifest} names an architecture in a form that no export writes; give --arch")
    check_arguments(args, manifest)
    return Told(spec, args, manifest.name)
