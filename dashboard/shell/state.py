"""The only owner of session-state keys and query parameters.

`project` is the project's name and stands in the URL, as does every filter, so that a link opens
what was seen.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import streamlit as st

from dashboard.shell import store
from dashboard.shell.rerun import was_own
from dashboard.shell.text import plain as plain  # theirs to import from here, too
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
    """Show the choice of project; return the one chosen, None where there is none.

    It stays open until another one is chosen, also where the choice is cleared: a tab that goes to another
    page before the first has loaded sends an empty choice, and an address without it (Streamlit 1.67).
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
        for key in _OF_PROJECT:  # another project's
            st.session_state[key] = None
    st.session_state[_BEFORE] = st.session_state.get(PROJECT)
    chosen = st.selectbox(
        "Project", names, key=PROJECT, bind="query-params", disabled=not names,
        index=None,  # a default would not stand in the URL
        placeholder="Choose one" if names else "No project yet",
    )  # fmt: skip
    return next((project for project in projects if project.name == chosen), None)


def open_project(name: str) -> None:
    """Choose a project; call from a callback, before the choice is shown."""
    st.session_state[PROJECT] = name


def open_soon(name: str) -> None:
    """Choose a project in the rerun that follows; for where `open_project` comes too late."""
    st.session_state[_SOON] = name


def need_project() -> Project:
    """The project that is open; where none is, say so and show no more of the page."""
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
    """A filter that stands in the URL; None where it is not set, which `unset` tells."""
    if st.session_state.get(key) not in (None, *options):
        st.session_state.pop(key)
    return st.selectbox(
        label, options, key=key, index=None, placeholder=unset, format_func=show, bind="query-params"
    )


def linked_way(label: str, options: Sequence[str], *, key: str) -> str:
    """A choice between ways to go on, that stands in the URL; the first is the default."""
    chosen = st.segmented_control(
        label, options, key=key, default=options[0], required=True, bind="query-params",
        label_visibility="collapsed",
    )  # fmt: skip
    return chosen or options[0]


def linked_page(n_items: int, per_page: int, *, key: str) -> slice:
    """The part of many items to show; its number stands in the URL."""
    pages = max(1, -(-n_items // per_page))
    if st.session_state.get(key, 1) > pages:
        st.session_state[key] = 1
    number = int(st.number_input("Page", 1, pages, key=key, help=f"of {pages}", bind="query-params"))
    return slice((number - 1) * per_page, number * per_page)


def linked_number(label: str, low: float, high: float, default: float, *, key: str, told: str) -> float:
    """A share that stands in the URL where it is not the default."""
    return st.number_input(
        label, low, high, default, step=0.05, format="%g", key=key, help=told, bind="query-params"
    )


def project_link() -> dict[str, str]:
    """The query parameter of the project that is open, for a link to another page."""
    name = st.session_state.get(PROJECT)
    return {} if name is None else {PROJECT: name}


def annotator_field(latest: str | None) -> str:
    """Ask who labels, by default whoever did so last; return the name. It stands in the URL."""
    if not str(st.session_state.get(ANNOTATOR) or "").strip():
        st.session_state[ANNOTATOR] = latest or annotator()
    st.text_input("Annotator", key=ANNOTATOR, max_chars=40, bind="query-params")
    if (name := annotator()).startswith(SIMULATED_PREFIX):
        st.error(plain(f"Names that begin with {SIMULATED_PREFIX} are those of simulated annotators."))
        st.stop()
    return name


def annotator() -> str:
    """Who labels and edits here: the name given on the label page, else who is logged in to the machine."""
    name = str(st.session_state.get(ANNOTATOR) or "").strip()
    if name:
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # nobody has this number
        return "me"


def remember(key: str, value: Any) -> None:
    """Keep a value for this tab; of a widget's key: its value, to be set before it is shown."""
    st.session_state[key] = value


def recall(key: str, default: Any = None) -> Any:
    """Return what was kept."""
    return st.session_state.get(key, default)


def forget(key: str) -> None:
    """Keep a value no longer."""
    st.session_state.pop(key, None)


def note(text: str) -> None:
    """Tell something after the rerun that follows."""
    st.session_state[_NOTE] = text


def refuse(text: str) -> None:
    """Tell, on the page that follows, why something was not done; it stays until the next step."""
    st.session_state[_REFUSAL] = text, False


def has_note() -> bool:
    """Whether something waits to be told; a fragment then lets the whole page run, which tells it."""
    return _NOTE in st.session_state or not st.session_state.get(_REFUSAL, ("", True))[1]


def show_note() -> None:
    """Show what `note` and `refuse` left, once; a refusal again where the page runs again by itself."""
    own = was_own()
    place = st.container()  # always there: nothing moves, or closes, when an error comes or goes
    told, shown = st.session_state.pop(_REFUSAL, ("", False))
    if told and (own or not shown):
        place.error(plain(told))
        st.session_state[_REFUSAL] = told, True
    if text := st.session_state.pop(_NOTE, None):
        st.toast(plain(text))
