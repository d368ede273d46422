"""Model Explorer's page and the graphs for it, served to this machine alone by a server of our own.

Model Explorer brings a server, which asks two addresses on the network for newer releases and reads any file that a
page asks it for. This one gives out the page's own files and the graphs that it was made with, nothing else, and its
headers keep the page from fetching anything from elsewhere.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from reparam.errors import MachineError

from .explorer import Exploration

HOST = "127.0.0.1"
INSTALL = "pip install 'reparam[view]'"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
STYLES = "sha256-MhtPZXr7+LpJUY5qtMutB+qWfQtMaPccfe7QXtCcEYc="  # of `this.media='all'`, which puts its styles in force
POLICY = (
    f"default-src 'self'; script-src 'self' 'unsafe-hashes' '{STYLES}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
# The one way to read a graph that the page is told of.
READER = {
    "fileExts": ["json"],
    "type": "adapter",
    "id": "builtin_json",
    "name": "JSON adapter",
    "description": "Graphs from reparam",
}
NO_NEWS = {"version": "", "runningVersion": "", "releaseUrl": "", "desktopAppUrl": ""}


def find_explorer() -> Path:
    """The folder of Model Explorer's page, whose package is not imported. Raises MachineError where it is missing."""
    spec = importlib.util.find_spec("model_explorer")
    if spec is None or not spec.submodule_search_locations:
        raise MachineError(f"viewing needs Model Explorer (ai-edge-model-explorer); {INSTALL}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "web_app"
    if not (folder / "index.html").is_file():
        raise MachineError(f"the Model Explorer that is installed has no page in {folder}; install it again: {INSTALL}")
    return folder


class ExplorerServer(ThreadingHTTPServer):
    """Serves one exploration at an address of this machine.

    app: the folder of Model Explorer's page. port: 0 for any that is free. Raises MachineError for one that is taken.
    """

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, exploration: Exploration, app: Path, port: int = 0) -> None:
        self.files = {f"/{p.relative_to(app).as_posix()}": p for p in app.rglob("*") if p.is_file()}
        self.files["/"] = self.files["/index.html"]
        self.graphs = [_encoded({"graphs": [g]}) for g in exploration.graphs]
        shown = list(_shown(exploration))
        self.overlays = [_encoded({"content": json.dumps(o, allow_nan=False)}) for _, _, o in shown]
        self.data = _page_data(exploration, [(name, graph) for name, graph, _ in shown])
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise MachineError(
                f"cannot listen on port {port} of this machine: {error.strerror}; name another with --port"
            ) from error

    @property
    def url(self) -> str:
        """The address of the page with the graphs opened."""
        query = urllib.parse.urlencode({"data": json.dumps(self.data)}, quote_via=urllib.parse.quote)
        return f"http://{HOST}:{self.server_port}/?{query}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a connection that broke off."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[bytes, str] | None:
        """What a path stands for and its type; None where there is nothing."""
        for route, index, contents in (
            ("/api/v1/load_graphs_json", "graph_index", self.graphs),
            ("/api/v1/load_node_data", "node_data_index", self.overlays),
        ):
            if path == route:
                known = {str(i): content for i, content in enumerate(contents)}
                number = next(iter(query.get(index, [])), "")
                return (known[number], TYPES[".json"]) if number in known else None
        if path == "/api/v1/get_extensions":
            return _encoded([READER]), TYPES[".json"]
        if path == "/api/v1/check_new_version":
            return _encoded(NO_NEWS), TYPES[".json"]
        file = self.files.get(path)
        return None if file is None else (file.read_bytes(), TYPES.get(file.suffix, "application/octet-stream"))


class _Handler(BaseHTTPRequestHandler):
    server: ExplorerServer
    server_version, sys_version = "reparam", ""
    timeout = 30  # seconds, of a connection that says nothing

    def do_GET(self) -> None:
        names = {f"{HOST}:{self.server.server_port}", f"localhost:{self.server.server_port}"}
        if self.headers.get("Host") not in names:  # another site's name that was made to lead here
            self._send(HTTPStatus.FORBIDDEN)
            return
        try:
            parts = urllib.parse.urlsplit(self.path)
        except ValueError:
            self._send(HTTPStatus.BAD_REQUEST)
            return
        if parts.path == "/apistream/server_director":
            self._send(HTTPStatus.NO_CONTENT)  # there are no orders, now or later
            return
        found = self.server.answer(urllib.parse.unquote(parts.path), urllib.parse.parse_qs(parts.query))
        if found is None:
            self._send(HTTPStatus.NOT_FOUND)
        else:
            self._send(HTTPStatus.OK, *found)

    def _send(self, status: HTTPStatus, content: bytes = b"", kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: requests are no news."""


def _encoded(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _shown(exploration: Exploration) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The overlays, apart for each graph: the name, the graph and the content."""
    for name, overlay in exploration.overlays.items():
        for graph, content in overlay.items():
            yield name, graph, {graph: content}


def _page_data(exploration: Exploration, overlays: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What the page is opened with: the graphs side by side, their overlays, and one selection for both.

    overlays: each by its name and the graph that it is of. A graph is a model of its own here, as the page reads
    overlays for the first graph of a model alone.
    """
    titles = [graph["id"] for graph in exploration.graphs]
    found: dict[str, Any] = {
        "models": [{"url": f"graphs://{title}/{i}"} for i, title in enumerate(titles)],
        "nodeData": [f"node_data://{name}/{i}" for i, (name, _) in enumerate(overlays)],
        "nodeDataTargets": [graph for _, graph in overlays],
    }
    if len(titles) > 1:
        panes = [
            {
                "selectedGraphId": title,
                "selectedCollectionLabel": title,
                "selectedNodeId": "",
                "deepestExpandedGroupNodeIds": [],
                "widthFraction": 0.5,
            }
            for title in titles
        ]
        found |= {"uiState": {"paneStates": panes}, "sync": {"mode": "match_node_id"}}
    return found
