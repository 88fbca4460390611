"""Tells how fast a run goes and how long it will take, from when its progress last moved. Pure.

A time that is computed while nothing moves counts up: it is told for as long as progress keeps its pace, and
not at all after that.
"""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE = 5.0
"""Seconds without progress that are not yet a standstill."""


@dataclass(frozen=True)
class Pace:
    """A share of the work, in [0, 1], and the time at which it was first seen, in seconds."""

    share: float
    at: float

    def then(self, share: float, now: float) -> Pace:
        """What is known once progress is at `share`."""
        return self if share == self.share else Pace(share, now)


def seconds_left(pace: Pace, *, spent: float, interval: float, now: float) -> float | None:
    """Return how long a run will still take at the pace so far; None while nothing moves.

    Parameters
    ----------
    pace : Pace
        When progress last moved.
    spent : float
        Seconds that the work until then took.
    interval : float
        Seconds that a part of the work took, on average.
    now : float

    Examples
    --------
    >>> half = Pace(0.5, at=100.0)
    >>> [seconds_left(half, spent=30.0, interval=3.0, now=now) for now in (100.0, 104.0, 107.0)]
    [30.0, 26.0, None]
    """
    still = now - pace.at
    if pace.share <= 0 or spent <= 0 or still > max(PATIENCE, 2 * interval):
        return None
    left = spent * (1 - pace.share) / pace.share - still
    return left if left > 0 else None
