"""Write the slides on what was found, in words and numbers for people who do not use Defuse.

Pure: records in, slides out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isnan

from dashboard.components.slides import Fact, Figure, Panel, Said, Slide
from dashboard.present.exhibits import Correction, Exhibit, Exhibition, Share
from dashboard.present.survey import Survey
from dashboard.shell.jobs_panel import duration
from defuse_core.report import numbers
from defuse_core.report.numbers import RARE, count, judge_flips, listed, p_value
from defuse_core.report.verdicts import tell_failures, tell_fit


def slides_of(
    project: str, class_names: Sequence[str], survey: Survey, shown: Exhibition, *,
    names: Mapping[int, str], stale: bool,
) -> list[Slide]:  # fmt: skip
    """Return all slides: what was examined and found, every failure region, and the correction.

    Parameters
    ----------
    names : mapping of int to str
        Names that people gave regions.
    stale : bool
        What the correction is based on has changed since.
    """
    of = len(shown.exhibits)
    regions = [
        _region(exhibit, class_names, f"Failure {number} of {of}", names.get(exhibit.region_id, ""), survey)
        for number, exhibit in enumerate(shown.exhibits, 1)
    ]
    correction = shown.correction
    changes = [] if correction is None else [_trade_off(shown, correction), *_cost(correction, survey)]
    return [
        _title(project, survey),
        _found(survey, *shown.failures),
        *regions,
        *changes,
        _limits(survey, shown, stale=stale),
    ]


def percent(share: float) -> str:
    """Write a share in whole per cent, with a decimal place near 0 % and 100 %.

    Examples
    --------
    >>> [percent(share).replace("\xa0", " ") for share in (0.238, 0.998, 1.0, 0.9999, 0.0)]
    ['24 %', '99.8 %', '100 %', 'over 99.9 %', '0 %']
    """
    return numbers.percent(share, int(0 < share <= 0.005 or 0.995 <= share < 1))


tenths = partial(numbers.percent, digits=1)  # of the test split, where small changes matter


def _title(project: str, survey: Survey) -> Slide:
    text = (
        f"What a classifier with {tenths(survey.test[0])} test accuracy still gets wrong: "
        f"a search around {count(survey.searched, 'training image')}."
    )
    return Slide("title", project, text, cover=True)


def _found(survey: Survey, failures: int, sure: int) -> Slide:
    new = survey.mistakes.get("perturbation", 0)
    figures = (
        Figure(f"{sum(survey.mistakes.values()):,}", "mistakes", note=f"{new:,} of them new: in no data set"),
        Figure(f"{survey.regions:,}", "regions", note="groups of mistakes that look alike"),
        Figure(f"{survey.labelled:,}", "labelled", note=f"{count(survey.answers, 'answer')} on draws"),
        Figure(f"{failures:,}", "failures", note="regions most of whose draws are misclassified"),
    )
    text = f"{tell_failures(failures, sure)}." if failures else ""
    text = " ".join(filter(None, (text, survey.mark)))
    return Slide("found", "What was found", text, figures=figures)


def _region(exhibit: Exhibit, class_names: Sequence[str], over: str, name: str, survey: Survey) -> Slide:
    n = len(exhibit.before)
    verb = "said" if exhibit.after is not None else "says"
    facts = [
        _answered(exhibit, class_names, survey),
        _most_predicted(f"The classifier {verb}", exhibit.before, class_names),
    ]
    predictions = _said(exhibit, exhibit.before, class_names)
    panels = [_panel("Now" if exhibit.after is None else "Before", exhibit, exhibit.was, predictions)]
    if exhibit.after is not None:
        facts.append(_most_predicted("Corrected, it says", exhibit.after, class_names))
        predictions = _said(exhibit, exhibit.after, class_names)
        panels.append(_panel("After", exhibit, exhibit.now, predictions))
    parts = [over, f"region {exhibit.region_id}", exhibit.sureness]
    parts += ["held out, never tuned on"] * exhibit.held_out
    parts += [f"{len(exhibit.images)} of {n} draws shown"] * (len(exhibit.images) < n)
    return Slide(
        f"region-{exhibit.region_id}", name or _predicted_as(exhibit, class_names), over=" · ".join(parts),
        facts=tuple(facts), images=exhibit.images, panels=tuple(panels),
    )  # fmt: skip


def _predicted_as(exhibit: Exhibit, class_names: Sequence[str]) -> str:
    """Say what is predicted as what; "7, misclassified" where the draws do not show it."""
    if exhibit.label is None:
        return f"Region {exhibit.region_id}, misclassified"
    wrong = Counter(prediction for prediction in exhibit.before if prediction != exhibit.label).most_common(1)
    label = class_names[exhibit.label]
    return f"“{label}” predicted as “{class_names[wrong[0][0]]}”" if wrong else f"“{label}”, misclassified"


def _answered(exhibit: Exhibit, class_names: Sequence[str], survey: Survey) -> Fact:
    """Say the label, or the answers that tie, and how many draws each fits."""
    if exhibit.label is not None:
        note = f"{exhibit.agreed} of {count(exhibit.kept, 'draw')}"
        return Fact(_who(survey), class_names[exhibit.label], note)
    said = Counter(answer for answer in exhibit.answers if answer is not None).most_common()
    most = [c for c, n in said if n == said[0][1]]
    note = f"{said[0][1]} of {count(exhibit.kept, 'draw')} each: no clear majority, so no label"
    return Fact(_who(survey), listed([class_names[c] for c in most]), note)


def _who(survey: Survey) -> str:
    return "Simulated annotators say" if survey.simulated else "People say"


def _most_predicted(who: str, predictions: Sequence[int], class_names: Sequence[str]) -> Fact:
    (first, n), *others = Counter(predictions).most_common()
    rest = f" · {class_names[others[0][0]]} on {others[0][1]}" if others else ""
    return Fact(who, class_names[first], f"{n} of {count(len(predictions), 'draw')}{rest}")


def _said(exhibit: Exhibit, predictions: Sequence[int], class_names: Sequence[str]) -> tuple[Said, ...]:
    """Every prediction, with whether it is what people said of that draw."""
    return tuple(
        Said(class_names[prediction], None if answer is None else prediction == answer)
        for prediction, answer in zip(predictions, exhibit.answers, strict=True)
    )


def _panel(heading: str, exhibit: Exhibit, share: Share | None, predictions: Sequence[Said]) -> Panel:
    right = f"{sum(one.right is True for one in predictions)} of {exhibit.kept}"
    if share is None:
        note = (
            "right on the labelled draws, each by its own label; the correction did not measure this region"
        )
        figure = Figure(right, heading, note=note)
    elif exhibit.now is None:
        note = _interval(share, "labelled draws, each by its own label")
        figure = Figure(percent(share[0]), heading, note=note, bars=_bars(share))
    else:
        note = (
            f"{_interval(share, 'fresh draws')}, by the region's label, which "
            f"{tell_fit(exhibit.agreed, exhibit.kept)}. Labelled draws, each by its own: {right} right"
        )
        figure = Figure(percent(share[0]), heading, note=note, bars=_bars(share))
    return Panel(figure, tuple(predictions[: len(exhibit.images)]), heading == "After")


def _trade_off(shown: Exhibition, correction: Correction) -> Slide:
    measured = [e for e in shown.exhibits if e.now is not None]
    fit = tell_fit(*(sum(getattr(e, name) for e in measured) for name in ("agreed", "kept")))
    fresh = f"fresh draws, by the one label of their region, which {fit} that were labelled"
    figures = (
        _change("right on the regions that were repaired", correction.region, fresh, percent),
        _change("right on the test set", correction.test, "images", tenths),
    )
    text = ""
    if correction.p is not None and correction.fixed is not None and correction.broken is not None:
        text = f"The test set: {_in_words(correction.fixed, correction.broken, correction.p)}"
    return Slide("trade-off", "What changed", text, figures=figures)


def _change(label: str, shares: tuple[Share, Share], of: str, show: Callable[[float], str]) -> Figure:
    was, now = shares
    ends = [f"{show(low)} to {show(high)}" for _, low, high, _ in shares]
    note = f"95 % intervals {ends[0]}, then {ends[1]}; n = {now[3]:,} {of}"
    return Figure(show(now[0]), label, was=show(was[0]), note=note, bars=_bars(was) + _bars(now))


def _in_words(fixed: int, broken: int, p: float) -> str:
    """Say whether flips are more than chance, by McNemar's exact test.

    Examples
    --------
    >>> _in_words(12, 5, 0.143)[:62]
    'chance alone would often fix and break as unequally as 12 to 5'
    """
    test, verdict = f"McNemar’s exact test, {p_value(p)}", judge_flips(fixed, broken, p)
    if verdict in ("none", "even"):
        return f"as many images were fixed as broken, {fixed:,} each, so accuracy is what it was ({test})."
    if verdict == "chance":
        return (
            f"chance alone would often fix and break as unequally as {fixed:,} to {broken:,}, so this shows "
            f"neither gain nor loss ({test})."
        )
    way = "a gain" if verdict == "better" else "a loss"
    how = "hardly ever" if p < RARE else "seldom"
    return f"chance alone would {how} fix {fixed:,} and break {broken:,}, so this is {way} ({test})."


def _cost(correction: Correction, survey: Survey) -> list[Slide]:
    if correction.fixed is None or correction.broken is None:
        return []
    n = correction.test[1][3]
    figures = (
        Figure(
            f"{correction.fixed:,}", "fixed",
            note="test images misclassified before, and classified correctly since",
        ),
        Figure(
            f"{correction.broken:,}", "broken",
            note="test images classified correctly before, and misclassified since",
        ),
    )  # fmt: skip
    rest = count(n - correction.fixed - correction.broken, "other test image")
    text = f"The correction changed nothing for {rest}: right stayed right, and wrong stayed wrong."
    if survey.seconds:
        text += f" Labelling took {duration(survey.seconds)} for {count(survey.answers, 'answer')}."
    return [Slide("cost", "What it cost", text, figures=figures)]


def _limits(survey: Survey, exhibition: Exhibition, *, stale: bool) -> Slide:
    correction = exhibition.correction
    n_labelled, n_agreed = (sum(getattr(e, name) for e in exhibition.exhibits) for name in ("kept", "agreed"))
    points = [survey.mark] if survey.mark else []
    points += [
        "These are the bugs that one search found. There may be others: this does not say how many.",
        "The pictures come from a generator that has learnt the training images; no camera took them."
        + _reconstruction(correction),
        f"A region has one label at most, which {n_agreed:,} of the {n_labelled:,} labelled draws have "
        "themselves." + _own_label(correction),
    ]
    if correction is not None and correction.real is not None:
        was, now = correction.real
        points.append(
            f"The {count(was[3], 'real test image')} nearest to these regions: {percent(was[0])} "
            f"classified correctly before, {percent(now[0])} after."
        )
    if survey.simulated:
        points.append("No person has looked: networks stood in for people, and gave the labels.")
    if stale:
        points.append("Labels or data have changed since the correction; do it again before you rely on it.")
    if correction is None:
        points.append("Nothing is corrected yet: shown is the classifier as it is.")
    return Slide("limits", "What this does not say", points=tuple(points))


def _reconstruction(correction: Correction | None) -> str:
    if correction is None or correction.reconstruction is None:
        return ""
    return f" Redrawn by it, {percent(correction.reconstruction)} of what was classified correctly still is."


def _own_label(correction: Correction | None) -> str:
    if correction is None or correction.own_label is None:
        return ""
    return f" Of the draws tested on, it fits {percent(correction.own_label)}, by the annotators’ own votes."


def _interval(share: Share, of: str) -> str:
    return f"right on n = {share[3]:,} {of}; 95 % interval {percent(share[1])} to {percent(share[2])}"


def _bars(share: Share) -> tuple[tuple[float, float, float], ...]:
    return () if isnan(share[0]) else (share[:3],)
