"""Labels given in a real browser: in order, undone, kept over reloads, tabs and a killed server."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from defuse_core.data.sources import load_npz
from defuse_core.steps.source import Source
from defuse_core.workspace.labels import LabelEvent
from tests.apps import NASTY
from tests.e2e.serving import SECONDS, Site, serving
from tests.workspaces import Place, eventually

ME = "Grace"


def mine(site: Site, region: int, *, round: int = 1) -> list[LabelEvent]:
    """What counts of my answers on a region."""
    return [
        e
        for e in site.workspace.annotations.counting(site.newest("distill").id)
        if (e.annotator, e.region_id, e.round) == (ME, region, round)
    ]


def heaviest(site: Site) -> int:
    return Source(site.workspace, site.newest("distill").id).regions()[0].region_id


def open_board(page: Page, site: Site, region: int) -> None:
    """Open the board of a region by its link, as ME."""
    page.goto(site.link("label", region=f"Region {region}", annotator=ME))
    expect(page.get_by_text("No answers yet")).to_be_visible(timeout=60 * SECONDS)
    page.get_by_role("group", name="Label the images").focus()


@pytest.mark.timeout(200)
def test_ten_keys_at_once_arrive_in_order_and_outlast_a_reload(page: Page, labelled: Site) -> None:
    region = heaviest(labelled)
    open_board(page, labelled, region)
    page.evaluate(
        "keys => keys.forEach((key) => document.dispatchEvent("
        "new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true })))",
        [*"1231231x32"],
    )
    expect(page.get_by_text("All 10 answers saved")).to_be_visible(timeout=30 * SECONDS)
    answers = mine(labelled, region)
    assert [e.sample_id for e in answers] == list(range(10))
    assert [e.label for e in answers] == [0, 1, 2, 0, 1, 2, 0, None, 2, 1]
    assert all(0 <= (e.seconds or 0.0) <= 60 and e.key for e in answers)
    expect(page.get_by_text("95 % interval")).to_be_visible(timeout=10 * SECONDS)

    page.keyboard.press("u")
    expect(page.get_by_text("9 of 10 images answered")).to_be_visible()
    eventually(lambda: len(mine(labelled, region)) == 9)
    page.reload()
    expect(page.get_by_text("9 of 10 images answered")).to_be_visible(timeout=60 * SECONDS)
    page.keyboard.press("3")  # the cursor is where an answer lacks
    expect(page.get_by_text("All 10 answers saved")).to_be_visible(timeout=30 * SECONDS)
    assert {e.sample_id: e.label for e in mine(labelled, region)}[9] == 2
    page.keyboard.press("n")
    expect(page.get_by_text("0 of 10 images answered")).to_be_visible(timeout=30 * SECONDS)
    expect(page).not_to_have_url(re.compile(rf"Region\+{region}\b"))


@pytest.mark.timeout(200)
def test_two_tabs_see_each_other_and_lose_nothing(page: Page, labelled: Site) -> None:
    region = heaviest(labelled)
    second = page.context.new_page()
    for tab in (page, second):
        open_board(tab, labelled, region)

    def labels() -> list[int | None]:
        return [e.label for e in labelled.workspace.annotations.events(labelled.newest("distill").id)]

    before = len(labels())
    for n, (tab, key) in enumerate(((page, "1"), (second, "2"), (page, "3")), 1):
        tab.bring_to_front()
        tab.keyboard.press(key)
        eventually(lambda n=n: len(labels()) == before + n, seconds=30)
        saved = tab.get_by_text(re.compile(r"^(1 answer|All \d+ answers) saved$"))  # not "not saved yet"
        expect(saved.first).to_be_visible(timeout=30 * SECONDS)
    page.reload()
    answers = {e.sample_id: e.label for e in mine(labelled, region)}
    assert answers == {0: 1, 1: 2}  # the second tab was at the first image, too
    expect(page.get_by_text(f"{len(answers)} of 10 images answered")).to_be_visible(timeout=60 * SECONDS)
    assert labels()[before:] == [0, 1, 2]  # as they came; the later on one image counts


@pytest.mark.timeout(300)
def test_a_killed_server_loses_no_answer_and_the_board_says_which_are_not_saved(
    chromium: Browser, place: Place, tmp_path: Path
) -> None:
    place.workspace.close()
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    with serving(tmp_path) as server:
        site = Site(server, place.project)
        region, port = heaviest(site), server.port
        open_board(page, site, region)
        page.keyboard.press("1")
        expect(page.get_by_text("1 answer saved")).to_be_visible(timeout=30 * SECONDS)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(10)
        for key in "23x":
            page.keyboard.press(key)
        expect(page.get_by_text("3 answers not saved")).to_be_visible(timeout=20 * SECONDS)
        assert len(mine(site, region)) == 1
    with serving(tmp_path, port=port):
        page.on("dialog", lambda dialog: dialog.accept())  # leave, though answers are not saved
        page.reload()
        eventually(lambda: len(mine(site, region)) == 4, seconds=60)
        assert [e.label for e in mine(site, region)] == [0, 1, 2, None]
        expect(page.get_by_text("All 4 answers saved")).to_be_visible(timeout=60 * SECONDS)
        page.keyboard.press("u")
        eventually(lambda: len(mine(site, region)) == 3, seconds=30)
    context.close()


@pytest.mark.timeout(200)
def test_tau_is_scrubbed_kept_and_labelled_at(page: Page, labelled: Site) -> None:
    region = heaviest(labelled)
    page.goto(labelled.link("regions", region=f"Region {region}"))
    slider = page.get_by_role("slider", name="τ")
    expect(slider).to_be_visible(timeout=60 * SECONDS)
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_text("τ = 0.8", exact=True)).to_be_visible()
    expect(page.get_by_text("Labels of this region are given at τ = 0.8")).to_be_visible(timeout=30 * SECONDS)
    edits = labelled.workspace.annotations.edits(labelled.newest("distill").id)
    assert [(e.regions, e.tau) for e in edits][-1] == ((region,), 0.8)
    page.get_by_role("link", name="Label it").click()
    expect(page.get_by_text("No answers yet")).to_be_visible(timeout=60 * SECONDS)
    assert f"Region+{region}" in page.url
    open_board(page, labelled, region)
    page.get_by_role("button", name="Whole region").click()
    page.keyboard.press("2")
    expect(page.get_by_text("10 of 10 images answered")).to_be_visible(timeout=30 * SECONDS)
    eventually(lambda: len(mine(labelled, region)) == 1)
    (answer,) = mine(labelled, region)
    assert (answer.label, answer.sample_id, answer.tau, answer.n_samples) == (1, None, 0.8, 10)


@pytest.mark.timeout(200)
def test_a_class_that_is_markup_is_text_on_every_page(
    page: Page, labelled: Site, template: Path, tmp_path: Path
) -> None:
    with np.load(template.parent / "shapes.npz") as arrays:
        changed = {**arrays, "class_names": np.array([NASTY, "column", "diagonal"])}
    np.savez(tmp_path / "nasty.npz", **changed)
    dataset = labelled.project.dataset | {
        "source": str(tmp_path / "nasty.npz"), "class_names": [NASTY, "column", "diagonal"],
        "fingerprint": load_npz(tmp_path / "nasty.npz").fingerprint,
    }  # fmt: skip
    with closing(sqlite3.connect(labelled.server.home / "defuse.sqlite")) as database:
        database.execute("UPDATE projects SET dataset = ?", (json.dumps(dataset),))
        database.commit()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(labelled.link("label", region=f"Region {heaviest(labelled)}"))
    for name, shown in (
        ("Label", page.get_by_role("button", name=NASTY)),
        ("Regions", page.get_by_role("slider", name="τ")),
        ("Map", page.locator(".js-plotly-plot .legendtext", has_text=NASTY[:20])),  # clipped
        ("Identify", page.get_by_text("Which class is predicted as which")),
        ("Classifier", page.get_by_text("Misclassified")),
        ("Generator", page.get_by_text("A traversal")),
        ("Overview", page.get_by_text("Regions labelled")),
    ):
        page.get_by_test_id("stSidebar").get_by_role("link", name=name, exact=True).click()
        expect(shown.first).to_be_visible(timeout=60 * SECONDS)
        expect(page.get_by_text("Loading ")).to_have_count(0, timeout=60 * SECONDS)
        assert page.locator("img[src='x']").count() == 0
        assert page.get_by_test_id("stException").count() == 0
    assert not dialogs
