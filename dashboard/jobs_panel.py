"""The pipeline of a project as it stands, with progress, cancel and resume; reads again by itself."""

from __future__ import annotations

import time

import streamlit as st

from dashboard import cache
from dashboard.state import note
from defuse_core.database import WorkspaceError
from defuse_core.jobs import launcher
from defuse_core.pipeline import Stage, stages
from defuse_core.workspace import Project

ICONS = {
    "missing": ":material/radio_button_unchecked:",
    "queued": ":material/hourglass_empty:",
    "running": ":material/progress_activity:",
    "done": ":material/check_circle:",
    "stale": ":material/history:",
    "failed": ":material/error:",
    "cancelled": ":material/cancel:",
    "interrupted": ":material/power_off:",
}
TITLES = {
    "classifier": "Classifier",
    "vae": "Generator",
    "identify": "Mistakes",
    "distill": "Regions",
    "annotate": "Labels",
    "correct": "Correction",
    "evaluate": "Evidence",
    "report": "Report",
}


def show_pipeline(project: Project) -> None:
    """Show every step with its state; while one is under way, look again every second."""
    live = any(stage.run is not None and stage.run.live for stage in _stages(project))
    st.fragment(_pipeline, run_every=1.0 if live else None)(project, live)


def _stages(project: Project) -> list[Stage]:
    return stages(cache.workspace(), project.id)


def _pipeline(project: Project, was_live: bool) -> None:
    found = _stages(project)
    for stage in found:
        _show(stage)
    if was_live != any(stage.run is not None and stage.run.live for stage in found):
        st.rerun()  # the page shows what the run left, and looks again, or no more


def _show(stage: Stage) -> None:
    state = stage.state
    text = f"{ICONS[state]} **{TITLES[stage.step]}** · {state}"
    if state == "running":
        text += f" {stage.share:.0%}"
    run = stage.run
    if run is None or state in ("missing", "done", "stale"):
        st.markdown(text, help=f"run {run.id}, {run.seconds:.1f} s" if run else None)
        return
    left, right = st.columns([3, 1], vertical_alignment="center")
    left.markdown(text, help=run.error)
    if run.live:
        right.button("Cancel", key=f"cancel-{run.id}", on_click=_cancel, args=(run.id,), type="tertiary")
        if state == "running":
            st.progress(stage.share, text=_rate(stage))
    else:
        right.button("Resume", key=f"resume-{run.id}", on_click=_resume, args=(run.id,), type="tertiary")
        if run.error:
            st.caption(run.error)


def _rate(stage: Stage) -> str:
    """Time taken and time left, at the rate so far."""
    run = stage.run
    if run is None or run.attempt_at is None or stage.share <= 0:
        return "starts"
    spent = time.time() - run.attempt_at
    left = spent * (1 - stage.share) / stage.share
    return f"{spent:.0f} s, about {left:.0f} s left"


def _cancel(run_id: int) -> None:
    run = launcher.cancel(cache.workspace(), run_id)
    note(f"{TITLES.get(run.step, run.step)}: {run.status}")


def _resume(run_id: int) -> None:
    try:
        launcher.resume(cache.workspace(), run_id)
    except WorkspaceError as error:
        note(str(error))
