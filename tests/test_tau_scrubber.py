"""The scrubber of τ on Python's side: the sprite pixel by pixel, and what the browser is given."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from dashboard.components.tau_scrubber import Sprite, make_sprite, tau_scrubber
from tests.apps import NASTY, decode


@given(
    n_taus=st.integers(1, 5),
    n_draws=st.integers(1, 6),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 9),
)
def test_a_sprite_holds_a_row_of_the_same_pixels_for_every_tau(
    n_taus: int, n_draws: int, height: int, width: int, channels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n_taus, n_draws, height, width, channels)).astype(np.uint8)
    sprite = make_sprite(images, taus=range(n_taus), predictions=np.zeros((n_taus, n_draws), int))
    sheet = decode(sprite.url)
    assert sheet.shape == (n_taus * height, n_draws * width, channels)
    assert (sprite.height, sprite.width, list(sprite.taus)) == (height, width, [*range(n_taus)])
    for row in range(n_taus):
        for column in range(n_draws):
            found = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
            np.testing.assert_array_equal(found, images[row, column])


def test_the_ends_of_the_range_and_views_are_kept() -> None:
    channels_first = np.zeros((2, 3, 3, 4, 6), dtype=np.uint8)
    channels_first[..., ::2] = 255
    images = channels_first.transpose(0, 1, 3, 4, 2)[:, ::-1]  # not contiguous
    sheet = decode(make_sprite(images, taus=[0, 1], predictions=np.zeros((2, 3), int)).url)
    np.testing.assert_array_equal(sheet, np.block([[[image] for image in row] for row in [*images]]))


def sprite(**changed: Any) -> Sprite:
    """Two τ, three draws of 4×5, each of a prediction of its own."""
    options = {
        "images": np.zeros((2, 3, 4, 5, 1), dtype=np.uint8), "taus": [0.25, 1.0],
        "predictions": np.array([[0, 1, 1], [0, 2, 1]]), **changed,
    }  # fmt: skip
    return make_sprite(options.pop("images"), **options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": np.zeros((2, 3, 4, 5), np.uint8)}, r"images must be uint8 .* got uint8 .* channels last"),
        ({"images": np.zeros((2, 3, 1, 4, 5), np.uint8)}, "channels last"),
        ({"images": np.zeros((2, 3, 4, 5, 1))}, "got float64"),
        ({"images": np.zeros((2, 0, 4, 5, 1), np.uint8)}, "not empty"),
        ({"images": np.zeros((2, 3, 1, 11_000, 1), np.uint8)}, "32,767 pixels .* pass fewer draws"),
        ({"predictions": np.zeros((3, 2), int)}, r"predictions must be \(2, 3\), got \(3, 2\); classify"),
        ({"taus": [0.25]}, r"taus must be 2 finite values that ascend, got \[0.25\]; sort"),
        ({"taus": [1.0, 0.25]}, "taus must be 2"),
        ({"taus": [1.0, 1.0]}, "taus must be 2"),
        ({"taus": [0.0, float("nan")]}, "taus must be 2"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sprite(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_names": ["a", "b"]}, "class_names must be a name .* 0 to 2, got 2 names; pass"),
        ({"label": "d"}, "label must be one of class_names, got 'd'; or pass None"),
        ({"n_shown": 0}, "n_shown must be 1 or more, got 0"),
        ({"purity": 90.0}, r"purity must be in \(0, 1\], got 90.0; pass a share"),
    ],
)
def test_options_that_make_no_sense_are_refused(changed: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"class_names": ["a", "b", "c"], "tau": 1.0, "suggested": None, "purity": 0.9}
    options |= changed
    with pytest.raises(ValueError, match=message):
        tau_scrubber(sprite(), options.pop("class_names"), **options, key="tau")


def page(names: list[str], options: dict) -> None:  # a script knows no other names
    """A scrubber at three τ; a script of its own."""
    import numpy as np
    import streamlit as st

    from dashboard.components.tau_scrubber import make_sprite, tau_scrubber

    images = np.arange(3 * 2 * 4 * 5).astype(np.uint8).reshape(3, 2, 4, 5, 1)
    sprite = make_sprite(images, taus=[0.1, 0.3, 1.0], predictions=np.array([[0, 1], [1, 1], [0, 0]]))
    found = tau_scrubber(sprite, names, key="scrubber", **{"suggested": None, "purity": 0.9, **options})
    st.text(repr(found))


def show(*, names: tuple[str, str] = ("seven", "nine"), **options: Any) -> AppTest:
    app = AppTest.from_function(page, kwargs={"names": list(names), "options": {"tau": 0.3, **options}})
    return run(app)


def run(app: AppTest) -> AppTest:
    app.run()
    assert not app.exception, app.exception[0].stack_trace
    return app


def data(app: AppTest) -> Any:
    return json.loads(app.get("bidi_component")[0].proto.json)


def test_the_browser_is_given_all_that_it_shows() -> None:
    given = data(show(suggested=0.1, purity=0.8, label="nine", n_shown=1))
    sheet = np.arange(120, dtype=np.uint8).reshape(3, 2, 4, 5, 1).transpose(0, 2, 1, 3, 4)
    np.testing.assert_array_equal(decode(given.pop("sprite")), sheet.reshape(12, 10, 1))
    assert given == {
        "height": 4, "width": 5, "taus": [0.1, 0.3, 1.0], "predictions": [[0, 1], [1, 1], [0, 0]],
        "names": ["seven", "nine"], "label": "nine", "chosen": 1, "suggested": 0, "purity": 0.8, "shown": 1,
    }  # fmt: skip
    assert data(show())["suggested"] is None


@pytest.mark.parametrize(
    ("tau", "index"), [(0.1, 0), (0.0, 0), (0.19, 0), (0.21, 1), (0.3, 1), (0.6, 1), (0.7, 2), (9.0, 2)]
)
def test_the_nearest_tau_is_shown(tau: float, index: int) -> None:
    app = show(tau=tau, suggested=tau)
    assert (data(app)["chosen"], data(app)["suggested"]) == (index, index)
    assert app.text[0].value == repr([0.1, 0.3, 1.0][index])


@pytest.mark.parametrize(("sent", "found"), [(0.1, "0.1"), (1, "1.0"), (0.9, "1.0")])
def test_what_the_browser_chose_is_returned_as_one_of_the_taus(sent: float, found: str) -> None:
    app = show()
    assert app.text[0].value == "0.3"
    app.session_state["scrubber"] = {"tau": sent}  # as the browser sets it; 1.0 comes as 1
    assert run(app).text[0].value == found


def test_markup_is_text_and_the_script_has_no_sinks() -> None:
    app = show(names=(NASTY, "nine"), label=NASTY)
    assert (data(app)["names"][0], data(app)["label"]) == (NASTY, NASTY)
    proto = app.get("bidi_component")[0].proto
    assert "textContent" in proto.js_content
    assert NASTY not in proto.html_content
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert sink not in proto.js_content
