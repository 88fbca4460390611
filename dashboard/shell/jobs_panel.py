"""Shows the pipeline of a project with progress, cancel and resume, and refreshes itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard.shell import store
from dashboard.shell.pace import PATIENCE, Pace, seconds_left
from dashboard.shell.rerun import rerun
from dashboard.shell.state import has_note, note, plain, recall, refuse, remember
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

_UNITS: dict[StepName, str] = {
    "inspect": "parts", "classifier": "epochs", "vae": "epochs", "control": "splits", "probe": "parts",
    "identify": "shards of images", "distill": "iterations", "map": "%", "stability": "seeds",
    "annotators": "networks", "annotate": "parts", "correct": "trainings", "evaluate": "measurements",
    "report": "figures",
}  # fmt: skip
"""What a step's progress counts."""


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


def tell_begin(run: Run, begins: str) -> str:
    """Say what a live run does before it has anything to show: it waits while it is queued, else `begins`."""
    return "It is waiting for another run …" if run.status == "queued" else begins


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
    """Say how much of a step is done, and how much time is left."""
    if stage.run is None:
        return "starts"
    (done, of), unit = stage.units, _UNITS[stage.step]
    left = time_left(stage.run, stage.share, parts=done, spent=stage.run.seconds)
    counted = f"{done:,} %" if unit == "%" else f"{done:,} of {of:,} {unit}"
    return f"{counted}{left}" if stage.share > 0 else "starts"


def time_left(run: Run, share: float, *, parts: int, spent: float = 0.0, key: str = "panel") -> str:
    """Say how much time a run still takes, to follow what is done; or for how long nothing has moved.

    Parameters
    ----------
    run : Run
    share : float
        Of the work that is done, in [0, 1]; with `spent` 0, of that of this attempt.
    parts : int
        Parts of the work that are done, for how long one takes.
    spent : float
        Seconds of earlier attempts.
    key : str
        Where it is told: each place counts in its own way.
    """
    if run.attempt_at is None or not run.live:
        return ""
    now, kept = time.time(), f"pace-{key}-{run.id}-{run.attempt_at}"
    pace: Pace = (recall(kept) or Pace(share, now)).then(share, now)
    remember(kept, pace)
    took = spent + pace.at - run.attempt_at
    left = seconds_left(pace, spent=took, interval=took / max(parts, 1), now=now)
    if left is not None:
        return f" · about {duration(left)} left"
    return f" · no progress for {duration(now - pace.at)}" if share > 0 and now - pace.at > PATIENCE else ""


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
