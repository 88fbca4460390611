"""A correction in a real browser: started, cut short by a λ, grown by another, opened, and taken away."""

from __future__ import annotations

import re
from typing import Any

import pytest
import safetensors.torch
from playwright.sync_api import Page, expect

from defuse_core.workspace.runs import Run
from tests.e2e.serving import SECONDS, Site, fill, held
from tests.workspaces import eventually

POINTS = """key => {
  const plot = document.querySelector(`.st-key-${key} .js-plotly-plot`)
  if (!plot?.calcdata) return {}
  const of = ([first]) => first.trace.name
  return Object.fromEntries(plot.calcdata.map((trace) => [of(trace), trace.map(({ x, y }) => [x, y])]))
}"""
"""Where the points of a chart lie, by the name of their trace, as Plotly drew them."""

ON_SCREEN = """([key, name, place]) => {
  const plot = document.querySelector(`.st-key-${key} .js-plotly-plot`), { xaxis, yaxis } = plot._fullLayout
  const trace = plot.calcdata.find(([first]) => first.trace.name === name), box = plot.getBoundingClientRect()
  const { x, y } = trace[place]
  return [box.x + xaxis._offset + xaxis.c2p(x), box.y + yaxis._offset + yaxis.c2p(y)]
}"""


def correction(site: Site) -> Run:
    return site.workspace.runs.of_project(site.project.id, "correct")[-1]


def stored(site: Site) -> dict[str, dict[str, Any]]:
    """The points of the newest correction, by task, ascending by λ."""
    run = correction(site)
    tasks = {task.name: task.status for task in site.workspace.runs.tasks(run.id)}
    events = site.workspace.runs.events(run.id, kind="point")
    found = {event.task: event.data for event in events if tasks[event.task] == "done"}
    return dict(sorted(found.items(), key=lambda item: item[1]["lam"] or 0.0))


def check_points(page: Page, site: Site) -> None:
    """The chart's points are the stored ones, as soon as the page has looked."""
    run = correction(site)
    points = stored(site)
    before = points["before"]
    of_regions = [p for task, p in points.items() if task.startswith("lam=")]
    expected = {
        "test": [[p["region"][0], p["test"][0]] for p in of_regions],
        "validation": [[p["region"][0], p["validation"][0]] for p in of_regions],
        "before": [[before["region"][0], before[name][0]] for name in ("test", "validation")],
    }  # fmt: skip
    if run.status == "done":
        chosen = run.summary["corrected"]["chosen"]
        expected["chosen"] = [[chosen["region"][0], chosen["test"][0]]]
    shown: dict[str, Any] = {}

    def equal() -> bool:
        shown.update(page.evaluate(POINTS, f"tradeoff-{run.id}"))
        return {name: shown.get(name) for name in expected} == expected

    eventually(equal, seconds=30)
    over_lambda = {
        name: [[p["lam"], p[part][0]] for p in of_regions]
        for name, part in (("regions tuned on", "region"), ("test", "test"))
    }

    def equal_over_lambda() -> bool:  # drawn after the other, which a slow machine shows
        drawn = page.evaluate(POINTS, f"over-lambda-{run.id}")
        return {name: drawn.get(name) for name in over_lambda} == over_lambda

    eventually(equal_over_lambda, seconds=30)


@pytest.mark.timeout(300)
def test_a_correction_from_its_start_to_its_checkpoint(page: Page, labelled: Site) -> None:
    page.goto(labelled.link("correct"))
    start = page.get_by_role("button", name="Start", exact=True)
    expect(start).to_be_enabled(timeout=60 * SECONDS)
    fill(page, "textbox", "λ, weights of the regions", "0.1, 1, 10, 100")
    fill(page, "spinbutton", "epochs", "2")
    fill(page, "spinbutton", "instances per region", "16")
    page.get_by_text("Baseline", exact=True).click()
    expect(page.get_by_text(re.compile("^4 λ: 4 times 2 epochs"))).to_be_visible(timeout=30 * SECONDS)
    start.click()
    with held(labelled, "correct"):
        page.get_by_role("button", name="λ = 100", exact=True).click(timeout=60 * SECONDS)
        expect(page.get_by_text(re.compile(r"^\d of 3 measured"))).to_be_visible(timeout=30 * SECONDS)
    expect(page.get_by_text("is chosen")).to_be_visible(timeout=90 * SECONDS)
    run = correction(labelled)
    states = {task.name: task.status for task in labelled.workspace.runs.tasks(run.id)}
    assert states == {
        "before": "done",
        "lam=0.1": "done",
        "lam=1": "done",
        "lam=10": "done",
        "lam=100": "cancelled",
    }
    assert run.summary["missing"] == ["lam=100"]
    expect(page.get_by_text("Not measured: λ = 100.")).to_be_visible()
    check_points(page, labelled)

    lams = [point["lam"] for task, point in stored(labelled).items() if task != "before"]
    chosen = run.summary["corrected"]["chosen"]["lam"]
    place = next(i for i, lam in enumerate(lams) if lam != chosen)
    x, y = page.evaluate(ON_SCREEN, [f"over-lambda-{run.id}", "regions tuned on", place])
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    opened = f"λ = {lams[place]:g}"
    expect(page.get_by_role("heading", name=opened, exact=True)).to_be_visible(timeout=30 * SECONDS)
    test = stored(labelled)[f"lam={lams[place]:g}"]["test"][0]
    expect(page.get_by_test_id("stMetric").first).to_contain_text(f"{test:.3f}")
    expect(page).to_have_url(re.compile("point=%CE%BB"))

    page.get_by_role("button", name="Add λ").click()
    fill(page, "textbox", "More λ", "5")
    page.get_by_role("button", name="Compute them").click()
    eventually(lambda: "lam=5" in stored(labelled) and correction(labelled).status == "done", seconds=90)
    check_points(page, labelled)
    over = page.evaluate(POINTS, f"over-lambda-{run.id}")
    assert [x for x, _ in over["regions tuned on"]] == [0.1, 1, 5, 10, 100]
    assert "lam=100" in stored(labelled)  # what was cancelled is computed, too
    expect(page.get_by_role("heading", name=opened, exact=True)).to_be_visible()  # still open

    with page.expect_download() as download:
        page.get_by_role("button", name="Corrected checkpoint").click()
    assert download.value.suggested_filename == f"corrected-run{run.id}-lam-{lams[place]:g}.safetensors"
    tensors = safetensors.torch.load_file(download.value.path())
    kept = labelled.workspace.artifact_path(run.id, f"lam={lams[place]:g}.safetensors")
    expected = safetensors.torch.load_file(kept)
    assert tensors.keys() == expected.keys()
    assert all(tensors[name].equal(expected[name]) for name in tensors)
