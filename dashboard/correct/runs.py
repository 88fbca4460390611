"""Choose the correction that the page shows, and warn if it is out of date."""

from __future__ import annotations

import streamlit as st

from dashboard.shell import store
from dashboard.shell.state import linked_choice
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

CORRECTION = "correction"
"""The URL parameter that names the correction to show."""


def choose_correction(project: Project, distill: Run | None) -> Run | None:
    """Return the correction to show: of the newest regions, unless the URL names another."""
    runs = store.workspace().runs
    corrections = [r for r in runs.of_project(project.id, "correct") if r.live or _has_points(r)]
    if not corrections:
        return None
    usable = [r for r in corrections if r.live or r.status == "done"]
    of_newest = [r for r in usable if distill is not None and distill.id in r.upstream]
    first = (of_newest or usable or corrections)[-1]
    if len(corrections) == 1:
        return first
    by_name = {f"run {r.id}": r for r in reversed(corrections)}
    left, _ = st.columns([1, 2])
    with left:
        choice = linked_choice(
            "Correction", list(by_name), key=CORRECTION, unset=f"run {first.id}, the newest"
        )
    return first if choice is None else by_name[choice]


def _has_points(run: Run) -> bool:
    return bool(store.workspace().runs.events(run.id, kind="point"))


def show_staleness(run: Run, distill: Run | None) -> None:
    """Warn if a correction is of earlier regions, or out of date, and say why."""
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
