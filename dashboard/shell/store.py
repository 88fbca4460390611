"""The workspace, and what is computed from it: on threads, kept, bounded, keyed by ids and never by arrays.

What takes longer than a glance is begun on a thread and waited for by the page, which goes on being
one; torch is imported by the first of these, not before.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import streamlit as st
from numpy.typing import NDArray
from streamlit.delta_generator import DeltaGenerator

from dashboard.shell.rerun import rerun
from dashboard.shell.text import plain
from defuse_core.jobs import launcher
from defuse_core.workspace.workspace import Workspace

Given = ParamSpec("Given")
Result = TypeVar("Result")
Arrays = dict[str, NDArray[Any]]

_GLANCE = 0.3  # seconds that a page waits before it says what it waits for
_PATIENCE = 10.0  # seconds that it waits while modules are imported
_LOOK = 0.5  # seconds between two looks


@st.cache_resource(show_spinner=False)
def workspace() -> Workspace:
    """The workspace that DEFUSE_HOME names; safe for all sessions at once."""
    return Workspace()


# What is computed on a thread


class Later(Generic[Given, Result]):
    """A function of ids whose result is computed on a thread and kept; see `later`."""

    def __init__(
        self, prepare: Callable[Given, Callable[[], Result]], what: str, *, max_entries: int,
        version: Callable[..., object], glance: float,
    ) -> None:  # fmt: skip
        self._prepare, self._what, self._version, self._glance = prepare, what, version, glance
        self._signature = inspect.signature(prepare)

        def begin(key: tuple[object, ...], given: tuple[Any, ...]) -> Future[Result]:
            del key
            return on_thread(prepare(*given))  # type: ignore[call-arg]

        begin.__module__, begin.__qualname__ = prepare.__module__, prepare.__qualname__  # by which it is kept
        self._begin = st.cache_resource(max_entries=max_entries, show_spinner=False)(begin)

    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> Result | None:
        """The result; None while it is computed, or where it cannot be, which the page says."""
        key = self._key(*args, **kwargs)
        return _await(self._begin(*key), self._what, lambda: self._begin.clear(*key), self._glance)

    def future(self, *args: Given.args, **kwargs: Given.kwargs) -> Future[Result]:
        """The same for what is computed of it: begun unless it was, and again where it failed."""
        key = self._key(*args, **kwargs)
        begun = self._begin(*key)
        if begun.done() and begun.exception() is not None:
            self._begin.clear(*key)
            begun = self._begin(*key)
        return begun

    def _key(self, *args: Given.args, **kwargs: Given.kwargs) -> tuple[tuple[object, ...], tuple[Any, ...]]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return (str(workspace().home), self._version(*bound.args)), bound.args


def later(
    what: str, *, max_entries: int, version: Callable[..., object] = lambda *_: None,
    glance: float = _GLANCE,
) -> Callable[[Callable[Given, Callable[[], Result]]], Later[Given, Result]]:  # fmt: skip
    """Let a function be computed on a thread, and its results be kept.

    Parameters
    ----------
    what : str
        Which the page says that it loads.
    max_entries : int
        How many results are kept.
    version : callable, optional
        Takes what the function takes; where it returns something else than before, the result is computed
        anew.
    glance : float
        Seconds that a page waits before it says that it loads.

    Returns
    -------
    callable
        Decorates a function of ids that returns what is to be called on the thread.
    """
    return lambda prepare: Later(prepare, what, max_entries=max_entries, version=version, glance=glance)


def on_thread(function: Callable[..., Result], *given: object) -> Future[Result]:
    """Call a function on a thread of the dashboard's."""
    return _threads().submit(function, *given)


@st.cache_resource(show_spinner=False)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, thread_name_prefix="defuse-page")


def _await(found: Future[Result], what: str, forget: Callable[[], None], glance: float) -> Result | None:
    """The result; where it is not there at a glance, say so and run the page again once it is."""
    slot = st.empty()  # always: what comes after it keeps its place on the page, and what was typed into it
    try:
        return _result(found, what, glance, slot)
    except NotYet:
        st.fragment(_wait, run_every=_LOOK)(found, what)
    except Exception as error:  # whatever a data set of a user's can give
        st.error(plain(str(error)))
        forget()  # it may have been mended by the next look
    return None


def _result(found: Future[Result], what: str, glance: float, slot: DeltaGenerator) -> Result:
    """Wait a glance; longer while modules are imported, which looking again and again would slow down."""
    try:
        return found.result(timeout=glance)
    except NotYet:
        if warm_up().done():
            raise
    slot.caption(f"Loading {what} …")
    result = found.result(timeout=_PATIENCE)
    slot.empty()
    return result


def _wait(found: Future[Result], what: str) -> None:
    if found.done():
        rerun()
    st.caption(f"Loading {what} …")


@st.cache_resource(show_spinner=False)
def warm_up() -> Future[None]:
    """Import what most pages compute with, before the first of them asks for it."""
    return on_thread(_import_all)


def _import_all() -> None:
    """Import what pages compute with, and start the spare runner.

    Streamlit collects garbage after every run: what is imported is not looked through again.
    """
    for name in ("steps.distill", "extensions.answers", "extensions.regions"):
        importlib.import_module(f"defuse_core.{name}")
    gc.collect()
    gc.freeze()
    launcher.keep_spare()  # from now on a started step answers at once


# What is read from files


def checksum(run_id: int, name: str) -> str | None:
    """The SHA-256 of an artifact of a run, by its name; None where the run has none of that name."""
    found = workspace().runs.artifacts(run_id).get(name)
    return None if found is None else found.sha256


def arrays(run_id: int, name: str) -> Arrays:
    """Arrays of a safetensors artifact of a run; not to be changed. Empty where the run has none."""
    sha256 = checksum(run_id, f"{name}.safetensors")
    return {} if sha256 is None else _arrays(str(workspace().home), run_id, name, sha256)


@st.cache_resource(max_entries=16, show_spinner=False)
def _arrays(home: str, run_id: int, name: str, sha256: str) -> Arrays:
    from safetensors.numpy import load_file

    del home, sha256
    return load_file(workspace().artifact_path(run_id, f"{name}.safetensors"))


# What the machine has


@dataclass(frozen=True)
class DeviceText:
    """A device of this machine: how a run names it, what it is, and its memory in bytes."""

    device: str
    name: str
    memory: int

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / 2**30:.0f} GB"


def devices() -> list[DeviceText]:
    """The devices of this machine, the default first; none while they are being asked for."""
    asked = _asked_devices()
    return asked.result() if asked.done() and asked.exception() is None else []


@st.cache_resource(show_spinner=False)
def _asked_devices() -> Future[list[DeviceText]]:
    """Ask a process of its own: torch takes seconds to import, and the shell does without it."""
    return ThreadPoolExecutor(1).submit(_ask_devices)


def _ask_devices() -> list[DeviceText]:
    code = (
        "import json; from defuse_core.base.runtime import list_devices;"
        "print(json.dumps([vars(found) for found in list_devices()]))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    told = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return [DeviceText(**found) for found in json.loads(told.stdout)]
