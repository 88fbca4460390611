"""Say the numbers of a report in plain words, for people who never heard of latent codes."""

from __future__ import annotations

from collections.abc import Sequence

from defuse_core.report import verdicts
from defuse_core.report.content import ReportContent, Tile
from defuse_core.report.numbers import count, judge_flips, p_value, percent
from defuse_core.report.verdicts import failures_told


def summary(content: ReportContent) -> list[str]:
    """Say in three sentences what was found, what the repair did there, and what it did elsewhere."""
    results, before, after = content.results, content.scores[0], content.scores[-1]
    n_mistakes = sum(results["mistakes"].values())
    search = (
        f"A search around the training pictures made {count(n_mistakes, 'new picture')} that the model "
        f"misclassifies, in {count(results['scenarios'], 'group')}; {_judges(content)} found "
        f"{failures_told(results)}, among them." + _left_out(content)
    )
    spots = "of the failure" if content.n_tuned == 1 else f"of each of {content.n_tuned} failures"
    fit = label_fit(content)
    repair = (
        f"On {count(content.n_draws, 'new picture')} {spots} the model was right "
        f"{percent(before.region.estimate)} of the time before the repair, "
        f"{percent(after.region.estimate)} after, by the one label that each failure was given"
        + (f" (it {fit})." if fit else ".")
    )
    return [search, repair, f"On the ordinary test set it was right {change_of_test(content)}."]


def label_fit(content: ReportContent) -> str:
    """Say how many pictures the one label fits: of the new ones where that is known, else of those labelled.

    Empty where neither is known.
    """
    if (agreed := content.results.get("label_agreement")) is not None:
        return f"fits {percent(agreed)} of these pictures"
    shown = (sum(getattr(region, name) for region in content.regions) for name in ("n_fit", "n_labelled"))
    n_fit, n = verdicts.label_fit(content.results) or shown
    return f"fits {n_fit:,} of {count(n, 'labelled picture')}" if n else ""


def _left_out(content: ReportContent) -> str:
    """Say how many failures the correction left out, such as those whose labels tie."""
    left = content.results["failure_regions"] - content.n_tuned - content.n_held_out
    return f" {count(left, 'of them was', 'of them were')} left out of the repair." if left > 0 else ""


def change_of_test(content: ReportContent) -> str:
    """Say how accuracy on the test split changed, and whether that could be chance."""
    before, after = content.scores[0].test.estimate, content.scores[-1].test.estimate
    flips = content.results["flips"]
    accuracies = f"{percent(before, 1)} of the time before and {percent(after, 1)} after"
    fixed = f"{count(flips['fixed'], 'picture')} fixed, {flips['broken']} broken"
    verdict = judge_flips(flips["fixed"], flips["broken"], flips["p"])
    if verdict == "none":
        return f"{accuracies} (no picture fixed, none broken)"
    if verdict == "even":
        return f"{accuracies} ({fixed}: no difference in all)"
    sure = "could be chance" if verdict == "chance" else "is more than chance would explain"
    return f"{accuracies} ({fixed}; that difference {sure}, {p_value(flips['p'])})"


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
    wrong = [tile.before for tile in tiles if tile.wanted not in (None, tile.before)]
    return max(wrong, key=wrong.count, default="")


def rule(content: ReportContent) -> str:
    """Say how λ was chosen."""
    config = content.results["settings"].get("correct", {})
    split = "validation" if "validation" in content.dataset["sizes"] else "training"
    if config.get("rule") == "paper":
        return f"the one with the most {split} pictures classified correctly"
    if config.get("rule") == "regions":
        return (
            "the one that predicts the label of their failure for the most pictures it was trained on, of "
            f"those that lose at most {_points(config['max_loss'] * 100)} on the {split} pictures"
        )
    return str(content.results["rule"])


def _points(n: float) -> str:
    return f"{n:g} point" if n == 1 else f"{n:g} points"
