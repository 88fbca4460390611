"""The label board's JavaScript alone in Chromium: no server, a page that plays Streamlit's part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Error, Locator, Page, expect

from dashboard.components import label_board
from dashboard.components.image_grid import png_url
from dashboard.components.label_queue import read_queue
from defuse_core.data.short_names import short_names
from tests.apps import NASTY
from tests.e2e.serving import SECONDS
from tests.workspaces import eventually

URL = "http://127.0.0.1/"  # localStorage needs an origin; nothing listens there
SCRIPT = Path(label_board.__file__).with_suffix(".js").read_text(encoding="utf-8")
STYLE = Path(label_board.__file__).with_suffix(".css").read_text(encoding="utf-8")
SUBJECT = {
    "run": 5, "region": 3, "tau": 0.5, "seed": 0, "n_samples": 10, "annotator": "ada", "round": 0,
}  # fmt: skip
DIGITS = [str(digit) for digit in range(10)]
IMAGE = png_url(np.full((28, 28, 1), 90, dtype=np.uint8))

HARNESS = """
async ({ script, style, html }) => {
  window.module = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })))
  window.hosts = {}
  window.mount = (name, data) => {
    if (!hosts[name]) {
      const element = document.createElement("div")
      document.body.append(element)
      const parentElement = element.attachShadow({ mode: "open" })
      parentElement.innerHTML = `<style>${style}</style>${html}`
      hosts[name] = { element, parentElement, queues: [], moves: [], connected: true }
    }
    const host = hosts[name]
    host.data = data
    host.cleanup = module.default({
      data, parentElement: host.parentElement,
      setStateValue: (key, value) => {
        if (!host.connected) throw new Error("not connected")
        host.queues.push({ key, at: performance.now(), value: structuredClone(value) })
      },
      setTriggerValue: (key, value) => host.moves.push([key, value]),
    })
  }
}
"""


def board_data(
    n: int = 10, *, names: list[str] | None = None, said: list[Any] | None = None, **other: Any
) -> Any:
    """What Python gives for n images that the classifier takes for the class of their index."""
    names = DIGITS if names is None else names
    predictions = [names[index % len(names)] for index in range(n)] if said is None else said
    keys = label_board.class_keys(names)
    return {
        "subject": SUBJECT, "images": [{"src": IMAGE, "said": word} for word in predictions], "side": 28,
        "classes": [{"name": name, "key": key} for name, key in zip(names, keys, strict=True)],
        "answers": [], "saved": [], "trouble": None, "namespace": "defuse", "whole": False, **other,
    }  # fmt: skip


@dataclass
class Board:
    """One board of a page, and what Python would hear of it."""

    page: Page
    name: str
    data: dict[str, Any]

    def give(self, **data: Any) -> None:
        """Call the script again with data that changed."""
        self.data = {**self.data, **data}
        self.page.evaluate("([name, data]) => mount(name, data)", [self.name, self.data])

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    @property
    def host(self) -> Locator:
        return self.page.locator("body > div").nth(
            self.page.evaluate("n => Object.keys(hosts).indexOf(n)", self.name)
        )

    def queues(self) -> list[dict[str, Any]]:
        """Every value of the queue that was sent."""
        sent = self.page.evaluate("name => hosts[name].queues", self.name)
        assert {value["key"] for value in sent} <= {"queue"}
        return [value["value"] for value in sent]

    def items(self, n: int) -> list[dict[str, Any]]:
        """The n items of the last queue, once they are sent."""
        self.page.wait_for_timeout(60)  # what follows closely is sent together
        self.page.wait_for_function(
            "([name, n]) => hosts[name].queues.at(-1)?.value.items.length === n", arg=[self.name, n]
        )
        items: list[dict[str, Any]] = self.queues()[-1]["items"]
        read_queue(self.queues()[-1])  # as Python reads it
        return items

    def store(self, items: list[dict[str, Any]]) -> None:
        """Answer as Python does once it has stored these items."""
        undone = {item["undoes"] for item in items}
        known = {answer["key"] for answer in self.data["answers"]}
        answers = self.data["answers"] + [
            {name: item[name] for name in ("key", "sample", "label")}
            for item in items
            if item["undoes"] is None and item["key"] not in known
            and all(item[name] == value for name, value in self.data["subject"].items())
        ]  # fmt: skip
        saved = [*self.data["saved"], *(item["key"] for item in items)]
        self.give(answers=[answer for answer in answers if answer["key"] not in undone], saved=saved)

    def marks(self) -> list[str]:
        """What each image is marked as: "7 saved", "none pending region", or nothing."""
        return [
            " ".join([mark.text_content() or "", *(mark.get_attribute("class") or "").split()[1:]]).strip()
            for mark in self.host.locator(".mark").all()
        ]

    def corners(self) -> list[str]:
        return [(corner.get_attribute("class") or "") for corner in self.host.locator(".corner").all()]

    def cursor(self) -> int:
        (here,) = [
            index
            for index, cell in enumerate(self.host.get_by_role("listitem").all())
            if cell.get_attribute("aria-current") == "true"
        ]
        return here

    def says(self, text: str) -> None:
        expect(self.host.locator(".status")).to_have_text(text)

    def stored(self) -> dict[str, str]:
        """What is in localStorage."""
        found: dict[str, str] = self.page.evaluate("() => ({ ...localStorage })")
        return found

    def close(self) -> None:
        """Unmount, as Streamlit does when the page is left."""
        self.page.evaluate(
            "name => { hosts[name].cleanup(); hosts[name].element.remove(); delete hosts[name] }", self.name
        )


@contextmanager
def profile(chromium: Browser) -> Iterator[BrowserContext]:
    """A browser profile in which 127.0.0.1 serves an empty page."""
    context = chromium.new_context(viewport={"width": 1000, "height": 900})
    context.route(f"{URL}**", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
    yield context
    context.close()


@pytest.fixture(scope="module")
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """The profile of the whole file, since one of its own for each test takes a second."""
    with profile(chromium) as context:
        yield context


def answering(errors: list[str]) -> Callable[[Dialog], None]:
    """Lets a tab leave, and keeps what any other dialog says."""

    def answer(dialog: Dialog) -> None:
        if dialog.type != "beforeunload":
            errors.append(dialog.message)
        dialog.accept()

    return answer


@pytest.fixture
def open_tab(context: BrowserContext) -> Iterator[Callable[[], Page]]:
    """Opens tabs that leave when they are told to; an error or an alert in one of them fails the test.

    Nothing is left in the profile.
    """
    errors: list[str] = []
    opened: list[Page] = []

    def fail(error: Error) -> None:
        errors.append(str(error))

    answer = answering(errors)

    def open_one() -> Page:
        left = [] if opened else context.pages  # the tab of the test before
        tab = left[0] if left else context.new_page()
        opened.append(tab)
        tab.on("pageerror", fail)
        tab.on("dialog", answer)
        load(tab)
        return tab

    yield open_one
    for number, tab in enumerate(context.pages):
        if number:
            tab.close()
            continue
        tab.goto(URL)  # the lives of its boards end
        tab.evaluate("localStorage.clear(), sessionStorage.clear()")
        tab.remove_listener("pageerror", fail)
        tab.remove_listener("dialog", answer)
    assert not errors


@pytest.fixture
def tab(open_tab: Callable[[], Page]) -> Page:
    return open_tab()


@pytest.fixture
def still_tab(chromium: Browser) -> Iterator[Page]:
    """A tab whose clock goes on only as it is told; in a profile of its own, since that has the clock."""
    errors: list[str] = []
    with profile(chromium) as context:
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("dialog", answering(errors))
        load(tab)
        tab.clock.install()
        yield tab
    assert not errors


def load(tab: Page) -> None:
    """Go to the page and import the script; what was there before is a life that ended."""
    tab.goto(URL)
    tab.evaluate(HARNESS, {"script": SCRIPT, "style": STYLE, "html": label_board.HTML})


def mount(tab: Page, name: str = "one", data: Any = None) -> Board:
    board = Board(tab, name, data or board_data())
    board.give()
    return board


def pure(tab: Page, call: str) -> Any:
    """What one of the exported functions returns."""
    return tab.evaluate(f"() => module.{call}")


def test_ten_keys_in_a_blink_arrive_in_order(tab: Page) -> None:
    board = mount(tab)
    tab.evaluate(
        """() => {
          for (const key of "7210414959") {
            document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }))
          }
        }"""
    )
    first = board.queues()[0]
    assert [item["label"] for item in first["items"]] == [7]  # at once
    items = board.items(10)
    assert [item["label"] for item in items] == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert [item["sample"] for item in items] == list(range(10))
    assert len({item["key"] for item in items}) == 10
    seqs = [item["seq"] for item in items]
    assert seqs == sorted(set(seqs))
    assert len(board.queues()) == 2  # and the nine others together
    assert {name: items[0][name] for name in SUBJECT} == SUBJECT
    assert items[0]["undoes"] is None
    assert board.marks() == [f"{label} pending" for label in (7, 2, 1, 0, 4, 1, 4, 9, 5, 9)]
    board.says("10 answers not saved yet")


def test_what_is_acknowledged_is_saved_and_leaves_the_queue_and_the_storage(still_tab: Page) -> None:
    board = mount(still_tab)
    board.press("7", "2")
    items = board.items(2)
    (entry,) = board.stored().items()
    assert entry[0].startswith("defuse:")
    assert [key in entry[1] for key in (items[0]["key"], items[1]["key"])] == [True, True]
    board.store(items[:1])
    assert board.marks()[:3] == ["7 saved", "2 pending", ""]
    board.says("1 answer not saved yet")
    board.store(items[1:])
    assert board.marks()[:3] == ["7 saved", "2 saved", ""]
    board.says("All 2 answers saved")
    assert board.stored() == {}
    sent = len(board.queues())
    still_tab.clock.run_for(10 * SECONDS)
    assert len(board.queues()) == sent  # nothing is left to send
    board.press("1")
    still_tab.clock.run_for(2300)
    assert len(board.queues()) == sent + 2


def test_what_is_not_acknowledged_is_sent_again(still_tab: Page) -> None:
    board = mount(still_tab)
    board.press("7")
    still_tab.clock.run_for(2300)
    first, second = board.queues()
    assert second == first | {"attempt": first["attempt"] + 1}
    waited = still_tab.evaluate("() => hosts.one.queues[1].at - hosts.one.queues[0].at")
    assert 1900 < waited < 3000


def test_a_lost_connection_costs_nothing(still_tab: Page) -> None:
    board = mount(still_tab)
    still_tab.evaluate("() => { hosts.one.connected = false }")
    board.press("7", "2")
    assert board.queues() == []
    assert board.marks()[:2] == ["7 pending", "2 pending"]
    still_tab.evaluate("() => { hosts.one.connected = true }")
    still_tab.clock.run_for(2300)
    assert [item["label"] for item in board.items(2)] == [7, 2]


def test_trouble_is_told_and_tried_again(tab: Page) -> None:
    board = mount(tab)
    again = board.host.get_by_role("button", name="Try again")
    board.press("7")
    expect(again).to_be_hidden()
    board.give(trouble="The disk is full.")
    board.says("The disk is full. · 1 answer not saved yet")
    assert board.marks()[0] == "7 pending"
    again.click()
    tab.wait_for_function("() => hosts.one.queues.length === 2", timeout=1 * SECONDS)
    assert board.queues()[1]["attempt"] == board.queues()[0]["attempt"] + 1
    board.give(trouble=None)
    board.store(board.items(1))
    board.says("1 answer saved")
    expect(again).to_be_hidden()


def test_leaving_the_page_asks_while_something_is_not_saved(tab: Page) -> None:
    asked: list[str] = []
    tab.on("dialog", lambda dialog: asked.append(dialog.type))
    board = mount(tab)
    board.press("7")
    items = board.items(1)
    load(tab)
    assert asked == ["beforeunload"]
    board = mount(tab)
    board.press("ArrowRight")  # Chromium asks only where a person did something
    board.store(items)
    load(tab)
    assert asked == ["beforeunload"]


def test_after_a_reload_the_rest_is_sent(tab: Page) -> None:
    board = mount(tab)
    board.press("7", "2", "1")
    before = board.items(3)
    load(tab)
    board = mount(tab, data=board_data(subject=SUBJECT | {"region": 4}))  # another region by now
    assert board.items(3) == before
    board.says("3 answers from before were not saved; saving them now")
    assert board.marks() == [""] * 10  # they are about the other
    board.press("5")
    board.says("3 answers from before were not saved; saving them now · 1 answer not saved yet")
    board.store(before)
    assert len(board.items(4)) == 4
    board.store(board.items(4))
    assert board.stored() == {}
    board.says("1 answer saved")


def test_after_a_reload_of_the_same_region_the_rest_is_shown(tab: Page) -> None:
    mount(tab).press("7", "2")
    load(tab)
    board = mount(tab)
    assert board.marks()[:3] == ["7 pending", "2 pending", ""]
    assert board.cursor() == 2
    board.press("u")
    items = board.items(3)
    assert items[2]["undoes"] == items[1]["key"]
    assert items[2]["seq"] > items[1]["seq"]


def test_two_tabs_take_over_and_take_nothing_away(open_tab: Callable[[], Page]) -> None:
    first = mount(open_tab())
    first.press("7")
    (item,) = first.items(1)
    second = mount(open_tab())
    assert second.items(1) == [item]
    assert len(first.stored()) == 2
    first.press("2")
    second.store([item])  # done for the second tab; the entry of the first holds another
    (entry,) = second.stored().values()
    assert item["key"] in entry
    assert [i["label"] for i in first.items(2)] == [7, 2]
    first.store(first.items(2))
    assert first.stored() == {}


def test_an_entry_of_a_closed_tab_goes_once_all_of_it_is_saved(open_tab: Callable[[], Page]) -> None:
    closed = open_tab()
    mount(closed).press("7", "2")
    closed.close()
    board = mount(open_tab())
    items = board.items(2)
    board.store(items[:1])
    assert len(board.stored()) == 2
    board.store(items[1:])
    assert board.stored() == {}


def test_what_is_not_ours_in_the_storage_is_left_alone(tab: Page) -> None:
    foreign = {
        "defuse:1": "{",
        "defuse:2": '[{"key":"k"}]',
        "defuse:3": "null",
        "other:4": "[]",
        "defuse:a:5": "[1]",
    }
    tab.evaluate(
        "entries => Object.entries(entries).forEach(([k, v]) => localStorage.setItem(k, v))", foreign
    )
    board = mount(tab)
    board.press("7")
    board.store(board.items(1))
    assert board.stored() == foreign


def test_without_storage_it_works(tab: Page) -> None:
    tab.evaluate(
        "() => Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied') } })"
    )
    board = mount(tab)
    board.press("7")
    board.store(board.items(1))
    assert board.marks()[0] == "7 saved"
    board.says("1 answer saved")


def test_a_board_that_comes_back_goes_on(tab: Page) -> None:
    board = mount(tab)
    board.press("7")
    before = board.items(1)
    board.close()
    tab.keyboard.press("2")  # nobody listens
    board = mount(tab)
    assert board.items(1) == before
    assert board.marks()[:2] == ["7 pending", ""]


def test_undo_of_a_pending_and_of_a_saved_answer(tab: Page) -> None:
    board = mount(tab)
    undo = board.host.get_by_role("button", name="Undo")
    expect(undo).to_be_disabled()
    board.press("7", "2")
    board.store(board.items(2))
    board.press("1", "u")
    items = board.items(2)
    assert (items[1]["undoes"], items[1]["sample"], items[1]["label"]) == (items[0]["key"], 2, 1)
    assert board.marks()[:3] == ["7 saved", "2 saved", ""]
    assert board.cursor() == 2
    board.says("1 answer and 1 undo not saved yet")
    undo.click()  # the next latest is a saved one
    items = board.items(3)
    assert items[2]["undoes"] == board.data["answers"][1]["key"]
    assert board.marks()[:3] == ["7 saved", "", ""]
    assert board.cursor() == 1
    board.store(items)
    assert board.marks()[:3] == ["7 saved", "", ""]
    board.says("1 answer saved")
    assert board.stored() == {}


def test_undo_brings_back_what_was_there_before(tab: Page) -> None:
    answers = [{"key": "a", "sample": None, "label": 3}, {"key": "b", "sample": 0, "label": 7}]
    board = mount(tab, data=board_data(2, answers=[*answers, {"key": "c", "sample": 0, "label": 8}]))
    assert board.marks() == ["8 saved", "3 saved region"]
    board.press("u")
    assert board.marks() == ["7 saved", "3 saved region"]
    board.press("u")
    assert board.marks() == ["3 saved region", "3 saved region"]
    board.press("u")
    assert board.marks() == ["", ""]
    board.press("u")
    assert [item["undoes"] for item in board.items(3)] == ["c", "b", "a"]


def test_the_cursor_moves_by_keys_and_clicks(tab: Page) -> None:
    board = mount(tab)

    def columns() -> int:
        tops = board.host.get_by_role("listitem").evaluate_all("cells => cells.map((cell) => cell.offsetTop)")
        return int(tops.count(tops[0]))

    assert columns() == 5
    for key, expected in [
        ("ArrowRight", 1), ("ArrowDown", 6), ("ArrowDown", 6), ("ArrowLeft", 5), ("ArrowLeft", 4),
        ("ArrowUp", 4), ("ArrowDown", 9), ("ArrowRight", 9), ("ArrowUp", 4),
    ]:  # fmt: skip
        board.press(key)
        assert board.cursor() == expected, key
    board.host.get_by_role("listitem").nth(8).click()
    assert board.cursor() == 8
    board.press("7")
    assert board.cursor() == 9
    board.press("9")
    assert board.cursor() == 0  # round the corner
    assert [item["sample"] for item in board.items(2)] == [8, 9]
    tab.set_viewport_size({"width": 420, "height": 900})
    eventually(lambda: columns() == 3)
    board.press("ArrowDown")
    assert board.cursor() == 3


def test_the_cursor_finds_the_next_open_image(tab: Page) -> None:
    answers = [{"key": f"k{i}", "sample": i, "label": 1} for i in (0, 1, 3)]
    board = mount(tab, data=board_data(5, answers=answers))
    assert board.cursor() == 2
    board.press("7")
    assert board.cursor() == 4
    board.press("s")
    assert board.cursor() == 0  # all others are answered, and it moves on
    board.press("4", "ArrowLeft", "ArrowLeft")
    board.host.get_by_role("listitem").nth(4).click()
    board.press("8")
    assert board.cursor() == 4  # no other is open
    assert [(item["sample"], item["label"]) for item in board.items(3)] == [(2, 7), (0, 4), (4, 8)]


def test_one_label_for_the_whole_region(tab: Page) -> None:
    board = mount(tab, data=board_data(3))
    toggle = board.host.get_by_role("button", name="Whole region")
    expect(toggle).to_have_attribute("aria-pressed", "false")
    board.press("1", "r")
    expect(toggle).to_have_attribute("aria-pressed", "true")
    board.press("7")
    assert board.marks() == ["1 pending", "7 pending region", "7 pending region"]
    items = board.items(2)
    assert (items[1]["sample"], items[1]["label"]) == (None, 7)
    board.store(items)
    assert board.marks() == ["1 saved", "7 saved region", "7 saved region"]
    assert [("wrong" in corner) for corner in board.corners()] == [True, True, True]
    toggle.click()
    board.press("2", "x")
    assert board.marks() == ["1 saved", "2 pending", "none pending"]
    assert board.items(2)[1]["label"] is None


def test_the_mode_may_start_whole(tab: Page) -> None:
    board = mount(tab, data=board_data(2, whole=True))
    board.press("7")
    assert board.items(1)[0]["sample"] is None
    board.press("r")
    board.give(trouble="x")  # other data leave the mode as it is
    expect(board.host.get_by_role("button", name="Whole region")).to_have_attribute("aria-pressed", "false")


def test_the_mode_shows_and_ends_with_the_region(tab: Page) -> None:
    board = mount(tab, data=board_data(3))
    progress = board.host.locator(".progress")
    board.press("r", "7")
    expect(progress).to_contain_text("whole region: one key answers for all of them")
    board.press("n")
    board.give(subject={**SUBJECT, "region": 99}, images=board_data(3)["images"], answers=[], moved=1)
    expect(board.host.get_by_role("button", name="Whole region")).to_have_attribute("aria-pressed", "false")
    expect(progress).not_to_contain_text("whole region")
    board.press("1", "2", "3")

    def answers() -> list[tuple[int, int]]:
        mine = [item for item in board.queues()[-1]["items"] if item["region"] == 99]
        return [(item["sample"], item["label"]) for item in mine]

    eventually(lambda: answers() == [(0, 1), (1, 2), (2, 3)])


def test_long_names_stand_below_the_images_and_the_likely_classes_first(tab: Page) -> None:
    names = [f"Speed limit ({n}km/h)" for n in range(20, 40)]
    data = board_data(2, names=names, first=[5, 3])
    keys = label_board.class_keys(names, first=[5, 3])
    short = short_names(tuple(names), 12)
    data["classes"] = [
        {"name": name, "short": abbreviated, "key": key}
        for name, abbreviated, key in zip(names, short, keys, strict=True)
    ]
    board = mount(tab, data=data)
    corner = board.host.locator(".corner").first
    assert corner.text_content() == "…(20km/h)"
    assert corner.get_attribute("title") == names[0]
    image, name = (board.host.locator(of).first.bounding_box() for of in (".image", ".corner"))
    assert image is not None
    assert name is not None
    assert name["y"] >= image["y"] + image["height"]
    first = board.host.locator(".classes button").first
    assert (first.get_attribute("title"), first.locator("kbd").text_content()) == (names[5], "1")
    board.press("2")
    assert board.items(1)[0]["label"] == 3


def test_calling_again_stacks_nothing_and_keeps_the_place(tab: Page) -> None:
    board = mount(tab)
    board.press("ArrowRight", "ArrowRight")
    board.give()
    board.give()
    assert board.cursor() == 2
    board.press("7")
    assert len(board.items(1)) == 1
    board.host.get_by_role("button", name="None of the above").click()
    assert [item["label"] for item in board.items(2)] == [7, None]
    board.press("n")
    assert tab.evaluate("() => hosts.one.moves") == [["move", 1]]


def test_the_end_of_an_earlier_call_ends_nothing(tab: Page) -> None:
    """Streamlit runs it where data change while the script is still being imported."""
    board = mount(tab)
    tab.evaluate("() => { hosts.one.first = hosts.one.cleanup }")
    board.give()
    tab.evaluate("() => hosts.one.first()")
    board.press("7")
    assert len(board.items(1)) == 1
    tab.evaluate("() => hosts.one.cleanup()")
    board.press("2")
    tab.wait_for_timeout(100)
    assert len(board.queues()[-1]["items"]) == 1


def test_another_region_keeps_the_queue_and_starts_anew(tab: Page) -> None:
    board = mount(tab)
    board.press("7", "2")
    other = SUBJECT | {"region": 4}
    board.give(subject=other, answers=[{"key": "k", "sample": 0, "label": 3}])
    assert board.marks()[:3] == ["3 saved", "", ""]
    assert board.cursor() == 1
    board.press("5")
    items = board.items(3)
    assert [(item["region"], item["label"]) for item in items] == [(3, 7), (3, 2), (4, 5)]
    board.store(items)
    assert board.marks()[:3] == ["3 saved", "5 saved", ""]


def test_moving_holds_answers_until_the_other_region_is_here(still_tab: Page) -> None:
    board = mount(still_tab)
    board.press("7", "n", "2", "u")
    assert still_tab.evaluate("() => hosts.one.moves") == [["move", 1]]
    assert board.marks()[:2] == ["7 pending", ""]
    board.give(subject=SUBJECT | {"region": 4})
    assert board.marks()[:2] == ["", ""]  # answered and taken back
    board.press("2")
    items = board.items(4)
    assert [(item["region"], item["label"]) for item in items] == [(3, 7), (4, 2), (4, 2), (4, 2)]
    assert [item["undoes"] for item in items] == [None, None, items[1]["key"], None]
    board.host.get_by_role("button", name="Previous region").click()
    assert still_tab.evaluate("() => hosts.one.moves.at(-1)") == ["move", -1]
    board.press("3")
    assert len(board.items(4)) == 4
    still_tab.clock.run_for(6 * SECONDS)
    expect(board.host.get_by_role("list")).to_have_attribute("aria-busy", "false")
    assert board.items(5)[-1]["label"] == 3  # there was no other


def test_keys_typed_ahead_over_several_regions_arrive_in_order(tab: Page) -> None:
    board = mount(tab)
    board.press(*"1" * 10, "n", *"2" * 10, "n", *"3" * 10, "p", "ArrowRight", "s", "r", "x")
    assert tab.evaluate("() => hosts.one.moves") == [["move", 1]]
    board.give()  # called for another reason, the move still under way
    assert {item["label"] for item in board.items(10)} == {1}
    for moves, region in ((2, 4), (3, 5)):
        board.give(subject=SUBJECT | {"region": region}, moved=moves - 1)
        assert tab.evaluate("() => hosts.one.moves.length") == moves
    items = board.items(30)
    expected = [(region, sample, label) for region, label in ((3, 1), (4, 2), (5, 3)) for sample in range(10)]
    assert [(item["region"], item["sample"], item["label"]) for item in items] == expected
    board.give(subject=SUBJECT | {"region": 6}, moved=3)
    assert tab.evaluate("() => hosts.one.moves") == [["move", 1], ["move", 1], ["move", -1]]
    assert board.cursor() == 2
    assert (board.items(31)[-1]["region"], board.items(31)[-1]["sample"]) == (6, None)


def test_a_move_that_leads_nowhere_ends(still_tab: Page) -> None:
    board = mount(still_tab, data=board_data(moved=4))
    board.press("n", "7", "n", "2")
    board.give(moved=4)
    assert board.queues() == []
    board.give(moved=5)
    assert board.items(1)[0]["label"] == 7
    board.give(moved=6)
    assert [item["label"] for item in board.items(2)] == [7, 2]
    still_tab.clock.run_for(2100)
    assert still_tab.evaluate("() => hosts.one.moves") == [["move", 1], ["move", 1]]
    assert len(board.items(2)) == 2


def test_what_waits_is_for_the_classes_that_were_seen(tab: Page) -> None:
    board = mount(tab)
    board.press("n", "7")
    board.give(subject=SUBJECT | {"run": 6}, classes=board_data(names=["cat", "dog"])["classes"])
    board.press("2")
    assert [item["label"] for item in board.items(1)] == [1]


def test_another_namespace_takes_the_queue_along_and_finds_what_was_left_there(tab: Page) -> None:
    left = mount(tab, data=board_data(namespace="other", subject=SUBJECT | {"run": 6}))
    left.press("1")
    (first,) = left.items(1)
    load(tab)
    board = mount(tab)
    board.press("7")
    (second,) = board.items(1)
    board.give(namespace="other", subject=SUBJECT | {"run": 6})
    assert board.items(2) == [first, second]
    assert all(entry.startswith("other:") for entry in board.stored())
    board.says("1 answer from before was not saved; saving it now · 1 answer not saved yet")
    board.store([first, second])
    assert board.stored() == {}
    assert board.marks()[:2] == ["1 saved", ""]


def test_two_boards_do_not_mix(tab: Page) -> None:
    first, second = mount(tab, "one"), mount(tab, "two", board_data(subject=SUBJECT | {"region": 9}))
    first.host.get_by_role("listitem").nth(0).click()
    first.press("7")
    second.host.get_by_role("listitem").nth(0).click()
    second.press("2", "1")
    assert [(item["region"], item["label"]) for item in first.items(1)] == [(3, 7)]
    assert [(item["region"], item["label"]) for item in second.items(2)] == [(9, 2), (9, 1)]
    assert len(first.stored()) == 2
    second.store(second.items(2))
    assert len(first.stored()) == 1
    tab.evaluate("() => document.activeElement.blur()")
    tab.keyboard.press("5")  # with the focus nowhere one of them takes it, not both
    assert len(first.items(2)) == 2
    assert len(second.queues()[-1]["items"]) == 2


def test_a_class_is_found_among_many(tab: Page) -> None:
    names = [f"sign {index} of the road" for index in range(42)] + ["Stop"]
    board = mount(tab, data=board_data(names=names))
    buttons = board.host.get_by_role("group", name="Classes").get_by_role("button")
    search = board.host.get_by_role("searchbox", name="Find a class")
    expect(buttons).to_have_count(43)
    expect(buttons.nth(42).locator("kbd")).to_have_count(0)  # there are 30 keys
    box = board.host.locator(".classes")
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth && box.clientHeight < 320")
    board.press("/")
    expect(search).to_be_focused()
    tab.keyboard.type("STO")
    expect(buttons).to_have_count(1)
    board.press("Enter")
    assert board.items(1)[0]["label"] == 42
    expect(search).to_have_value("")
    expect(buttons).to_have_count(43)
    board.press("1")  # the focus is on the board again
    assert board.items(2)[1]["label"] == 0
    board.press("/")
    tab.keyboard.type("nothing like it")
    expect(buttons).to_have_count(0)
    expect(board.host.get_by_text("No class has this in its name")).to_be_visible()
    board.press("Enter")
    expect(search).to_be_focused()
    board.press("Escape")
    expect(buttons).to_have_count(43)
    expect(search).not_to_be_focused()
    assert len(board.items(2)) == 2


def test_few_classes_have_no_search(tab: Page) -> None:
    board = mount(tab)
    expect(board.host.get_by_role("searchbox")).to_have_count(0)
    board.press("/", "7")
    assert len(board.items(1)) == 1


def test_every_button_does_what_its_key_does(tab: Page) -> None:
    board = mount(tab)
    board.host.get_by_role("button", name="7", exact=True).click()
    board.host.get_by_role("button", name="Skip").click()
    board.host.get_by_role("button", name="None of the above").click()
    board.press("3")  # a click leaves the focus with the board
    items = board.items(3)
    assert [(item["sample"], item["label"]) for item in items] == [(0, 7), (2, None), (3, 3)]
    board.host.get_by_role("button", name="Next region").click()
    assert tab.evaluate("() => hosts.one.moves") == [["move", 1]]
    for key, name in (("x", "None of the above"), ("s", "Skip"), ("u", "Undo"), ("n", "Next region")):
        expect(board.host.get_by_role("button", name=name).locator("kbd")).to_have_text(key)


def test_the_keys_are_listed_and_rest_meanwhile(tab: Page) -> None:
    board = mount(tab)
    dialog = board.host.get_by_role("dialog", name="Keys")
    for way in ("?", "Escape"):
        board.press("?")
        expect(dialog).to_be_visible()
        expect(dialog.get_by_text("Take back the latest answer")).to_be_visible()
        board.press("7", way)
        expect(dialog).to_be_hidden()
    board.host.get_by_role("button", name="Show the keys").click()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    board.press("2")
    assert [item["label"] for item in board.items(1)] == [2]


def test_markup_shows_as_text(tab: Page) -> None:
    board = mount(tab, data=board_data(2, names=[NASTY, "dog"], trouble=NASTY))
    board.press("1", "?")
    assert board.marks()[0] == f"{NASTY} pending"
    assert board.host.locator(".corner").first.text_content() == NASTY
    expect(board.host.get_by_role("dialog").get_by_text(NASTY)).to_be_visible()
    tab.wait_for_timeout(100)
    assert board.host.locator("img").evaluate_all("all => all.every((img) => img.src.startsWith('data:'))")


def test_blind_shows_no_prediction(tab: Page) -> None:
    board = mount(tab, data=board_data(3, said=[None] * 3))
    board.press("7")
    expect(board.host.locator(".corner")).to_have_count(0)
    assert board.host.get_by_role("listitem").nth(0).get_attribute("aria-label") == "Image 1: 7, not saved"
    board.give(images=board_data(3)["images"])
    expect(board.host.locator(".corner")).to_have_count(3)
    assert board.cursor() == 1


def test_a_prediction_shows_whether_it_is_taken_for_wrong(tab: Page) -> None:
    board = mount(tab, data=board_data(4))
    board.press("0", "7", "x")
    assert ["wrong" in corner for corner in board.corners()] == [False, True, True, False]
    colours = board.host.locator(".corner").evaluate_all(
        "all => all.map((c) => getComputedStyle(c).backgroundColor)"
    )
    assert colours == ["rgb(0, 96, 160)", "rgb(179, 71, 0)", "rgb(179, 71, 0)", "rgb(0, 96, 160)"]


def test_keys_that_are_meant_for_others_are_left_alone(tab: Page) -> None:
    board = mount(tab)
    tab.evaluate(
        """() => {
          window.others = []
          document.addEventListener("keydown", (event) => others.push(event.key))
          for (const tag of ["input", "textarea", "select", "button", "p"]) {
            const element = document.createElement(tag)
            element.contentEditable = tag === "p"
            document.body.append(element)
          }
        }"""
    )
    for key in ("ctrlKey+7", "altKey+7", "metaKey+7", "ctrlKey+r"):
        tab.evaluate(
            """(pressed) => {
              const [modifier, key] = pressed.split("+")
              const init = { key, bubbles: true, cancelable: true, [modifier]: true }
              if (!document.body.dispatchEvent(new KeyboardEvent("keydown", init))) throw new Error(pressed)
            }""",
            key,
        )
    hint = board.host.locator(".hint")
    for tag in ("input", "textarea", "select", "p"):
        expect(hint).to_be_hidden()
        tab.locator(f"body > {tag}").focus()
        board.press("7", "u", "r", "n")
        board.give()
        expect(tab.locator(f"body > {tag}")).to_be_focused()
        expect(hint).to_be_visible()
        expect(hint).to_have_text("Click the board to go on with the keys")
        tab.evaluate("() => document.activeElement.blur()")
    assert board.queues() == []
    assert tab.evaluate("() => others.length") == 20
    board.press("7", "r")
    assert len(board.items(1)) == 1
    assert tab.evaluate("() => others.length") == 20  # Streamlit would run the script again on r
    board.press("c")
    assert tab.evaluate("() => others.at(-1)") == "c"


TEXT = ["text", "search", "number", "email", "password", "url", "tel", "date", None]
ROLES = ["combobox", "textbox", "searchbox", "spinbutton"]


@pytest.mark.parametrize(
    ("tag", "attributes", "typed"),
    [
        *[("input", {} if kind is None else {"type": kind}, True) for kind in TEXT],
        *[("div", {"role": role}, True) for role in ROLES],
        *[("input", {"type": kind}, False) for kind in ("checkbox", "radio", "button", "range")],
        ("button", {}, False),
    ],
)
def test_only_what_is_typed_into_keeps_letters_and_digits(
    tab: Page, tag: str, attributes: dict[str, str], typed: bool
) -> None:
    board = mount(tab)
    tab.evaluate(
        """([tag, attributes]) => {
          window.left = []
          document.addEventListener("keydown", (event) => left.push(event.key))
          const element = document.createElement(tag)
          Object.entries({ ...attributes, tabindex: 0 }).forEach((pair) => element.setAttribute(...pair))
          document.body.append(element)
          element.focus()
        }""",
        [tag, attributes],
    )
    board.press("7", "x", "ArrowRight", "Enter", " ")
    theirs = ["ArrowRight", "Enter", " "]
    assert tab.evaluate("() => left") == (["7", "x", *theirs] if typed else theirs)
    expect(board.host.locator(".hint")).to_be_visible(visible=typed)
    if typed:
        assert board.queues() == []
    else:
        assert [item["label"] for item in board.items(2)] == [7, None]
        assert board.cursor() == 2


def test_a_modal_dialog_of_the_page_keeps_its_keys(tab: Page) -> None:
    board = mount(tab)
    tab.evaluate(
        """() => {
          const [dialog, button] = [document.createElement("div"), document.createElement("button")]
          dialog.setAttribute("aria-modal", "true")
          dialog.append(button)
          document.body.append(dialog)
          button.focus()
        }"""
    )
    board.press("7")
    assert board.marks()[0] == ""


@pytest.mark.parametrize(
    "change",
    [{"region": 4}, {"annotator": "bob"}, {"round": 1}, {"tau": 0.7}, {"n_samples": 20}, {"run": 6}],
)
def test_another_subject_takes_the_focus(tab: Page, change: dict[str, Any]) -> None:
    board = mount(tab)
    tab.evaluate("() => document.body.append(document.createElement('input'))")
    tab.locator("body > input").focus()
    board.give(trouble="full")
    expect(tab.locator("body > input")).to_be_focused()
    expect(board.host.locator(".hint")).to_be_visible()
    board.give(subject=SUBJECT | change)
    expect(board.host.get_by_role("group", name="Label the images")).to_be_focused()
    expect(board.host.locator(".hint")).to_be_hidden()
    board.press("7")
    assert board.items(1)[0]["label"] == 7


def test_another_subject_leaves_the_focus_in_the_search(tab: Page) -> None:
    board = mount(tab, data=board_data(names=[f"sign {index}" for index in range(20)]))
    board.press("n", "/", "1")
    board.give(subject=SUBJECT | {"region": 4})
    board.press("2")
    expect(board.host.get_by_role("searchbox", name="Find a class")).to_have_value("12")
    board.press("Enter")
    assert (board.items(1)[0]["region"], board.items(1)[0]["label"]) == (4, 12)


def test_a_board_that_comes_back_on_its_place_has_one_hint(still_tab: Page) -> None:
    board = mount(still_tab)
    still_tab.evaluate("() => hosts.one.cleanup()")
    board.give()
    expect(board.host.locator(".hint")).to_have_count(1)
    board.press("n", "7")
    still_tab.evaluate("() => hosts.one.cleanup()")
    still_tab.clock.run_for(10 * SECONDS)  # what waited ends with the board
    assert board.queues() == []


def test_the_board_takes_the_focus_but_not_from_who_writes(tab: Page) -> None:
    board = mount(tab)
    assert tab.evaluate("() => document.activeElement === hosts.one.element")
    board.close()
    tab.evaluate(
        "() => { const input = document.createElement('input'); document.body.append(input); input.focus() }"
    )
    mount(tab, "two")
    assert tab.evaluate("() => document.activeElement.tagName") == "INPUT"


def test_a_key_held_down_is_one_answer(tab: Page) -> None:
    board = mount(tab)
    tab.keyboard.down("7")
    tab.keyboard.down("7")
    tab.keyboard.up("7")
    board.press("8")
    assert [item["label"] for item in board.items(2)] == [7, 8]


def test_seconds_are_counted_while_the_page_is_seen(tab: Page) -> None:
    board = mount(tab)
    tab.wait_for_timeout(300)
    board.press("7", "2")
    first, second = (item["seconds"] for item in board.items(2))
    assert 0.3 <= first < 2
    assert second < 0.2
    assert tab.evaluate(
        """() => {
          let now = 0
          const watch = new module.Stopwatch(() => now)
          const laps = []
          watch.run(true); now = 1500; laps.push(watch.lap())
          now = 2000; watch.run(false); now = 90000; watch.run(true); now = 90250; laps.push(watch.lap())
          now = 200000; laps.push(watch.lap()); laps.push(watch.lap())
          return laps
        }"""
    ) == [1.5, 0.75, 60, 0]


@pytest.mark.parametrize(("n", "width", "side", "columns", "size"), [
    (10, 1000, 28, 5, 140), (10, 1000, 32, 5, 128), (10, 420, 28, 3, 112), (10, 420, 32, 3, 96),
    (10, 1000, 224, 5, 144), (3, 1000, 32, 3, 128), (1, 1000, 8, 1, 144), (0, 1000, 28, 1, 140),
    (10, 0, 28, 1, 28),
])  # fmt: skip
def test_images_are_laid_out_in_even_rows(
    tab: Page, n: int, width: int, side: int, columns: int, size: int
) -> None:
    found = pure(tab, f"layOut({n}, {width}, {side})")
    assert (found["columns"], found["size"]) == (columns, size)


def test_a_name_is_found_before_what_only_holds_it(tab: Page) -> None:
    assert pure(tab, "findClasses(['no stop', 'stopping', 'Stop', 'go'], ' stop ')") == [2, 1, 0]
    assert pure(tab, "findClasses(['a', 'b'], '')") == [0, 1]
    assert pure(tab, "findClasses(['a'], 'x')") == []


def test_no_images_are_an_empty_board(tab: Page) -> None:
    board = mount(tab, data=board_data(0))
    board.press("7", "x", "s", "u", "ArrowDown", "n")
    assert board.queues() == []
    board.says("No answers yet")
