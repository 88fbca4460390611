"""Shows projects on the overview, opens and deletes them, and starts their next step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from dashboard.shared.data_card import source_of
from dashboard.shell import store
from dashboard.shell.jobs_panel import TITLES, start
from dashboard.shell.state import note, open_project, open_soon, plain
from defuse_core.jobs import launcher
from defuse_core.reproduction.demo import PROJECT, demo_configs, demo_project
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import live_ids
from defuse_core.workspace.pipeline import Stage
from defuse_core.workspace.results import region_ids
from defuse_core.workspace.workspace import Project

PAGES: dict[StepName, str] = {
    "classifier": "../pages/classifier.py",
    "vae": "../pages/generator.py",
    "identify": "../pages/identify.py",
    "distill": "../pages/regions.py",
    "annotate": "../pages/label.py",
    "correct": "../pages/correct.py",
    "evaluate": "../pages/evidence.py",
    "report": "../pages/evidence.py",
}
"""The page of each step."""


def open_demo() -> None:
    """Open the demo's project, and start the runs of its models if they are missing."""
    workspace = store.workspace()
    try:
        project = demo_project(workspace)
        open_project(project.name)
        control: tuple[StepName, dict[str, Any]] = ("control", {})
        models = [(step, config) for step, config in demo_configs() if step in ("classifier", "vae")]
        for step, config in (*models, control):
            if workspace.runs.latest(project.id, step) is None:
                launcher.submit(workspace, project.id, step, config)
    except WorkspaceError as error:
        note(str(error))


def delete(project: Project) -> None:
    """Delete a project, or say why it cannot be deleted."""
    try:
        store.workspace().delete_project(project.id)
        note(f"Project {project.name} deleted")
    except WorkspaceError as error:
        note(str(error))


def take_next_step(project: Project, step: StepName) -> None:
    """Go to the page of a step; in the demo, start the step at once, except labelling."""
    open_soon(project.name)
    is_demo = project.dataset["source"] == "digits" and project.name == PROJECT
    run = start(project, step, dict(demo_configs())[step]) if is_demo and step != "annotate" else None
    if run is not None:
        note(f"{TITLES[step]}: run {run.id} begins")
    st.switch_page(PAGES[step], query_params={})  # else Streamlit refuses: project is bound


def project_card(project: Project, found: Sequence[Stage]) -> None:
    """Show the results of a project in four numbers, or that they are damaged."""
    sizes = " + ".join(f"{n:,} {part}" for part, n in project.dataset["sizes"].items())
    st.markdown(f"**{plain(project.name)}**", help=f"{plain(source_of(project))}: {sizes} images")
    try:
        numbers = _numbers({stage.step: stage for stage in found})
    except (WorkspaceError, KeyError, TypeError, ValueError, AttributeError, IndexError):
        st.warning("Its results are damaged. Run its steps again, or delete it.")
        return
    for column, (name, value, delta) in zip(st.columns(4), numbers, strict=True):
        column.metric(name, value, delta, delta_color="off", delta_arrow="off")


def _numbers(by_step: dict[StepName, Stage]) -> list[tuple[str, str, str | None]]:
    """Name, value and addition of each number; raises whatever a damaged summary may."""
    kinds = _number(by_step, "identify", "mistakes")
    best = _number(by_step, "correct", "corrected", "chosen")
    return [
        ("Test accuracy", _share(_number(by_step, "classifier", "accuracy", "test")), None),
        ("Mistakes", "–" if kinds is None else f"{sum(kinds.values()):,}", None),
        ("Regions labelled", _labelled(by_step), None),
        (
            "Regions after correction",
            _share(best and best["region"][0]),
            None if best is None else f"test {best['test'][0]:.3f}",
        ),
    ]


def _labelled(by_step: dict[StepName, Stage]) -> str:
    regions = by_step["distill"].run
    if regions is None or not regions.summary:
        return "–"
    annotations = store.workspace().annotations
    found = region_ids(regions.summary)
    live = live_ids(found, annotations.edits(regions.id))
    labelled = {event.region_id for event in annotations.counting(regions.id)} & {*live}
    return f"{len(labelled)} of {len(live)}"


def _number(by_step: dict[StepName, Stage], step: StepName, *path: str) -> Any:
    """Return a value of the summary of a step's run; None if it is not there yet."""
    run = by_step[step].run
    value: Any = run.summary if run is not None else {}
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
