"""The page of runs over HTTP, for as long as their searches go on: it asks for changes and takes them.

The server changes no result. It runs on the host of the search, because SQLite's write-ahead log, in which studies are
kept, does not work between hosts (https://www.sqlite.org/wal.html).

It answers a few addresses and nothing else: the page, its state, and for each model that the page shows the ONNX file
and an archive of the folder that `autoprune export` writes.
On a loopback address it answers requests alone whose `Host` names this machine, so that no other site can reach it
through a name of its own (DNS rebinding); on any other address it asks for a token.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from autoprune.errors import AutopruneError, UsageError
from autoprune.report.fragments import Section
from autoprune.report.html import report_parts
from autoprune.report.page import page, page_state
from autoprune.report.plots import finite
from autoprune.report.runview import RunView

_FOLLOW_SECONDS = 2.0
_SLOW_CLIENT_SECONDS = 30.0
_MODEL = re.compile(r"/model/(\d{1,4})/([0-9a-f]{1,64})\.(onnx|zip)")
_TEXT = "text/plain; charset=utf-8"
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _Reading(NamedTuple):
    """Runs as they were read, and what their page says of them."""

    runs: Sequence[RunView]
    parts: tuple[str, list[str], list[Section], list[dict[str, Any]]]
    state: bytes


class ReportServer:
    """Serves the page of some runs; `address` is where. `serve` answers until it is interrupted, `close` ends it.

    Args:
        read: returns the runs as they are now.
        signature: returns a value that differs when the runs may have changed; `None` says that nobody knows.
        host: name or IP address to listen on.
        port: to listen on; 0 takes a free one.
        token: what a request must know; one is made where the host is no loopback address.
        seconds: between two questions of a page for changes.
        archive: returns a ZIP archive of a model, from the number of its run and its digest.

    Raises:
        UsageError: when the address cannot be listened on.
    """

    def __init__(
        self,
        read: Callable[[], Sequence[RunView]],
        signature: Callable[[], object],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        seconds: float = _FOLLOW_SECONDS,
        archive: Callable[[int, str], bytes] | None = None,
    ) -> None:
        self._read, self._signature, self._local = read, signature, is_loopback(host)
        self.token = token or ("" if self._local else secrets.token_urlsafe(16))
        self._seconds, self._archive = seconds, archive
        self._lock = threading.Lock()
        self._known: tuple[object, _Reading] | None = None
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = _Server.on((host, port), partial(_Handler, self), family)
        except (OSError, OverflowError) as error:
            raise UsageError(f"{host} port {port} cannot be listened on: {error}. Choose another --port") from error

    @property
    def query(self) -> str:
        """The part of an address that holds the token."""
        return f"?token={quote(self.token, safe='')}" if self.token else ""

    @property
    def address(self) -> str:
        """URL of the page, with its token."""
        host, port = self._server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{shown}:{port}/{self.query}"

    def serve(self) -> None:
        """Answer requests until `close` is called or the process is interrupted."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """Stop answering, and free the address."""
        self._server.shutdown()
        self._server.server_close()

    def admits(self, host: str, given: str) -> bool:
        """Return whether a request may be answered, from its `Host` header and its token."""
        if self.token:
            return hmac.compare_digest(given.encode(), self.token.encode())
        try:
            return is_loopback(urlsplit(f"//{host}").hostname or "")
        except ValueError:  # such as a bracket that is not closed
            return False

    def page(self) -> bytes:
        """Return the page as it is now."""
        now = self._now()
        live = {"seconds": self._seconds, "query": self.query, "version": _version(now.state)}
        return page(*now.parts, live=live).encode()

    def state(self) -> tuple[bytes, str]:
        """Return the state of the page as JSON, and its version."""
        state = self._now().state
        return state, _version(state)

    def model(self, number: int, digest: str) -> Path | None:
        """Return the ONNX file of a model that the page shows; `None` for any other, or one outside its run folder."""
        runs = self._now().runs
        if number >= len(runs):
            return None
        folder = runs[number].path.resolve()
        names = [model.get("onnx") for _, model in runs[number].models if model["digest"] == digest]
        files = [(folder / name).resolve() for name in names if name]
        inside = [file for file in files if file.is_relative_to(folder) and file.suffix == ".onnx" and file.is_file()]
        return inside[0] if inside else None

    def archive(self, number: int, digest: str) -> bytes | None:
        """Return an archive of a model whose ONNX file may be given away; `None` for any other."""
        if self._archive is None or self.model(number, digest) is None:
            return None
        return self._archive(number, digest)

    def _now(self) -> _Reading:
        """Return the runs and their page; they are read again only when something has changed."""
        with self._lock:
            signature = self._signature()
            if self._known is None or signature is None or signature != self._known[0]:
                runs = self._read()
                parts = report_parts(runs)
                state = page_state(*parts[1:], bodies=True)
                text = json.dumps(finite(state), separators=(",", ":"))
                self._known = signature, _Reading(runs, parts, text.encode())
            return self._known[1]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    @classmethod
    def on(cls, place: tuple[str, int], handler: Callable[..., _Handler], family: socket.AddressFamily) -> _Server:
        """Listen on an address of a family; the class decides it before a server is made."""
        return type("_Server", (cls,), {"address_family": family})(place, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away, or were too slow; anything else is a fault with a traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server_version, sys_version = "autoprune", ""
    timeout = _SLOW_CLIENT_SECONDS

    def __init__(self, report: ReportServer, *rest: object) -> None:
        self._report = report
        super().__init__(*rest)  # pyright: ignore[reportArgumentType]

    def do_GET(self) -> None:
        """Answer with the page, its state, a model, or an error in one sentence."""
        try:
            parts = urlsplit(self.path)
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST, "the address cannot be read")
            return
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        given = bearer or parse_qs(parts.query).get("token", [""])[0]
        if not self._report.admits(self.headers.get("Host", ""), given):
            self._refuse(HTTPStatus.FORBIDDEN, "the address names another host, or its token is missing or wrong")
            return
        try:
            answer = self._answer(parts.path)
        except (AutopruneError, OSError) as error:  # a file that is being written, or gone: the page asks again
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        else:
            self._send(*answer)

    do_HEAD = do_GET

    def _answer(self, path: str) -> tuple[HTTPStatus, bytes, str, Mapping[str, str]]:
        """Return status, body, kind and further headers; reading is over before anything is sent."""
        if path == "/":
            return HTTPStatus.OK, self._report.page(), "text/html; charset=utf-8", {}
        if path == "/state":
            body, version = self._report.state()
            known = self.headers.get("If-None-Match") == version
            status = HTTPStatus.NOT_MODIFIED if known else HTTPStatus.OK
            return status, b"" if known else body, "application/json", {"ETag": version}
        if (asked := _MODEL.fullmatch(path)) and (body := self._file(int(asked[1]), asked[2], asked[3])) is not None:
            name = f'attachment; filename="{asked[2]}.{asked[3]}"'
            return HTTPStatus.OK, body, "application/octet-stream", {"Content-Disposition": name}
        return HTTPStatus.NOT_FOUND, b"there is no such page, or no such model\n", _TEXT, {}

    def _file(self, number: int, digest: str, suffix: str) -> bytes | None:
        if suffix == "zip":
            return self._report.archive(number, digest)
        file = self._report.model(number, digest)
        return None if file is None else file.read_bytes()

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send(status, f"{reason}\n".encode(), _TEXT)

    def _send(self, status: HTTPStatus, body: bytes, kind: str, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        length = {} if status == HTTPStatus.NOT_MODIFIED else {"Content-Length": str(len(body))}
        for name, value in (_HEADERS | {"Content-Type": kind} | length | dict(more or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: addresses may hold a token."""


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine alone, by its name or its IP address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _version(state: bytes) -> str:
    return f'"{hashlib.sha256(state).hexdigest()[:32]}"'
