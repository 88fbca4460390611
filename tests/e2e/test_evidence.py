"""The page Evidence in a real browser: measured from the page, its figures taken, its report made."""

from __future__ import annotations

import csv
import json
import re
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.serving import SECONDS, Site

HEIGHTS = """plot => plot.calcdata
  .filter((points) => points[0].trace.type === "bar")
  .map((points) => [points[0].trace.name, points.map((bar) => bar.s)])"""
"""Of all bars of a chart, by the name of their trace."""


def take(page: Page, card: Locator, kind: str) -> bytes:
    """Take the first figure of a card as a file."""
    card.get_by_role("button", name="Download", exact=True).first.click()
    with page.expect_download(timeout=30 * SECONDS) as download:
        page.get_by_test_id("stPopoverBody").get_by_role("button", name=kind).click()
    page.keyboard.press("Escape")
    assert download.value.suggested_filename.endswith(f".{kind.lower()}")
    return download.value.path().read_bytes()


def card(page: Page, title: str) -> Locator:
    """The card of this title."""
    heading = page.get_by_role("heading", name=title, exact=True)
    return page.locator("[data-testid=stVerticalBlock]").filter(has=heading).last


@pytest.mark.timeout(240)
def test_evidence_is_measured_shown_taken_and_reported(page: Page, corrected: Site) -> None:
    page.goto(corrected.link("evidence"))
    page.get_by_role("button", name="Measure", exact=True).click(timeout=60 * SECONDS)
    expect(page.get_by_role("heading", name="The report")).to_be_visible(timeout=120 * SECONDS)
    run = corrected.newest("evaluate", done=True)
    path = corrected.workspace.artifact_path(run.id, "results.json")
    results: dict[str, Any] = json.loads(path.read_text())

    first = card(page, "Accuracy before and after")
    expect(first.locator(".main-svg").first).to_be_visible(timeout=30 * SECONDS)
    bars = first.locator(".js-plotly-plot").evaluate(HEIGHTS)
    rows = {"before": "before", "identified mistakes": "baseline", "Defuse": "defuse"}
    shown = {rows[name]: heights for name, heights in bars}
    for key, heights in shown.items():
        np.testing.assert_allclose(heights, [results[key][part] for part in ("validation", "test", "region")])
    assert len(shown) == 3

    assert take(page, first, "PNG").startswith(b"\x89PNG\r\n")
    assert b"<svg" in take(page, first, "SVG")
    table = list(csv.DictReader(take(page, first, "CSV").decode().splitlines()))
    (row,) = [r for r in table if (r["model"], r["measured_on"]) == ("Defuse", "regions")]
    assert float(row["accuracy"]) == results["defuse"]["region"]
    assert [float(row["low"]), float(row["high"])] == results["defuse"]["region_interval"]
    assert float(row["mcnemar_p"]) == results["flips"]["p"]

    page.get_by_role("button", name="Make the report", exact=True).click()
    button = page.get_by_role("button", name=re.compile("report.html"))
    expect(button).to_be_visible(timeout=90 * SECONDS)
    with page.expect_download(timeout=30 * SECONDS) as download:
        button.click()
    report = corrected.newest("report", done=True)
    stored = corrected.workspace.artifact_path(report.id, "report.html").read_bytes()
    assert download.value.path().read_bytes() == stored
    assert stored.startswith(b"<!doctype html>") or stored.startswith(b"<!DOCTYPE html>")
