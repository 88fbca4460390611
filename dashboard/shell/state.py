"""Owns all session-state keys and query parameters.

The URL contains the project's name and every filter, so that a link opens the same view.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import streamlit as st

from dashboard.shell import store
from dashboard.shell.rerun import was_own
from dashboard.shell.text import plain as plain  # pages import it from here, too
from defuse_core.workspace.label_rules import annotator_fault
from defuse_core.workspace.labels import SIMULATED_PREFIX
from defuse_core.workspace.workspace import Project

PROJECT = "project"
ANNOTATOR = "annotator"
_OF_PROJECT = ("region", "within", "kind", "label", "said")
"""Choices that mean nothing in another project."""

_BEFORE = "_project-before"
_NOTE = "note"
_SOON = "_open"
_REFUSAL = "_refusal"

Option = TypeVar("Option")


def choose_project(projects: Sequence[Project]) -> Project | None:
    """Ask for a project; return the one chosen, or None.

    It stays open until another one is chosen, even if the choice is cleared: a tab that goes to another
    page before the first has loaded sends an empty choice, and a URL without it (Streamlit 1.67).
    """
    names = [project.name for project in projects]
    if soon := st.session_state.pop(_SOON, None):
        st.session_state[PROJECT] = soon
    if st.session_state.get(PROJECT) not in names:
        st.session_state.pop(PROJECT, None)
    known = st.session_state.get(PROJECT, st.session_state.get(_BEFORE))
    if known in names and (PROJECT not in st.session_state or PROJECT not in st.query_params):
        st.session_state[PROJECT] = known
    if st.session_state.get(_BEFORE) not in (None, st.session_state.get(PROJECT)):
        for key in _OF_PROJECT:  # they belong to the project before
            st.session_state[key] = None
    st.session_state[_BEFORE] = st.session_state.get(PROJECT)
    chosen = st.selectbox(
        "Project", names, key=PROJECT, bind="query-params", disabled=not names,
        index=None,  # a default would not be in the URL
        placeholder="Choose one" if names else "No project yet",
    )  # fmt: skip
    return next((project for project in projects if project.name == chosen), None)


def open_project(name: str) -> None:
    """Choose a project; call from a callback, before the choice is shown."""
    st.session_state[PROJECT] = name


def open_soon(name: str) -> None:
    """Choose a project in the next rerun; for code where `open_project` comes too late."""
    st.session_state[_SOON] = name


def need_project() -> Project:
    """Return the open project; if there is none, say so and stop the page."""
    name = st.session_state.get(PROJECT)
    for project in store.workspace().projects():
        if project.name == name:
            return project
    st.info("No project is open. Choose one in the sidebar, or create one on the overview.")
    st.page_link("../pages/overview.py", label="Overview", icon=":material/home:")
    st.stop()


def linked_choice(
    label: str, options: Sequence[str], *, key: str, show: Callable[[str], str] = str, unset: str = "all"
) -> str | None:
    """Ask for the value of a filter, in the URL; None if it is not set, which shows as `unset`."""
    if st.session_state.get(key) not in (None, *options):
        st.session_state.pop(key)
    return st.selectbox(
        label, options, key=key, index=None, placeholder=unset, format_func=show, bind="query-params"
    )


def linked_way(label: str, options: Sequence[str], *, key: str) -> str:
    """Ask for one of several options, in the URL; the first is the default."""
    chosen = st.segmented_control(
        label, options, key=key, default=options[0], required=True, bind="query-params",
        label_visibility="collapsed",
    )  # fmt: skip
    return chosen or options[0]


def linked_page(n_items: int, per_page: int, *, key: str) -> slice:
    """Ask for the number of a page, in the URL; return the slice of the items on it."""
    pages = max(1, -(-n_items // per_page))
    if st.session_state.get(key, 1) > pages:
        st.session_state[key] = 1
    number = int(st.number_input("Page", 1, pages, key=key, help=f"of {pages}", bind="query-params"))
    return slice((number - 1) * per_page, number * per_page)


def linked_number(label: str, low: float, high: float, default: float, *, key: str, told: str) -> float:
    """Ask for a number, in the URL unless it is the default."""
    return st.number_input(
        label, low, high, default, step=0.05, format="%g", key=key, help=told, bind="query-params"
    )


def project_link() -> dict[str, str]:
    """Return the query parameter of the open project, for a link to another page."""
    name = st.session_state.get(PROJECT)
    return {} if name is None else {PROJECT: name}


def annotator_field(latest: str | None) -> str:
    """Ask for the annotator's name, in the URL, by default `latest`; return it."""
    if not str(st.session_state.get(ANNOTATOR) or "").strip():
        st.session_state[ANNOTATOR] = latest or annotator()
    st.text_input("Annotator", key=ANNOTATOR, max_chars=40, bind="query-params")
    name = annotator()
    fault = annotator_fault(name)
    if name.startswith(SIMULATED_PREFIX):
        fault = f"names that begin with {SIMULATED_PREFIX} are those of simulated annotators; choose another"
    if fault:
        st.error(plain(f"{fault[0].upper()}{fault[1:]}."))
        st.stop()
    return name


def annotator() -> str:
    """Return who labels and edits: the name from the label page, else the user of this machine."""
    name = str(st.session_state.get(ANNOTATOR) or "").strip()
    if name:
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user id has no name
        return "me"


def remember(key: str, value: Any) -> None:
    """Store a value for this tab; the value of a widget must be set before the widget is shown."""
    st.session_state[key] = value


def recall(key: str, default: Any = None) -> Any:
    """Return a stored value."""
    return st.session_state.get(key, default)


def forget(key: str) -> None:
    """Delete a stored value."""
    st.session_state.pop(key, None)


def note(text: str) -> None:
    """Show a message after the next rerun."""
    st.session_state[_NOTE] = text


def refuse(text: str) -> None:
    """Show after the next rerun why something was not done; it stays until the user's next action."""
    st.session_state[_REFUSAL] = text, False


def has_note() -> bool:
    """Tell whether a message waits; a fragment then reruns the whole page, which shows it."""
    return _NOTE in st.session_state or not st.session_state.get(_REFUSAL, ("", True))[1]


def show_note() -> None:
    """Show the messages of `note` and `refuse` once; a refusal again if the page reruns by itself."""
    own = was_own()
    place = st.container()  # always there, so that nothing moves or closes when an error comes or goes
    refusal, was_shown = st.session_state.pop(_REFUSAL, ("", False))
    if refusal and (own or not was_shown):
        place.error(plain(refusal))
        st.session_state[_REFUSAL] = refusal, True
    if text := st.session_state.pop(_NOTE, None):
        st.toast(plain(text))
