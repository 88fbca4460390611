"""Make and download the report of an evaluation: one HTML page, and a manifest of all that made it."""

from __future__ import annotations

from functools import partial

import streamlit as st

from dashboard.shell import store
from dashboard.shell.jobs_panel import follow, show_trouble, start, tell_begin
from dashboard.shell.state import project_link
from defuse_core.workspace.pipeline import done_share
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

_FILES = {
    "report.html": (":material/description:", "text/html", "To read, print and send; needs no network"),
    "manifest.json": (
        ":material/fingerprint:", "application/json",
        "Data, configs, seeds, labels, versions and checksums: `defuse replay` makes the result again",
    ),
}  # fmt: skip
_INSIDE = """
- what was found, in three sentences that need no jargon
- the worst regions with their pictures, labels, and accuracy before and after
- the trade-off over λ, as a figure and as a table
- what the correction cost elsewhere: classes, images fixed and broken, controls
- the limits of all that in plain words, the settings, and the manifest
"""


def show_report(project: Project, run: Run) -> None:
    """Offer to make the report of an evaluation, and to download the newest one."""
    runs = store.workspace().runs
    reports = [report for report in runs.of_project(project.id, "report") if run.id in report.upstream]
    newest = runs.latest(project.id, "evaluate")
    with st.container(border=True):
        st.subheader("The report", anchor=False)
        left, right = st.columns([3, 2], gap="medium")
        with left:
            st.caption("One self-contained HTML file for those who were not here. What is in it:")
            st.markdown(_INSIDE)
        with right:
            _show_files(reports)
            is_newest = newest is not None and newest.id == run.id
            if not (reports and reports[-1].live) and st.button(
                "Make the report again" if reports else "Make the report", icon=":material/article:",
                type="secondary" if reports else "primary", disabled=not is_newest,
                help=None if is_newest else "The report uses the newest evaluation: choose that one above",
            ):  # fmt: skip
                start(project, "report", {})
                st.rerun()
            st.page_link(
                "../pages/present.py", label="Present it, region by region", icon=":material/slideshow:",
                query_params=project_link(),
            )  # fmt: skip


def _show_files(reports: list[Run]) -> None:
    if not reports:
        return
    if reports[-1].live:
        follow(reports[-1], _show_progress)
    elif reports[-1].status != "done":
        show_trouble(reports[-1])
    done = [report for report in reports if report.status == "done"]
    if not done:
        return
    report = done[-1]
    artifacts = store.workspace().runs.artifacts(report.id)
    for name, (icon, mime, hint) in _FILES.items():
        st.download_button(
            name, partial(_read, report, name), file_name=_called(report, name), mime=mime,
            icon=icon, help=hint, on_click="ignore", width="stretch",
            type="primary" if name == "report.html" else "secondary",
        )  # fmt: skip
    if report.stale:
        st.warning(f"Report {report.id} is out of date: its contents have changed since.")
    else:
        st.caption(f"Report {report.id}, {artifacts['report.html'].size / 1e6:.1f} MB")


def _show_progress(run: Run) -> None:
    tasks = store.workspace().runs.tasks(run.id)
    st.progress(done_share(tasks), text=tell_begin(run, "The report is made …"))


def _called(report: Run, name: str) -> str:
    stem, _, kind = name.partition(".")
    return f"{stem}-run{report.id}.{kind}"


def _read(report: Run, name: str) -> bytes:
    return store.workspace().artifact_path(report.id, name).read_bytes()
