"""Every cache of the dashboard, bounded, keyed by ids and never by arrays."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import streamlit as st

from defuse_core.workspace import Workspace


@dataclass(frozen=True)
class DeviceText:
    """The device that runs take by default: its name, and its memory in bytes."""

    name: str
    memory: int

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / 2**30:.0f} GB"


@st.cache_resource(show_spinner=False)
def workspace() -> Workspace:
    """The workspace that DEFUSE_HOME names; safe for all sessions at once."""
    return Workspace()


@st.cache_resource(show_spinner=False)
def _asked_device() -> Future[DeviceText]:
    """Ask a process of its own: torch takes seconds to import, and the dashboard does without it."""
    return ThreadPoolExecutor(1).submit(_ask_device)


def _ask_device() -> DeviceText:
    code = (
        "import json; from defuse_core.runtime import describe_device, resolve_device;"
        "found = describe_device(resolve_device()); print(json.dumps([found.name, found.memory]))"
    )
    told = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return DeviceText(*json.loads(told.stdout))


def device() -> DeviceText | None:
    """The default device; None while it is being asked for, or where asking failed."""
    asked = _asked_device()
    if not asked.done() or asked.exception() is not None:
        return None
    return asked.result()
