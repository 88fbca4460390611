"""Compare two rounds: what the search of the corrected classifier finds in the regions of the first round.

A failure region is *closed* if the corrected classifier misclassifies few of its draws and the second
search finds few mistakes in it, both by stated limits; else it is still open. Draws alone would not be
enough: the classifier was tuned on other draws of the same regions. A code that is predicted as the label
of its region does not count as a mistake, even where its source image has another label: the correction
teaches the region's label. A region of the second round is *new* unless most of its mistakes lie in regions
of the first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from defuse_core.base.intervals import Interval

MAX_ERROR = 0.1
"""Share of a closed region's draws that may still be misclassified."""

MAX_FOUND = 0.1
"""Mistakes that the second search may find in a closed region, as a share of the first's."""

_MOST = 0.5  # above this share of mistakes in known regions, a region is not new


@dataclass(frozen=True)
class RegionNow:
    """A failure region of the first round.

    Attributes
    ----------
    region_id : int
    status : {"closed", "open"}
    before, after : Interval
        Share of its test draws that are misclassified before and after correction.
    n_before, n_after : int
        Mistakes that the first and the second search found in it, less those that `still_misclassified`
        leaves out.
    """

    region_id: int
    status: Literal["closed", "open"]
    before: Interval
    after: Interval
    n_before: int
    n_after: int


@dataclass(frozen=True)
class RegionFound:
    """A region of the second round.

    Attributes
    ----------
    region_id : int
        Among the regions of the second round.
    n_mistakes : int
    within : int or None
        Region of the first round that holds the most of its mistakes; None if the region is new.
    was_failure : bool
        Whether `within` was a failure region.
    """

    region_id: int
    n_mistakes: int
    within: int | None
    was_failure: bool = False


def still_misclassified(
    inside: NDArray[np.int64], predictions: NDArray[np.int64], labels: Mapping[int, int]
) -> NDArray[np.int64]:
    """Leave out the mistakes that are predicted as the label of the region they lie in.

    Parameters
    ----------
    inside : (n_mistakes,) int64
        Region of each mistake, -1 for none.
    predictions : (n_mistakes,) int64
        Of the classifier that was searched.
    labels : mapping of int to int
        Label of each failure region, by region_id.

    Returns
    -------
    (n_mistakes,) int64
        `inside` with -1 where they are left out.

    Examples
    --------
    >>> still_misclassified(np.array([3, 3, 4]), np.array([7, 8, 7]), {3: 7}).tolist()
    [-1, 3, 4]
    """
    region_labels = np.array([labels.get(i, -1) for i in inside.tolist()], dtype=np.int64)
    return np.where((region_labels == predictions) & (region_labels >= 0), -1, inside)


def follow_regions(
    errors: Mapping[int, tuple[Interval, Interval]],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    *,
    max_error: float = MAX_ERROR,
    max_found: float = MAX_FOUND,
) -> list[RegionNow]:
    """Say which failure regions of the first round are closed.

    Parameters
    ----------
    errors : mapping of int to (Interval, Interval)
        By failure region: share of its test draws misclassified before and after correction.
    first, second : (n_mistakes,) int64
        Region of the first round in which each mistake of the first and of the second search lies, -1 for
        none. Both searches must use the same images and settings.
    max_error, max_found : float
        Limits of a closed region, 0 or more.

    Returns
    -------
    list of RegionNow
        Those still open first, the most misclassified first among them.

    Examples
    --------
    >>> errors = {3: (Interval.wilson(9, 10), Interval.wilson(0, 10))}
    >>> follow_regions(errors, np.array([3, 3, 3, -1]), np.array([-1, 5]))[0].status
    'closed'
    """
    if min(max_error, max_found) < 0:
        raise ValueError(f"limits must be 0 or more, got max_error {max_error}, max_found {max_found}")
    regions = []
    for region_id, (before, after) in errors.items():
        n_before, n_after = (int((inside == region_id).sum()) for inside in (first, second))
        closed = after.n > 0 and after.estimate <= max_error and n_after <= max_found * n_before
        status: Literal["closed", "open"] = "closed" if closed else "open"
        regions.append(RegionNow(region_id, status, before, after, n_before, n_after))
    return sorted(regions, key=lambda now: (now.status == "closed", -now.after.estimate, now.region_id))


def trace_regions(
    regions: NDArray[np.int64], second: NDArray[np.int64], *, failures: Collection[int]
) -> list[RegionFound]:
    """Say which regions of the second round are new.

    Parameters
    ----------
    regions : (n_mistakes,) int64
        Region of the second round in which each mistake of the second search lies, -1 for none.
    second : (n_mistakes,) int64
        Region of the first round in which the same mistakes lie, -1 for none.
    failures : collection of int
        Failure regions of the first round.

    Returns
    -------
    list of RegionFound
        New ones first, the largest first among them; regions without a mistake are left out.
    """
    if regions.shape != second.shape:
        raise ValueError(
            f"regions and second must be of the same mistakes, got {regions.shape} and {second.shape}"
        )
    traced = []
    for region_id in np.unique(regions[regions >= 0]).tolist():
        lying = second[regions == region_id]
        known, counts = np.unique(lying[lying >= 0], return_counts=True)
        within = int(known[counts.argmax()]) if counts.sum() > _MOST * len(lying) else None
        traced.append(RegionFound(region_id, len(lying), within, within in failures))
    return sorted(traced, key=lambda region: (region.within is not None, -region.n_mistakes))
