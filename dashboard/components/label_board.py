"""Shows a board to label the draws of a region with single keys; the browser queues, Python stores.

The browser shows an answer at once, as pending, and keeps it in a queue (and in localStorage) until
Python says that it is stored: its key is in `saved` or in `answers`. Until then the browser sends the
queue again. So a page must store each item once by its key, and read the queue in `on_queue`, which
runs before the page does::

    def store() -> None:
        items = read_queue(st.session_state["board"]["queue"])  # ValueError if it is malformed
        ...  # in one transaction, skipping the keys that are stored already

    def move() -> None:
        step = st.session_state["board"]["move"]  # 1: the next region; -1: the previous one

A failure there is shown by `trouble`: an exception in a callback would remove the board from the page.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from dashboard.components.image_grid import png_url
from dashboard.components.label_queue import Subject
from defuse_core.data.short_names import short_names

RESERVED_KEYS = "uxsrnp"
"""Undo, none of the above, skip, whole region, next and previous region."""


MANY = 12
"""More classes are searched, and the likely ones have the first keys; of fewer the keys never change."""

_WIDTH = 32  # characters of a name that fit two lines below an image
_FREE_KEYS = "1234567890" + "".join(k for k in string.ascii_lowercase if k not in RESERVED_KEYS)
_HERE = Path(__file__).parent

HTML = """
<section class="board" tabindex="0" role="group" aria-label="Label the images">
  <div class="head">
    <span class="progress"></span>
    <div class="report">
      <span class="status" role="status"></span><button type="button" class="again" hidden>Try again</button>
    </div>
  </div>
  <div class="grid" role="list" aria-label="Images"></div>
  <div class="find finding" hidden>
    <input class="search" type="search" aria-label="Find a class" placeholder="Find a class">
    <kbd aria-hidden="true">/</kbd><span class="nothing" role="status"></span>
  </div>
  <div class="classes" role="group" aria-label="Classes"></div>
  <div class="actions">
    <div>
      <button type="button" data-key="x">None of the above</button>
      <button type="button" data-key="s">Skip</button>
      <button type="button" data-key="u">Undo</button>
      <button type="button" data-key="r" aria-pressed="false">Whole region</button>
    </div>
    <div>
      <button type="button" data-key="p">Previous region</button>
      <button type="button" data-key="n">Next region</button>
      <button type="button" data-key="?" aria-label="Show the keys"></button>
    </div>
  </div>
  <dialog class="keys" aria-label="Keys">
    <div class="title"><strong>Keys</strong><button type="button" class="close">Close</button></div>
    <dl class="list of-classes"></dl>
    <dl class="list">
      <div class="row"><dt><kbd>x</kbd></dt><dd>None of the above</dd></div>
      <div class="row"><dt><kbd>s</kbd></dt><dd>Skip this image</dd></div>
      <div class="row"><dt><kbd>u</kbd></dt><dd>Take back the latest answer</dd></div>
      <div class="row"><dt><kbd>r</kbd></dt><dd>One label for the whole region, on and off</dd></div>
      <div class="row"><dt><kbd>n</kbd> <kbd>p</kbd></dt><dd>Next region, previous region</dd></div>
      <div class="row"><dt><kbd>← ↑ → ↓</kbd></dt><dd>Move among the images</dd></div>
      <div class="row finding"><dt><kbd>/</kbd></dt><dd>Find a class; Enter takes the first</dd></div>
      <div class="row"><dt><kbd>?</kbd></dt><dd>Show the keys, and hide them</dd></div>
    </dl>
  </dialog>
</section>
"""


@dataclass(frozen=True)
class Draw:
    """One image to label.

    Attributes
    ----------
    image : (height, width, 1 or 3) uint8
    said : str or None
        The classifier's prediction; None hides it.
    """

    image: NDArray[np.uint8]
    said: str | None = None


@dataclass(frozen=True)
class Answer:
    """A stored answer that counts.

    Attributes
    ----------
    key : str
        Of the queue item that it came in, or any other unique one.
    sample : int or None
        Index of the image; None is the whole region.
    label : int or None
        Class index; None is "none of the above".
    """

    key: str
    sample: int | None
    label: int | None


_board = st.components.v2.component(
    "defuse_label_board",
    html=HTML,
    css=(_HERE / "label_board.css").read_text(encoding="utf-8"),
    js=(_HERE / "label_board.js").read_text(encoding="utf-8"),
)


def label_board(
    draws: Sequence[Draw],
    *,
    key: str,
    subject: Subject,
    class_names: Sequence[str],
    answers: Sequence[Answer],
    saved: Sequence[str],
    on_queue: Callable[[], None],
    on_move: Callable[[], None],
    namespace: str,
    trouble: str | None = None,
    whole: bool = False,
    moved: int = 0,
    first: Sequence[int] = (),
) -> None:
    """Show draws of a region to be labelled.

    Parameters
    ----------
    draws : sequence of Draw
        Those of the subject; ten in the paper.
    key : str
        Of the session state where the callbacks find "queue" and "move".
    subject : Subject
    class_names : sequence of str
        `class_keys` chooses their keys.
    answers : sequence of Answer
        Those of this annotator on this subject that count, in the order stored; read after storing.
    saved : sequence of str
        Keys of items (answers and undos, of any subject) that are stored: at least those of the last
        queue.
    on_queue : callable
        Runs when a queue arrives: `read_queue(st.session_state[key]["queue"])` reads it.
    on_move : callable
        Runs when another region is asked for: `st.session_state[key]["move"]` is 1 or -1.
    namespace : str
        Under this name the browser keeps unsaved answers, and finds those of closed tabs.
    trouble : str or None
        Why storing failed.
    whole : bool
        Whether the board starts with one label for the whole region.
    moved : int
        Number of moves handled so far, also of those that led nowhere. Keys typed after a move wait in the
        browser until this rises, the subject changes, or two seconds have passed.
    first : sequence of int
        Classes that are likely here; they have the first keys.
    """
    data: dict[str, Any] = {
        "subject": asdict(subject),
        "images": [{"src": png_url(draw.image), "said": draw.said} for draw in draws],
        "side": max((draw.image.shape[1] for draw in draws), default=1),
        "classes": [
            {"name": name, "key": k} | ({} if short == name else {"short": short})
            for name, short, k in zip(
                class_names,
                short_names(tuple(class_names), _WIDTH),
                class_keys(class_names, first=first),
                strict=True,
            )
        ],
        "answers": [asdict(answer) for answer in answers],
        "saved": list(saved),
        "trouble": trouble,
        "namespace": namespace,
        "whole": whole,
        "moved": moved,
        "first": list(first) if len(class_names) > MANY else [],
    }
    _board(data=data, key=key, on_queue_change=on_queue, on_move_change=on_move)


def class_keys(names: Sequence[str], *, first: Sequence[int] = ()) -> list[str | None]:
    """Choose a key for each class, None if none is left.

    If all names are distinct single letters or digits, each is its own key, in lower case. A name that
    cannot be (a reserved letter, or A beside a), and any other name, gets the next free key of 1 … 9, 0,
    a … z without the reserved ones: first the classes in `first`, in that order, then the others. Up to
    `MANY` classes the keys stay what they are, whichever are likely.

    Parameters
    ----------
    names : sequence of str
    first : sequence of int
        Class indices.

    Examples
    --------
    >>> class_keys(["cat", "dog"])
    ['1', '2']
    >>> class_keys(["a", "n", "A"])
    ['a', '1', '2']
    >>> class_keys([f"sign {i}" for i in range(43)], first=[40, 3])[:4]
    ['3', '4', '5', '2']
    """
    single = len(set(names)) == len(names) and all(
        len(name) == 1 and name.isascii() and name.isalnum() for name in names
    )
    keys: list[str | None] = [None] * len(names)
    if single:
        for index, name in enumerate(names):
            if name.lower() in _FREE_KEYS and name.lower() not in keys:
                keys[index] = name.lower()
    free = iter([k for k in _FREE_KEYS if k not in keys])
    scarce = keys.count(None) > MANY
    for index in dict.fromkeys([*(first if scarce else ()), *range(len(names))]):
        keys[index] = keys[index] if keys[index] is not None else next(free, None)
    return keys
