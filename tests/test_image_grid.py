"""The image grid on Python's side: what the browser is given, pixel by pixel."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from streamlit.testing.v1 import AppTest

from dashboard.components.image_grid import png_bytes, png_url
from tests.apps import NASTY, decode, tiles


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 9),
)
def test_a_png_holds_the_same_pixels(height: int, width: int, channels: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)
    np.testing.assert_array_equal(decode(png_url(image)), image)
    assert png_bytes(image).startswith(b"\x89PNG\r\n\x1a\n")


def test_the_ends_of_the_range_and_views_are_kept() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[:, ::2] = 255
    turned = image.transpose(1, 0, 2)[::-1]  # not contiguous
    np.testing.assert_array_equal(decode(png_url(turned)), turned)


def page(side: int, word: str, n: int, options: dict) -> None:  # a script knows no other names
    """A grid of up to two tiles; a script of its own."""
    import numpy as np

    from dashboard.components.image_grid import Tile, image_grid

    plain = np.full((side, side, 1), 7, dtype=np.uint8)
    colour = (np.arange(side * side * 3) % 256).astype(np.uint8).reshape(side, side, 3)
    tiles = [Tile([plain, plain], word, True, f"{word}\nbelow", [word]), Tile([colour])]
    image_grid(tiles[:n], key="grid", **options)


def show(*, side: int = 8, word: str = "seven", n: int = 2, **options: Any) -> AppTest:
    given = {"side": side, "word": word, "n": n, "options": options}
    app = AppTest.from_function(page, kwargs=given).run()
    assert not app.exception, app.exception[0].stack_trace
    return app


def data(app: AppTest) -> Any:
    return json.loads(app.get("bidi_component")[0].proto.json)


def test_tiles_are_given_as_they_are() -> None:
    first, second = tiles(show(), "grid")
    assert (first["corner"], first["wrong"], first["caption"]) == ("seven", True, "seven\nbelow")
    assert first["alt"] == ["seven", ""]  # every image has one
    assert [image.shape for image in first["images"]] == [(8, 8, 1)] * 2
    assert (second["corner"], second["wrong"], second["caption"], second["alt"]) == ("", False, "", [""])
    expected: NDArray[np.uint8] = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(second["images"][0], expected)


def test_markup_is_text_and_stays_what_it_is() -> None:
    found = tiles(show(word=NASTY), "grid")[0]
    assert (found["corner"], found["caption"], found["alt"][0]) == (NASTY, f"{NASTY}\nbelow", NASTY)
    script = show(word=NASTY).get("bidi_component")[0].proto.js_content
    assert "textContent" in script
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in script


@pytest.mark.parametrize(
    ("side", "least", "size"), [(8, 56, 56), (28, 56, 56), (32, 56, 64), (128, 56, 128), (8, 80, 80)]
)
def test_images_are_enlarged_by_a_whole_factor(side: int, least: int, size: int) -> None:
    shown = data(show(side=side, min_pixels=least))["size"]
    assert shown == size
    assert shown % side == 0
    assert shown >= least


def test_no_tiles_are_an_empty_grid() -> None:
    assert data(show(n=0, headings=["original"])) == {"tiles": [], "headings": ["original"], "size": 56}
