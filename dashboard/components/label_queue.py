"""Reads the browser's queue of answers, and checks everything: a user may have tampered with it."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields

from defuse_core.workspace.labels import SINGLE_MISTAKES

MAX_ITEMS = 10_000
MAX_TEXT = 200
MAX_SECONDS = 60.0


@dataclass(frozen=True)
class Subject:
    """What is labelled, and by whom; every answer carries it as it was when the key was pressed.

    Attributes
    ----------
    run : int
        The distill run.
    region : int
        Of that run; `SINGLE_MISTAKES` for single mistakes.
    tau : float
        τ at which the draws are shown.
    seed, n_samples : int
        Of the draws, and how many are shown.
    annotator : str
    round : int
        Of labelling, from 0 up.
    """

    run: int
    region: int
    tau: float
    seed: int
    n_samples: int
    annotator: str
    round: int


@dataclass(frozen=True)
class QueueItem:
    """One answer, or one undo, as the browser sent it.

    Attributes
    ----------
    key : str
        Unique; an item may come many times, and counts once.
    seq : int
        Ascending in the order of the keys pressed: milliseconds since 1970, or one more than the last.
    undoes : str or None
        Key of the answer taken back; sample and label are then that answer's.
    sample, label : int or None
        As of `Answer`.
    seconds : float
        Since the item before it or since the images were shown, while the page was visible; 60 at most.
    subject : Subject
        As it was when the key was pressed.
    """

    key: str
    seq: int
    undoes: str | None
    sample: int | None
    label: int | None
    seconds: float
    subject: Subject


def read_queue(value: object) -> list[QueueItem]:
    """Read what the browser sent as "queue", in its order.

    Parameters
    ----------
    value : object
        {"items": [...], "attempt": int}; None before anything was sent.

    Returns
    -------
    list of QueueItem

    Raises
    ------
    ValueError
        If anything is malformed; the message names it, and nothing is returned.
    """
    if value is None:
        return []
    if not isinstance(value, Mapping) or set(value) != {"items", "attempt"}:
        raise ValueError(f"the queue must be items and attempt, got {reprlib.repr(value)}")
    _whole_number("the queue", "attempt", value["attempt"])
    items = value["items"]
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        got = len(items) if isinstance(items, list) else reprlib.repr(items)
        raise ValueError(f"the queue: items must be a list of at most {MAX_ITEMS:,}, got {got}")
    return [_item(item, f"item {index} of the queue") for index, item in enumerate(items)]


_SUBJECT = [field.name for field in fields(Subject)]
_FIELDS = {*_SUBJECT, *(field.name for field in fields(QueueItem))} - {"subject"}


def _item(item: object, where: str) -> QueueItem:
    if not isinstance(item, Mapping):
        raise ValueError(f"{where} must be an object, got {reprlib.repr(item)}")
    if wrong := sorted(_FIELDS ^ set(item), key=str):
        what = ", ".join(f"{'lacks' if name in _FIELDS else 'has an unknown'} {name!r}" for name in wrong[:5])
        raise ValueError(f"{where} {what}")
    subject = Subject(
        run=_whole_number(where, "run", item["run"]),
        region=_whole_number(where, "region", item["region"], lowest=SINGLE_MISTAKES),
        tau=_number(where, "tau", item["tau"]),
        seed=_whole_number(where, "seed", item["seed"]),
        n_samples=_whole_number(where, "n_samples", item["n_samples"]),
        annotator=_text(where, "annotator", item["annotator"]),
        round=_whole_number(where, "round", item["round"]),
    )
    undoes, sample, label = item["undoes"], item["sample"], item["label"]
    return QueueItem(
        key=_text(where, "key", item["key"]),
        seq=_whole_number(where, "seq", item["seq"]),
        undoes=None if undoes is None else _text(where, "undoes", undoes),
        sample=None if sample is None else _whole_number(where, "sample", sample),
        label=None if label is None else _whole_number(where, "label", label),
        seconds=_number(where, "seconds", item["seconds"], highest=MAX_SECONDS),
        subject=subject,
    )


def _whole_number(where: str, name: str, value: object, *, lowest: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value < 2**63:
        raise ValueError(
            f"{where}: {name} must be a whole number from {lowest} up, got {reprlib.repr(value)}"
        )
    return value


def _number(where: str, name: str, value: object, *, highest: float = sys.float_info.max) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= highest:
        limit = f"to {highest:g}" if highest < sys.float_info.max else "up"
        raise ValueError(f"{where}: {name} must be a number from 0 {limit}, got {reprlib.repr(value)}")
    return float(value)


def _text(where: str, name: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not _is_unicode(value):
        raise ValueError(
            f"{where}: {name} must be text of 1 to {MAX_TEXT} characters, got {reprlib.repr(value)}"
        )
    return value


def _is_unicode(text: str) -> bool:
    """Tell whether text has no lone surrogate: JSON allows one, but SQLite cannot store it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
