"""A real server on 127.0.0.1 and a real Chromium, for tests and for screenshots."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page, TimeoutError, expect, sync_playwright

from defuse_core.jobs import launcher
from defuse_core.jobs.spare import SPARE_RUNNER
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project, Workspace
from tests.workspaces import eventually, stop_between_writes

SECONDS = 1000  # Playwright counts in milliseconds
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A dashboard, and the workspace that it shows."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return int(self.url.rpartition(":")[2])

    @cached_property
    def workspace(self) -> Workspace:
        """Its workspace, seen from here."""
        return Workspace(self.home)

    def clear(self) -> None:
        """End what runs, and delete every project."""
        cancel_all(self.workspace)
        for project in self.workspace.projects():
            self.workspace.delete_project(project.id)


@dataclass(frozen=True)
class Site:
    """A project in a dashboard."""

    server: Server
    project: Project

    @property
    def workspace(self) -> Workspace:
        """The workspace that it is in."""
        return self.server.workspace

    def link(self, page: str, **query: str) -> str:
        """Where a page of the dashboard shows it."""
        return f"{self.server.url}/{page}?{urlencode({'project': self.project.name, **query})}"

    def newest(self, step: StepName, *, done: bool = False) -> Run:
        """The newest run of a step."""
        run = self.workspace.runs.latest(self.project.id, step, done=done)
        assert run is not None
        return run


@contextmanager
def held(site: Site, step: StepName) -> Iterator[None]:
    """Stop the process of a run that was just started after its next point: there is time to look at it."""
    runs = site.workspace.runs

    def is_live() -> bool:
        run = runs.latest(site.project.id, step)
        return run is not None and run.live

    eventually(is_live, seconds=60)
    run = site.newest(step)
    before = len(runs.events(run.id, kind="point"))
    eventually(lambda: len(runs.events(run.id, kind="point")) > before, seconds=60)
    pid = runs.get(run.id).pid
    stop_between_writes(site.workspace.home, pid)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it was cancelled
            os.kill(pid, signal.SIGCONT)


@contextmanager
def serving(
    folder: Path, *, options: Sequence[str] = (), port: int = 0, spare: bool = False, browser: bool = False
) -> Iterator[Server]:
    """Serve a dashboard, with its workspace at `folder/home`; end its runs with it.

    A `spare` runner is kept as a user has it: worth its start where there are runs to be given.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "defuse_core.cli", "dashboard", "--port", str(port)]
    command.append("--browser" if browser else "--no-browser")
    home = folder / "home"
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *options], cwd=folder, stdout=log, stderr=log,
            env={**os.environ, "DEFUSE_HOME": str(home), SPARE_RUNNER: "1" if spare else "0"},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _answers(url), seconds=60)
        yield Server(url, home, process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            cancel_all(Workspace(home))  # its runs outlive the server, as they should


def cancel_all(workspace: Workspace) -> None:
    """Cancel every run that is live."""
    for project in workspace.projects():
        for run in workspace.runs.of_project(project.id):
            launcher.cancel(workspace, run.id)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def find_chromium() -> str | None:
    """Where a Chromium is; None where there is none. The one without a window's code takes half the time."""
    names = ("chromium-headless-shell", "chromium", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def browsing(path: str) -> Iterator[Browser]:
    """A Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def settle(page: Page) -> None:
    """Wait until the page has run to its end, as somebody does who looks before the next click."""
    app = page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]')
    expect(app).to_be_visible(timeout=60 * SECONDS)


def fill(page: Page, role: Any, name: str | re.Pattern[str], value: str) -> None:
    """Type a value into a field of that name, and let the page have it."""
    field = page.get_by_role(role, name=name, exact=True)
    field.fill(value, timeout=60 * SECONDS)
    field.press("Enter")


def choose(page: Page, name: str, option: str) -> None:
    """Choose from a list, opened again where a page that runs again has closed it."""
    item = page.get_by_role("option", name=option)
    for _ in range(10):
        page.get_by_role("combobox", name=name).click(timeout=60 * SECONDS)
        with suppress(TimeoutError):
            item.click(timeout=3 * SECONDS)
            return
    raise AssertionError(f"{name} does not stay open, or does not offer {option}")
