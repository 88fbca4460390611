"""Opens the workspace, and computes from it on threads, with bounded caches keyed by ids, never by arrays.

A page that waits for a slow result says so and stays usable. torch is imported on these threads, not before.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, ParamSpec, TypeVar

import streamlit as st
from numpy.typing import NDArray

from dashboard.shell.rerun import rerun
from dashboard.shell.streamlit_internals import Container
from dashboard.shell.text import plain
from defuse_core.jobs import launcher
from defuse_core.workspace.workspace import Workspace

Given = ParamSpec("Given")
Result = TypeVar("Result")
Arrays = dict[str, NDArray[Any]]

ARRAY_BYTES = 2**29
"""Of the arrays of artifacts that pages keep in memory, 512 MiB; the mistakes of one search can have 450."""

_GLANCE = 0.3  # seconds that a page waits before it says what it waits for
_PATIENCE = 10.0  # seconds that it waits while modules are imported
_LOOK = 0.5  # seconds between two reruns of a page that waits


@st.cache_resource(show_spinner=False)
def workspace() -> Workspace:
    """The workspace that DEFUSE_HOME names; safe for all sessions at once."""
    return Workspace()


# What is computed on a thread


class Later(Generic[Given, Result]):
    """A function of ids whose result is computed on a thread and cached; see `later`."""

    def __init__(
        self, prepare: Callable[Given, Callable[[], Result]], what: str, *, max_entries: int,
        version: Callable[..., object], glance: float,
    ) -> None:  # fmt: skip
        self._prepare, self._what, self._version, self._glance = prepare, what, version, glance
        self._signature = inspect.signature(prepare)

        def begin(key: tuple[object, ...], args: tuple[Any, ...]) -> Future[Result]:
            del key
            return on_thread(prepare(*args))  # type: ignore[call-arg]

        begin.__module__, begin.__qualname__ = prepare.__module__, prepare.__qualname__  # name the cache
        self._begin = st.cache_resource(max_entries=max_entries, show_spinner=False)(begin)

    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> Result | None:
        """Return the result; None while it is computed or if that failed, which the page says."""
        key = self._key(*args, **kwargs)
        return _await(self._begin(*key), self._what, lambda: self._begin.clear(*key), self._glance)

    def future(self, *args: Given.args, **kwargs: Given.kwargs) -> Future[Result]:
        """Return the future of the result, for what is computed from it; start again if it failed."""
        key = self._key(*args, **kwargs)
        result = self._begin(*key)
        if result.done() and result.exception() is not None:
            self._begin.clear(*key)
            result = self._begin(*key)
        return result

    def _key(self, *args: Given.args, **kwargs: Given.kwargs) -> tuple[tuple[object, ...], tuple[Any, ...]]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return (str(workspace().home), self._version(*bound.args)), bound.args


def later(
    what: str, *, max_entries: int, version: Callable[..., object] = lambda *_: None,
    glance: float = _GLANCE,
) -> Callable[[Callable[Given, Callable[[], Result]]], Later[Given, Result]]:  # fmt: skip
    """Compute a function on a thread, and cache its results.

    Parameters
    ----------
    what : str
        What the page says that it loads.
    max_entries : int
        How many results are cached.
    version : callable, optional
        Takes the function's arguments; if its value has changed, the result is computed again.
    glance : float
        Seconds that a page waits before it says that it loads.

    Returns
    -------
    callable
        Decorates a function of ids that returns what to call on the thread.
    """
    return lambda prepare: Later(prepare, what, max_entries=max_entries, version=version, glance=glance)


def on_thread(function: Callable[..., Result], *args: object) -> Future[Result]:
    """Call a function on one of the dashboard's threads."""
    return _threads().submit(function, *args)


@st.cache_resource(show_spinner=False)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, thread_name_prefix="defuse-page")


def _await(future: Future[Result], what: str, forget: Callable[[], None], glance: float) -> Result | None:
    """Return the result; if it takes longer than `glance`, say so and rerun the page once it is there."""
    slot = st.empty()  # always there, so that what follows keeps its place, and what was typed into it
    try:
        return _result(future, what, glance, slot)
    except NotYet:
        st.fragment(_wait, run_every=_LOOK)(future, what)
    except Exception as error:  # whatever a user's data set can raise
        st.error(plain(str(error)))
        forget()  # so that the next rerun tries again
    return None


def _result(future: Future[Result], what: str, glance: float, slot: Container) -> Result:
    """Wait for `glance` seconds; longer while modules are imported, because reruns would slow that down."""
    try:
        return future.result(timeout=glance)
    except NotYet:
        if warm_up().done():
            raise
    slot.caption(f"Loading {what} …")
    result = future.result(timeout=_PATIENCE)
    slot.empty()
    return result


def _wait(future: Future[Result], what: str) -> None:
    if future.done():
        rerun()
    st.caption(f"Loading {what} …")


@st.cache_resource(show_spinner=False)
def warm_up() -> Future[None]:
    """Import what most pages compute with, before the first of them asks for it."""
    return on_thread(_import_all)


def _import_all() -> None:
    """Import what pages compute with, and start the spare runner."""
    for name in ("steps.distill", "extensions.answers", "extensions.regions"):
        importlib.import_module(f"defuse_core.{name}")
    gc.collect()
    gc.freeze()  # Streamlit collects garbage after every run: it skips what is imported by now
    launcher.keep_spare()  # from now on a started step answers at once


# What is read from files


def checksum(run_id: int, name: str) -> str | None:
    """Return the SHA-256 of an artifact of a run; None if the run has none of that name."""
    artifact = workspace().runs.artifacts(run_id).get(name)
    return None if artifact is None else artifact.sha256


def arrays(run_id: int, name: str) -> Arrays:
    """Return the arrays of a safetensors artifact, or {}. They are shared: do not change them."""
    sha256 = checksum(run_id, f"{name}.safetensors")
    if sha256 is None:
        return {}
    from safetensors.numpy import load_file

    path = workspace().artifact_path(run_id, f"{name}.safetensors")
    return _read_arrays().get((str(workspace().home), run_id, name, sha256), lambda: load_file(path))


class ArrayCache:
    """Arrays by key, those used longest ago forgotten first where they hold more bytes than allowed.

    Parameters
    ----------
    max_bytes : int
        Of all that is kept; what is larger alone is returned and not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._lock = max_bytes, Lock()
        self._kept: OrderedDict[Hashable, Arrays] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(array.nbytes for arrays in self._kept.values() for array in arrays.values())

    def get(self, key: Hashable, load: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of a key, loaded where they are not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = load()  # others need not wait for it
        if sum(array.nbytes for array in found.values()) <= self._max_bytes:
            with self._lock:
                self._kept[key] = found
                while self.nbytes > self._max_bytes:
                    self._kept.popitem(last=False)
        return found


@st.cache_resource(show_spinner=False)
def _read_arrays() -> ArrayCache:
    return ArrayCache(ARRAY_BYTES)


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
    """Return the devices of this machine, the default first; none until they are known."""
    future = _asked_devices()
    return future.result() if future.done() and future.exception() is None else []


@st.cache_resource(show_spinner=False)
def _asked_devices() -> Future[list[DeviceText]]:
    """Ask another process: torch takes seconds to import, and the shell does not need it."""
    return ThreadPoolExecutor(1).submit(_ask_devices)


def _ask_devices() -> list[DeviceText]:
    code = (
        "import json; from defuse_core.base.runtime import list_devices;"
        "print(json.dumps([vars(found) for found in list_devices()]))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    process = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return [DeviceText(**entry) for entry in json.loads(process.stdout)]
