"""Which correction of a project the page shows, and whether that is still true."""

from __future__ import annotations

import streamlit as st

from dashboard.shell import store
from dashboard.shell.state import linked_choice
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

CORRECTION = "correction"
"""Under which the correction that is shown stands in the URL."""


def choose_correction(project: Project, distill: Run | None) -> Run | None:
    """The correction to show: of the newest regions unless another is chosen, which stands in the URL."""
    runs = store.workspace().runs
    found = [r for r in runs.of_project(project.id, "correct") if r.live or _has_points(r)]
    if not found:
        return None
    usable = [r for r in found if r.live or r.status == "done"]
    of_newest = [r for r in usable if distill is not None and distill.id in r.upstream]
    first = (of_newest or usable or found)[-1]
    if len(found) == 1:
        return first
    by_name = {f"run {r.id}": r for r in reversed(found)}
    left, _ = st.columns([1, 2])
    with left:
        chosen = linked_choice(
            "Correction", list(by_name), key=CORRECTION, unset=f"run {first.id}, the newest"
        )
    return first if chosen is None else by_name[chosen]


def _has_points(run: Run) -> bool:
    return bool(store.workspace().runs.events(run.id, kind="point"))


def show_staleness(run: Run, distill: Run | None) -> None:
    """Say that a correction is of an earlier round, or out of date, and why."""
    of = store.workspace().runs.ancestry(run.id)["distill"]
    if distill is not None and of.id != distill.id:
        st.warning(
            f"This correction is of earlier regions (run {of.id}); the newest are those of run {distill.id}."
        )
    elif run.stale:
        labels = run.last_annotation is not None
        newer = labels and store.workspace().annotations.last_id(of.id) > (run.last_annotation or 0)
        why = "labels were given" if newer else "an earlier step was run again"
        st.warning(f"Since this correction began, {why}. Correct again to include that.")
