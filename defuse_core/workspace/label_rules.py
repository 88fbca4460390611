"""What an answer may hold: one rule for CSV, Label Studio, archives, manifests, and what is stored.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from defuse_core.base.limits import (
    MAX_ANSWER_SECONDS,
    MAX_CLASS_NAME,
    MAX_CLASSES,
    MAX_ROUND,
    MAX_SAMPLES,
    MAX_TAU,
)
from defuse_core.data.class_names import name_fault
from defuse_core.workspace.label_events import SIMULATED_NAMES, SIMULATED_PREFIX

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


def count_mistakes(summary: Mapping[str, Any]) -> int | None:
    """Count the mistakes that a search found; None where its results do not say.

    Parameters
    ----------
    summary : mapping
        Results of a run of the step `identify`, which a stranger may have written.

    Examples
    --------
    >>> count_mistakes({"mistakes": {"flip": 3, "boundary": 2}}), count_mistakes({})
    (5, None)
    """
    kinds = summary.get("mistakes")
    numbers = list(kinds.values()) if isinstance(kinds, dict) else []
    return sum(numbers) or None if all(type(n) is int and n >= 0 for n in numbers) else None


def found_regions(summary: Mapping[str, Any]) -> frozenset[int]:
    """Return the ids of the regions in the summary of a distill run, which may be damaged, or not there yet.

    Examples
    --------
    >>> sorted(found_regions({"regions": [{"region_id": 4}, {"region_id": 2}]})), found_regions({})
    ([2, 4], frozenset())
    """
    rows = summary.get("regions")
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return frozenset(row["region_id"] for row in rows if type(row.get("region_id")) is int)


def bounds_fault(
    answer: AnswerFields, *, n_classes: int | None = None, n_mistakes: int | None = None
) -> str | None:
    """Say why an answer cannot be judged, or None: its numbers are about no draw or no class.

    Parameters
    ----------
    answer : LabelEvent, or a row of a file
    n_classes : int, optional
        Of the project; by default as many as a project may have.
    n_mistakes : int, optional
        Of the search that the regions come from; by default any number.
    """
    n_labels = MAX_CLASSES if n_classes is None else n_classes
    single = answer.region_id == SINGLE_MISTAKES
    n_images = (n_mistakes or _WHOLE) if single else answer.n_samples
    if not SINGLE_MISTAKES <= answer.region_id < _WHOLE:
        return f"region must be a whole number from {SINGLE_MISTAKES} up, got {answer.region_id}"
    if answer.label is not None and not 0 <= answer.label < n_labels:
        return f"label must be in 0 … {n_labels - 1}, got {answer.label}"
    if not 1 <= answer.n_samples <= MAX_SAMPLES:
        return f"n_samples must be at least 1 and at most {MAX_SAMPLES:,}, got {answer.n_samples}"
    if answer.sample_id is not None and not 0 <= answer.sample_id < n_images:
        return f"sample must be in 0 … {n_images - 1}, got {answer.sample_id}"
    if single and answer.sample_id is None:
        return f"sample must be the number of a mistake where region is {SINGLE_MISTAKES}, got none"
    if not 0 < answer.tau <= MAX_TAU:
        return f"tau must be above 0 and at most {MAX_TAU:g}, got {answer.tau:g}"
    if not 0 <= answer.seed < _WHOLE:
        return f"seed must be a whole number from 0 up, got {answer.seed}"
    if not 1 <= answer.round <= MAX_ROUND:
        return f"round must be at least 1 and at most {MAX_ROUND:,}, got {answer.round}"
    if answer.seconds is not None and not 0 <= answer.seconds <= MAX_ANSWER_SECONDS:
        return f"seconds must be 0 or more and at most {MAX_ANSWER_SECONDS:,.0f}, got {answer.seconds:g}"
    return None


def annotator_fault(name: str) -> str | None:
    """Say why an annotator cannot be called so, in words; None where they can.

    Examples
    --------
    >>> annotator_fault("Ada"), annotator_fault(" ")
    (None, 'annotator must be named')
    """
    if not name.strip():
        return "annotator must be named"
    if name != name.strip():  # a file of labels would name somebody else
        return f"the annotator's name has spaces at its ends: {name[:40]!r}; remove them"
    if fault := name_fault(name):
        return f"the annotator's name {fault}: {name[:40]!r}; rename the annotator"
    return None


def person_fault(name: str) -> str | None:
    """Say why a person cannot be called so: also by a name that would be taken for a simulated annotator's.

    Examples
    --------
    >>> person_fault("Ada"), person_fault(SIMULATED_NAMES[0])
    (None, None)
    """
    if name.startswith(SIMULATED_PREFIX) and name not in SIMULATED_NAMES:
        return (
            f"names that begin with {SIMULATED_PREFIX} are those of simulated annotators, "
            f"got {name[:40]!r}; rename the annotator"
        )
    return annotator_fault(name)


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
    if fault := annotator_fault(answer.annotator):
        return fault
    if len(answer.key or "") > MAX_CLASS_NAME:
        return f"key must have at most {MAX_CLASS_NAME} characters, got {len(answer.key or ''):,}"
    if answer.key and (fault := name_fault(answer.key)):
        return f"key {fault}, got {answer.key[:40]!r}"
    return None
