"""Marks what was found with a generator that is too blurry, on every page that shows it."""

from __future__ import annotations

import streamlit as st

from dashboard.shell import store
from dashboard.shell.jobs_panel import newest
from defuse_core.report.generator import mark_of, still_correct, tell_unusable
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

_ICON = ":material/blur_on:"


def show_mark(run: Run) -> None:
    """Show the mark of a run's results, where they carry one."""
    if mark := mark_of(store.workspace(), run):
        st.warning(mark, icon=_ICON)


def confirm_search(project: Project) -> bool:
    """Ask whether to search with a generator that is too blurry; return whether a search may start."""
    share = still_correct(store.workspace(), newest(project, "classifier"), newest(project, "vae"))
    if not (told := tell_unusable(share)):
        return True
    st.error(told, icon=_ICON)
    return st.checkbox(
        "Search all the same: all results, up to the report, will say so", key=f"blurry-{project.id}"
    )
