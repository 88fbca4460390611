"""What became of regions in a second round."""

from __future__ import annotations

import numpy as np
import pytest

from defuse_core.base.intervals import Interval
from defuse_core.extensions.rounds import follow_regions, still_misclassified, trace_regions

W = Interval.wilson
NONE = np.array([], dtype=np.int64)


def inside(**counts: int) -> np.ndarray:
    """Region of each mistake, of counts by region: r3=2 is [3, 3]; out=1 is [-1]."""
    ids = [(-1 if name == "out" else int(name[1:]), n) for name, n in counts.items()]
    return np.concatenate([np.full(n, i) for i, n in ids]) if ids else NONE


@pytest.mark.parametrize(
    ("n_wrong", "first", "second", "status"),
    [
        (0, {"r3": 100}, {}, "closed"),
        (10, {"r3": 100}, {"r3": 10}, "closed"),  # the limits themselves
        (11, {"r3": 100}, {}, "open"),
        (0, {"r3": 100}, {"r3": 11}, "open"),
        (0, {"r3": 100}, {"r4": 500, "out": 500}, "closed"),  # others are not its
        (0, {}, {"r3": 1}, "open"),
        (0, {}, {}, "closed"),
    ],
)
def test_a_region_is_closed_by_its_draws_and_by_the_search(
    n_wrong: int, first: dict[str, int], second: dict[str, int], status: str
) -> None:
    (now,) = follow_regions({3: (W(90, 100), W(n_wrong, 100))}, inside(**first), inside(**second))
    assert now.status == status
    assert (now.before.estimate, now.after.estimate) == (0.9, n_wrong / 100)
    assert (now.n_before, now.n_after) == (first.get("r3", 0), second.get("r3", 0))


def test_what_is_read_as_people_said_is_no_mistake_of_the_region() -> None:
    where, said = inside(r3=4, r4=2, out=1), np.array([7, 7, 8, 1, 7, 8, 7])
    assert still_misclassified(where, said, {3: 7, 4: 8}).tolist() == [-1, -1, 3, 3, 4, -1, -1]
    assert still_misclassified(where, said, {}).tolist() == where.tolist()
    assert still_misclassified(NONE, NONE, {3: 7}).tolist() == []


def test_limits_can_be_chosen() -> None:
    errors, first, second = {3: (W(9, 10), W(3, 10))}, inside(r3=10), inside(r3=4)
    assert follow_regions(errors, first, second, max_error=0.3, max_found=0.4)[0].status == "closed"
    assert follow_regions(errors, first, second, max_error=0.29, max_found=0.4)[0].status == "open"
    with pytest.raises(ValueError, match="limits must be 0 or more, got max_error -1"):
        follow_regions(errors, first, second, max_error=-1)


def test_a_region_without_draws_stays_open() -> None:
    assert follow_regions({3: (W(0, 0), W(0, 0))}, NONE, NONE)[0].status == "open"


def test_open_regions_come_first_the_worst_of_them_ahead() -> None:
    errors = {i: (W(10, 10), W(wrong, 10)) for i, wrong in ((1, 0), (2, 3), (3, 9))}
    assert [now.region_id for now in follow_regions(errors, NONE, NONE)] == [3, 2, 1]


def test_a_region_is_new_where_most_of_its_mistakes_lie_elsewhere() -> None:
    regions = inside(r0=10, r1=10, r2=4, out=5)
    second = np.concatenate([inside(r3=6, out=4), inside(r3=5, out=5), inside(r9=4), inside(r3=5)])
    found = trace_regions(regions, second, failures=[3, 4])
    assert [(f.region_id, f.n_mistakes, f.within, f.was_failure) for f in found] == [
        (1, 10, None, False), (0, 10, 3, True), (2, 4, 9, False),
    ]  # fmt: skip


def test_a_region_spread_over_others_is_of_the_one_it_lies_in_most() -> None:
    (found,) = trace_regions(inside(r0=9), inside(r3=2, r4=4, out=3), failures=[3, 4])
    assert found.within == 4


def test_without_failures_a_region_is_where_others_were() -> None:
    (found,) = trace_regions(inside(r0=2), inside(r3=2), failures=[])
    assert (found.within, found.was_failure) == (3, False)
    assert trace_regions(NONE, NONE, failures=[3]) == []


def test_mistakes_of_another_search_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same mistakes, got \(2,\) and \(3,\)"):
        trace_regions(inside(r0=2), inside(r0=3), failures=[])
