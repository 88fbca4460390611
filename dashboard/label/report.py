"""Shows the verdict on a region, how far annotators agree, and the time they spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

from dashboard.components.image_grid import Tile, image_grid
from dashboard.components.label_queue import Subject
from dashboard.label.simulated import find_simulated
from dashboard.shared import charts, kept
from dashboard.shared.region_data import Draws
from dashboard.shell import store
from dashboard.shell.jobs_panel import duration
from dashboard.shell.state import plain, recall, remember
from defuse_core.base.limits import MAX_COMPARED_DRAWS
from defuse_core.data.class_names import NONE_OF_THE_ABOVE
from defuse_core.report.verdicts import Status, status_of, tell_label, tell_status
from defuse_core.workspace.labels import SINGLE_MISTAKES, LabelEvent
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

if TYPE_CHECKING:
    from defuse_core.base.records import Annotation
    from defuse_core.extensions.answers import Answers

_ICONS: dict[Status, str] = {
    "failure": "bug_report",
    "not a failure": "check_circle",
    "undecided": "balance",
    "none of the above": "block",
}


def show_verdict(
    project: Project, run: Run, subject: Subject, events: Sequence[LabelEvent], *, hidden: bool
) -> None:
    """Show the verdict on a region as it stands, and how many more answers would decide it."""
    from defuse_core.extensions.answers import answers_by_region

    st.markdown("**Verdict**")
    answers = answers_by_region(events).get(subject.region)
    if hidden:
        st.caption("Hidden until all images are answered.")
    elif answers is None:
        st.markdown(_UNLABELLED)
    elif (answers.tau, answers.seed) != (subject.tau, subject.seed) or answers.simulated:
        st.markdown(_UNLABELLED)
        _tell_other_verdict(run, subject.region, answers)
    else:
        draws = kept.draws(run.id, subject.region, answers.tau, answers.n_samples)
        if draws is not None:
            rho = kept.labeling(run.id).disagreement_threshold
            _tell_verdict(project, subject.region, draws, answers.annotations, rho)
    mine = [e for e in events if e.annotator == subject.annotator]
    spent = [sum(e.seconds or 0.0 for e in part) for part in (_of(mine, subject.region), mine)]
    st.caption(f"Time spent: {duration(spent[0])} here, {duration(spent[1])} in all")
    if subject.round == 2:
        _tell_self_agreement(events, subject.annotator)


_UNLABELLED = ":material/radio_button_unchecked: **not labelled yet**"


def _tell_other_verdict(run: Run, region_id: int, answers: Answers) -> None:
    """Say what counts until the draws that are shown are answered by a person."""
    verdict = (kept.verdicts(run.id) or {}).get(region_id)
    if verdict is not None:
        whose = "simulated annotators" if answers.simulated else "the draws that were labelled last"
        st.caption(
            f"Until you answer, it counts as: {tell_status(verdict)}; by {whose}, at τ = {answers.tau:g}."
        )


def _tell_verdict(
    project: Project, region_id: int, draws: Draws, annotations: Sequence[Annotation], rho: float
) -> None:
    import torch

    from defuse_core.method.labeling import more_to_decide, reach_verdict

    verdict = reach_verdict(
        region_id, torch.from_numpy(draws.predictions), annotations, disagreement_threshold=rho
    )
    st.markdown(f":material/{_ICONS[status_of(verdict)]}: **{tell_status(verdict)}**")
    error = verdict.error
    if verdict.n_kept:
        st.metric(
            "Error", f"{error.estimate:.0%}", help="Share of the images that the classifier misclassifies"
        )
        st.caption(f"95 % interval {error.low:.2f} … {error.high:.2f}, n = {error.n}")
        more = more_to_decide(error, threshold=rho)
        if more:
            st.caption(f"{more} more like these would decide.")
        elif more is None:
            st.caption(f"Just ρ = {rho:g} of them: more answers like these would not decide.")
    if verdict.n_disagreed:
        st.caption(f"{verdict.n_disagreed} left out: the annotators disagree on them.")
    if not verdict.n_kept:
        return
    counts = "a failure" if verdict.is_failure else "no failure"
    name = None if verdict.label is None else plain(project.class_names[verdict.label])
    label = f"Label: {tell_label(verdict, name)}."
    if name is None:
        label = f"{tell_label(verdict, None).capitalize()}. Label more draws, or split the region."
    st.caption(f"{label} By the paper's rule (more than ρ = {rho:g} misclassified) it counts as {counts}.")


def _tell_self_agreement(events: Sequence[LabelEvent], annotator: str) -> None:
    from defuse_core.extensions.answers import self_agreement

    again = self_agreement(events, annotator)
    if again.n:
        st.metric("You agree with yourself", f"{again.estimate:.0%}", help=f"{again} of {again.n} images")
    else:
        st.caption(
            "A second pass does not count as a vote: answer the same images again, and see how often "
            "you agree with yourself."
        )


def _of(events: Sequence[LabelEvent], region_id: int) -> list[LabelEvent]:
    return [event for event in events if event.region_id == region_id]


def show_opinion(
    project: Project, run: Run, subject: Subject, draws: Draws, mine: Sequence[LabelEvent], *, complete: bool
) -> None:
    """Offer the answers of the simulated annotators, once the person has answered."""
    simulated = find_simulated(project)
    if simulated is None:
        return
    key = f"opinion-{run.id}-{subject.region}-{subject.tau}-{subject.n_samples}-{simulated.run}"
    if not complete:
        st.caption("Five simulated annotators give a second opinion once you have answered every image.")
        return
    if not recall(key):
        st.button(
            "Ask for a second opinion", icon=":material/group:", on_click=remember, args=(key, True),
            help=f"Of {simulated}, on these images; it does not count",
        )  # fmt: skip
        return
    said = kept.opinions(
        run.id, subject.region, tau=subject.tau, n=subject.n_samples,
        trained=simulated.run,
    )  # fmt: skip
    if said is None:
        return
    yours = _answers(mine, subject.n_samples)
    same = sum(_majority_is(own, votes) for own, votes in zip(yours, said, strict=True))
    st.markdown(f"**Second opinion:** the majority of {simulated} agrees with you on {same} of {len(said)}.")
    names = project.class_names
    tiles = []
    for image, own, votes in zip(draws.images, yours, said, strict=True):
        caption = f"you {_word(own, names)}\nthey {' '.join(_word(vote, names) for vote in votes)}"
        tiles.append(Tile([image], caption=caption, alt=["a draw"]))
    image_grid(tiles, key="opinions")


def _majority_is(label: int | None, votes: Sequence[int | None]) -> bool:
    """Tell whether a label is the most frequent answer, without a tie."""
    ranked = Counter(votes).most_common(2)
    tied = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
    return not tied and ranked[0][0] == label


def _word(label: int | None, names: Sequence[str]) -> str:
    return "–" if label is None else names[label]


def _answers(mine: Sequence[LabelEvent], n: int) -> list[int | None]:
    """Return the annotator's answer on each of n draws; all of them are answered."""
    whole = [event.label for event in mine if event.sample_id is None]
    own = {event.sample_id: event.label for event in mine if event.sample_id is not None}
    return [own.get(sample, whole[-1] if whole else None) for sample in range(n)]


def _shared(events: Sequence[LabelEvent]) -> set[str]:
    """Return who answered draws that somebody else answered, too."""
    by_draws: dict[tuple[int, float, int, int], set[str]] = {}
    for e in events:
        if e.round == 1 and e.region_id != SINGLE_MISTAKES:
            by_draws.setdefault((e.region_id, e.tau, e.seed, e.n_samples), set()).add(e.annotator)
    return {name for names in by_draws.values() if len(names) > 1 for name in names}


def show_agreement(run: Run) -> None:
    """Show how far annotators agree on all draws with two or more of them, the simulated included."""
    from defuse_core.extensions.answers import all_votes
    from defuse_core.method.evaluation import agreement

    events = store.workspace().annotations.counting(run.id)
    votes = all_votes(events)
    if not votes:
        st.caption("Nobody else has answered the same draws yet.")
        return
    score = agreement(votes)
    people = sorted(_shared(events))
    first = "the first " if len(votes) == MAX_COMPARED_DRAWS else ""
    left, right = st.columns([2, 1])
    left.plotly_chart(charts.agreement(score.share), key="agreement")
    right.metric("Unanimous", f"{score.unanimous.estimate:.0%}", help=f"{score.unanimous}, n = {len(votes)}")
    right.metric("Pairs of equal answers", f"{score.pairwise:.0%}")
    right.caption(
        plain(
            f"{', '.join(people)} on {first}{len(votes):,} draws; "
            f"“{NONE_OF_THE_ABOVE}” is an answer like others."
        )
    )
