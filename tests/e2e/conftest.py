"""A real server on 127.0.0.1 and a real Chromium."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from defuse_core.jobs import launcher
from defuse_core.workspace import Workspace
from tests.workspaces import eventually

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A dashboard of its own workspace."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Chromium, as the system's package installs it."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium, then run the tests again")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A dashboard on an empty workspace."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "defuse_core.cli", "dashboard", "--port", str(port), "--no-browser"]
    home = tmp_path / "home"
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=log, env={**os.environ, "DEFUSE_HOME": str(home)}
        )
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: _answers(url), seconds=60)
    yield Server(url, home, process)
    process.terminate()
    process.wait(20)
    workspace = Workspace(home)  # its runs outlive the server, as they should
    for project in workspace.projects():
        for run in workspace.runs.of_project(project.id):
            launcher.cancel(workspace, run.id)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def page(chromium: Browser, server: Server) -> Iterator[Page]:
    """A tab of 1440 × 900, closed before the server ends; an error in the console fails the test."""
    assert server.url
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("requestfailed", lambda request: errors.append(request.url))
    yield tab
    context.close()
    assert not errors
