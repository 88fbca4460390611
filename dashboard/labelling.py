"""Labelling: the board, what the answers amount to so far, and what others say.

All of it is one fragment. An answer is in the database before the board shows it as saved: the
callback stores what the browser's queue holds, each item once by its key, and only then does the
board hear which those were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import streamlit as st

from dashboard import cache
from dashboard.components.label_board import Answer, Draw, label_board
from dashboard.components.label_queue import QueueItem, Subject, read_queue
from dashboard.label_report import show_opinion, show_verdict
from dashboard.region_data import SEED, Draws, Regions
from dashboard.region_detail import choose_tau, chosen_tau, linked_region
from dashboard.state import annotator_field, linked_way, plain, recall, remember
from defuse_core.annotations import SIMULATED_PREFIX, LabelEvent, Undo
from defuse_core.database import WorkspaceError
from defuse_core.region_edits import names
from defuse_core.runs import Run
from defuse_core.workspace import Project

_BOARD = "board"
_SAVED, _TROUBLE = "board-saved", "board-trouble"
PASSES = ("first pass", "second pass")
MOST_IMAGES = 64


def show_labelling(project: Project, run: Run) -> None:
    """Show the board with the verdict beside it, for the region that is chosen."""
    st.fragment(_labelling)(project, run)


def _labelling(project: Project, run: Run) -> None:
    regions = cache.regions(run.id)
    if regions is None:
        return
    if not regions.found:
        st.info("There is no region. Lower the cut-off on the page of the regions, and distill again.")
        return
    subject, blind = _choose_subject(run, regions)
    draws = cache.draws(run.id, subject.region, tau=subject.tau, n=subject.n_samples)
    if draws is None:
        return
    events = cache.workspace().annotations.counting(run.id)
    mine = [event for event in events if _is_about(event, subject)]
    left, right = st.columns([3, 1])
    with left:
        _offer_others(run, subject, events, mine)
        _show_board(project, run, regions, subject, draws, mine, blind=blind)
    complete = answered(mine, subject.n_samples) == subject.n_samples
    with right:
        show_verdict(project, subject, draws, events, hidden=blind and not complete)
    with left:
        show_opinion(project, run, subject, draws, mine, complete=complete)


def _choose_subject(run: Run, regions: Regions) -> tuple[Subject, bool]:
    """Show the choices above the board; return what is labelled, and whether predictions are hidden."""
    first, second, third = st.columns([3, 2, 1], vertical_alignment="bottom")
    events = cache.workspace().annotations.counting(run.id)
    people = [e.annotator for e in events if not e.annotator.startswith(SIMULATED_PREFIX)]
    with second:
        name = annotator_field(people[-1] if people else None)
    with st.container(horizontal=True, vertical_alignment="center"):
        part = linked_way("Pass", PASSES, key="pass")
        blind = st.toggle(
            "Blind", key="blind", bind="query-params", help="Hides the predictions until all are answered"
        )
    with third:
        n = int(st.number_input("Images", 1, MOST_IMAGES, 10, key="images", bind="query-params"))
    number = PASSES.index(part) + 1
    done = {e.region_id for e in events if e.annotator == name and e.round == number}
    given = names(cache.workspace().annotations.edits(run.id))
    unlabelled = next((i for i in regions.ids if i not in done), regions.ids[0])
    with first:
        chosen = linked_region(regions.ids, given, otherwise=unlabelled)
    region = unlabelled if chosen is None else chosen
    n_done = len(done & set(regions.ids))
    st.progress(
        n_done / len(regions.ids),
        text=f"{n_done} of {len(regions.ids)} regions labelled by {plain(name)}, {part}",
    )
    return Subject(run.id, region, chosen_tau(run, region), SEED, n, name, number), blind


def _is_about(event: LabelEvent, subject: Subject) -> bool:
    shown = event.tau, event.seed, event.n_samples
    return (
        event.region_id == subject.region
        and event.annotator == subject.annotator
        and event.round == subject.round
        and shown == (subject.tau, subject.seed, subject.n_samples)
    )


def answered(mine: Sequence[LabelEvent], n: int) -> int:
    """Return how many of n draws have an answer."""
    if any(event.sample_id is None for event in mine):
        return n
    return len({event.sample_id for event in mine})


def _offer_others(
    run: Run, subject: Subject, events: Sequence[LabelEvent], mine: Sequence[LabelEvent]
) -> None:
    """Say where the region has answers on other draws than those shown, and offer to look at those."""
    same = [e for e in events if (e.region_id, e.annotator, e.round) == (subject.region, *_who(subject))]
    others = [e for e in same if e not in mine and e.seed == SEED]
    if mine or not others:
        return
    last = others[-1]

    def look() -> None:
        choose_tau(run, [subject.region], last.tau)
        remember("images", last.n_samples)

    told, button = st.columns([3, 1], vertical_alignment="center")
    told.caption(
        f"You labelled this region at τ = {last.tau:g}, {last.n_samples} images. That counts until you "
        "answer here: a region is judged by the draws that were labelled last."
    )
    if last.n_samples <= MOST_IMAGES:  # more may come from a file
        button.button("Show those", on_click=look)


def _who(subject: Subject) -> tuple[str, int]:
    return subject.annotator, subject.round


def _show_board(
    project: Project, run: Run, regions: Regions, subject: Subject, draws: Draws,
    mine: Sequence[LabelEvent], *, blind: bool,
) -> None:  # fmt: skip
    said = [project.class_names[c] for c in draws.predictions.tolist()]
    home = hashlib.sha256(str(cache.workspace().home).encode()).hexdigest()[:12]
    label_board(
        [
            Draw(image, None if blind else word)
            for image, word in zip(draws.images, said, strict=True)
        ],
        key=_BOARD, subject=subject, class_names=project.class_names,
        answers=[Answer(event.name, event.sample_id, event.label) for event in mine],
        saved=recall(_SAVED, []), trouble=recall(_TROUBLE),
        on_queue=lambda: _store(len(project.class_names)),
        on_move=lambda: _move(run, regions, subject),
        namespace=f"defuse-{home}-{run.id}",
    )  # fmt: skip


def _store(n_classes: int) -> None:
    """Store what the browser's queue holds; what is stored already is not stored again."""
    state: Any = recall(_BOARD, {})
    try:
        items = read_queue(state.get("queue"))
        by_run: dict[int, list[LabelEvent | Undo]] = {}
        for item in items:
            by_run.setdefault(item.subject.run, []).append(_event(item, n_classes))
        for run_id, events in by_run.items():
            cache.workspace().annotations.append(run_id, events)
    except (WorkspaceError, ValueError) as error:
        remember(_TROUBLE, str(error))
        return
    remember(_TROUBLE, None)
    remember(_SAVED, [item.key for item in items])


def _event(item: QueueItem, n_classes: int) -> LabelEvent | Undo:
    if item.undoes is not None:
        return Undo(item.undoes, item.key)
    subject = item.subject
    if item.label is not None and item.label >= n_classes:
        raise ValueError(f"label must be in 0 … {n_classes - 1}, got {item.label}; load the page again")
    if item.sample is not None and item.sample >= subject.n_samples:
        raise ValueError(f"sample must be in 0 … {subject.n_samples - 1}, got {item.sample}")
    return LabelEvent(
        subject.region, subject.annotator, item.label, item.sample, subject.tau, subject.seed,
        subject.n_samples, round=subject.round, seconds=item.seconds, key=item.key,
    )  # fmt: skip


def _move(run: Run, regions: Regions, subject: Subject) -> None:
    """Go to the next region without answers of this annotator and pass, or to the one before."""
    state: Any = recall(_BOARD, {})
    step, ids = state.get("move"), regions.ids
    if step not in (1, -1) or subject.region not in ids:
        return
    place = ids.index(subject.region)
    if step == -1:
        remember("region", str(ids[place - 1]))
        return
    events = cache.workspace().annotations.counting(run.id)
    done = {e.region_id for e in events if (e.annotator, e.round) == _who(subject)}
    following = ids[place + 1 :] + ids[:place]
    if following:
        remember("region", str(next((i for i in following if i not in done), following[0])))
