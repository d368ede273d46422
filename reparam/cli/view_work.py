"""What `view` does, once its options are read."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from reparam.errors import InputError
from reparam.utils import DEFAULT_AXES, Shapes, together, write_atomically

from .graphs import shown_graphs
from .options import Side
from .outputs import to_json
from .render import line
from .session import Session, Terminated
from .work import RANDOM_WEIGHTS, ConvertOptions, Loaded, explain_loaded, load, load_side

if TYPE_CHECKING:
    from reparam.page import Exploration

# Overlay -> what ends the name of its file.
FILES = {
    "parameters": "parameters",
    "MACs": "macs",
    "change": "change",
    "share of bound": "bound",
    "error": "error",
}


def find_app() -> Path:
    """The folder of Model Explorer's page. Raises MachineError where it is not installed."""
    from reparam.page import find_explorer

    return find_explorer()


def planned(out: Path) -> list[Path]:
    """The files that `--out` may write. Raises InputError unless the first is named as JSON."""
    if out.suffix != ".json":
        raise InputError(f"--out {out} is a file of JSON; name it {out.stem or 'graphs'}.json")
    return [out, *(_overlay_file(out, overlay) for overlay in FILES)]


def _overlay_file(out: Path, overlay: str) -> Path:
    return out.with_name(f"{out.stem}.{FILES[overlay]}.json")


def explore_sides(
    session: Session, sides: Sequence[Side], *, to: str | None, shapes: Shapes | None, seed: int, trust: bool
) -> Exploration:
    """Loads the models and reads their graphs. Raises InputError for a sealed engine."""
    from reparam.page import explore, explore_rewrites, explore_two

    if to is not None:
        loaded = _load(session, sides[0], trust=trust, seed=seed)
        report = explain_loaded(session, loaded, ConvertOptions(to, shapes, DEFAULT_AXES, seed), graphs=True)
        assert report.graphs is not None
        return explore_rewrites(loaded.name, report.graphs["before"], report.graphs["after"], report.remarks)
    opened = [load_side(session, side, trust=trust, seed=seed) for side in sides]
    graphs = shown_graphs(session, opened, shapes, "view")
    with session.working():
        if len(opened) == 1:
            return explore(opened[0].name, graphs[0])
        return explore_two((opened[0].name, opened[1].name), graphs[0], graphs[1])


def _load(session: Session, side: Side, *, trust: bool, seed: int) -> Loaded:
    """A model that can be rewritten: ONNX files are imported."""
    path = None if side.path == RANDOM_WEIGHTS else side.path
    option = f"--arch-{side.letter}"
    if path is None and side.arch is None:
        raise InputError(f"- stands for random weights of an architecture; name it with {option}")
    return load(session, path, side.arch, side.arch_args, side.weights, trust=trust, seed=seed, option=option)


def write(session: Session, found: Exploration, out: Path, *, force: bool) -> None:
    """Writes the graphs, and each overlay into a file beside them."""
    contents: dict[Path, Any] = {out: found.collection}
    contents |= {_overlay_file(out, name): overlay for name, overlay in found.overlays.items()}
    with together():
        for path, content in contents.items():
            write_atomically(path, _putting(f"{to_json(content)}\n".encode()), force=force)
    if not session.quiet:
        names = ", ".join(p.name for p in list(contents)[1:])
        session.show(line(f"{out}: the graphs for Model Explorer; overlays beside it: {names}"))


def _putting(content: bytes) -> Any:
    def put(file: IO[bytes]) -> None:
        file.write(content)

    return put


def serve(session: Session, found: Exploration, app: Path, port: int, *, browser: bool) -> None:
    """Serves the page until Ctrl-C, which is how it ends well. Raises MachineError where the port is taken."""
    from reparam.page import ExplorerServer

    with ExplorerServer(found, app, port) as server:
        session.print(server.url)
        session.note("Model Explorer's page, served to this machine alone; Ctrl-C ends it")
        if browser and not webbrowser.open(server.url):
            session.note("no browser could be opened; open the address above")
        try:
            server.serve_forever()
        except Terminated:
            raise
        except KeyboardInterrupt:
            return
