"""Runs in the process of the test: what a runner computes and stores, in a tenth of the time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from defuse_core.jobs import launcher, runner
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.projects import new_project
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Workspace
from tests.workspaces import ONE_THREAD, Place


def add_run(place: Place, step: StepName, config: Mapping[str, Any] | None = None, *, seed: int = 0) -> Run:
    """Queue a run that has no runner, on the newest runs that it can stand on."""
    checked = check_config(step, config or {}).model_dump(mode="json")
    upstream = launcher.find_upstream(place.workspace, place.project.id, step, config)
    ids = [upstream[name].id for name in upstream]
    return place.workspace.runs.add(
        place.project.id, step, checked, seed=seed, resources=ONE_THREAD, upstream=ids
    )


def begin(place: Place, run: Run) -> None:
    """Let a queued run be running, in this process."""
    place.workspace.runs.hand_over(run.id, os.getpid())
    place.workspace.runs.start(run.id, {})


def store_run(
    place: Place, step: StepName, summary: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> Run:
    """A run that is done and found this, without having computed."""
    run = add_run(place, step, config)
    begin(place, run)
    place.workspace.runs.finish(run.id, "done", summary=summary)
    return place.get(run)


def end_all(place: Place) -> None:
    """End the live runs of a workspace: those of a process of their own are stopped."""
    for run in place.workspace.runs.of_project(place.project.id):
        if run.live and run.pid == os.getpid():
            place.workspace.runs.finish(run.id, "cancelled")
        elif run.live:
            launcher.cancel(place.workspace, run.id)
    assert not any(run.live for run in place.workspace.runs.of_project(place.project.id))


def compute_here(workspace: Workspace, run: Run, *, cancelled: Iterable[str] = ()) -> None:
    """Compute a queued run and end it, as its runner does; without lock and beats, its log stays empty.

    As if somebody had cancelled these tasks.
    """
    launcher.prepare_folder(workspace, run)
    workspace.runs.hand_over(run.id, os.getpid())
    guard = runner.Guard(workspace, run.id)
    guard.cancelled = frozenset(cancelled)
    threads = torch.get_num_threads()
    try:
        merged, done = runner._compute(workspace, run, guard)
    except Exception as error:
        workspace.runs.finish(run.id, "failed", error=f"{error}" or type(error).__name__)
        return
    finally:
        torch.set_num_threads(threads)
        os.close(guard._reading)
        os.close(guard._writing)
    assert merged is not None
    told = runner._told_at_end(workspace, run.id, merged, done)
    workspace.runs.finish(run.id, "done", **told)
    runner._remove_files(workspace, run.id, told["forget"])


@contextmanager
def runs_in_this_process() -> Iterator[None]:
    """Whatever is submitted has ended before `launcher` returns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "_start", compute_here)
        yield


def run_here(place: Place, step: StepName, config: Mapping[str, Any] | None = None, *, seed: int = 0) -> Run:
    """Do a run to its end, good or bad."""
    run = add_run(place, step, config, seed=seed)
    compute_here(place.workspace, run)
    return place.get(run)


def done_here(place: Place, step: StepName, config: Mapping[str, Any] | None = None, **options: Any) -> Run:
    """Do a run to its end, which is to be a good one."""
    run = run_here(place, step, config, **options)
    assert run.status == "done", run.error
    return run


def fresh_place(home: Path, source: str | Path, name: str = "fresh") -> Place:
    """A workspace with one project on this data set, and no run."""
    workspace = Workspace(home)
    return Place(workspace, new_project(workspace, name, str(source)))
