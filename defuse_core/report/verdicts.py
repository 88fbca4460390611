"""Say verdicts in words, the same on every page, on slides, in the report and in files. No torch.

A region is a failure or not by the paper's rule, which `method.labeling.reach_verdict` applies. Beside that
stands whether the answers decide it: a verdict is sure once the interval of its error leaves out ρ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from defuse_core.report.numbers import count

if TYPE_CHECKING:
    from defuse_core.base.records import Verdict

Status = Literal["unlabelled", "none of the above", "undecided", "not a failure", "failure"]
"""Undecided: answered, but no draw has a clear answer, since annotators tie."""


def status_of(verdict: Verdict | None) -> Status:
    """Return what the answers say of a region; None is a region without any.

    Parameters
    ----------
    verdict : Verdict or None
    """
    if verdict is None:
        return "unlabelled"
    if verdict.is_failure:
        return "failure"
    if verdict.n_kept:
        return "not a failure"
    return "undecided" if verdict.n_disagreed or verdict.n_unanswered else "none of the above"


def sureness_of(verdict: Verdict | None) -> Literal["", "sure", "not sure"]:
    """Return whether the answers decide a verdict; empty where there is nothing to decide.

    Parameters
    ----------
    verdict : Verdict or None
    """
    if verdict is None or not verdict.n_kept:
        return ""
    return "sure" if verdict.is_sure else "not sure"


def tell_status(verdict: Verdict | None) -> str:
    """Say the status of a region and whether it is sure.

    Parameters
    ----------
    verdict : Verdict or None
    """
    sure = None if verdict is None or not verdict.n_kept else verdict.is_sure
    return with_sureness(status_of(verdict), sure)


def with_sureness(status: Status, sure: bool | None) -> str:
    """Say a status and whether it is sure.

    Parameters
    ----------
    status : Status
    sure : bool or None
        None where there is nothing to decide, or where that was not stored.

    Examples
    --------
    >>> with_sureness("failure", False), with_sureness("unlabelled", None)
    ('failure, not sure', 'unlabelled')
    """
    return status if sure is None else f"{status}, {'sure' if sure else 'not sure'}"


def count_failures(verdicts: Iterable[Verdict]) -> tuple[int, int]:
    """Count the failures among verdicts, and how many of them are sure.

    Parameters
    ----------
    verdicts : iterable of Verdict
    """
    failures = [verdict for verdict in verdicts if verdict.is_failure]
    return len(failures), sum(verdict.is_sure for verdict in failures)


def tell_failures(n: int, n_sure: int | None) -> str:
    """Say how many failures there are.

    Parameters
    ----------
    n : int
    n_sure : int or None
        How many of them are sure; None where that was not stored.

    Examples
    --------
    >>> tell_failures(4, 2), tell_failures(1, 0), tell_failures(0, 0), tell_failures(3, None)
    ('4 failures, 2 of them sure', '1 failure, not sure', '0 failures', '3 failures')
    """
    failures = count(n, "failure")
    if not n or n_sure is None:
        return failures
    if n == 1:
        return f"{failures}, {'sure' if n_sure else 'not sure'}"
    return f"{failures}, {n_sure} of them sure"


def tell_label(verdict: Verdict, name: str | None) -> str:
    """Say the label of a region and how many draws it fits, or that no label has a clear majority.

    Parameters
    ----------
    verdict : Verdict
    name : str or None
        Of the label; None where the region has none.

    Examples
    --------
    >>> from defuse_core.base.intervals import Interval
    >>> from defuse_core.base.records import Verdict
    >>> tell_label(Verdict(0, True, 4, (9, 4, 4, None), Interval.wilson(3, 3)), "four")
    'four, fits 2 of 3 draws'
    >>> tell_label(Verdict(0, True, None, (9, 4), Interval.wilson(2, 2)), None)
    'no label: the most frequent ones tie'
    """
    if name is None:
        return "no label: the most frequent ones tie" if verdict.n_kept else "no label"
    return f"{name}, {tell_fit(verdict.n_fit, verdict.n_kept)}"


def tell_fit(n_fit: int, n: int) -> str:
    """Say how many labelled draws have the label of their region themselves.

    Parameters
    ----------
    n_fit, n : int

    Examples
    --------
    >>> tell_fit(5, 10)
    'fits 5 of 10 draws'
    """
    return f"fits {n_fit:,} of {count(n, 'draw')}"


def failures_told(results: Mapping[str, Any]) -> str:
    """Say how many failures an evaluation had, and how many of them are sure.

    Parameters
    ----------
    results : mapping
        results.json.
    """
    return tell_failures(results["failure_regions"], results.get("sure_failures"))


def label_fit(results: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return how many labelled draws have the label of their region themselves, and of how many.

    None where an older evaluation did not count.

    Parameters
    ----------
    results : mapping
        results.json.
    """
    fits = [row["fits"] for row in results.get("by_region", ()) if row.get("fits")]
    return (sum(fit[0] for fit in fits), sum(fit[1] for fit in fits)) if fits else None
