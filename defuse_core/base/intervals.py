"""Shares with their confidence intervals. Imports no torch, and not scipy.stats: that takes as long."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """An estimated share with its confidence interval, in [0, 1]; NaN and [0, 1] where n = 0."""

    estimate: float
    low: float
    high: float
    n: int

    @staticmethod
    def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
        """Return Wilson's score interval (1927) of `successes` out of `n`.

        Parameters
        ----------
        successes : int
            In [0, n].
        n : int
            0 or more.
        confidence : float
            In (0, 1).

        Raises
        ------
        ValueError
            If successes is not in [0, n], or confidence not in (0, 1).

        Examples
        --------
        >>> Interval.wilson(5, 10)
        Interval(estimate=0.5, low=0.2366, high=0.7634, n=10)
        """
        if not 0 <= successes <= n:
            raise ValueError(f"successes must be in [0, n = {n}], got {successes}")
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be in (0, 1), got {confidence}")
        if n == 0:
            return Interval(float("nan"), 0.0, 1.0, 0)
        estimate, z = successes / n, NormalDist().inv_cdf((1 + confidence) / 2)
        centre = (estimate + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * sqrt(estimate * (1 - estimate) / n + z**2 / (4 * n**2))
        low = 0.0 if successes == 0 else centre - half
        high = 1.0 if successes == n else centre + half
        return Interval(estimate, low, high, n)

    def __repr__(self) -> str:
        ends = f"low={self.low:.4g}, high={self.high:.4g}"
        return f"Interval(estimate={self.estimate:.4g}, {ends}, n={self.n})"

    def __str__(self) -> str:
        return f"{self:.3f}, n = {self.n:,}"

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"
