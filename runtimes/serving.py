"""A small server on loopback: folders for a browser, and a mailbox through which it is told what to do.

The other side asks for `/TOKEN/job`, does it, and posts the result to `/TOKEN/done`: plain requests, so that Node and
pages are served alike. The token keeps other programs of this machine out.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
#: Seconds that a request for a job waits before it is to be made anew: Node gives one up after 300.
_POLL = 30.0
_WAIT: dict[str, Any] = {"deed": "wait"}
_END: dict[str, Any] = {"deed": "end"}
_MAX_RESULT = 1 << 30
#: Bytes that are sent at once where files have a pace.
_PIECE = 1 << 14

_PAGE = """<!doctype html><meta charset="utf-8"><title>edgesparse</title><script type="module">
import { host } from "./host.mjs";
await host(location.href.replace(/\\/[^/]*$/, ""));
</script>"""


class Mailbox:
    """The server.

    Parameters
    ----------
    host_script:
        What the page runs.
    isolated:
        Send the headers that make a page cross-origin isolated.
    pace:
        Bytes per second that files are sent with, as over a network; as fast as can be if 0.
    """

    def __init__(self, host_script: Path, *, isolated: bool = True, pace: float = 0) -> None:
        self.token = secrets.token_urlsafe(12)
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.results: queue.Queue[dict[str, Any]] = queue.Queue()
        self.folders: list[Path] = []
        self.isolated = isolated
        self.pace = pace
        self.host_script = host_script
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def base(self) -> str:
        """The address under which everything is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{self.token}"

    def share(self, folder: Path) -> str:
        """Serve a folder's files: the address of the folder, without a slash."""
        self.folders.append(folder.resolve())
        return f"{self.base}/{len(self.folders) - 1}"

    def close(self) -> None:
        """End the server; the other side is told to end."""
        self.jobs.put(_END)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def find(self, path: str) -> Path | bytes | None:
        """What lies under a path: a file of a shared folder, or one of the two of the page itself."""
        first, _, rest = path.partition("/")
        if path == "page.html":
            return _PAGE.encode()
        if path == "host.mjs":
            return self.host_script
        if first.isascii() and first.isdigit() and int(first) < len(self.folders):
            found = (self.folders[int(first)] / rest).resolve()
            if found.is_relative_to(self.folders[int(first)]) and found.is_file():
                return found
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An engine that ends breaks its connections off: no news."""


def _handler(box: Mailbox) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = self._path()
            if path == "job":
                try:
                    job = box.jobs.get(timeout=_POLL)
                except queue.Empty:
                    job = _WAIT
                self._send(200 if job is not _END else 204, json.dumps(job).encode(), "application/json")
                return
            found = box.find(path) if path is not None else None
            if found is None:
                self._send(404, b"not found", "text/plain")
                return
            kind = _TYPES.get(Path(path or "").suffix, "application/octet-stream")
            self._send(200, found if isinstance(found, bytes) else found.read_bytes(), kind)

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self._path() != "done" or not 0 <= length <= _MAX_RESULT:
                self._send(404, b"not found", "text/plain")
                return
            try:
                box.results.put(json.loads(self.rfile.read(length)))
            except ValueError:
                box.results.put({"error": "the engine sent something that is not JSON"})
            self._send(200, b"{}", "application/json")

        def _path(self) -> str | None:
            """The path behind the token; None where the token is not right."""
            token, _, rest = self.path.partition("?")[0].removeprefix("/").partition("/")
            return rest if secrets.compare_digest(token.encode(), box.token.encode()) else None

        def _send(self, status: int, body: bytes, kind: str) -> None:
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                if status != 204:
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("Cross-Origin-Resource-Policy", "same-origin")
                if box.isolated:
                    self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                    self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
                self.end_headers()
                if status != 204:
                    self._write(body)

        def _write(self, body: bytes) -> None:
            began, view = time.monotonic(), memoryview(body)
            for start in range(0, len(body), _PIECE if box.pace else max(len(body), 1)):
                piece = view[start : start + _PIECE] if box.pace else view
                self.wfile.write(piece)
                if box.pace:
                    time.sleep(max(0.0, began + (start + len(piece)) / box.pace - time.monotonic()))

    return Handler
