"""The dashboard is open to this machine alone, unless a login is configured."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboard.shell.guard import HEADERS
from dashboard.shell.server import LOGIN, has_login, is_loopback, is_shared, server_command
from defuse_core.jobs import launcher
from defuse_core.workspace.runs import Resources
from tests.e2e.serving import Server, serving
from tests.workspaces import eventually

PROXY = "https://defuse.example.org"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The first dashboard of a user who named the origin of a proxy; the browser notes what it opens."""
    folder = tmp_path_factory.mktemp("served")
    browser = folder / "browser"
    opened = folder / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{opened}.part" && mv "{opened}.part" "{opened}"\n')
    browser.chmod(0o755)
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit" / "config.toml").write_text(f'[server]\ncorsAllowedOrigins = ["{PROXY}"]\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROWSER", f"{browser} %s")
        patch.setenv("HOME", str(folder))  # where Streamlit finds no answer to its questions
        with serving(folder, browser=True) as server:
            yield server


@pytest.fixture(autouse=True)
def _folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_login(address: str) -> None:
    assert is_loopback(address)
    command = server_command(address, 8501, browser=False)
    assert f"--server.address={address}" in command
    assert "--server.headless=true" in command


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org"])
def test_others_are_refused_without_a_login(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"open the dashboard to others without a login; configure one in"):
        server_command(address, 8501, browser=True)
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text("[other]\nx = 1\n")
    assert not has_login()
    (tmp_path / ".streamlit" / "secrets.toml").write_text('[auth]\nclient_id = "x"\n')
    assert f"--server.address={address}" in server_command(address, 8501, browser=True)


def test_a_server_with_a_login_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOGIN, raising=False)
    assert not is_shared()
    monkeypatch.setenv(LOGIN, "1")
    assert is_shared()


def test_what_its_safety_rests_on_is_set_by_flags() -> None:
    command = server_command("127.0.0.1", 8501, browser=True)
    for flag in (
        "--server.enableXsrfProtection=true", "--server.enableCORS=true", "--browser.gatherUsageStats=false",
        "--client.showErrorDetails=none", "--server.allowedHosts=127.0.0.1",
        "--server.allowedHosts=localhost",
    ):  # fmt: skip
        assert flag in command
    assert not [flag for flag in command if flag.startswith("--server.allowedHosts=0.")]


def test_the_servers_one_thread_is_not_that_of_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as `serve` sets it
    monkeypatch.delenv("DEFUSE_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)

    def threads(resources: Resources) -> set[str]:
        return {launcher._environment(resources)[name] for name in names}

    assert threads(Resources()) == {"3"}
    monkeypatch.setenv("DEFUSE_THREADS", "2")
    assert threads(Resources()) == {"2"}
    assert threads(Resources(threads=7)) == {"7"}


@pytest.mark.parametrize("path", ["/", "/present", "/_stcore/health", "/media/none"])
def test_no_page_of_others_shows_it_in_a_frame(served: Server, path: str) -> None:
    try:
        answer = urllib.request.urlopen(served.url + path)
    except urllib.error.HTTPError as refused:
        answer = refused
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS


def test_it_asks_nothing_and_opens_a_browser(served: Server) -> None:
    opened = served.home.parent / "opened"
    eventually(opened.exists, seconds=30)
    assert opened.read_text().strip() == served.url


def status_of_websocket(port: int, origin: str | None) -> int:
    """What the dashboard answers to a WebSocket that a page of this origin opens."""
    lines = [
        "GET /_stcore/stream HTTP/1.1", f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *([f"Origin: {origin}"] if origin else []), "", "",
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return int(connection.recv(64).split()[1])


def test_only_its_own_pages_connect(served: Server) -> None:
    port = served.port
    for welcome in (None, f"http://127.0.0.1:{port}", PROXY):
        assert status_of_websocket(port, welcome) == 101, welcome
    for other in (
        "http://127.0.0.1:1",
        "http://localhost:3000",
        f"http://localhost:{port}",
        "null",
        f"{PROXY}:1",
    ):
        assert status_of_websocket(port, other) == 403, other
