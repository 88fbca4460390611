"""The report as a browser shows it: alone, with the network off, on a screen and on paper."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request

from tests.workspaces import Place, copy_place


@dataclass(frozen=True)
class Made:
    """A report of the shapes as it was handed over, and the numbers it was made of."""

    path: Path
    results: dict[str, Any]


@pytest.fixture(scope="module")
def made(corrected_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report")
    place: Place = copy_place(corrected_template, folder / "home")
    run = place.workspace.runs.latest(place.project.id, "report", done=True)
    assert run is not None
    path = folder / "report.html"
    path.write_bytes(place.workspace.artifact_path(run.id, "report.html").read_bytes())
    results = json.loads(place.workspace.artifact_path(run.id, "results.json").read_text())
    place.workspace.close()
    return Made(path, results)


@pytest.fixture
def page(chromium: Browser, made: Made) -> Iterator[Page]:
    """The report opened with the network off; errors, requests and messages fail the test."""
    context = chromium.new_context(viewport={"width": 1024, "height": 768}, offline=True)
    tab = context.new_page()
    seen: list[str] = []

    def note(request: Request) -> None:
        if request.url != made.path.as_uri() and not request.url.startswith("data:"):
            seen.append(request.url)

    tab.on("request", note)
    tab.on("pageerror", lambda error: seen.append(str(error)))
    tab.on("console", lambda message: seen.append(message.text))
    tab.goto(made.path.as_uri())
    yield tab
    context.close()
    assert not seen


def test_every_picture_is_there_without_a_network(page: Page) -> None:
    widths = page.eval_on_selector_all(
        "img", "all => all.map(i => [i.complete, i.naturalWidth, i.clientWidth])"
    )
    assert len(widths) > 6
    assert all(complete and natural > 0 and shown > 0 for complete, natural, shown in widths)


def test_the_page_says_the_numbers_of_results_json(page: Page, made: Made) -> None:
    text = re.sub(r"\s+", " ", page.inner_text("main"))
    results = made.results
    for name in ("before", "defuse"):
        assert f"{results[name]['test'] * 100:.1f} %" in text
        low, high = results[name]["region_interval"]
        assert f"{low * 100:.1f} to {high * 100:.1f} %" in text
    assert f"{sum(results['mistakes'].values()):,} new pictures" in text
    assert f"λ = {results['defuse']['lam']:g}" in text
    assert "Left out:" not in text
    rows = page.locator("article.region")
    assert rows.count() == min(len(results["by_region"]), 10)
    for number, row in enumerate(results["by_region"][:10]):
        told = rows.nth(number).inner_text().replace("\xa0", " ")
        assert f"Region {row['region_id']} " in told
        assert f"before: {(1 - row['before'][0]) * 100:.1f} %" in told
    tried = page.locator("section[aria-labelledby=trade-off] tbody th").all_inner_texts()
    assert [float(cell.split()[0]) for cell in tried[1:]] == [row["lam"] for row in results["sweep"]]


def test_before_and_after_are_not_mixed_up(page: Page, made: Made) -> None:
    results, test = made.results, [made.results[name]["test"] for name in ("before", "defuse")]
    headline = [told.replace("\xa0", " ") for told in page.locator(".numbers dd").all_inner_texts()]
    assert headline[1].startswith(f"{test[0]:.1%} → {test[1]:.1%}".replace("%", " %"))
    assert headline[2].startswith(f"{results['flips']['fixed']} and {results['flips']['broken']}")
    by_class = {row["class"]: row for row in results["by_class"]}
    cells = page.locator("section:has(#cost) tbody tr").all()
    assert len(cells) == len(by_class)
    for cell in cells:
        row = by_class[cell.locator("th").inner_text()]
        shown = [text.split("%")[0].strip("\xa0 ") for text in cell.locator("td").all_inner_texts()[1:3]]
        assert shown == [f"{100 * row[when][0]:.1f}" for when in ("before", "after")]
    for kind in ("broken", "fixed"):
        n = results["flips"][kind]
        assert page.get_by_role("heading", name=f"{n} test picture", exact=False).filter(
            has_text=kind
        ).count() == (1 if n else 0)


@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_dark_and_light_are_both_readable(page: Page) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        style = "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
        colours.append([brightness(c) for c in page.eval_on_selector("body", style)])
    (ink, paper), (dark_ink, dark_paper) = colours
    assert paper - ink > 180
    assert dark_ink - dark_paper > 180


def brightness(colour: str) -> float:
    red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
    return 0.3 * red + 0.59 * green + 0.11 * blue


def test_it_prints_black_on_white(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    printed = page.pdf(format="A4", print_background=False)
    assert printed.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 40
    page.emulate_media(media="print", color_scheme="dark")
    assert brightness(page.eval_on_selector("body", "e => getComputedStyle(e).color")) == 0
    assert not page.locator("nav").is_visible()


def test_the_manifest_is_saved_from_the_page(page: Page, made: Made) -> None:
    with page.expect_download() as download:
        page.get_by_role("link", name="Save manifest.json").click()
    manifest = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "manifest.json"
    assert manifest["format"] == "defuse-manifest"
    assert manifest["runs"][-1]["step"] == "report"
    assert manifest["runs"][-2]["results"] == made.results
