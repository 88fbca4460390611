"""Spare runners, as the system's list of processes has them."""

from __future__ import annotations

import psutil

from defuse_core.jobs import spare
from defuse_core.workspace.runs import Run


def is_spare(run: Run) -> bool:
    """Whether the process of a run that is under way was there before it."""
    return spare.__name__ in psutil.Process(run.pid).cmdline()


def spares_of_this_process() -> list[int]:
    """Process ids of the spare runners that this process started, those that took a run included."""
    found = []
    for process in psutil.Process().children():
        try:
            if spare.__name__ in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found
