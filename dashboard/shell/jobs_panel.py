"""Shows the pipeline of a project with progress, cancel and resume, and refreshes itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard.shell import store
from dashboard.shell.rerun import rerun
from dashboard.shell.state import has_note, note, plain, refuse
from defuse_core.jobs import launcher
from defuse_core.workspace.config_checks import ConfigError
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.pipeline import PIPELINE, Stage, stage_of, stages
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Project

_BUSY, _IDLE = 1.0, 5.0  # seconds between two refreshes

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
    "inspect": "Checkpoint",
    "classifier": "Classifier",
    "vae": "Generator",
    "control": "Reconstruction",
    "probe": "Speed",
    "identify": "Mistakes",
    "distill": "Regions",
    "map": "Map",
    "stability": "Stability",
    "annotators": "Annotators",
    "annotate": "Labels",
    "correct": "Correction",
    "evaluate": "Evidence",
    "report": "Report",
}


def start(
    project: Project, step: StepName, config: Mapping[str, Any], *, seed: int = 0, device: str = "auto",
    on: Sequence[Run] = (),
) -> Run | None:  # fmt: skip
    """Submit a run that stands on the runs `on`, else on the newest ones, or say why it is refused."""
    workspace = store.workspace()
    try:
        upstream = launcher.find_upstream(workspace, project.id, step, config, fixed=on)
        return launcher.submit(
            workspace, project.id, step, config, seed=seed, resources=Resources(device=device),
            upstream=list(upstream.values()),
        )  # fmt: skip
    except (WorkspaceError, ConfigError) as error:
        refuse(str(error))
        return None


def newest(project: Project, step: StepName) -> Run | None:
    """Return the newest run of a step, whatever its status."""
    runs = store.workspace().runs.of_project(project.id, step)
    return runs[-1] if runs else None


def follow(run: Run, draw: Callable[[Run], object]) -> None:
    """Draw a run, and again every second while it is live."""

    def again() -> None:
        if has_note():
            st.rerun()
        draw(store.workspace().runs.get(run.id))

    st.fragment(again, run_every=1.0 if run.live else None)()


def show_trouble(run: Run) -> None:
    """Say that a run failed, was cancelled or was interrupted."""
    if run.status == "failed":
        st.error(plain(run.error or "The run failed; its log says more."))
    elif run.status in ("cancelled", "interrupted"):
        st.warning(
            f"{TITLES[run.step]} was {run.status}. What it had done is kept: resume it in the sidebar."
        )


def show_pipeline(project: Project) -> None:
    """Show every step with its state, and refresh it: every second while a run is live."""
    states = _states(_stages(project))
    live = any(state in ("queued", "running") for _, state in states)
    st.fragment(_pipeline, run_every=_BUSY if live else _IDLE)(project, states)


def _stages(project: Project) -> list[Stage]:
    """Return the pipeline, and the newest run of each other step unless it is done."""
    workspace = store.workspace()
    others = {
        run.step: run for run in workspace.runs.of_project(project.id) if run.step not in PIPELINE
    }  # the newest of each step
    return [
        *stages(workspace, project.id),
        *(stage_of(workspace, run) for run in others.values() if run.status != "done"),
    ]


def _states(pipeline: list[Stage]) -> list[tuple[int, str]]:
    """Return run id (0 for none) and state of every step."""
    return [(stage.run.id if stage.run is not None else 0, stage.state) for stage in pipeline]


def _pipeline(project: Project, before: list[tuple[int, str]]) -> None:
    pipeline = _stages(project)
    for stage in pipeline:
        _show(stage)
    if before != _states(pipeline):
        rerun()  # so that the page shows the new result, or a run that another tab started


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
    left.markdown(text, help=plain(run.error or "") or None)
    if run.live:
        right.button("Cancel", key=f"cancel-{run.id}", on_click=_cancel, args=(run.id,), type="tertiary")
        if state == "running":
            st.progress(stage.share, text=_rate(stage))
    else:
        right.button("Resume", key=f"resume-{run.id}", on_click=_resume, args=(run.id,), type="tertiary")
        if run.error:
            st.caption(plain(run.error))


def _rate(stage: Stage) -> str:
    """Say how much is done, at which rate, and how much time is left at this rate."""
    run = stage.run
    if run is None or run.attempt_at is None or stage.share <= 0:
        return "starts"
    spent = max(run.seconds + time.time() - run.attempt_at, 1e-3)  # in all attempts
    done, of = stage.units
    left = spent * (1 - stage.share) / stage.share
    return f"{done} of {of} · {done / spent:.2g} a second · about {duration(left)} left"


def duration(seconds: float) -> str:
    """Format a duration.

    Examples
    --------
    >>> duration(59), duration(150), duration(7300)
    ('59 s', '2.5 min', '2.0 h')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _cancel(run_id: int) -> None:
    run = launcher.cancel(store.workspace(), run_id)
    note(f"{TITLES.get(run.step, run.step)}: {run.status}")


def _resume(run_id: int) -> None:
    try:
        launcher.resume(store.workspace(), run_id)
    except WorkspaceError as error:
        note(str(error))
