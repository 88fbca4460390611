"""Abbreviations of class names: they fit, they differ, and they keep what tells the names apart."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defuse_core.data.short_names import short_names

SIGNS = (
    "Speed limit (20km/h)", "Speed limit (30km/h)", "Speed limit (80km/h)", "End of speed limit (80km/h)",
    "No passing", "No passing for vehicles over 3.5 metric tons", "Road narrows on the right", "Road work",
    "Right-of-way at the next intersection", "Dangerous curve to the left", "Dangerous curve to the right",
)  # fmt: skip


def test_names_keep_what_distinguishes_them() -> None:
    short = dict(zip(SIGNS, short_names(SIGNS, 14), strict=True))
    assert short["Speed limit (20km/h)"] == "…(20km/h)"
    assert short["Speed limit (30km/h)"] == "…(30km/h)"
    assert short["Speed limit (80km/h)"].endswith("80km/h)")
    assert not "End of speed limit (80km/h)".startswith(short["Speed limit (80km/h)"].split("…")[0])
    assert short["Dangerous curve to the left"] == "…to the left"
    assert short["Right-of-way at the next intersection"] == "Right-of-way…"
    assert short["No passing"] == "No passing"
    assert short_names(SIGNS, 60) == SIGNS


@given(
    names=st.lists(st.text("ab (1", min_size=1, max_size=16), min_size=1, max_size=30, unique=True),
    width=st.integers(4, 20),
)
def test_all_fit_and_all_differ(names: list[str], width: int) -> None:
    short = short_names(tuple(names), width)
    assert len(short) == len(names)
    assert all(len(name) <= width for name in short)
    assert len(set(short)) == len(short)
    for name, form in zip(names, short, strict=True):
        assert form == name if len(name) <= width else "…" in form


def test_hundreds_of_long_names_that_are_alike_take_no_time() -> None:
    names = tuple(f"a rather long name of class number {i} of them all" for i in range(400))
    start = time.monotonic()
    assert len(set(short_names(names, 12))) == 400
    assert time.monotonic() - start < 5


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be 4 or more, got 3"):
        short_names(("a",), 3)
