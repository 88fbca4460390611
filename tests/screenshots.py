"""`make screenshots`: every page of the dashboard, light and dark, 1440 and 1024 pixels wide.

The workspace is the demo's, computed on the spot with every step, a few regions labelled as most of the
simulated annotators would, so the pictures show what a user sees.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from defuse_core.extensions.shipped import load_annotators
from defuse_core.jobs import launcher
from defuse_core.method.labeling import collect_votes, draw_images, majority, simulate_annotators
from defuse_core.reproduction.demo import demo_configs, demo_project
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.workspace import Workspace
from tests.e2e.serving import SECONDS, Server, browsing, find_chromium, serving
from tests.workspaces import eventually

PAGES = {
    "overview": ("", "Open the demo"),
    "classifier": ("classifier", "Misclassified"),
    "generator": ("generator", "A traversal"),
    "identify": ("identify", "Which class is predicted as which"),
    "map": ("map", "mistakes shown"),
    "regions": ("regions", "Labels of this region"),
    "label": ("label", "images answered"),
    "correct": ("correct", "Second round"),
    "evidence": ("evidence", "The report"),
}
"""Path of each page, and the text that is there once it is whole."""

SHOWN = tuple(
    f"{name}-light-1440"
    for name in (
        "overview", "classifier", "identify", "map", "regions", "label", "correct", "evidence", "present",
        "report",
    )
)  # fmt: skip
"""Pictures that the README and dashboard/docs show."""
ROOT = Path(__file__).resolve().parent.parent


def fill(home: Path) -> None:
    """Run the demo with the runs that the pages make; a few regions are labelled by a person."""
    workspace = Workspace(home)
    project = demo_project(workspace)
    configs = dict(demo_configs())
    steps: tuple[StepName, ...] = (
        "inspect", "classifier", "vae", "control", "probe", "identify", "distill", "map", "annotate",
        "correct", "evaluate", "report",
    )  # fmt: skip
    for step in steps:
        if step == "correct":
            label(workspace, project.id)
        config = {"weights": "shipped:demo-classifier"} if step == "inspect" else configs.get(step, {})
        run = launcher.submit(workspace, project.id, step, config)
        eventually(lambda run=run: not workspace.runs.get(run.id).live, seconds=3600)
        run = workspace.runs.get(run.id)
        if run.status != "done":
            raise RuntimeError(f"{step} is {run.status}: {run.error}")


def label(workspace: Workspace, project_id: int) -> None:
    """Answer for the first regions what most of the simulated annotators say, as a person would."""
    run = workspace.runs.latest(project_id, "distill", done=True)
    assert run is not None
    source, annotators = Source(workspace, run.id), load_annotators()
    vae = source.vae()
    for n_answers, region in zip((7, 10, 10, 10), source.regions(), strict=False):
        images = draw_images(vae, region, 10, tau=0.5, seed=0)
        said = simulate_annotators(annotators, images, region_id=region.region_id, threshold=0.5)
        labels = [majority(votes) for votes in collect_votes(said, 10)][:n_answers]
        answers = [
            LabelEvent(region.region_id, "Grace", said, i, seconds=2.0) for i, said in enumerate(labels)
        ]
        workspace.annotations.append(run.id, answers)


def take(browser: Browser, server: Server, out: Path) -> None:
    """Take every picture."""
    for scheme in ("light", "dark"):
        for width in (1440, 1024):
            context = browser.new_context(
                viewport={"width": width, "height": 900},
                color_scheme=scheme,
                reduced_motion="reduce",  # no picture of a slide that fades in
            )
            page = context.new_page()
            for name, (path, text) in PAGES.items():
                page.goto(f"{server.url}/{path}?project=demo")
                expect(page.get_by_text(text).first).to_be_visible(timeout=60 * SECONDS)
                settle(page)
                height = page.get_by_test_id("stMainBlockContainer").bounding_box()["height"]
                page.set_viewport_size({"width": width, "height": max(900, min(4000, int(height) + 20))})
                settle(page)
                page.screenshot(path=out / f"{name}-{scheme}-{width}.png")
                page.set_viewport_size({"width": width, "height": 900})
            present(page, server, out / f"present-{scheme}-{width}.png")
            report(page, server, out / f"report-{scheme}-{width}.png")
            context.close()


def present(page: Page, server: Server, path: Path) -> None:
    """Take the slide of the worst region."""
    page.goto(f"{server.url}/present?project=demo")
    page.get_by_role("button", name="Present").click(timeout=60 * SECONDS)
    expect(page.get_by_role("dialog", name="Presentation")).to_be_visible(timeout=30 * SECONDS)
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    page.screenshot(path=path)


def report(page: Page, server: Server, path: Path) -> None:
    """Take the first screens of the report."""
    run = server.workspace.runs.latest(1, "report", done=True)
    assert run is not None
    page.goto(server.workspace.artifact_path(run.id, "report.html").as_uri())
    size = page.viewport_size
    assert size is not None
    clip = {"x": 0.0, "y": 0.0, "width": float(size["width"]), "height": 2.0 * size["height"]}
    page.screenshot(path=path, clip=clip, full_page=True)


def settle(page: Page) -> None:
    """Wait until no script runs and every chart and image is drawn."""
    app = page.get_by_test_id("stApp")
    expect(app).to_have_attribute("data-test-script-state", "notRunning", timeout=60 * SECONDS)
    expect(page.get_by_text("Loading ")).to_have_count(0, timeout=60 * SECONDS)
    page.wait_for_function(
        "() => [...document.querySelectorAll('[data-testid=stPlotlyChart]')]"
        ".every((chart) => chart.querySelector('.main-svg'))",
        timeout=60 * SECONDS,
    )
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def main(out: Path) -> None:
    """Fill a workspace, serve it, take the pictures, and bring those of the documents up to date."""
    chromium = find_chromium()
    if chromium is None:
        sys.exit("no Chromium: apt-get install chromium-headless-shell")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "home")
        with serving(Path(folder)) as server, browsing(chromium) as browser:
            take(browser, server, out)
    for name in SHOWN:
        shutil.copy(out / f"{name}.png", ROOT / "dashboard" / "assets" / f"{name}.png")
    print(f"{len(list(out.glob('*.png')))} screenshots in {out}/")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "screenshots")
