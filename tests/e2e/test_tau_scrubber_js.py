"""The scrubber of τ in Chromium, without a server: its script in a blank page."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, BrowserContext, Page, expect

from dashboard.components import tau_scrubber as component
from tests.apps import NASTY, decode

TAUS = [0.1, 0.2, 0.4, 0.5, 1.0]
NAMES = ["seven", "nine", "a name that is too long for any corner"]
BLUE, ORANGE = (0, 96, 160, 255), (179, 71, 0, 255)
MOUNT = """async ({html, css, js, width}) => {
    const host = document.body.appendChild(document.createElement("div"))
    host.id = "host"
    host.style.width = `${width}px`
    const root = host.attachShadow({mode: "open"})
    const style = document.createElement("style")
    style.textContent = css
    root.append(document.createRange().createContextualFragment(html), style)
    const module = await import(URL.createObjectURL(new Blob([js], {type: "text/javascript"})))
    const setStateValue = (name, value) => sent.push([name, value])
    const setTriggerValue = () => sent.push("a trigger")
    Object.assign(window, {root, module, sent: [], errors: []})
    window.onerror = (message) => errors.push(message)
    window.show = (data) => module.default({data, parentElement: root, setStateValue, setTriggerValue})
}"""


@pytest.fixture
def context(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    """A window of 1000 × 800; a parameter is how many screen pixels a CSS pixel has."""
    ratio = getattr(request, "param", 1)
    made = chromium.new_context(viewport={"width": 1000, "height": 800}, device_scale_factor=ratio)
    yield made
    made.close()


@pytest.fixture
def tab(context: BrowserContext) -> Iterator[Page]:
    """A blank page with the script, and nothing shown; an error or a dialog fails the test."""
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message) or dialog.dismiss())
    files = {kind: (component._HERE / f"tau_scrubber.{kind}").read_text() for kind in ("css", "js")}
    page.evaluate(MOUNT, {"html": component.HTML, "width": 960, **files})
    yield page
    assert errors + page.evaluate("errors") == []


def draws(seed: int = 0, *, n: int = 12, shape: tuple[int, int, int] = (10, 8, 3)) -> NDArray[np.uint8]:
    """Noise, of which no two pixels agree for long: (n_taus, n, height, width, channels)."""
    return np.random.default_rng(seed).integers(0, 256, (len(TAUS), n, *shape)).astype(np.uint8)


def data(images: NDArray[np.uint8] | None = None, **options: Any) -> dict[str, Any]:
    """What the script is given; of 12 draws, the first `index` are predicted as nine, the rest as seven."""
    images = draws() if images is None else images
    n = images.shape[1]
    predictions = (np.arange(n) < np.arange(len(TAUS))[:, None]).astype(int)
    sprite = component.make_sprite(images, taus=TAUS, predictions=options.pop("predictions", predictions))
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(component, "_scrubber", lambda **given: seen.update(given) or SimpleNamespace(tau=0.1))
        names = options.pop("names", NAMES)
        given: dict[str, Any] = {"tau": 0.5, "suggested": 0.2, "purity": 0.9, "key": "", **options}
        component.tau_scrubber(sprite, names, **given)
    found: dict[str, Any] = seen["data"]
    return found


def show(tab: Page, given: dict[str, Any]) -> None:
    """Call the script as Streamlit does, and wait for what it loads."""
    loaded = "() => new Promise(requestAnimationFrame).then(() => new Promise(requestAnimationFrame))"
    tab.evaluate("(data) => { window.cleanup = show(data) }", given)
    image = "(url) => { const image = new Image(); image.src = url; return image.decode().catch(() => 0) }"
    tab.evaluate(image, given["sprite"])
    tab.evaluate(loaded)


def pixels(tab: Page, name: str = "draws") -> NDArray[np.uint8]:
    """A canvas, (height, width, 4)."""
    return decode(tab.evaluate(f"root.querySelector('.{name}').toDataURL()"))


def assert_draws(tab: Page, row: NDArray[np.uint8], *, factor: int, columns: int, ratio: float = 1) -> None:
    """The canvas has these draws (n, height, width, 3), every pixel enlarged, but for their corners."""
    found, gap, covered = pixels(tab)[..., :3], round(6 * ratio), round(17 * ratio)
    height, width = row.shape[1] * factor, row.shape[2] * factor
    rows = -(-len(row) // columns)
    assert found.shape == (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    for draw, image in enumerate(row):
        top, left = (draw // columns) * (height + gap), (draw % columns) * (width + gap)
        tile = found[top : top + height, left : left + width]
        enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
        np.testing.assert_array_equal(tile[covered:], enlarged[covered:])


def move(tab: Page, index: int, *, release: bool = True) -> None:
    """Move the slider as a hand does."""
    events = "['input', 'change']" if release else "['input']"
    tab.evaluate(
        f"(index) => {{ const slider = root.querySelector('.slider'); slider.value = index; "
        f"for (const name of {events}) slider.dispatchEvent(new Event(name)) }}",
        index,
    )


def sent(tab: Page) -> Any:
    return tab.evaluate("sent")


@pytest.mark.parametrize(
    ("context", "ratio", "factor"), [(1, 1, 14), (2, 2, 28), (1.25, 1.25, 17)], indirect=["context"]
)
def test_the_canvas_holds_the_row_of_the_sprite(tab: Page, ratio: float, factor: int) -> None:
    images = draws()
    show(tab, data(images))
    assert_draws(tab, images[3, :10], factor=factor, columns=5, ratio=ratio)
    for index in (0, 4, 2):
        move(tab, index, release=False)  # painted before the next line runs
        assert_draws(tab, images[index, :10], factor=factor, columns=5, ratio=ratio)
    tab.get_by_role("button", name="all 12").click()
    assert len(set(map(tuple, pixels(tab)[-1, ::50]))) > 5
    expect(tab.get_by_role("img", name="12 draws at τ = 0.4: seven ×10, nine ×2")).to_be_visible()


def test_grey_draws_and_colour_alike(tab: Page) -> None:
    images = draws(shape=(28, 28, 1))
    show(tab, data(images))
    assert_draws(tab, images[3, :10].repeat(3, axis=-1), factor=4, columns=5)


def test_a_drag_sends_one_value_when_it_ends(tab: Page) -> None:
    show(tab, data(tau=0.1))
    slider, output = tab.get_by_role("slider", name="τ"), tab.get_by_role("status")
    box = slider.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + 8, middle)
    tab.mouse.down()
    for share in (0.3, 0.6, 1.0):
        tab.mouse.move(box["x"] + box["width"] * share - 8 * share, middle, steps=3)
    expect(output).to_have_text("τ = 1")
    assert sent(tab) == []
    tab.mouse.up()
    assert sent(tab) == [["tau", 1.0]]
    move(tab, 2, release=False)
    move(tab, 4)  # back where it was
    assert sent(tab) == [["tau", 1.0]]


def test_arrow_keys_move_it_and_a_held_key_sends_when_it_is_let_go(tab: Page) -> None:
    show(tab, data(tau=0.1))
    slider = tab.get_by_role("slider", name="τ")
    slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "τ = 0.2")
    assert sent(tab) == [["tau", 0.2]]
    for _ in range(3):
        tab.keyboard.down("ArrowRight")
    assert sent(tab) == [["tau", 0.2], ["tau", 0.4]]  # the first is no repetition
    tab.keyboard.up("ArrowRight")
    assert sent(tab) == [["tau", 0.2], ["tau", 0.4], ["tau", 1.0]]


def test_the_suggested_tau_is_a_click_away(tab: Page) -> None:
    show(tab, data())
    button = tab.get_by_role("button", name="Suggested: τ = 0.2")
    expect(button).to_have_attribute(
        "title", "The largest τ at which at least 90\u00a0% of the draws get the same prediction"
    )
    button.click()
    expect(tab.get_by_role("status")).to_have_text("τ = 0.2")
    assert_draws(tab, draws()[1, :10], factor=14, columns=5)
    button.click()
    assert sent(tab) == [["tau", 0.2]]
    show(tab, data(suggested=None))
    expect(tab.get_by_role("button", name="Suggested")).to_have_count(0)


def test_the_place_of_the_slider_is_its_own_until_python_chooses_another(tab: Page) -> None:
    def place() -> str:
        return tab.get_by_role("status").inner_text()

    show(tab, data())
    move(tab, 0, release=False)
    show(tab, data())
    assert place() == "τ = 0.1"  # not let go yet
    assert_draws(tab, draws()[0, :10], factor=14, columns=5)
    move(tab, 1)
    assert sent(tab) == [["tau", 0.2]]  # one listener, however often it was called
    move(tab, 2)
    show(tab, data(tau=0.2))  # Python answers what it heard first
    assert place() == "τ = 0.4"
    show(tab, data(tau=0.4))
    assert place() == "τ = 0.4"
    show(tab, data(tau=0.2))  # Python's own, as an undo
    assert place() == "τ = 0.2"
    assert sent(tab)[2:] == [["tau", 0.2]]  # so that a way back to 0.4 is a change, which Streamlit reports
    show(tab, data(tau=0.2))
    move(tab, 2)
    assert sent(tab)[3:] == [["tau", 0.4]]
    show(tab, data(draws(1), tau=1.0))
    assert place() == "τ = 1"
    assert sent(tab)[4:] == [["tau", 1.0]]
    assert_draws(tab, draws(1)[4, :10], factor=14, columns=5)


def test_predictions_stand_in_the_corner_and_those_that_differ_stand_out(tab: Page) -> None:
    show(tab, data(tau=0.4))  # nine, nine, seven, …
    corners = [tuple(pixels(tab)[1, 1 + column * 118].tolist()) for column in range(4)]
    assert corners == [BLUE] * 4
    note = tab.get_by_text("differ from the label")
    expect(note).to_be_hidden()
    show(tab, data(tau=0.4, label="seven"))
    corners = [tuple(pixels(tab)[1, 1 + column * 118].tolist()) for column in range(4)]
    assert corners == [ORANGE, ORANGE, BLUE, BLUE]
    expect(note).to_have_text("2 of 10 draws differ from the label “seven”")
    show(tab, data(tau=0.4, predictions=np.full((5, 12), 2)))
    row = pixels(tab)[1, :112]  # as wide as the image at most, and the short name takes most of it
    assert 40 < (row == BLUE).all(axis=1).sum() <= 112


def test_a_name_that_is_markup_is_shown_and_runs_nothing(tab: Page) -> None:
    show(tab, data(names=[NASTY, NASTY + "!"], label=NASTY))
    expect(tab.get_by_role("listitem").filter(has_text=NASTY)).to_have_count(2)
    expect(tab.get_by_text(f"draws differ from the label “{NASTY}”")).to_be_visible()
    expect(tab.get_by_role("img", name=f"10 draws at τ = 0.5: {NASTY} ×7")).to_be_visible()
    tab.wait_for_timeout(50)  # an image that fails would say so by now
    assert tab.evaluate("root.querySelectorAll('img').length") == 0


def test_the_grid_follows_the_width_and_the_number_of_draws(tab: Page) -> None:
    show(tab, data())
    few, every = (tab.get_by_role("button", name=name, exact=True) for name in ("10 draws", "all 12"))
    expect(few).to_have_attribute("aria-pressed", "true")
    every.click()
    expect(every).to_have_attribute("aria-pressed", "true")
    expect(few).to_have_attribute("aria-pressed", "false")
    tab.evaluate("document.getElementById('host').style.width = '200px'")
    tab.wait_for_function("root.querySelector('.draws').width <= 200")
    assert_draws(tab, draws()[3], factor=7, columns=3)
    left, right = (tab.locator(f".{name}").bounding_box() for name in ("left", "right"))
    assert left is not None
    assert right is not None
    assert right["y"] >= left["y"] + left["height"]  # below where it is narrow
    show(tab, data(n_shown=12))
    expect(every).to_be_hidden()  # nothing to choose from
    tab.evaluate("cleanup()")
    before = pixels(tab).shape
    tab.evaluate("document.getElementById('host').style.width = '900px'")
    tab.wait_for_timeout(50)
    assert pixels(tab).shape == before


def test_the_chart_marks_the_present_tau_and_says_the_shares(tab: Page) -> None:
    show(tab, data(tau=0.1))
    axis, end = 42, tab.evaluate("root.querySelector('.chart').width") - 8
    tab.evaluate("root.host.style.setProperty('--st-text-color', 'rgb(1, 2, 3)')")

    def marked() -> list[int]:
        """Columns that are of the colour of text, but for a dot or two."""
        inked = (pixels(tab, "chart")[10:160] == (1, 2, 3, 255)).all(axis=2)
        return np.nonzero(inked.mean(axis=0) > 0.7)[0].tolist()

    for index in (1, 3, 4):
        show(tab, data(tau=TAUS[index]))
        place = axis + (end - axis) * (TAUS[index] - 0.1) / 0.9
        assert len(marked()) == 2
        np.testing.assert_allclose(np.mean(marked()) + 0.5, place, atol=0.5)
    expect(tab.get_by_role("listitem")).to_have_text(["seven67\u00a0%", "nine33\u00a0%"])
    chart = tab.get_by_role("img", name="Share of each prediction over τ, at τ = 1: seven 67\u00a0%")
    expect(chart).to_be_visible()


def test_a_sprite_that_is_broken_is_said(tab: Page) -> None:
    show(tab, {**data(), "sprite": "data:image/png;base64,AAAA"})
    expect(tab.get_by_text("The draws could not be shown; reload the page")).to_be_visible()
    show(tab, data())
    expect(tab.get_by_text("could not be shown")).to_be_hidden()


@pytest.mark.parametrize(("n_classes", "seed"), [(2, 0), (6, 1), (7, 2), (40, 3)])
def test_lines_are_the_shares_and_others_are_the_rest(tab: Page, n_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    skewed = rng.dirichlet(np.full(n_classes, 0.5))
    predictions = rng.choice(n_classes, (21, 64), p=skewed)
    shares = np.stack([np.bincount(row, minlength=n_classes) for row in predictions]) / 64
    lines = tab.evaluate(
        "([predictions, names]) => module.makeLines(predictions, names)",
        [predictions.tolist(), [str(k) for k in range(n_classes)]],
    )
    best = sorted(np.unique(predictions).tolist(), key=lambda k: (-shares[:, k].max(), k))
    assert [line["name"] for line in lines] == [str(k) for k in best[:6]] + ["others"] * (len(best) > 6)
    for line, k in zip(lines, best[:6], strict=False):
        np.testing.assert_allclose(line["values"], shares[:, k])
    np.testing.assert_allclose(np.sum([line["values"] for line in lines], axis=0), 1)


def test_small_functions(tab: Page) -> None:
    def call(name: str, *arguments: Any) -> Any:
        return tab.evaluate("([name, given]) => module[name](...given)", [name, list(arguments)])

    assert call("ticks", 0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert call("ticks", 0.05, 2) == [0.5, 1, 1.5, 2]
    assert call("ticks", 0.3, 0.3) == [0.3]
    assert call("describe", 0.30000000000000004, [1], NAMES) == "1 draw at τ = 0.3: nine ×1"
    names = [str(k) for k in range(9)]
    assert call("describe", 1, [*range(9), 8], names).endswith(
        ": 8 ×2, 0 ×1, 1 ×1, 2 ×1, 3 ×1, 4 ×1, others ×3"
    )
    clipped = "([text, room]) => module.clip(text, room, (part) => Array.from(part).length)"
    for room, text in [(9, "sevenfold"), (8, "sevenfo…"), (2, "s…"), (0, "…")]:
        assert tab.evaluate(clipped, ["sevenfold", room]) == text
    assert tab.evaluate(clipped, ["🐕🐕🐕", 2]) == "🐕…"  # no half of a letter


def test_grids_fit_and_are_large_enough(tab: Page) -> None:
    cases = [
        {"room": int(wide * ratio), "n": n, "width": side, "height": side, "ratio": ratio}
        for wide, ratio, n, side in itertools.product(
            range(100, 1300, 90), (1, 1.25, 2), (1, 10, 64), (8, 28, 32, 128)
        )
    ]
    grids = tab.evaluate("(cases) => cases.map((given) => module.makeGrid(given))", cases)
    for given, grid in zip(cases, grids, strict=True):
        tile = given["width"] * grid["factor"]
        assert isinstance(grid["factor"], int)
        assert grid["factor"] >= 1
        assert tile >= 56 * given["ratio"] or tile + given["width"] > given["room"]
        across = grid["columns"] * (tile + grid["gap"]) - grid["gap"]
        assert across <= max(given["room"], given["width"])
        assert (grid["rows"] - 1) * grid["columns"] < given["n"] <= grid["rows"] * grid["columns"]


def test_a_step_is_painted_in_a_fraction_of_a_frame(tab: Page) -> None:
    """Print the durations; how fast the machine is, is not asserted."""
    show(tab, data(draws(n=64, shape=(28, 28, 1)), n_shown=64, label="seven"))
    steps = """(read) => {
        const canvas = root.querySelector(".draws"), slider = root.querySelector(".slider")
        canvas.paints.length = 0
        const took = []
        for (let step = 0; step < 300; step += 1) {
            const start = performance.now()
            slider.value = step % 5
            slider.dispatchEvent(new Event("input"))
            if (read) canvas.getContext("2d").getImageData(0, 0, 1, 1)
            took.push(performance.now() - start)
        }
        return {took, paints: canvas.paints}
    }"""
    handler, rastered = tab.evaluate(steps, False), tab.evaluate(steps, True)
    assert len(handler["paints"]) == 240  # the last ones
    medians = statistics.median(handler["paints"]), statistics.median(rastered["took"])
    print(f"\n64 draws of 28×28: {medians[0]:.2f} ms in the handler, {medians[1]:.2f} ms with the pixels")
