"""The server of a page: who may ask, for what, and what it says; the page takes changes as they come."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import autoprune
from autoprune.errors import RunFolderError, UsageError
from autoprune.report import RunView, read_run
from autoprune.report.runview import folder_state
from autoprune.report.server import ReportServer, is_loopback
from autoprune.runfolder import RunFolder


@contextmanager
def serving(server: ReportServer) -> Iterator[ReportServer]:
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(timeout=10)


@pytest.fixture(scope="module")
def view(finished: autoprune.Run) -> RunView:
    return read_run(finished.folder, finished.config.model_dump(), finished.folder.study)


@pytest.fixture(scope="module")
def server(view: RunView) -> Iterator[ReportServer]:
    with serving(ReportServer(lambda: [view], lambda: 0)) as server:
        yield server


def ask(server: ReportServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    host, port = server._server.server_address[:2]
    connection = http.client.HTTPConnection(str(host), port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def test_the_page_its_state_and_its_models(server: ReportServer, finished: autoprune.Run) -> None:
    status, page, headers = ask(server, "/")
    assert (status, headers["x-frame-options"]) == (200, "DENY")
    assert b"connect-src 'self'" in page
    status, body, headers = ask(server, "/state")
    assert status == 200
    assert headers["etag"].strip('"') in page.decode()
    assert {"front", "cards", "search"} <= json.loads(body)["sections"].keys()
    assert ask(server, "/state", If_None_Match=headers["etag"])[:2] == (304, b"")
    model = finished.models[0]
    status, file, headers = ask(server, f"/model/0/{model.digest}.onnx")
    assert (status, file) == (200, (finished.folder.path / model.onnx).read_bytes())
    assert f"{model.digest}.onnx" in headers["content-disposition"]
    assert ask(server, f"/model/0/{model.digest}.zip")[0] == 404  # this server was given no archives
    assert ask(server, "/", method="HEAD")[:2] == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/model/0/../../front.json", "/model/0/%2e%2e%2ffront.onnx", "//etc/passwd", "/front.json",
        "/model/7/0123456789ab.onnx", "/model/0/ffffffffffff.onnx", "/model/", "/models", "/state/", "/index.html",
    ],
)  # fmt: skip
def test_nothing_else_is_there(server: ReportServer, path: str) -> None:
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(server: ReportServer, method: str) -> None:
    assert ask(server, "/", method=method)[0] == 501


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("127.0.0.1:9", 200), ("[::1]:80", 200), ("evil.example", 403), ("", 403),
        ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("192.168.0.1", 403),
        ("[", 403), ("[::1", 403), ("]", 403),
    ],
)  # fmt: skip
def test_other_sites_cannot_ask_by_a_name_of_their_own(server: ReportServer, host: str, status: int) -> None:
    assert ask(server, "/state", Host=host)[0] == status


def test_an_address_that_cannot_be_read_is_refused(server: ReportServer) -> None:
    assert ask(server, "//[")[0] in (400, 404)


def test_a_token_is_asked_for(view: RunView) -> None:
    with serving(ReportServer(lambda: [view], lambda: 0, token="a b&c")) as server:
        assert ask(server, "/")[0] == ask(server, "/?token=wrong")[0] == ask(server, "/state?token=")[0] == 403
        assert ask(server, f"/{server.query}", Host="any.example")[0] == 200
        assert ask(server, "/state", Authorization="Bearer a b&c")[0] == 200
        assert server.query == "?token=a%20b%26c"


def test_a_token_is_made_for_an_open_address(view: RunView) -> None:
    with serving(ReportServer(lambda: [view], lambda: 0, host="0.0.0.0")) as server:
        assert len(server.token) > 20
        assert server.token in server.address
        assert not server.admits("127.0.0.1", "")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "example.org", "10.0.0.1", "127.0.0.1.nip.io"])
def test_open_addresses(host: str) -> None:
    assert not is_loopback(host)


def test_an_address_in_use_is_said(view: RunView) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="--port"):
        ReportServer(lambda: [view], lambda: 0, port=taken.getsockname()[1])


def test_a_model_outside_its_run_is_not_given_away(view: RunView, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "secret.onnx").write_text("secret")
    (tmp_path / "run" / "link.onnx").symlink_to(tmp_path / "secret.onnx")
    for name in ("../secret.onnx", str(tmp_path / "secret.onnx"), "link.onnx", "gone.onnx"):
        models = [view.document["models"][0] | {"onnx": name}]
        own = replace(view, path=tmp_path / "run", document=dict(view.document) | {"models": models})
        server = ReportServer(lambda own=own: [own], lambda: 0)
        assert server.model(0, models[0]["digest"]) is None
        server._server.server_close()


def test_runs_are_read_again_only_when_they_changed(view: RunView) -> None:
    reads, now = [], [1]
    server = ReportServer(lambda: reads.append(1) or [view], lambda: now[0])
    versions = {server.state()[1] for _ in range(3)}
    assert (len(reads), len(versions)) == (1, 1)
    now[0] = 2
    assert server.state()[1] in versions
    now[0] = None
    server.state(), server.state()
    assert len(reads) == 4
    server._server.server_close()


def test_a_run_that_cannot_be_read_is_said(view: RunView) -> None:
    def torn() -> list[RunView]:
        raise RunFolderError("front.json is torn")

    with serving(ReportServer(torn, lambda: 0)) as server:
        assert ask(server, "/state")[:2] == (503, b"front.json is torn\n")


def test_a_run_folder_that_is_gone_is_said(view: RunView, tmp_path: Path) -> None:
    gone = RunFolder(tmp_path / "gone")
    with serving(ReportServer(lambda: [view], lambda: folder_state(gone))) as server:
        status, text, _ = ask(server, "/state")
    assert status == 503
    assert b"gone" in text


def test_a_client_that_goes_away_leaves_no_traceback(view: RunView, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(ReportServer(lambda: [view], lambda: 0)) as server:
        for _ in range(3):
            host, port = server._server.server_address[:2]
            with socket.create_connection((str(host), port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, unread
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ask(server, "/state")[0] == 200
    assert "Traceback" not in capfd.readouterr().err
