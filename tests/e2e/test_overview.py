"""From a fresh workspace to a running search, over reloads, a second tab and a killed server."""

from __future__ import annotations

import http.client
import signal

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from defuse_core.jobs import launcher
from tests.e2e.serving import SECONDS, Server, Site, choose, fill, held
from tests.spares import is_spare
from tests.workspaces import Place, computing_elsewhere, eventually

IMAGES, PERTURBATIONS = 640, 20  # ten shards, of a fraction of a second each


@pytest.mark.timeout(300)
def test_a_search_is_reloaded_cancelled_and_resumed_by_page_and_terminal(page: Page, labelled: Site) -> None:
    page.goto(labelled.link("identify"))
    page.get_by_text("Search", exact=True).click(timeout=60 * SECONDS)
    fill(page, "spinbutton", "n perturbations", "15")
    expect(page.get_by_text("1,280 images × Q = 19,200 codes")).to_be_visible(timeout=30 * SECONDS)
    page.get_by_role("button", name="Start", exact=True).click()
    sidebar, main = page.get_by_test_id("stSidebar"), page.get_by_test_id("stMain")
    with held(labelled, "identify"):
        assert is_spare(labelled.newest("identify"))
        expect(main.get_by_text("Images a second")).to_be_visible(timeout=60 * SECONDS)
        page.reload()
        expect(main.get_by_text("Images a second")).to_be_visible(timeout=30 * SECONDS)
        expect(sidebar.get_by_text("Mistakes · running")).to_be_visible(timeout=30 * SECONDS)
        second = page.context.new_page()
        second.goto(page.url)
        cancel = second.get_by_test_id("stSidebar").get_by_role("button", name="Cancel")
        expect(cancel).to_be_visible(timeout=30 * SECONDS)
        cancel.click()
        expect(sidebar.get_by_text("Mistakes · cancelled")).to_be_visible(timeout=30 * SECONDS)
    expect(main.get_by_text("What it had done is kept")).to_be_visible(timeout=30 * SECONDS)
    with computing_elsewhere(labelled.workspace):
        sidebar.get_by_role("button", name="Resume").click()
        expect(sidebar.get_by_text("Mistakes · cancelled")).to_have_count(0, timeout=30 * SECONDS)
    run = labelled.newest("identify")
    with held(labelled, "identify"):
        expect(sidebar.get_by_text("Mistakes · running")).to_be_visible(timeout=30 * SECONDS)
        launcher.cancel(labelled.workspace, run.id)
        expect(sidebar.get_by_text("Mistakes · cancelled")).to_be_visible(timeout=30 * SECONDS)
    launcher.resume(labelled.workspace, run.id)
    done = second.get_by_test_id("stSidebar").get_by_text("Mistakes · done")
    expect(done).to_be_visible(timeout=120 * SECONDS)
    run = labelled.newest("identify", done=True)
    n_found, n_kind = sum(run.summary["mistakes"].values()), run.summary["mistakes"]["perturbation"]
    assert run.summary["searched"] == 1280
    assert 24 < n_kind < n_found
    expect(main.get_by_text(f"{n_found:,}", exact=True).first).to_be_visible(timeout=30 * SECONDS)

    filter_and_download(page, second, "perturbation", n_kind, size=8)
    assert page.get_by_test_id("stException").count() == second.get_by_test_id("stException").count() == 0


@pytest.mark.verify
@pytest.mark.timeout(400)
def test_the_demo_is_searched_reloaded_cancelled_resumed_and_outlives_the_server(
    page: Page, server: Server
) -> None:
    page.goto(server.url)
    page.get_by_role("button", name="Open the demo").click(timeout=30 * SECONDS)
    expect(page.get_by_text("0.960")).to_be_visible(timeout=60 * SECONDS)
    assert "project=demo" in page.url
    sidebar, main = page.get_by_test_id("stSidebar"), page.get_by_test_id("stMain")
    expect(sidebar.get_by_text("Reconstruction")).to_have_count(0, timeout=60 * SECONDS)  # measured
    page.get_by_role("link", name="Identify").click()
    choose(page, "Start from", "the demo: digits on two cores")
    expect(page.get_by_role("spinbutton", name="n perturbations")).to_have_value("100")
    fill(page, "spinbutton", "n perturbations", f"{PERTURBATIONS}")
    fill(page, "spinbutton", "max images", f"{IMAGES}")
    told = page.get_by_text(f"{IMAGES} images × Q = {IMAGES * PERTURBATIONS:,} codes")
    expect(told).to_be_visible(timeout=30 * SECONDS)
    page.get_by_role("button", name="Start", exact=True).click()
    site = Site(server, server.workspace.project("demo"))
    with held(site, "identify"):
        assert is_spare(site.newest("identify"))
        expect(sidebar.get_by_text("Mistakes · running")).to_be_visible(timeout=60 * SECONDS)
        expect(main.get_by_text("Images a second")).to_be_visible(timeout=60 * SECONDS)
        page.reload()
        expect(main.get_by_text("Images a second")).to_be_visible(timeout=30 * SECONDS)
        assert "/identify" in page.url
        second = page.context.new_page()
        second.goto(page.url)
        cancel = second.get_by_test_id("stSidebar").get_by_role("button", name="Cancel")
        expect(cancel).to_be_visible(timeout=30 * SECONDS)
        cancel.click()
        expect(sidebar.get_by_text("Mistakes · cancelled")).to_be_visible(timeout=30 * SECONDS)
    expect(main.get_by_text("What it had done is kept")).to_be_visible(timeout=30 * SECONDS)
    with computing_elsewhere(site.workspace):
        sidebar.get_by_role("button", name="Resume").click()
        expect(sidebar.get_by_text("Mistakes · cancelled")).to_have_count(0, timeout=30 * SECONDS)
    with held(site, "identify"):
        expect(sidebar.get_by_text("Mistakes · running")).to_be_visible(timeout=60 * SECONDS)
    expect(second.get_by_test_id("stSidebar").get_by_text("Mistakes · done")).to_be_visible(
        timeout=120 * SECONDS
    )
    run = site.newest("identify", done=True)
    counts = run.summary["mistakes"]
    n_found, n_reconstruction = sum(counts.values()), counts["reconstruction"]
    assert run.summary["searched"] == IMAGES
    assert 24 < n_reconstruction < n_found / 4
    expect(main.get_by_text(f"{n_found:,}", exact=True)).to_be_visible(timeout=30 * SECONDS)
    expect(main.get_by_role("img", name="predicted as").first).to_be_visible(timeout=30 * SECONDS)
    assert page.get_by_test_id("stException").count() == second.get_by_test_id("stException").count() == 0

    filter_and_download(page, second, "reconstruction", n_reconstruction, size=28)


def filter_and_download(page: Page, second: Page, kind: str, n: int, *, size: int) -> None:
    """Show the n mistakes of a kind, in another tab by the link, and as files."""
    main = page.get_by_test_id("stMain")
    choose(page, "Kind", kind)
    told = f"of {n:,}, in mixed order"
    expect(main.get_by_text(told)).to_be_visible(timeout=30 * SECONDS)
    assert f"kind={kind}" in page.url
    second.goto(page.url)  # a link shows what was seen
    expect(second.get_by_text(told)).to_be_visible(timeout=30 * SECONDS)
    with page.expect_download() as download:
        main.get_by_role("button", name="as CSV").click()
    assert len(download.value.path().read_text().splitlines()) == 1 + n
    with page.expect_download() as download:
        main.get_by_role("button", name="as npz").click()
    with np.load(download.value.path(), allow_pickle=False) as stored:
        assert stored["mistake"].shape == (24,)
        assert stored["mistake_image"].shape == stored["original_image"].shape == (24, size, size, 1)


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


@pytest.mark.verify
@pytest.mark.timeout(300)
def test_what_a_terminal_does_shows_in_the_page_and_runs_outlive_a_killed_server(
    page: Page, place: Place, own_server: Server
) -> None:
    site = Site(own_server, place.project)
    page.goto(site.link("identify"))
    page.get_by_text("Search", exact=True).click(timeout=60 * SECONDS)
    fill(page, "spinbutton", "n perturbations", "500")  # for each of twenty shards a fraction of a second
    expect(page.get_by_text("1,280 images × Q = 640,000 codes")).to_be_visible(timeout=30 * SECONDS)
    page.get_by_role("button", name="Start", exact=True).click()
    sidebar = page.get_by_test_id("stSidebar")
    with held(site, "identify"):
        expect(sidebar.get_by_text("Mistakes · running")).to_be_visible(timeout=60 * SECONDS)
        run, runs = site.newest("identify"), site.workspace.runs
        launcher.cancel(site.workspace, run.id)
        expect(sidebar.get_by_text("Mistakes · cancelled")).to_be_visible(timeout=30 * SECONDS)
    launcher.resume(site.workspace, run.id)
    with held(site, "identify"):
        expect(sidebar.get_by_text("Mistakes · running")).to_be_visible(timeout=60 * SECONDS)
        page.goto("about:blank")
        own_server.process.send_signal(signal.SIGKILL)
        own_server.process.wait(10)
        points = len(runs.events(run.id, kind="point"))
    eventually(lambda: len(runs.events(run.id, kind="point")) > points + 1, seconds=60)
