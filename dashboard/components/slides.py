"""Shows slides that cover the whole window, moved by keys in the browser alone.

All slides are sent once. Python takes no part in showing them, moving between them or leaving them,
so that nothing on the server can stall, close or move a presentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import streamlit as st

_HERE = Path(__file__).parent
HTML = """<div class="slides">
<button class="present" type="button"><span aria-hidden="true">▶</span> Present</button>
<dialog class="cover" role="dialog" aria-modal="true" aria-label="Presentation"
  ><div class="stage" tabindex="-1">
  <div class="content"></div>
  <div class="foot" aria-hidden="true"><span class="about"></span><span class="typed" hidden></span
    ><span class="place"></span></div>
  <div class="track" aria-hidden="true"><div class="gone"></div></div>
  <div class="black" hidden></div>
  <div class="keys" hidden><dl class="list">
    <div><dt><kbd>→</kbd> <kbd>Space</kbd> <kbd>Page ↓</kbd></dt><dd>Next</dd></div>
    <div><dt><kbd>←</kbd> <kbd>Page ↑</kbd></dt><dd>Back</dd></div>
    <div><dt><kbd>Home</kbd> <kbd>End</kbd></dt><dd>First, last</dd></div>
    <div><dt><kbd>1</kbd> … <kbd>9</kbd> <kbd>Enter</kbd></dt><dd>Slide of this number</dd></div>
    <div><dt><kbd>B</kbd> <kbd>.</kbd></dt><dd>Black, and back</dd></div>
    <div><dt><kbd>F</kbd></dt><dd>Full screen</dd></div>
    <div><dt><kbd>Esc</kbd></dt><dd>Leave</dd></div>
    <div><dt><kbd>?</kbd></dt><dd>These keys</dd></div></dl></div>
  <div class="live" role="status" aria-live="polite"></div>
</div></dialog></div>"""


@dataclass(frozen=True)
class Figure:
    """A number in large type.

    Attributes
    ----------
    value : str
    label : str
        What it is.
    was : str
        The number before, if it changed.
    note : str
        Interval, n and the like, in small type.
    bars : tuple of (estimate, low, high), in [0, 1]
        Drawn below, each with its interval; of two, the first is the one before.
    """

    value: str
    label: str
    was: str = ""
    note: str = ""
    bars: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Fact:
    """A short answer: who says, what, and how often."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Said:
    """A classifier's prediction for an image, and whether it is correct; None where nobody says."""

    text: str
    right: bool | None


@dataclass(frozen=True)
class Panel:
    """The images of a slide with the predictions of one classifier; `said` has one entry per image."""

    figure: Figure
    said: tuple[Said, ...]
    after: bool = False


@dataclass(frozen=True)
class Slide:
    """One slide; empty fields are left out. All text is shown as it is.

    Attributes
    ----------
    key : str
        Names the slide: a presentation stays at it when slides before it are added or removed.
    over : str
        A line above the title.
    images : tuple of str
        Data URLs, shown in every panel.
    cover : bool
        Whether it is in larger type, as the first is.
    """

    key: str
    title: str
    text: str = ""
    over: str = ""
    facts: tuple[Fact, ...] = ()
    figures: tuple[Figure, ...] = ()
    images: tuple[str, ...] = ()
    panels: tuple[Panel, ...] = ()
    points: tuple[str, ...] = ()
    cover: bool = False


_slides = st.components.v2.component(
    "defuse_slides",
    html=HTML,
    css=(_HERE / "slides.css").read_text(encoding="utf-8"),
    js=(_HERE / "slides.js").read_text(encoding="utf-8"),
)


def slides(shown: Sequence[Slide], *, about: str, key: str) -> None:
    """Show the button that starts the slides.

    Parameters
    ----------
    shown : sequence of Slide
        One or more, with keys of their own.
    about : str
        A few words at the foot of every slide.
    key : str
        The same key continues the same presentation, at its current slide.

    Raises
    ------
    ValueError
        If there is no slide, two have one key, or a panel has not one prediction per image.
    """
    if not shown:
        raise ValueError("shown must be one slide or more, got none; say on the page what there is to do")
    keys = [slide.key for slide in shown]
    if twice := {name for name in keys if keys.count(name) > 1}:
        raise ValueError(f"shown must have a key of its own a slide, got {sorted(twice)} twice; rename one")
    for slide in shown:
        if any(len(panel.said) != len(slide.images) for panel in slide.panels):
            said = [len(panel.said) for panel in slide.panels]
            raise ValueError(
                f"panels of slide {slide.key!r} must read each of its {len(slide.images)} images, got {said} "
                "readings; pass one an image"
            )
    _slides(data={"slides": [asdict(slide) for slide in shown], "about": about}, key=key)
