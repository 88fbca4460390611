"""How the dashboard feels: scrubbing τ, moving the map, keys that are saved; measured in Chromium."""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from playwright.sync_api import Page, expect

from dashboard.components.tau_scrubber import make_sprite
from dashboard.shared.region_data import SEED, TAUS
from defuse_core.data.splits import as_bytes
from defuse_core.jobs import launcher
from defuse_core.method.classifier import predict
from defuse_core.method.labeling import draw_strip
from defuse_core.method.vae import decode_images
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.projects import new_project
from defuse_core.workspace.workspace import Workspace
from tests.e2e.serving import SECONDS, Server, browsing, find_chromium, serving
from tests.workspaces import eventually

FRAME = 1000 / 60  # ms
_DRAWS = 64
_ROUNDS = 5
_RUNS: tuple[tuple[StepName, dict[str, object]], ...] = (
    ("classifier", {"weights": "shipped:demo-classifier"}),
    ("vae", {"weights": "shipped:demo-vae"}),
    ("identify", {"n_perturbations": 100, "max_mistakes_per_image": 20}),
    ("distill", {"n_components": 40, "max_codes": 5_000}),
    ("map", {"method": "pca", "n_mistakes": 16_000}),
)
_FRAMES = """() => new Promise((done) => {
  const times = []
  const step = (time) => { times.push(time); times.length < 120 ? requestAnimationFrame(step) : done(times) }
  requestAnimationFrame(step)
})"""


def bench_dashboard() -> dict[str, float]:
    """All ratios of this file, on the demo's digits; those of the browser are left out without one."""
    chromium = find_chromium()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "home")
        project = new_project(workspace, "bench", "digits")
        for step, config in _RUNS:
            run = launcher.submit(workspace, project.id, step, config)
            eventually(lambda run=run: not workspace.runs.get(run.id).live, seconds=600)
        distill = workspace.runs.latest(project.id, "distill", done=True)
        assert distill is not None
        found = {"bare decoding and classifying / a strip of τ": _strip(Source(workspace, distill.id))}
        workspace.close()
        if chromium is None:
            print("  no Chromium: the pages are not measured")
            return found
        with serving(Path(folder)) as server, browsing(chromium) as browser:
            page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
            found["a frame of 60 Hz / a step of τ painted"] = FRAME / _scrub(page, server)
            found["a frame of 60 Hz / a frame of the map of 20,000 points"] = FRAME / _pan(page, server)
            _label(page, server)
        return found


def _strip(source: Source) -> float:
    """Seconds of decoding and classifying as many codes, over those of a strip that the browser can scrub."""
    torch.set_num_threads(1)  # as in the dashboard
    classifier, vae, region = source.classifier(), source.vae(), source.regions()[0]
    bare, whole = [], []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        predict(classifier, as_bytes(decode_images(vae, torch.randn(len(TAUS) * _DRAWS, vae.latent_dim))))
        bare.append(time.perf_counter() - started)
        started = time.perf_counter()
        images, said = draw_strip(classifier, vae, region, taus=TAUS, n=_DRAWS, seed=SEED)
        make_sprite(images.permute(0, 1, 3, 4, 2).numpy(), taus=TAUS, predictions=said.numpy())
        whole.append(time.perf_counter() - started)
    print(f"  {len(TAUS)} τ × {_DRAWS} draws: {median(whole):.2f} s on one thread")
    return median(bare) / median(whole)


def _scrub(page: Page, server: Server) -> float:
    """Milliseconds that a step of τ takes to paint, 64 draws."""
    page.goto(f"{server.url}/regions?project=bench")
    slider = page.get_by_role("slider", name="τ")
    expect(slider).to_be_visible(timeout=120 * SECONDS)
    page.get_by_role("button", name="all 64").click()
    steps = [*range(len(TAUS)), *range(len(TAUS) - 1, -1, -1)] * 3
    slider.evaluate(
        """async (slider, steps) => {
          for (const step of steps) {
            slider.value = step
            slider.dispatchEvent(new Event("input", { bubbles: true }))
            await new Promise(requestAnimationFrame)
          }
        }""",
        steps,
    )
    paints: list[float] = page.locator("canvas.draws").evaluate("(canvas) => [...canvas.paints]")
    worst = sorted(paints)[int(0.95 * len(paints))]
    print(f"  a step of τ: {median(paints):.2f} ms, 95 % within {worst:.2f} ms (n = {len(paints)})")
    return median(paints)


def _pan(page: Page, server: Server) -> float:
    """Milliseconds between two frames while the map is dragged."""
    page.goto(f"{server.url}/map?project=bench")
    plot = page.locator(".js-plotly-plot .nsewdrag").first
    expect(plot).to_be_visible(timeout=120 * SECONDS)
    points = page.get_by_text("mistakes shown").inner_text()
    box = plot.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate("frames => { window.measured = eval(frames)() }", _FRAMES)
    for i in range(60):
        page.mouse.move(x + 2 * (i % 30), y + i % 20)
    times: list[float] = page.evaluate("window.measured")
    page.mouse.up()
    gaps = [later - earlier for earlier, later in pairwise(times)]
    print(f"  map, {points}, while dragged: {median(gaps):.1f} ms a frame (n = {len(gaps)})")
    return median(gaps)


def _label(page: Page, server: Server) -> None:
    """Print how long ten keys take until all are in the database and said to be."""
    page.goto(f"{server.url}/label?project=bench")
    expect(page.get_by_text("No answers yet")).to_be_visible(timeout=120 * SECONDS)
    started = time.perf_counter()
    for key in "0123456789":
        page.keyboard.press(key)
    expect(page.get_by_text("All 10 answers saved")).to_be_visible(timeout=60 * SECONDS)
    print(f"  ten keys, all saved after {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    for name, ratio in bench_dashboard().items():
        sys.stdout.write(f"{ratio:7.2f}  {name}\n")
