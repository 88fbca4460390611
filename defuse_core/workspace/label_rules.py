"""What an answer may hold: one rule for CSV, Label Studio, archives, manifests, and what is stored.

Imports no torch.
"""

from __future__ import annotations

from typing import Protocol

from defuse_core.base.limits import MAX_CLASS_NAME, MAX_CLASSES, MAX_SAMPLES, MAX_SECONDS, MAX_TAU
from defuse_core.data.class_names import name_fault

SINGLE_MISTAKES = -1
"""The region_id of labels of single mistakes, whose `sample_id` is an index into them."""

_WHOLE = 2**63  # what SQLite can store is below


class AnswerFields(Protocol):
    """What a `LabelEvent` and its rows in files have in common."""

    @property
    def region_id(self) -> int: ...
    @property
    def annotator(self) -> str: ...
    @property
    def label(self) -> int | None: ...
    @property
    def sample_id(self) -> int | None: ...
    @property
    def tau(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def n_samples(self) -> int: ...
    @property
    def round(self) -> int: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def key(self) -> str | None: ...


def bounds_fault(answer: AnswerFields, *, n_classes: int | None = None) -> str | None:
    """Say why an answer cannot be judged, or None: its numbers are about no draw or no class.

    Parameters
    ----------
    answer : LabelEvent, or a row of a file
    n_classes : int, optional
        Of the project; by default as many as a project may have.
    """
    n_labels = MAX_CLASSES if n_classes is None else n_classes
    n_images = _WHOLE if answer.region_id == SINGLE_MISTAKES else answer.n_samples
    if not SINGLE_MISTAKES <= answer.region_id < _WHOLE:
        return f"region must be a whole number from {SINGLE_MISTAKES} up, got {answer.region_id}"
    if answer.label is not None and not 0 <= answer.label < n_labels:
        return f"label must be in 0 … {n_labels - 1}, got {answer.label}"
    if not 1 <= answer.n_samples <= MAX_SAMPLES:
        return f"n_samples must be at least 1 and at most {MAX_SAMPLES:,}, got {answer.n_samples}"
    if answer.sample_id is not None and not 0 <= answer.sample_id < n_images:
        return f"sample must be in 0 … {n_images - 1}, got {answer.sample_id}"
    if not 0 < answer.tau <= MAX_TAU:
        return f"tau must be above 0 and at most {MAX_TAU:g}, got {answer.tau:g}"
    if not 0 <= answer.seed < _WHOLE:
        return f"seed must be a whole number from 0 up, got {answer.seed}"
    return None


def answer_fault(answer: AnswerFields, *, n_classes: int | None = None) -> str | None:
    """Say why an answer cannot be stored, in words; None where it can.

    Parameters
    ----------
    answer : LabelEvent, or a row of a file
    n_classes : int, optional
        Of the project; by default as many as a project may have.
    """
    if fault := bounds_fault(answer, n_classes=n_classes):
        return fault
    if not answer.annotator.strip():
        return "annotator must be named"
    if fault := name_fault(answer.annotator):
        return f"the annotator's name {fault}: {answer.annotator[:40]!r}; rename the annotator"
    if not 1 <= answer.round < _WHOLE:
        return f"round must be a whole number from 1 up, got {answer.round}"
    if answer.seconds is not None and not 0 <= answer.seconds <= MAX_SECONDS:
        return f"seconds must be 0 to {MAX_SECONDS:,}, got {answer.seconds:g}"
    if len(answer.key or "") > MAX_CLASS_NAME:
        return f"key must have at most {MAX_CLASS_NAME} characters, got {len(answer.key or ''):,}"
    return None
