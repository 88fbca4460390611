"""Show what one λ changed: accuracy by region and class, and the images that it fixed and broke."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from dashboard.components.image_grid import Tile, image_grid
from dashboard.correct.checkpoint import show_download
from dashboard.shared import kept
from dashboard.shared.change_chart import before_after
from dashboard.shared.gallery import spread_out
from dashboard.shared.region_detail import region_name
from dashboard.shared.table_csv import table_csv
from dashboard.shell import store
from dashboard.shell.state import forget, linked_choice, linked_page, linked_way, plain, recall, remember
from defuse_core.report.sweep import (
    BEFORE,
    DRAWS,
    SAID,
    SETS,
    Answers,
    Indices,
    Measured,
    Sweep,
    changes,
    make_answers,
    read_draw_labels,
    read_draws,
    read_fits,
    task_name,
)
from defuse_core.workspace.edits import names
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

POINT = "point"
"""The URL parameter that names the open λ."""

_OPENED = "sweep-opened"
_PER_PAGE = 24
_WAYS = ("Test images", "Draws of the regions")
_FLIPS = {"fixed": "Fixed", "broken": "Broken"}
_NO_PREDICTIONS = (
    "There are no predictions for each image: the task that makes them was cancelled. Resume the correction, "
    "or correct again, to see accuracy by region and class, and the images fixed and broken."
)


def open_point(task: str) -> None:
    """Open a λ by its task; to be called in a callback."""
    remember(POINT, task)
    remember(_OPENED, True)
    for flip in _FLIPS:
        remember(f"{flip}-page", 1)


def follow_opened() -> None:
    """Rerun the whole page if a click in a fragment has opened another λ."""
    if recall(_OPENED):
        forget(_OPENED)
        st.rerun()


def show_detail(project: Project, run: Run, sweep: Sweep) -> None:
    """Show the open λ, or else the chosen one, in a fragment, so that paging does not rerun the page."""
    forget(_OPENED)
    if sweep.points or sweep.baseline:
        st.fragment(_show)(project, run, sweep)


def _show(project: Project, run: Run, sweep: Sweep) -> None:
    known = sweep.by_task
    left, _ = st.columns([1, 2])
    with left:
        choice = linked_choice(
            "Opened", list(known), key=POINT, show=task_name,
            unset="the chosen λ" if sweep.chosen else "the first λ",
        )  # fmt: skip
    point = known[choice or sweep.chosen or next(iter(known))]
    name = task_name(point.task)
    st.subheader(name.replace("baseline", "Baseline"), anchor=False)
    if any(other.repeat for other in known.values()):
        st.caption(f"Of seed {point.repeat + 1} alone; the charts show means over the seeds.")
    _show_numbers(sweep.before, point)
    show_download(run, point.task, name)
    dataset = kept.dataset(project.id)
    if dataset is None:
        return
    answers = _answers(run, point.task, dataset.test.labels.numpy())
    if not answers:
        st.info(_NO_PREDICTIONS)
        return
    _show_accuracy(project, run, answers)
    _show_flips(project, run, point, answers, lambda i: dataset.test.images[i].permute(0, 2, 3, 1).numpy())


def _answers(run: Run, task: str, test_labels: Indices) -> dict[str, Answers]:
    """Predictions before and after, by set; empty where a task that makes them was cancelled."""
    before, after = (store.arrays(run.id, f"{name}{SAID}") for name in (BEFORE, task))
    known = {"test": (test_labels, np.full(len(test_labels), -1)), **_draw_labels(run.id)}
    return make_answers(before, after, known) if before and after else {}


def _draw_labels(run_id: int) -> Mapping[str, tuple[Indices, Indices]]:
    """Labels and regions of a correct run's test draws, by set; empty before they are drawn."""
    sha256 = store.checksum(run_id, "failures.safetensors")
    return {} if sha256 is None else _read_draw_labels(str(store.workspace().home), run_id, sha256)


@st.cache_resource(max_entries=4, show_spinner=False)
def _read_draw_labels(home: str, run_id: int, sha256: str) -> dict[str, tuple[Indices, Indices]]:
    del home, sha256
    return read_draw_labels(store.workspace(), run_id)


def _show_numbers(before: Measured | None, point: Measured) -> None:
    row = st.container(horizontal=True, gap="large")
    for name, score in point.scores.items():
        was = None if before is None or name not in before.scores else before.scores[name].estimate
        row.metric(
            SETS[name].capitalize(), f"{score.estimate:.3f}", help=str(score), width="content",
            delta=None if was is None else f"{score.estimate - was:+.3f}",
        )  # fmt: skip
    if point.fixed is not None and point.broken is not None:
        hint = "Test images that were misclassified before and are not now, and the other way round"
        row.metric("Fixed · broken", f"{point.fixed} · {point.broken}", help=hint, width="content")
    hint = "The epoch with the best accuracy on the images that select it"
    row.metric("Epoch kept", point.epoch, help=hint, width="content")


def _region_names(run: Run) -> Callable[[int], str]:
    """Return a function from the id of a region to its name."""
    distill = store.workspace().runs.ancestry(run.id)["distill"]
    custom_names = names(store.workspace().annotations.edits(distill.id))
    return lambda region_id: region_name(region_id, custom_names)


def _show_accuracy(project: Project, run: Run, answers: Mapping[str, Answers]) -> None:
    name_of, rows = _region_names(run), []
    fits = read_fits(store.workspace(), run.id)
    for part in DRAWS:
        if part in answers:
            draws = answers[part]
            row_names = {
                i: f"{name_of(i)} → {project.class_names[int(draws.labels[draws.regions == i][0])]}, "
                f"fits {fits[i][0]} of {fits[i][1]}"
                for i in np.unique(draws.regions).tolist()
            }
            rows += changes(draws, draws.regions, row_names, held_out=part == "held_out")
    rows.sort(key=lambda change: change.after.estimate)
    test = answers["test"]
    classes = changes(test, test.labels, dict(enumerate(project.class_names)), held_out=False)
    left, right = st.columns(2)
    left.plotly_chart(
        before_after(rows, title="By region and its label, worst first"), key="by-region",
        alt="Accuracy on the draws of each region before and after",
    )  # fmt: skip
    left.caption(
        "Draws count by the one label of their region, which fits so many of the draws that were labelled."
    )
    right.plotly_chart(
        before_after(classes, title="By class, test images, worst first"), key="by-class",
        alt="Accuracy on the test images of each class before and after",
    )  # fmt: skip


Images = Callable[[Indices], NDArray[np.uint8]]


def _show_flips(
    project: Project, run: Run, point: Measured, answers: Mapping[str, Answers], test_images: Images
) -> None:
    way = linked_way("Images", _WAYS, key="images-of")
    parts = ["test"] if way == _WAYS[0] else [part for part in DRAWS if part in answers]
    name_of = _region_names(run)
    columns = st.columns(2)
    for column, (flip, title) in zip(columns, _FLIPS.items(), strict=True):
        flipped = [(part, i) for part in parts for i in _order(getattr(answers[part], flip), part)]
        of = sum(len(answers[part].labels) for part in parts)
        with column:
            head, page = st.columns([3, 1], vertical_alignment="bottom")
            head.markdown(f"**{title}: {len(flipped):,}** of {of:,} {way.lower()}")
            on_page = flipped
            if len(flipped) > _PER_PAGE:
                with page:
                    on_page = flipped[linked_page(len(flipped), _PER_PAGE, key=f"{flip}-page")]
            if not on_page:
                st.caption("None.")
                continue
            tiles = [
                _tile(project, answers[part], i, image, name_of if part in DRAWS else None)
                for part in parts
                for i, image in _with_images(run, part, [i for p, i in on_page if p == part], test_images)
            ]
            image_grid(tiles, key=f"{flip}-images", min_pixels=64)
    st.download_button(
        "All fixed and broken, as CSV", lambda: table_csv(flips_table(project, answers)),
        file_name=f"flips-run{run.id}.csv", mime="text/csv", on_click="ignore", icon=":material/download:",
        help=plain(f"Test images and draws whose prediction changed at {point.task}"),
    )  # fmt: skip


def _order(flipped: Indices, part: str) -> list[int]:
    """Test images in order; draws mixed, since those of one region are stored together."""
    return (spread_out(flipped) if part in DRAWS else flipped).tolist()


def _with_images(
    run: Run, part: str, index: Sequence[int], test_images: Images
) -> list[tuple[int, NDArray[np.uint8]]]:
    if not index:
        return []
    rows = np.array(index, dtype=np.int64)
    images = test_images(rows) if part == "test" else read_draws(store.workspace(), run.id, part, rows)
    return list(zip(index, images, strict=True))


def _tile(
    project: Project, answers: Answers, i: int, image: NDArray[np.uint8],
    name_of: Callable[[int], str] | None,
) -> Tile:  # fmt: skip
    classes = project.class_names
    label, before, after = (classes[int(part[i])] for part in (answers.labels, answers.before, answers.after))
    what = f"test {i}" if name_of is None else name_of(int(answers.regions[i]))
    return Tile(
        [image], after, label != after, f"{label}: {before} → {after}\n{what}",
        [f"{label}, predicted as {before} before and as {after} after"],
    )  # fmt: skip


def flips_table(project: Project, answers: Mapping[str, Answers]) -> pd.DataFrame:
    """Every image that was fixed or broken: its set, index and label, and the predictions for it."""
    classes = np.array(project.class_names)
    tables = [
        pd.DataFrame(
            {
                "set": SETS[part],
                "index": index,
                "region": np.where(of_part.regions[index] < 0, None, of_part.regions[index].astype(object)),
                "label": classes[of_part.labels[index]],
                "before": classes[of_part.before[index]],
                "after": classes[of_part.after[index]],
                "flip": flip,
            }
        )
        for part, of_part in answers.items()
        for flip in _FLIPS
        for index in (getattr(of_part, flip),)
    ]
    return pd.concat(tables, ignore_index=True)
