"""Shows the label board, the verdict so far, and the second opinion.

All of it is one fragment. An answer is in the database before the board shows it as saved: the
callback stores the items of the browser's queue, each once by its key, and only then tells the board
which these were.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import streamlit as st

from dashboard.components.label_board import Answer, Draw, label_board
from dashboard.components.label_queue import QueueItem, Subject, read_queue
from dashboard.label.report import show_opinion, show_verdict
from dashboard.shared import kept
from dashboard.shared.gallery import read_mistakes
from dashboard.shared.region_data import SEED, Draws, Regions
from dashboard.shared.region_detail import choose_tau, chosen_tau, linked_region
from dashboard.shell import store
from dashboard.shell.state import annotator_field, forget, linked_way, plain, recall, remember
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import names
from defuse_core.workspace.labels import SIMULATED_PREFIX, LabelEvent, NoRunError, Undo
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

_BOARD = "board"
_SAVED, _TROUBLE, _LOST = "board-saved", "board-trouble", "board-lost"
_MOVED = "board-moved"
PASSES = ("first pass", "second pass")
MOST_IMAGES = 64


def show_labelling(project: Project, run: Run) -> None:
    """Show the board with the verdict beside it, for the region that is chosen."""
    st.fragment(_labelling)(project, run)


def _labelling(project: Project, run: Run) -> None:
    regions = kept.regions(run.id)
    if regions is None:
        return
    if not regions.found:
        st.info("There is no region. Lower the cut-off on the page of the regions, and distill again.")
        return
    subject, blind = _choose_subject(run, regions)
    draws = kept.draws(run.id, subject.region, subject.tau, subject.n_samples)
    if draws is None:
        return
    events = store.workspace().annotations.counting(run.id)
    mine = [event for event in events if _is_about(event, subject)]
    complete = answered(mine, subject.n_samples) == subject.n_samples
    left, right = st.columns([3, 1])
    with left:
        with st.container():  # always there: else Streamlit would make a new board
            _tell_lost()
            _offer_others(run, subject, events, mine)
        _show_board(project, run, regions, subject, draws, mine, blind=blind)
    with right:
        show_verdict(project, run, subject, events, hidden=blind and not complete)
    with left:
        show_opinion(project, run, subject, draws, mine, complete=complete)


def _choose_subject(run: Run, regions: Regions) -> tuple[Subject, bool]:
    """Show the choices above the board; return what is labelled, and whether predictions are hidden."""
    first, second, third = st.columns([3, 2, 1], vertical_alignment="bottom")
    events = store.workspace().annotations.counting(run.id)
    people = [e.annotator for e in events if not e.annotator.startswith(SIMULATED_PREFIX)]
    with second:
        name = annotator_field(people[-1] if people else None)
    with st.container(horizontal=True, vertical_alignment="center"):
        part = linked_way("Pass", PASSES, key="pass")
        blind = st.toggle(
            "Blind",
            key="blind",
            bind="query-params",
            help="Hides the predictions, and the verdict until all are answered",
        )
    with third:
        n = int(st.number_input("Images", 1, MOST_IMAGES, 10, key="images", bind="query-params"))
    number = PASSES.index(part) + 1
    done = {e.region_id for e in events if e.annotator == name and e.round == number}
    region_names = names(store.workspace().annotations.edits(run.id))
    unlabelled = next((i for i in regions.ids if i not in done), regions.ids[0])
    with first:
        chosen = linked_region(regions.ids, region_names, otherwise=unlabelled)
    region = unlabelled if chosen is None else chosen
    n_done = len(done & set(regions.ids))
    st.progress(
        n_done / len(regions.ids),
        text=f"{n_done} of {len(regions.ids)} regions labelled by {plain(name)}, {part}",
    )
    return Subject(run.id, region, chosen_tau(run, region), SEED, n, name, number), blind


def _is_about(event: LabelEvent, subject: Subject) -> bool:
    """Tell whether an answer is about a draw that the board shows; of more draws, the first are the same."""
    return (
        event.region_id == subject.region
        and event.annotator == subject.annotator
        and event.round == subject.round
        and (event.tau, event.seed) == (subject.tau, subject.seed)
        and (event.sample_id is None or event.sample_id < subject.n_samples)
    )


def answered(mine: Sequence[LabelEvent], n: int) -> int:
    """Return how many of n draws have an answer."""
    if any(event.sample_id is None for event in mine):
        return n
    return len({event.sample_id for event in mine})


def _offer_others(
    run: Run, subject: Subject, events: Sequence[LabelEvent], mine: Sequence[LabelEvent]
) -> None:
    """If the region has answers on other draws only, say so and offer to show those."""
    same = [e for e in events if (e.region_id, e.annotator, e.round) == (subject.region, *_who(subject))]
    others = [e for e in same if e not in mine and e.seed == SEED]
    if mine or not others:
        return
    last = others[-1]

    def look() -> None:
        choose_tau(run, [subject.region], last.tau)
        remember("images", last.n_samples)

    text, button = st.columns([3, 1], vertical_alignment="center")
    text.caption(
        f"You labelled this region at τ = {last.tau:g}, {last.n_samples} images. That counts until you "
        "answer here: a region is judged by the draws that were labelled last."
    )
    if last.n_samples <= MOST_IMAGES:  # a file may have more
        button.button("Show those", on_click=look)


def _who(subject: Subject) -> tuple[str, int]:
    return subject.annotator, subject.round


def _show_board(
    project: Project, run: Run, regions: Regions, subject: Subject, draws: Draws,
    mine: Sequence[LabelEvent], *, blind: bool,
) -> None:  # fmt: skip
    said = [project.class_names[c] for c in draws.predictions.tolist()]
    home = hashlib.sha256(str(store.workspace().home).encode()).hexdigest()[:12]
    label_board(
        [
            Draw(image, None if blind else word)
            for image, word in zip(draws.images, said, strict=True)
        ],
        key=_BOARD, subject=subject, class_names=project.class_names,
        answers=[Answer(event.name, event.sample_id, event.label) for event in mine],
        saved=recall(_SAVED, []), trouble=recall(_TROUBLE), moved=recall(_MOVED, 0),
        on_queue=lambda: _store(len(project.class_names)),
        on_move=lambda: _move(run, regions, subject),
        namespace=f"defuse-{home}-{run.id}", first=_candidates(run, regions, subject.region, blind=blind),
    )  # fmt: skip


def _candidates(run: Run, regions: Regions, region_id: int, *, blind: bool) -> list[int]:
    """Classes that draws of a region may be: those of its mistakes' source images, then their predictions.

    The most frequent ones stand first. Who labels blind is not led by what the classifier says.
    """
    found = read_mistakes(store.workspace().runs.ancestry(run.id)["identify"].id)
    inside = regions.membership == region_id
    classes = [found.labels[inside]] + ([] if blind else [found.predictions[inside]])
    ranked = [c for part in classes for c, _ in Counter(part.tolist()).most_common()]
    return list(dict.fromkeys(ranked))


def _store(n_classes: int) -> None:
    """Store the items of the browser's queue that are not stored yet.

    An item that can never be stored does not stop the others: it is reported, and the board drops it.
    """
    state: Any = recall(_BOARD, {})
    lost: list[str] = []
    try:
        items = read_queue(state.get("queue"))
        for run_id, of_run in groupby(items, key=lambda item: item.subject.run):
            lost += _store_items(run_id, list(of_run), n_classes)
    except (WorkspaceError, ValueError) as error:
        remember(_TROUBLE, str(error))
        return
    remember(_TROUBLE, None)
    remember(_SAVED, [item.key for item in items])
    if lost:
        remember(_LOST, [*recall(_LOST, []), *lost])


def _store_items(run_id: int, items: Sequence[QueueItem], n_classes: int) -> list[str]:
    """Store items of one run in order; return what could not be stored, in words."""
    events: list[LabelEvent | Undo] = []
    lost = []
    for item in items:
        try:
            events.append(_event(item, n_classes))
        except ValueError as error:
            lost.append(f"{_tell(item)}: {error}")
    try:
        store.workspace().annotations.append(run_id, events)
    except NoRunError:
        return [f"{_tell(item)}: run {run_id} does not exist any more" for item in items]
    return lost


def _tell(item: QueueItem) -> str:
    what = "the whole region" if item.sample is None else f"image {item.sample + 1}"
    return f"{item.subject.annotator}, region {item.subject.region}, {what}"


def _tell_lost() -> None:
    """Show which answers could not be stored, until the user has understood."""
    if lost := recall(_LOST, []):
        st.error(plain(f"{len(lost)} could not be stored. " + "; ".join(lost[:10])))
        st.button("Understood", on_click=forget, args=(_LOST,))


def _event(item: QueueItem, n_classes: int) -> LabelEvent | Undo:
    """Turn an item into an answer or an undo; ValueError if it can never be stored."""
    if item.key.startswith("id:"):
        raise ValueError("its key is one of the database's own")
    if item.undoes is not None:
        return Undo(item.undoes, item.key)
    subject = item.subject
    if not subject.annotator.strip():
        raise ValueError("an annotation needs the name of its annotator")
    if item.label is not None and item.label >= n_classes:
        raise ValueError(f"label must be in 0 … {n_classes - 1}, got {item.label}")
    if item.sample is not None and item.sample >= subject.n_samples:
        raise ValueError(f"sample must be in 0 … {subject.n_samples - 1}, got {item.sample}")
    return LabelEvent(
        subject.region, subject.annotator, item.label, item.sample, subject.tau, subject.seed,
        subject.n_samples, round=subject.round, seconds=item.seconds, key=item.key,
    )  # fmt: skip


def _move(run: Run, regions: Regions, subject: Subject) -> None:
    """Go to the next region without answers of this annotator and pass, or to the one before."""
    state: Any = recall(_BOARD, {})
    remember(_MOVED, recall(_MOVED, 0) + 1)
    step, ids = state.get("move"), regions.ids
    if step not in (1, -1) or subject.region not in ids:
        return
    place = ids.index(subject.region)
    if step == -1:
        remember("region", str(ids[place - 1]))
        return
    events = store.workspace().annotations.counting(run.id)
    done = {e.region_id for e in events if (e.annotator, e.round) == _who(subject)}
    following = ids[place + 1 :] + ids[:place]
    if following:
        remember("region", str(next((i for i in following if i not in done), following[0])))
