"""From a fresh workspace to a running search, over reloads, a second tab and a killed server."""

from __future__ import annotations

import http.client
import signal
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from defuse_core.jobs import launcher
from defuse_core.workspace import Workspace
from tests.e2e.serving import SECONDS, Server
from tests.workspaces import eventually


@pytest.mark.timeout(400)
def test_the_demo_is_opened_searched_reloaded_cancelled_and_resumed(
    page: Page, server: Server, tmp_path: Path
) -> None:
    page.goto(server.url)
    page.get_by_role("button", name="Open the demo").click(timeout=30 * SECONDS)
    expect(page.get_by_text("0.960")).to_be_visible(timeout=60 * SECONDS)
    assert "project=demo" in page.url
    page.get_by_role("button", name="Next: identify").click()
    sidebar = page.get_by_test_id("stSidebar")
    expect(sidebar.get_by_text("Mistakes · running")).to_be_visible(timeout=30 * SECONDS)
    page.screenshot(path=tmp_path / "overview.png")

    page.reload()
    expect(sidebar.get_by_text("Mistakes · running")).to_be_visible(timeout=30 * SECONDS)
    second = page.context.new_page()
    second.goto(page.url)
    second.get_by_test_id("stSidebar").get_by_role("button", name="Cancel").click(timeout=30 * SECONDS)
    expect(sidebar.get_by_text("Mistakes · cancelled")).to_be_visible(timeout=10 * SECONDS)
    sidebar.get_by_role("button", name="Resume").click()
    expect(sidebar.get_by_text("Mistakes · running")).to_be_visible(timeout=30 * SECONDS)
    expect(page.get_by_test_id("stException")).to_have_count(0)

    second.close()
    page.goto("about:blank")

    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    workspace = Workspace(server.home)
    run = workspace.runs.latest(workspace.projects()[0].id, "identify")
    assert run is not None
    assert run.live
    eventually(lambda: not workspace.runs.get(run.id).live, seconds=200)
    assert workspace.runs.get(run.id).status == "done"


def test_a_foreign_host_is_refused(server: Server) -> None:
    """A page of another name that points to this address, as in DNS rebinding, gets no connection."""
    host, port = server.url.removeprefix("http://").split(":")

    def upgrade(name: str) -> int:
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        headers = {
            "Host": name, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==", "Origin": f"http://{name}",
        }  # fmt: skip
        connection.request("GET", "/_stcore/stream", headers=headers)
        status = connection.getresponse().status
        connection.close()
        return status

    assert upgrade(f"127.0.0.1:{port}") == 101
    assert upgrade("evil.example") == 403


def test_cancelled_from_a_terminal_shows_in_the_page(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.get_by_role("button", name="Open the demo").click(timeout=30 * SECONDS)
    page.get_by_role("button", name="Next: identify").click(timeout=60 * SECONDS)
    sidebar = page.get_by_test_id("stSidebar")
    expect(sidebar.get_by_text("Mistakes · running")).to_be_visible(timeout=60 * SECONDS)
    workspace = Workspace(server.home)
    run = workspace.runs.latest(workspace.projects()[0].id, "identify")
    assert run is not None
    launcher.cancel(workspace, run.id)
    expect(sidebar.get_by_text("Mistakes · cancelled")).to_be_visible(timeout=10 * SECONDS)
