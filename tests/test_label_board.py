"""The label board on Python's side: keys for classes, what the browser is given, and what it may send."""

from __future__ import annotations

import json
import string
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from dashboard.components.label_board import RESERVED_KEYS, class_keys
from dashboard.components.label_queue import MAX_ITEMS, QueueItem, Subject, read_queue
from tests.apps import NASTY, decode

SUBJECT = {
    "run": 5, "region": 3, "tau": 0.5, "seed": 0, "n_samples": 10, "annotator": "ada", "round": 0,
}  # fmt: skip
ITEM = {
    "key": "a1", "seq": 1, "undoes": None, "sample": 0, "label": 7, "seconds": 1.5, **SUBJECT,
}  # fmt: skip

names = st.lists(st.text(max_size=8), max_size=60) | st.lists(
    st.sampled_from(string.ascii_letters + string.digits), max_size=62, unique=True
)


def test_likely_classes_have_the_first_keys_where_there_are_many() -> None:
    names = [f"sign {i}" for i in range(43)]
    keys = class_keys(names, first=[40, 3, 40])
    assert (keys[40], keys[3], keys[0]) == ("1", "2", "3")
    given = [key for key in keys if key is not None]
    assert len(set(given)) == len(given) == 30
    assert class_keys(names[:12], first=[5]) == class_keys(names[:12])  # all have a key, which never changes


@given(names)
def test_class_keys_are_distinct_single_and_never_reserved(names: list[str]) -> None:
    keys = class_keys(names)
    assert keys == class_keys(names)
    given = [key for key in keys if key is not None]
    assert len(keys) == len(names)
    assert len(set(given)) == len(given) == min(30, len(names))  # ten digits and twenty letters
    assert set(given) <= set(string.digits + string.ascii_lowercase) - set(RESERVED_KEYS)


@given(st.lists(st.sampled_from(string.ascii_lowercase + string.digits), max_size=36, unique=True))
def test_a_class_of_one_letter_is_its_own_key(names: list[str]) -> None:
    for name, key in zip(names, class_keys(names), strict=True):
        if name not in RESERVED_KEYS:
            assert key == name


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        ([], ""),
        (["seven"], "1"),
        ([str(digit) for digit in range(10)], "0123456789"),
        (["c", "A", "B"], "cab"),
        (["a", "A"], "a1"),  # lower-cased they would collide
        (["1", "u", "x"], "123"),
        (["a", "a"], "12"),  # not distinct
        (["a", "é"], "12"),  # no such key on most keyboards
        ([f"class {i}" for i in range(12)], "1234567890ab"),
    ],
)
def test_class_keys_by_example(names: list[str], keys: str) -> None:
    assert class_keys(names) == list(keys)


def test_a_queue_is_read_as_it_was_sent() -> None:
    undo = ITEM | {"key": "b", "seq": 2, "undoes": "a1"}
    whole = ITEM | {
        "key": "c",
        "seq": 3,
        "sample": None,
        "label": None,
        "region": -1,
        "tau": 1,
        "seconds": 60,
    }
    found = read_queue({"items": [ITEM, undo, whole], "attempt": 3})
    assert found[0] == QueueItem("a1", 1, None, 0, 7, 1.5, Subject(**SUBJECT))
    assert (found[1].undoes, found[1].sample, found[1].label) == ("a1", 0, 7)
    assert (found[2].sample, found[2].label, found[2].subject.tau) == (None, None, 1.0)
    assert [item.key for item in found] == ["a1", "b", "c"]


def test_no_queue_has_no_items() -> None:
    assert read_queue(None) == read_queue({"items": [], "attempt": 1}) == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "items and attempt"),
        ({"items": []}, "items and attempt"),
        ({"items": [], "attempt": 1, "more": 2}, "items and attempt"),
        ({"items": [], "attempt": -1}, "attempt must be a whole number"),
        ({"items": {}, "attempt": 1}, "items must be a list"),
        ({"items": [ITEM] * (MAX_ITEMS + 1), "attempt": 1}, "at most 10,000, got 10001"),
        ({"items": [ITEM, None], "attempt": 1}, "item 1 of the queue must be an object"),
    ],
)
def test_a_malformed_queue_is_refused(value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_queue(value)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("key", ["", "k" * 201, 1, None, "\ud800"]),
        ("undoes", ["", "k" * 201, 1, False]),
        ("annotator", ["", "a" * 201, None]),
        *[(name, [-1, 1.5, "1", True, None, 2**63]) for name in ("seq", "run", "seed", "n_samples", "round")],
        ("region", [-2, "3", None]),
        *[(name, [-1, 0.5, "1", False, 2**63]) for name in ("sample", "label")],
        ("tau", [-0.1, float("nan"), float("inf"), 10**400, "1", None, True]),
        ("seconds", [-1, 60.1, float("nan"), float("inf"), None, False]),
    ],
)
def test_a_malformed_field_is_refused_and_named(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"item 1 of the queue: {field} must be .*, got"):
            read_queue({"items": [ITEM, ITEM | {field: value}], "attempt": 1})


@pytest.mark.parametrize("field", ITEM)
def test_every_field_is_needed_and_no_other_is_dropped(field: str) -> None:
    lacking = {name: value for name, value in ITEM.items() if name != field}
    with pytest.raises(ValueError, match=f"item 0 of the queue lacks '{field}'"):
        read_queue({"items": [lacking], "attempt": 1})
    with pytest.raises(ValueError, match="has an unknown 'colour'"):
        read_queue({"items": [ITEM | {"colour": 1}], "attempt": 1})


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), st.lists, max_leaves=5))
def test_whatever_comes_is_read_or_refused(value: Any) -> None:
    for sent in (value, {"items": value, "attempt": 1}, {"items": [ITEM | {"label": value}], "attempt": 1}):
        try:
            assert all(isinstance(item, QueueItem) for item in read_queue(sent))
        except ValueError as error:
            assert "queue" in str(error)  # noqa: PT017 - some are good


def page(subject: dict, names: list, answers: list, options: dict) -> None:  # a script knows no other names
    """A board of two images, one of them without a prediction; a script of its own."""
    import numpy as np
    import streamlit as st

    from dashboard.components.label_board import Answer, Draw, label_board
    from dashboard.components.label_queue import Subject

    plain = np.full((8, 8, 1), 7, dtype=np.uint8)
    colour = (np.arange(8 * 16 * 3) % 256).astype(np.uint8).reshape(8, 16, 3)
    label_board(
        [Draw(plain, names[0]), Draw(colour)], key="board", subject=Subject(**subject), class_names=names,
        answers=[Answer(*answer) for answer in answers], namespace="defuse", on_queue=lambda: None,
        on_move=lambda: None, **options,
    )  # fmt: skip
    st.write(sorted(st.session_state["board"]))


def show(names: list[str], *, answers: list[Any] | None = None, **options: Any) -> AppTest:
    given = {
        "subject": SUBJECT,
        "names": names,
        "answers": answers or [],
        "options": {"saved": [], **options},
    }
    app = AppTest.from_function(page, kwargs=given).run()
    assert not app.exception, app.exception[0].stack_trace
    return app


def data(app: AppTest) -> Any:
    return json.loads(app.get("bidi_component")[0].proto.json)


def test_the_browser_is_given_what_python_has() -> None:
    answers = [("k1", 0, 1), ("k2", None, None)]
    found = data(show(["cat", "dog"], answers=answers, saved=["k0"], trouble="full", whole=True, moved=3))
    assert found["subject"] == asdict(Subject(**SUBJECT))
    assert data(show(["cat"]))["moved"] == 0
    assert found["classes"] == [{"name": "cat", "key": "1"}, {"name": "dog", "key": "2"}]
    assert [tuple(answer.values()) for answer in found["answers"]] == answers
    assert (found["saved"], found["trouble"], found["whole"], found["moved"]) == (["k0"], "full", True, 3)
    assert (found["namespace"], found["side"]) == ("defuse", 16)
    plain, colour = found["images"]
    assert (plain["said"], colour["said"]) == ("cat", None)
    np.testing.assert_array_equal(decode(plain["src"]), np.full((8, 8, 1), 7))
    assert decode(colour["src"]).shape == (8, 16, 3)


def test_markup_is_text_and_stays_what_it_is() -> None:
    app = show([NASTY])
    assert data(app)["classes"][0]["name"] == data(app)["images"][0]["said"] == NASTY
    script = app.get("bidi_component")[0].proto.js_content
    assert "textContent" in script
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert sink not in script
