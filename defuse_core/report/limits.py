"""Say in plain words what the numbers of a report do not mean: only the limits that apply to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from defuse_core.report.content import ReportContent
from defuse_core.report.generator import SHARP, deceives
from defuse_core.report.numbers import count, percent


@dataclass(frozen=True)
class Limit:
    """What a number does not say: a few words, and the sentences."""

    title: str
    text: str


def limits(content: ReportContent) -> list[Limit]:
    """Return the limits that the numbers call for, the most serious first."""
    parts = (
        _of_pictures, _of_labels, _of_annotators, _of_generator, _of_readers, _of_test, _of_measure,
        _of_search,
    )  # fmt: skip
    return list(chain.from_iterable(part(content) for part in parts))


def _of_pictures(content: ReportContent) -> Iterator[Limit]:
    text = (
        "The pictures of failures come from a generator, not from a camera. What is shown to be repaired "
        "is how the model classifies such pictures; how often they occur in use is not known."
    )
    nearest = content.results.get("nearest")
    if nearest and nearest["pooled"]["before"][3]:
        before, after, n = nearest["pooled"]["before"], nearest["pooled"]["after"], 3
        text += (
            f" Of the {before[n]} real test pictures nearest to them the model read "
            f"{percent(before[0])} correctly before and {percent(after[0])} after."
        )
        n_nearest = sum(len(row["index"]) for row in nearest["regions"])
        same = sum(row["same_label"] for row in nearest["regions"])
        text += f" {same} of the {count(n_nearest, 'nearest picture')} have the label of their failure."
    yield Limit("Wins on generated pictures, not on photographs", text)


def _of_labels(content: ReportContent) -> Iterator[Limit]:
    fit, after = content.results.get("label_agreement"), percent(content.scores[-1].region.estimate)
    if fit is not None:
        yield Limit(
            f"One label fits {percent(fit)} of the pictures of a failure",
            "All pictures of a failure were given one label. Asked about each picture alone, the "
            f"annotators would give that label to {percent(fit)} of them. So {after} after the repair means "
            "that the model says what the label says, not that it is right so often: look at the pictures.",
        )
        return
    n_labelled, n_fit = (sum(getattr(r, name) for r in content.regions) for name in ("n_labelled", "n_fit"))
    if n_labelled:
        yield Limit(
            "One label for all pictures of a failure",
            f"In the failures shown here {n_fit} of {n_labelled} pictures that were labelled one by one got "
            f"the label that their failure was given. The new pictures, on which the {after} was "
            "measured, were labelled by nobody: they count as right where the model says that label.",
        )


def _of_annotators(content: ReportContent) -> Iterator[Limit]:
    agreed = content.results["agreement"]["unanimous"]
    if content.simulated:
        alike = "" if agreed is None else f", which all agreed on {percent(agreed)} of the pictures"
        networks = "other networks" if len(content.annotators) > 1 else "another network"
        yield Limit(
            "Nobody looked at the pictures",
            f"The labels come from {count(len(content.annotators), 'simulated annotator')}: {networks}"
            f"{alike}. They may share blind spots with the model. Before a decision rests on this, have "
            "people label the failures.",
        )
    elif len(content.annotators) == 1:
        yield Limit(
            "One person labelled",
            "How far another person would agree is not known: the labels are one opinion.",
        )
    elif agreed is not None and agreed < 0.8:
        yield Limit(
            "The annotators disagree",
            f"All agreed on {percent(agreed)} of the pictures; where they did not, the majority counts.",
        )


def _of_generator(content: ReportContent) -> Iterator[Limit]:
    results = content.results
    still, kinds = results["still_correct_after_reconstruction"], results["mistakes"]
    own, n = kinds["reconstruction"], max(sum(kinds.values()), 1)
    if still is not None and still < SHARP:
        yield Limit(
            "The generator is blurry",
            f"Of the training pictures that the model classifies correctly, only {percent(still, 1)} are "
            "still classified correctly after the generator has merely copied them. A part of the "
            "mistakes is the generator's, not the model's; train the generator further before you trust "
            "them.",
        )
    elif own:
        yield Limit(
            "Some mistakes are the generator's",
            f"{percent(own / n)} of the mistakes found are around pictures that the model classifies "
            "correctly, but misclassifies once the generator has copied them. Of all pictures classified "
            f"correctly, {percent(still, 1)} still are after copying.",
        )


def _of_readers(content: ReportContent) -> Iterator[Limit]:
    still = content.results["still_correct_after_reconstruction"]
    read = content.results.get("still_correct_by_annotators")
    if deceives(still, read):
        yield Limit(
            "The generator pleases this model",
            f"{percent(still, 1)} of the copies are still classified correctly by the model, "
            f"{percent(read, 1)} by the annotators, whom the generator never saw. A part of what looks right "
            "to the model does not look right to others.",
        )


def _of_test(content: ReportContent) -> Iterator[Limit]:
    test = content.scores[-1].test
    half = (test.high - test.low) / 2
    yield Limit(
        "The test set is looked at many times",
        f"The setting of the repair was chosen without the test set. But its {test.n:,} pictures serve "
        "every row of the trade-off: whoever picks another row from it has chosen by the test set. One "
        f"accuracy on it is sure to about ±{half * 100:.1f} points.",
    )
    if "validation" not in content.dataset["sizes"]:
        yield Limit(
            "No validation set",
            "The data has none, so how long to train was chosen on the training pictures, on which almost "
            "every setting looks good.",
        )


def _of_measure(content: ReportContent) -> Iterator[Limit]:
    seeds = {int(point.get("repeat", 0)) for point in content.sweep}
    text = "Another start of the random numbers finds other failures and gives other figures. "
    if len(seeds) > 1:
        text += f"The repair was done {len(seeds)} times, search and labels once. "
    yield Limit(
        "Everything was searched once",
        text
        + "The intervals say how sure a share is given these failures, not how another search would end.",
    )
    if not content.n_held_out:
        yield Limit(
            "No failure was kept back",
            "The repair was measured on new pictures of the same failures that it was trained on. "
            "Whether it carries over to other failures was not measured.",
        )


def _of_search(content: ReportContent) -> Iterator[Limit]:
    results = content.results
    if content.n_judged < results["scenarios"]:
        yield Limit(
            "Not every group was looked at",
            f"{content.n_judged} of {results['scenarios']} groups were labelled; there may be failures "
            "among the others.",
        )
    if not results["mixture"]["converged"]:
        yield Limit(
            "The grouping did not settle",
            f"It was stopped after {results['mixture']['iterations']} rounds; with more, groups may differ.",
        )
    yield Limit(
        "What the model gets right is not a guarantee",
        "The search makes mistakes visible, it does not count them: that a mistake is not in this "
        "report does not mean that it is not there.",
    )
