"""Say shares, counts and p-values: one format each, for report, pages, slides and command line. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from defuse_core.base.intervals import Interval

SURE = 0.05  # p-value below which a change is more than chance
RARE = 0.001  # p-value below which it hardly ever is chance

Flips = Literal["none", "even", "chance", "better", "worse"]


def percent(share: float | None, digits: int = 0) -> str:
    """Say a share in per cent; a share strictly between 0 and 1 never rounds to 0 % or 100 %.

    Parameters
    ----------
    share : float or None
        In [0, 1]; None and NaN are a dash.
    digits : int
        Decimal places.

    Examples
    --------
    >>> percent(0.2435), percent(0.9999), percent(1.0), percent(0.967, 1)
    ('24\\xa0%', 'over 99\\xa0%', '100\\xa0%', '96.7\\xa0%')
    """
    if share is None or share != share:
        return "–"
    least = 10.0**-digits
    if 0 < share < 1 and f"{share * 100:.{digits}f}" == f"{100:.{digits}f}":
        return f"over {100 - least:.{digits}f}\xa0%"
    if 0 < share < 1 and f"{share * 100:.{digits}f}" == f"{0:.{digits}f}":
        return f"under {least:.{digits}f}\xa0%"
    return f"{share * 100:.{digits}f}\xa0%"


def within(found: Interval | Sequence[float | None] | None, digits: int = 1) -> str:
    """Say a share in per cent, and in brackets its interval.

    Parameters
    ----------
    found : Interval, (estimate, low, high, n) or None
        A dash if it is None or n = 0.
    digits : int
        Decimal places.

    Examples
    --------
    >>> within(Interval.wilson(960, 1000))
    '96.0\xa0% (94.6 to 97.0\xa0%)'
    """
    ends = interval(found, digits)
    return ends if found is None or ends == "–" else f"{percent(_four(found)[0], digits)} ({ends})"


def interval(found: Interval | Sequence[float | None] | None, digits: int = 1) -> str:
    """Say an interval's ends in per cent.

    Parameters
    ----------
    found : Interval, (estimate, low, high, n) or None
        A dash if it is None or n = 0.
    digits : int
        Decimal places.

    Examples
    --------
    >>> interval(Interval.wilson(960, 1000))
    '94.6 to 97.0\\xa0%'
    """
    if found is None:
        return "–"
    _, low, high, n = _four(found)
    if not n or low is None or high is None:
        return "–"
    return f"{low * 100:.{digits}f} to {high * 100:.{digits}f}\xa0%"


def p_value(p: float) -> str:
    """Say a p-value, with two digits that count.

    Examples
    --------
    >>> p_value(0.1435), p_value(0.019), p_value(0.00002), p_value(1.0)
    ('p = 0.14', 'p = 0.019', 'p < 0.001', 'p = 1')
    """
    return f"p < {RARE:g}" if p < RARE else f"p = {p:.2g}"


def judge_flips(fixed: int, broken: int, p: float) -> Flips:
    """Tell what flips on the test split show, by McNemar's exact test.

    Parameters
    ----------
    fixed, broken : int
        Test images whose verdict became right, and those whose verdict became wrong.
    p : float
        The test's p-value, in [0, 1].

    Returns
    -------
    {"none", "even", "chance", "better", "worse"}
        Nothing changed; as many were fixed as broken; the difference could be chance; it is more than that.

    Examples
    --------
    >>> judge_flips(0, 0, 1.0), judge_flips(3, 3, 1.0), judge_flips(12, 5, 0.14), judge_flips(30, 1, 3e-8)
    ('none', 'even', 'chance', 'better')
    """
    if fixed == broken:
        return "even" if fixed else "none"
    if p >= SURE:
        return "chance"
    return "better" if fixed > broken else "worse"


def count(n: int, one: str, many: str = "") -> str:
    """Say a number with its noun.

    Parameters
    ----------
    n : int
    one, many : str
        Noun in singular and plural; the plural is by default that with an s.

    Examples
    --------
    >>> count(1, "picture"), count(1200, "picture")
    ('1 picture', '1,200 pictures')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """Join names with commas and a last "and".

    Examples
    --------
    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def _four(share: Interval | Sequence[float | None]) -> tuple[float | None, float | None, float | None, int]:
    if isinstance(share, Interval):
        return share.estimate, share.low, share.high, share.n
    estimate, low, high, n = share
    return estimate, low, high, int(n or 0)
