"""The slides in Chromium, without a server: their script in a blank page."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from dashboard.components import slides as component
from dashboard.components.image_grid import png_url
from dashboard.components.slides import Fact, Figure, Panel, Said, Slide
from tests.apps import NASTY

THEMES = {
    "light": {"background": "#ffffff", "text": "#31333f", "primary": "#0072B2"},
    "dark": {"background": "#0e1117", "text": "#fafafa", "primary": "#56B4E9"},
}
MOUNT = """async ({html, css, js, theme}) => {
    const host = document.body.appendChild(document.createElement("div"))
    for (const [name, value] of Object.entries(theme)) host.style.setProperty(`--st-${name}-color`, value)
    host.style.setProperty("--st-font", "sans-serif")
    const root = host.attachShadow({mode: "open"})
    const style = document.createElement("style")
    style.textContent = css
    root.append(document.createRange().createContextualFragment(html), style)
    const module = await import(URL.createObjectURL(new Blob([js], {type: "text/javascript"})))
    Object.assign(window, {root, errors: [], heard: []})
    window.onerror = (message) => errors.push(message)
    document.addEventListener("keydown", (event) => heard.push(event.key))
    const say = () => errors.push("told Python")
    const given = {parentElement: root, setStateValue: say, setTriggerValue: say}
    window.show = (data) => module.default({data, ...given})
}"""
LONG = "a name that goes on and on, as those of German signs and of people's regions do " * 3


@pytest.fixture
def tab(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A blank page with the script; a parameter is (width, height, theme). An error or a dialog fails."""
    width, height, theme = getattr(request, "param", (1280, 720, "light"))
    context = chromium.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message) or dialog.dismiss())
    files = {kind: (component._HERE / f"slides.{kind}").read_text() for kind in ("css", "js")}
    page.evaluate(MOUNT, {"html": component.HTML, "theme": THEMES[theme], **files})
    yield page
    assert errors + page.evaluate("errors") == []
    context.close()


def image(seed: int, *, height: int = 28, width: int = 28) -> str:
    return png_url(np.random.default_rng(seed).integers(0, 256, (height, width, 1)).astype(np.uint8))


def region(key: str, title: str, *, n: int = 10, name: str = "7", **size: int) -> Slide:
    """A slide as that of a failure region: one of the draws is read rightly before, all but one after."""
    before = tuple(Said(name if i == 1 else "9", i == 1) for i in range(n))
    after = tuple(Said("9" if i == 2 else name, i != 2) for i in range(n))
    figures = [
        Figure(value, label, note="right on n = 256 fresh draws", bars=((0.5, 0.4, 0.6),))
        for value, label in (("12 %", "Before"), ("98 %", "After"))
    ]
    return Slide(
        key, title, over="Failure 1 of 2", images=tuple(image(i, **size) for i in range(n)),
        facts=(Fact("People say", name, "7 of 9 draws"), Fact("It said", "9"), Fact("It says", name)),
        panels=(Panel(figures[0], before), Panel(figures[1], after, after=True)),
    )  # fmt: skip


def change(title: str = "What changed") -> Slide:
    figures = tuple(
        Figure("96.7 %", "right on the test set", "96.0 %", LONG[:90], ((0.9, 0.8, 0.95), (0.95, 0.9, 0.97)))
        for _ in range(2)
    )
    return Slide("change", title, "Chance alone would do that.", figures=figures)


DECK = [
    Slide("title", "signs", "What it gets wrong.", cover=True),
    Slide(
        "found", "What was found", figures=tuple(Figure("16,597", "mistakes", note="new") for _ in range(4))
    ),
    region("r1", "Region 1"),
    region("r2", "Region 2"),
    change(),
    Slide("limits", "What this does not say", points=("These are the bugs of one search.", "No camera.")),
]


def give(tab: Page, *shown: Slide, about: str = "signs") -> None:
    """Call the script as Streamlit does."""
    data: dict[str, Any] = {"slides": [dataclasses.asdict(slide) for slide in shown], "about": about}
    tab.evaluate("(data) => { window.cleanup = show(data) }", data)


def start(tab: Page, *shown: Slide) -> None:
    give(tab, *(shown or DECK))
    tab.get_by_role("button", name="Present").click()
    expect(dialog(tab)).to_be_visible()


def dialog(tab: Page) -> Any:
    return tab.get_by_role("dialog", name="Presentation")


def title(tab: Page) -> Any:
    return tab.get_by_role("heading", level=1)


def is_full(tab: Page) -> Any:
    return tab.evaluate("root.fullscreenElement === root.querySelector('.stage')")


def fullscreen(tab: Page, full: bool) -> None:
    tab.wait_for_function(
        "(full) => (root.fullscreenElement === root.querySelector('.stage')) === full", arg=full, timeout=5000
    )


# Moving


def test_nothing_shows_until_it_is_started_and_then_it_covers_all(tab: Page) -> None:
    give(tab, *DECK)
    expect(dialog(tab)).to_be_hidden()
    expect(title(tab)).to_have_count(0)
    tab.get_by_role("button", name="Present").click()
    expect(title(tab)).to_have_text("signs")
    fullscreen(tab, True)
    assert dialog(tab).bounding_box() == {"x": 0, "y": 0, "width": 1280, "height": 720}
    expect(tab.locator(".place")).to_have_text("1 / 6")
    expect(tab.locator(".about")).to_have_text("signs")


def test_keys_lead_through_the_slides_and_stop_at_the_ends(tab: Page) -> None:
    start(tab)
    place = tab.locator(".place")
    keys = [
        ("ArrowLeft", 1), ("ArrowRight", 2), ("Space", 3), ("PageDown", 4), ("ArrowLeft", 3), ("PageUp", 2),
        ("End", 6), ("ArrowRight", 6), ("Home", 1), ("x", 1), ("Tab", 1), ("ArrowRight", 2),
    ]  # fmt: skip
    for key, number in keys:
        tab.keyboard.press(key)
        expect(place).to_have_text(f"{number} / 6")
    expect(title(tab)).to_have_text("What was found")
    assert tab.evaluate("heard") == []  # the page below has keys of its own
    assert tab.locator(".gone").evaluate("(bar) => parseFloat(bar.style.width)") == pytest.approx(
        100 / 3, abs=0.01
    )


def test_a_number_and_enter_jump(tab: Page) -> None:
    start(tab)
    tab.keyboard.press("4")
    expect(tab.locator(".typed")).to_have_text("go to 4 ↵")
    tab.keyboard.press("Enter")
    expect(title(tab)).to_have_text("Region 2")
    expect(tab.locator(".typed")).to_be_hidden()
    for keys, shown in (("99", 6), ("0", 1), ("", 1), ("03", 3)):
        for key in keys:
            tab.keyboard.press(key)
        tab.keyboard.press("Enter")
        expect(tab.locator(".place")).to_have_text(f"{shown} / 6")
    tab.keyboard.press("5")
    tab.keyboard.press("ArrowRight")  # thought better of it
    tab.keyboard.press("Enter")
    expect(tab.locator(".place")).to_have_text("4 / 6")


def test_a_number_that_is_not_ended_is_forgotten(tab: Page) -> None:
    tab.clock.install()
    start(tab)
    tab.keyboard.press("4")
    tab.clock.run_for(4100)
    expect(tab.locator(".typed")).to_be_hidden()
    tab.keyboard.press("Enter")
    expect(tab.locator(".place")).to_have_text("1 / 6")


def test_b_and_the_full_stop_blacken_and_any_key_brings_the_slide_back(tab: Page) -> None:
    start(tab)
    black = tab.locator(".black")
    for key, back in (("b", "b"), (".", "ArrowRight"), ("B", "4")):
        tab.keyboard.press(key)
        expect(black).to_be_visible()
        assert black.bounding_box() == {"x": 0, "y": 0, "width": 1280, "height": 720}
        expect(tab.get_by_role("status")).to_have_text("Black")
        tab.keyboard.press(back)
        expect(black).to_be_hidden()
        expect(tab.get_by_role("status")).to_contain_text("1 of 6. signs")
    expect(tab.locator(".place")).to_have_text("1 / 6")
    expect(tab.locator(".typed")).to_be_hidden()


def test_a_click_on_the_left_and_right_third_moves(tab: Page) -> None:
    start(tab)
    for x, number in ((1200, 2), (900, 3), (640, 3), (400, 2), (50, 1), (50, 1)):
        tab.mouse.click(x, 300)
        expect(tab.locator(".place")).to_have_text(f"{number} / 6")
    tab.keyboard.press("ArrowRight")  # the keys still work
    expect(tab.locator(".place")).to_have_text("2 / 6")


def test_the_keys_are_told_for_some_seconds(tab: Page) -> None:
    tab.clock.install()
    start(tab)
    keys = tab.locator(".keys")
    tab.keyboard.press("?")
    expect(keys).to_be_visible()
    expect(tab.get_by_role("status")).to_contain_text("Black, and back")
    tab.clock.run_for(5000)
    expect(keys).to_be_visible()
    tab.clock.run_for(1100)
    expect(keys).to_be_hidden()
    for second in ("?", "ArrowRight"):
        tab.keyboard.press("?")
        expect(keys).to_be_visible()
        tab.keyboard.press(second)
        expect(keys).to_be_hidden()


def test_the_pointer_hides_when_it_is_still(tab: Page) -> None:
    tab.clock.install()
    start(tab)
    stage = tab.locator(".stage")
    expect(stage).to_have_css("cursor", "default")
    tab.clock.run_for(2100)
    expect(stage).to_have_css("cursor", "none")
    tab.mouse.move(500, 500)
    expect(stage).to_have_css("cursor", "default")


# Leaving, and full screen


def test_escape_leaves_and_a_new_start_goes_on_where_it_was(tab: Page) -> None:
    start(tab)
    tab.keyboard.press("ArrowRight")
    fullscreen(tab, True)
    tab.keyboard.press("b")
    tab.keyboard.press("Escape")
    expect(dialog(tab)).to_be_hidden()
    fullscreen(tab, False)
    expect(tab.get_by_role("button", name="Present")).to_be_focused()
    tab.keyboard.press("Enter")
    expect(title(tab)).to_have_text("What was found")
    expect(tab.locator(".black")).to_be_hidden()


def test_leaving_the_browsers_full_screen_leaves_too_but_f_does_not(tab: Page) -> None:
    start(tab)
    fullscreen(tab, True)
    tab.keyboard.press("f")
    fullscreen(tab, False)
    expect(title(tab)).to_be_visible()
    tab.keyboard.press("F")
    fullscreen(tab, True)
    tab.evaluate("document.exitFullscreen()")  # as the browser does on Escape, which reaches no page
    expect(dialog(tab)).to_be_hidden()


def test_where_full_screen_is_refused_it_covers_the_window(tab: Page) -> None:
    refuse = "() => Promise.reject(new TypeError('refused'))"
    tab.evaluate(f"() => {{ Element.prototype.requestFullscreen = {refuse} }}")
    start(tab)
    assert dialog(tab).bounding_box() == {"x": 0, "y": 0, "width": 1280, "height": 720}
    assert not is_full(tab)
    tab.keyboard.press("ArrowRight")
    expect(title(tab)).to_have_text("What was found")
    tab.keyboard.press("Escape")
    expect(dialog(tab)).to_be_hidden()


def test_a_removed_component_leaves_the_full_screen(tab: Page) -> None:
    start(tab)
    fullscreen(tab, True)
    tab.evaluate("cleanup()")
    fullscreen(tab, False)


# What Python says meanwhile


def test_the_same_slides_again_change_nothing(tab: Page) -> None:
    start(tab)
    tab.keyboard.press("End")
    tab.evaluate("() => { root.querySelector('.slide').kept = true }")
    give(tab, *DECK)
    expect(title(tab)).to_have_text("What this does not say")
    assert tab.evaluate("root.querySelector('.slide').kept") is True  # not even painted again


def test_a_slide_stays_when_others_come_and_go(tab: Page) -> None:
    start(tab)
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    expect(title(tab)).to_have_text("Region 2")
    give(tab, DECK[0], region("new", "Region 0"), *DECK[1:])
    expect(tab.locator(".place")).to_have_text("5 / 7")
    expect(title(tab)).to_have_text("Region 2")
    give(tab, *DECK[:3], region("r2", "Region 2, renamed"))
    expect(title(tab)).to_have_text("Region 2, renamed")
    give(tab, *DECK[:2])  # it is gone
    expect(tab.locator(".place")).to_have_text("2 / 2")
    expect(dialog(tab)).to_be_visible()


# What is seen and heard


def test_right_and_wrong_are_told_by_mark_colour_and_words(tab: Page) -> None:
    start(tab, region("r", "Region 1"))
    before = tab.locator(".panel").first
    expect(before.locator(".mark")).to_have_text(["✗", "✓"] + ["✗"] * 8)
    colours = before.locator(".corner").evaluate_all(
        "(all) => all.map((e) => getComputedStyle(e).backgroundColor)"
    )
    assert colours[:3] == ["rgb(179, 71, 0)", "rgb(0, 96, 160)", "rgb(179, 71, 0)"]
    expect(before.get_by_role("img", name="predicted as 9, wrong")).to_have_count(9)
    expect(before.get_by_role("img", name="predicted as 7, right")).to_have_count(1)
    expect(tab.locator(".panel.after .mark")).to_have_text(["✓", "✓", "✗"] + ["✓"] * 7)
    sources = [
        panel.locator("img").evaluate_all("(all) => all.map((e) => e.src)")
        for panel in tab.locator(".panel").all()
    ]
    assert sources[0] == sources[1] == list(region("r", "").images)


def test_a_change_of_slides_is_announced(tab: Page) -> None:
    start(tab)
    status = tab.get_by_role("status")
    expect(status).to_have_attribute("aria-live", "polite")
    expect(status).to_have_text("1 of 6. signs. What it gets wrong.")
    tab.keyboard.press("3")
    tab.keyboard.press("Enter")
    expect(status).to_have_text(
        "3 of 6. Failure 1 of 2. Region 1. People say 7. It said 9. It says 7. Before: 12 %. After: 98 %"
    )
    tab.keyboard.press("5")
    tab.keyboard.press("Enter")
    expect(status).to_contain_text("right on the test set: 96.0 %, then 96.7 %")


def test_the_focus_stays_inside(tab: Page) -> None:
    tab.evaluate(
        "document.body.append(Object.assign(document.createElement('button'), {textContent: 'below'}))"
    )
    start(tab)
    for _ in range(3):
        tab.keyboard.press("Tab")
        tab.keyboard.press("Shift+Tab")
    tab.mouse.click(640, 300)
    assert tab.evaluate("root.activeElement.className") == "stage"
    tab.get_by_text("below", exact=True).evaluate("(button) => button.focus()")  # what is covered is inert
    assert tab.evaluate("root.activeElement.className") == "stage"


def test_markup_is_text(tab: Page) -> None:
    nasty = Slide(
        NASTY, NASTY, NASTY, NASTY, (Fact(NASTY, NASTY, NASTY),), (Figure(NASTY, NASTY, NASTY, NASTY),),
        (image(0),), (Panel(Figure(NASTY, NASTY), (Said(NASTY, False),)),), (NASTY,),
    )  # fmt: skip
    give(tab, nasty, about=NASTY)
    tab.get_by_role("button", name="Present").click()
    for name in ("over", "title", "word", "often", "said", "was", "now", "note", "text", "about"):
        expect(tab.locator(f".{name}").first).to_have_text(NASTY)
    expect(tab.locator("li").first).to_have_text(NASTY)
    expect(tab.locator(".cover img")).to_have_count(1)
    expect(tab.locator(".cover img")).to_have_attribute("alt", f"predicted as {NASTY}, wrong")


SIZES = [(1024, 768), (1920, 1080), (1366, 768), (3440, 1440), (768, 1024), (640, 480)]


@pytest.mark.parametrize("tab", [(*size, "light") for size in SIZES], indirect=True, ids=str)
def test_every_slide_fits_its_wall_without_scrolling(tab: Page) -> None:
    points, single = tuple(LONG[:150] for _ in range(6)), region("single", "Not corrected", name=LONG)
    deck = [
        *DECK, Slide("long", LONG, LONG, cover=True), region("r3", LONG, name=LONG), change(LONG),
        region("r4", "Wide", n=6, height=40, width=120), region("r5", "Tall", n=3, height=120, width=40),
        Slide("points", LONG, points=points),
        dataclasses.replace(single, key="single", panels=single.panels[:1]),
        Slide("huge", "Huge", figures=(Figure("1,234,567", "mistakes", note=LONG[:60]),) * 4),
    ]  # fmt: skip
    start(tab, *deck)
    for number, slide in enumerate(deck, 1):
        expect(tab.locator(".place")).to_have_text(f"{number} / {len(deck)}")
        expect(tab.locator(".slide img")).to_have_count(len(slide.panels) * len(slide.images))
        outside = tab.evaluate(OUTSIDE)
        assert outside == [], (slide.key, outside)
        if slide.images:
            sides = tab.locator(".slide img").evaluate_all(
                "(all) => all.map((e) => e.getBoundingClientRect().width)"
            )
            assert min(sides) == pytest.approx(max(sides), abs=0.1)
            assert min(sides) > 20
        tab.keyboard.press("ArrowRight")
    assert tab.evaluate("[scrollX, scrollY]") == [0, 0]


OUTSIDE = """async () => {
    const images = [...root.querySelectorAll(".slide img")]
    await Promise.all(images.map((image) => image.decode()))
    await new Promise(requestAnimationFrame)
    const foot = root.querySelector(".foot").getBoundingClientRect()
    const names = ["title", "value", "note", "tile", "text", "fact", "points"]
    const parts = names.flatMap((name) => [...root.querySelectorAll(`.slide .${name}`)])
    const boxes = parts.map((part) => [part.className, part.getBoundingClientRect()])
    const leaves = ({left, top, right, bottom}) =>
        left < 0 || top < 0 || right > innerWidth + 1 || bottom > foot.top + 1
    const out = boxes.filter(([, box]) => leaves(box))
    const values = boxes.filter(([name]) => name === "value").map(([, box]) => box)
    const covers = (one, other) => one.left < other.right && other.left < one.right
        && one.top < other.bottom && other.top < one.bottom
    const over = values.filter((one, index) => values.slice(index + 1).some((other) => covers(one, other)))
    return [...out.map(([name, {left, top, right, bottom}]) => [name, left, top, right, bottom]), ...over]
}"""


def luminance(colour: str) -> float:
    """Of an rgb() colour, as WCAG defines it."""
    srgb = [float(v) for v in re.findall(r"[\d.]+", colour)][:3]
    if colour.startswith("rgb"):
        srgb = [v / 255 for v in srgb]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in srgb]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("tab", [(1280, 720, "light"), (1280, 720, "dark")], indirect=True, ids=str)
def test_text_and_marks_stand_out_on_light_and_dark(tab: Page) -> None:
    start(tab)
    paper = colour(tab, ".stage", "backgroundColor")
    for key, names in (
        ("3", (".over", ".title", ".fact dt", ".often", ".note", ".about", ".place")),
        ("5", (".was", ".text")),
    ):
        tab.keyboard.press(key)
        tab.keyboard.press("Enter")
        for name in names:
            assert contrast(colour(tab, name, "color"), paper) >= 4.5, name
        for name in (".bar .fill", ".bar.after .fill"):
            assert contrast(colour(tab, name, "backgroundColor"), paper) >= 3, name
    tab.keyboard.press("3")
    tab.keyboard.press("Enter")
    for name in (".tile:not(.wrong) .corner", ".tile.wrong .corner"):
        assert contrast(colour(tab, name, "color"), colour(tab, name, "backgroundColor")) >= 4.5


def colour(tab: Page, name: str, what: str) -> str:
    found: str = tab.locator(name).first.evaluate(f"(e) => getComputedStyle(e).{what}")
    return found


def test_reduced_motion_is_honoured(tab: Page) -> None:
    start(tab)
    expect(tab.locator(".slide")).to_have_css("animation-name", "appear")
    tab.emulate_media(reduced_motion="reduce")
    expect(tab.locator(".slide")).to_have_css("animation-name", "none")
    expect(tab.locator(".gone")).to_have_css("transition-duration", "0s")
