"""Say the numbers of a report in plain words, for people who never heard of latent codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from defuse_core.base.intervals import Interval

if TYPE_CHECKING:  # it imports torch, and pages that only say numbers do not
    from defuse_core.report.content import ReportContent, Tile

SURE = 0.05  # p-value below which a change is more than chance


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


def chance(p: float) -> str:
    """Say a p-value: the one format of page, report and command.

    Parameters
    ----------
    p : float
        In [0, 1].

    Examples
    --------
    >>> chance(0.1435), chance(0.00002), chance(1.0)
    ('p = .14', 'p < .001', 'p = 1')
    """
    if p < 0.001:
        return "p < .001"
    digits = 3 if p < 0.0095 else 2
    return "p = " + (f"{p:.{digits}f}".removeprefix("0") if p < 0.995 else "1")


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


def summary(content: ReportContent) -> list[str]:
    """Say in three sentences what was found, what the repair did there, and what it did elsewhere."""
    results, before, after = content.results, content.scores[0], content.scores[-1]
    n_mistakes, agreed = sum(results["mistakes"].values()), results.get("label_agreement")
    search = (
        f"A search around the training pictures made {count(n_mistakes, 'new picture')} that the model "
        f"misclassifies, in {count(results['scenarios'], 'group')}; {_judges(content)} found "
        f"{results['failure_regions']} of the groups to be weak spots."
    )
    spots = "of the weak spot" if content.n_tuned == 1 else f"of each of {content.n_tuned} weak spots"
    repair = (
        f"On {count(content.n_draws, 'new picture')} {spots} the model was right "
        f"{percent(before.region.estimate)} of the time before the repair, "
        f"{percent(after.region.estimate)} after, by the one label that each weak spot was given"
        + (f" (it fits {percent(agreed)} of these pictures)." if agreed is not None else ".")
    )
    return [search, repair, f"On the ordinary test set it was right {change_of_test(content)}."]


def change_of_test(content: ReportContent) -> str:
    """Say how accuracy on the test split changed, and whether that could be chance."""
    before, after = content.scores[0].test.estimate, content.scores[-1].test.estimate
    flips = content.results["flips"]
    accuracies = f"{percent(before, 1)} of the time before and {percent(after, 1)} after"
    fixed = f"{count(flips['fixed'], 'picture')} fixed, {flips['broken']} broken"
    if not flips["fixed"] + flips["broken"]:
        return f"{accuracies} (no picture fixed, none broken)"
    if flips["fixed"] == flips["broken"]:
        return f"{accuracies} ({fixed}: no difference in all)"
    sure = "could be chance" if flips["p"] >= SURE else "is more than chance would explain"
    return f"{accuracies} ({fixed}; that difference {sure}, {chance(flips['p'])})"


def _judges(content: ReportContent) -> str:
    n = len(content.annotators)
    if content.simulated:
        return count(n, "simulated annotator") + (" (a program)" if n == 1 else " (programs, not people)")
    return "one person" if n == 1 else f"{n} annotators"


def readings(tiles: Sequence[Tile], when: str) -> str:
    """Say what pictures are predicted as, the most frequent prediction first, at most four.

    Parameters
    ----------
    tiles : sequence of Tile
    when : {"before", "after"}

    Examples
    --------
    >>> import numpy as np
    >>> from defuse_core.report.content import Tile
    >>> picture = np.zeros((2, 2, 1), dtype=np.uint8)
    >>> readings([Tile(picture, "7", said, "7") for said in ("1", "1", "9", "7")], "before")
    '1 (2), 9 (1), 7 (1)'
    """
    said = [str(getattr(tile, when)) for tile in tiles]
    names = sorted(set(said), key=lambda name: (-said.count(name), said.index(name)))
    text = ", ".join(f"{name} ({said.count(name)})" for name in names[:4])
    return text + (f" and {count(len(names) - 4, 'other')}" if len(names) > 4 else "")


def mostly(tiles: Sequence[Tile]) -> str:
    """Return the most frequent wrong prediction before; empty if there is none."""
    wrong = [tile.before for tile in tiles if tile.before != tile.wanted]
    return max(wrong, key=wrong.count, default="")


def rule(content: ReportContent) -> str:
    """Say how λ was chosen."""
    config = content.results["settings"].get("correct", {})
    split = "validation" if "validation" in content.dataset["sizes"] else "training"
    if config.get("rule") == "paper":
        return f"the one with the most {split} pictures classified correctly"
    if config.get("rule") == "regions":
        return (
            "the one that predicts the label of their weak spot for the most pictures it was trained on, of "
            f"those that lose at most {_points(config['max_loss'] * 100)} on the {split} pictures"
        )
    return str(content.results["rule"])


def _points(n: float) -> str:
    return f"{n:g} point" if n == 1 else f"{n:g} points"


def _four(share: Interval | Sequence[float | None]) -> tuple[float | None, float | None, float | None, int]:
    if isinstance(share, Interval):
        return share.estimate, share.low, share.high, share.n
    estimate, low, high, n = share
    return estimate, low, high, int(n or 0)
