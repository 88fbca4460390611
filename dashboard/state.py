"""The only owner of session-state keys and query parameters.

`project` is the project's name and stands in the URL, so that a link opens it.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from defuse_core.workspace import Project

PROJECT = "project"
_NOTE = "note"


def choose_project(projects: Sequence[Project]) -> Project | None:
    """Show the choice of project; return the one chosen, None where there is none."""
    names = [project.name for project in projects]
    if st.session_state.get(PROJECT) not in names:
        st.session_state.pop(PROJECT, None)
    chosen = st.selectbox(
        "Project", names, key=PROJECT, bind="query-params", disabled=not names,
        index=None,  # a default would not stand in the URL
        placeholder="Choose one" if names else "No project yet",
    )  # fmt: skip
    return next((project for project in projects if project.name == chosen), None)


def open_project(name: str) -> None:
    """Choose a project; call from a callback, before the choice is shown."""
    st.session_state[PROJECT] = name


def note(text: str) -> None:
    """Tell something after the rerun that follows."""
    st.session_state[_NOTE] = text


def show_note() -> None:
    """Show what `note` left, once."""
    if text := st.session_state.pop(_NOTE, None):
        st.toast(text)
