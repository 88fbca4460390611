"""Spare runners, as the system's list of processes has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from defuse_core.jobs import launcher, spare
from defuse_core.jobs.spare import SPARE_RUNNER, SpareKeeper
from defuse_core.workspace.runs import Resources, Run
from tests.workspaces import eventually


def is_spare(run: Run) -> bool:
    """Whether the process of a run that is under way was there before it, or was forked by one that was."""
    return spare.__name__ in psutil.Process(run.pid).cmdline()


def spares_of_this_process() -> list[int]:
    """Process ids of the spare runners that this process started, those that became a run's included."""
    found = []
    for process in psutil.Process().children():
        try:
            eventually(
                lambda process=process: process.cmdline() or is_zombie(process)
            )  # a new one has none yet
            if spare.__name__ in process.cmdline() and not is_zombie(process):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def _is_known(process: psutil.Process) -> bool:
    """Whether the system tells its command line: of a process that has just begun it does not yet."""
    return bool(process.cmdline()) or is_zombie(process)


def is_zombie(process: psutil.Process) -> bool:
    """Whether a process has ended and nobody has waited for it; one that is gone is none."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def keeping_spare(resources: Resources) -> Iterator[int]:
    """Keep a spare runner that is ready, however small the machine; its process id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spare, "FREE_MEMORY", 0)
        patch.setattr(spare, "_NOT_COMPARED", (*spare._NOT_COMPARED, "PYTEST_CURRENT_TEST"))
        patch.setenv(SPARE_RUNNER, "1")
        with launcher.spare_runner(resources):
            kept = launcher.await_spare()
            assert kept is not None
            yield kept


@contextmanager
def without_spare() -> Iterator[None]:
    """Let a run be started without the spare runner that is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "_SPARES", SpareKeeper())
        yield
