"""The map in a real browser: what a lasso selects, and what a click decodes."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from playwright.sync_api import Page, expect

from defuse_core.base.records import MistakeKind
from defuse_core.method.classifier import predict_logits
from defuse_core.method.vae import decode_images
from defuse_core.steps.source import Source
from tests.apps import decode
from tests.e2e.serving import SECONDS, Site, choose, settle
from tests.in_process import done_here
from tests.workspaces import Place

KIND = MistakeKind.PERTURBATION
CORNERS = np.array(
    [[0.15, 0.2], [0.8, 0.1], [0.9, 0.75], [0.45, 0.5], [0.2, 0.85]]
)  # of the middle of the map
TO_PIXELS = """points => {
  const plot = document.querySelector(".js-plotly-plot"), { xaxis, yaxis } = plot._fullLayout
  const box = plot.getBoundingClientRect()
  return points.map(([x, y]) => [box.x + xaxis._offset + xaxis.d2p(x), box.y + yaxis._offset + yaxis.d2p(y)])
}"""
"""Where points lie on the screen, by the chart's own axes."""


@pytest.fixture
def mapped(labelled: Site) -> Site:
    """The project of shapes with a map by PCA."""
    done_here(Place(labelled.workspace, labelled.project), "map", {"method": "pca"})
    return labelled


def open_map(page: Page, site: Site, **query: str) -> None:
    page.goto(site.link("map", **query))
    expect(page.get_by_text("mistakes shown")).to_be_visible(timeout=60 * SECONDS)
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=60 * SECONDS)
    settle(page)


def stored(site: Site) -> tuple[Source, NDArray[np.float32], NDArray[np.int64]]:
    """What the map stands on, and where which mistakes lie on it."""
    source = Source(site.workspace, site.newest("map").id)
    tensors, _ = source.own("pca") or ({}, {})
    points = tensors["points"][len(tensors["train_index"]) :].numpy()
    return source, points, tensors["mistake_index"].numpy()


def lasso(page: Page, corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw around corners given in the map's own coordinates; where they lie on the screen."""
    page.locator(".modebar-btn[data-val=lasso]").click()
    on_screen = np.array(page.evaluate(TO_PIXELS, corners.tolist()))
    page.mouse.move(*on_screen[0])
    page.mouse.down()
    for x, y in [*on_screen[1:], on_screen[0]]:
        page.mouse.move(x, y, steps=6)
    page.mouse.up()
    expect(page.get_by_text("mistakes selected")).to_be_visible(timeout=30 * SECONDS)
    return on_screen


def table(page: Page) -> list[int]:
    """Numbers of the mistakes in the selection's CSV, in its order; once a page, or Chromium asks."""
    with page.expect_download() as download:
        page.get_by_role("button", name="as CSV").click()
    return [int(row["mistake"]) for row in csv.DictReader(download.value.path().read_text().splitlines())]


def check(
    page: Page, points: NDArray[np.float32], numbers: NDArray[np.int64], corners: NDArray[np.float64]
) -> list[int]:
    """The selection is what lies within the corners, but for points that the line touches."""
    on_screen = np.array(page.evaluate(TO_PIXELS, points.tolist()))
    inside = Outline(np.array([*corners, corners[0]])).contains_points(on_screen)
    starts, ends = corners, np.roll(corners, -1, axis=0)
    along = (ends - starts) / np.linalg.norm(ends - starts, axis=1, keepdims=True)
    apart = on_screen[:, None] - starts  # (n_points, n_sides, 2)
    distance = np.abs(along[:, 0] * apart[..., 1] - along[:, 1] * apart[..., 0]).min(axis=1)
    touched = distance < 2.5  # pixels
    rows = table(page)
    found = {*rows}
    assert {*numbers[inside & ~touched].tolist()} <= found <= {*numbers[inside | touched].tolist()}
    assert 20 < len(found) < len(numbers)
    expect(page.get_by_text(re.compile(rf"^{len(found):,} of {len(numbers):,}$"))).to_be_visible()
    return rows


@pytest.mark.timeout(300)
def test_a_lasso_selects_what_lies_within_it_after_a_filter_and_after_a_sort(
    page: Page, mapped: Site
) -> None:
    source, points, numbers = stored(mapped)
    low, high = np.percentile(points, 5, axis=0), np.percentile(points, 95, axis=0)
    corners = low + CORNERS * (high - low)
    open_map(page, mapped)
    check(page, points, numbers, lasso(page, corners))

    kept = (source.mistakes().kind[numbers] == KIND).numpy()
    open_map(page, mapped, kind=KIND.name.lower(), sort="distance")
    found = check(page, points[kept], numbers[kept], lasso(page, corners))
    distances = source.mistakes().noise_norm[found].tolist()
    assert distances == sorted(distances)
    page.locator(".updatemenu-button", has_text="prediction").click()  # colours change nothing else
    marked = page.evaluate("() => document.querySelector('.js-plotly-plot').data[1].selectedpoints.length")
    assert marked == len(found)
    choose(page, "True class", "row")  # a filter takes from the selection, alone
    left = [i for i in found if source.mistakes().labels[i] == 0]
    expect(page.get_by_text(re.compile(rf"^{len(left):,} of"))).to_be_visible(timeout=30 * SECONDS)
    settle(page)
    page.get_by_role("radiogroup", name="Sort by").get_by_text("class").click()
    expect(page).to_have_url(re.compile("sort=class"), timeout=30 * SECONDS)
    settle(page)
    expect(page.get_by_text(re.compile(rf"^{len(left):,} of"))).to_be_visible(timeout=30 * SECONDS)

    page.get_by_role("button", name="Make a region of them").click()
    expect(page.get_by_role("link", name="Label region")).to_be_visible(timeout=30 * SECONDS)
    (edit,) = mapped.workspace.annotations.edits(mapped.newest("distill").id)
    assert (edit.kind, edit.mistakes) == ("select", tuple(sorted(left)))


@pytest.mark.timeout(200)
def test_a_click_shows_the_code_as_the_core_decodes_it(page: Page, mapped: Site) -> None:
    source, points, numbers = stored(mapped)
    open_map(page, mapped)
    everything = np.concatenate([points, source.own("pca")[0]["points"].numpy()])
    on_screen = np.array(page.evaluate(TO_PIXELS, everything.tolist()))
    apart = [
        i for i in range(len(points)) if np.sort(np.linalg.norm(on_screen - on_screen[i], axis=1))[2] > 12
    ]  # the first two are itself: it is in both lists
    middle = on_screen[: len(points)].mean(axis=0)
    row = min(apart, key=lambda i: float(np.linalg.norm(on_screen[i] - middle)))
    page.mouse.move(*on_screen[row])
    expect(page.locator(".hoverlayer .hovertext").first).to_be_visible(timeout=30 * SECONDS)
    page.mouse.click(*on_screen[row])  # Plotly takes a click for the point that it hovers over
    number = int(numbers[row])
    expect(page.get_by_text(f"Mistake {number:,}", exact=False)).to_be_visible(timeout=30 * SECONDS)
    images = page.locator(".st-key-code img, [class*=st-key-code] img")
    expect(images).to_have_count(2, timeout=30 * SECONDS)
    latent = source.mistakes().latents[number : number + 1]
    decoded = decode_images(source.vae(), latent)
    shown = (decoded[0].permute(1, 2, 0) * 255).round().byte().numpy()
    np.testing.assert_allclose(
        decode(images.nth(1).get_attribute("src") or "").astype(int), shown.astype(int), atol=1
    )
    top = predict_logits(source.classifier(), decoded).softmax(1)[0].max().item()
    expect(page.locator(".js-plotly-plot").last.get_by_text(f"{top:.1%}")).to_be_visible(timeout=30 * SECONDS)
    expect(page.get_by_text("Nearest training images in latent space")).to_be_visible(timeout=30 * SECONDS)
