"""The presentation of a real project in a real browser, which nothing that happens meanwhile disturbs."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, WebSocket, expect

from defuse_core.workspace.edits import RegionEdit
from defuse_core.workspace.labels import LabelEvent
from tests.apps import NASTY
from tests.e2e.serving import SECONDS, Site


def begin(page: Page, site: Site, sent: list[Any]) -> None:
    """Open the page by its link, and start; what the browser sends from then on is kept."""

    def listen(socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: sent.append(frame))

    page.on("websocket", listen)
    page.goto(site.link("present"))
    page.get_by_role("button", name="Present", exact=True).click(timeout=60 * SECONDS)
    expect(page.get_by_role("dialog", name="Presentation")).to_be_visible()


@pytest.mark.timeout(200)
def test_a_presentation_covers_the_dashboard_and_outlasts_what_happens_on_the_server(
    page: Page, corrected: Site
) -> None:
    sent: list[Any] = []
    begin(page, corrected, sent)
    dialog, title = page.get_by_role("dialog", name="Presentation"), page.locator(".cover .title")
    expect(title).to_have_text("shapes")
    assert dialog.bounding_box() == {"x": 0, "y": 0, "width": 1440, "height": 900}
    for x, y in ((20, 20), (100, 300), (1400, 20), (700, 450)):  # header, sidebar, menu, page
        covered = page.evaluate(
            "([x, y]) => document.elementFromPoint(x, y).shadowRoot?.elementFromPoint(x, y)"
            ".closest('.stage') !== null",
            [x, y],
        )
        assert covered, (x, y)
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    expect(page.locator(".panel")).to_have_count(2)
    expect(page.locator(".panel.after img")).to_have_count(10)
    place = page.locator(".place").inner_text()

    workspace, run = corrected.workspace, corrected.newest("distill", done=True)
    over = page.locator(".over").inner_text()
    region = int(over.partition("region ")[2].split()[0])
    workspace.annotations.edit(run.id, RegionEdit("rename", (region,), name=NASTY, by="Ada"))
    workspace.runs.add(corrected.project.id, "map", {}, seed=0, resources=run.resources, upstream=[])
    expect(title).to_have_text(NASTY, timeout=30 * SECONDS)  # the sidebar saw the run: the page ran again
    expect(page.locator(".place")).to_have_text(place)
    expect(dialog).to_be_visible()

    answer = LabelEvent(region, "Grace", 0, 0)
    workspace.annotations.append(run.id, [answer])  # what is shown has to be worked out again
    expect(page.get_by_text("Labels or data have changed")).to_be_attached(timeout=30 * SECONDS)
    expect(title).to_have_text(NASTY)
    expect(dialog).to_be_visible()
    page.keyboard.press("End")
    expect(title).to_have_text("What this does not say")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Present", exact=True)).to_be_visible()


@pytest.mark.timeout(200)
def test_no_key_asks_anything_of_the_server(page: Page, corrected: Site) -> None:
    sent: list[Any] = []
    begin(page, corrected, sent)
    expect(page.locator(".place")).to_contain_text("1 / ")
    page.wait_for_load_state("networkidle")
    before = len(sent)
    assert before
    for key in ("ArrowRight", "Space", "PageUp", "r", "c", "End", "Home", "2", "Enter", "?", "b", "b"):
        page.keyboard.press(key)
    expect(page.locator(".place")).to_contain_text("2 / ")
    assert len(sent) - before <= 1  # the sidebar looks again every five seconds
