"""Runs, their tasks, events and artifacts as they are read from the database.

Whether a run is alive is never stored. The system tells it, by process id *and* start time of the
process. A run whose process is gone counts as interrupted, or as cancelled if a person cancelled it.
Imports no torch.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import psutil

from defuse_core.workspace.results import Results

RunStatus = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
TaskStatus = Literal["queued", "running", "done", "failed", "cancelled"]

HEARTBEAT_SECONDS = 0.5
_HAND_OVER_SECONDS = 30.0  # by then a queued run has its runner, or never will
_CLOCK_SLACK = 1.0  # seconds by which two readings of the same start may differ


@dataclass(frozen=True)
class Resources:
    """Where a run computes.

    Attributes
    ----------
    device : str
        auto, cpu, mps, cuda or cuda:<n>.
    threads : int
        Of a local run; 0 takes `available_cores`.
    engine : {"local", "ray"}
    address : str, optional
        Of the Ray cluster, HOST:PORT or "local".
    cpus, gpus : float
        Ray's share a task.
    """

    device: str = "auto"
    threads: int = 0
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Run:
    """A run as it is read.

    Attributes
    ----------
    status : RunStatus
        As it is, not as it was last written.
    started_at, attempt_at : float or None
        When its first and its latest attempt started, seconds since 1970.
    record : dict
        Versions, device, threads, and the summary of a run that is done.
    seconds : float
        Computing time, over all resumes.
    upstream : tuple of int
        Runs it stands on directly.
    has_runner : bool
        Whether `pid` is that of its runner; until that has started, it is of the process that queued it.
    stale : bool
        Whether a run it stands on was redone since, or the labels that it used changed.
    """

    id: int
    project_id: int
    step: str
    config: dict[str, Any]
    seed: int
    resources: Resources
    status: RunStatus
    error: str | None
    record: dict[str, Any]
    created_at: float
    started_at: float | None
    attempt_at: float | None
    finished_at: float | None
    seconds: float
    last_annotation: int | None
    has_runner: bool
    pid: int
    pid_started: float
    heartbeat_at: float
    upstream: tuple[int, ...] = ()
    stale: bool = False

    @property
    def live(self) -> bool:
        """Queued or running."""
        return self.status in ("queued", "running")

    @property
    def summary(self) -> Results:
        """The results of the run, in numbers; empty until it is done."""
        return Results(self.record.get("summary", {}), where=f"the summary of run {self.id} ({self.step})")


@dataclass(frozen=True)
class Task:
    """One part of a run; `step` of `steps` is its progress."""

    name: str
    status: TaskStatus
    step: int
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Event:
    """A change of status, or a point of a chart; `id` ascends over all runs."""

    id: int
    kind: Literal["status", "point"]
    task: str
    key: str
    data: dict[str, Any]
    at: float


@dataclass(frozen=True)
class Artifact:
    """A file of a run, by name; `size` in bytes."""

    name: str
    sha256: str
    size: int


def process_started(pid: int) -> float | None:
    """Return when a process started, seconds after boot; None where it is gone or a zombie.

    Not since 1970: psutil adds the time of boot to what the kernel says, and that moves with the clock.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time() - psutil.boot_time())
    except psutil.Error:
        return None


def is_alive(pid: int, started: float, heartbeat_at: float) -> bool:
    """Tell whether this very process lives; a fresh heartbeat counts even if the clock was changed.

    Parameters
    ----------
    pid : int
    started : float
        When it started, as `process_started` returned it.
    heartbeat_at : float
        Seconds since 1970.
    """
    actual = process_started(pid)
    if actual is None:
        return False
    beating = abs(time.time() - heartbeat_at) < 2 * HEARTBEAT_SECONDS
    return abs(actual - started) <= _CLOCK_SLACK or beating


def observed_status(row: sqlite3.Row) -> RunStatus:
    """Return the status in a row of runs, corrected where the run's process is gone."""
    status: RunStatus = row["status"]
    if status not in ("queued", "running"):
        return status
    forgotten = not row["has_runner"] and time.time() - row["heartbeat_at"] > _HAND_OVER_SECONDS
    if not forgotten and is_alive(row["pid"], row["pid_started"], row["heartbeat_at"]):
        return status
    return "cancelled" if row["cancel_requested"] else "interrupted"


def read_run(row: sqlite3.Row, status: RunStatus, upstream: tuple[int, ...]) -> Run:
    """Build a run from its row.

    Parameters
    ----------
    row : sqlite3.Row
    status : RunStatus
        The `observed_status` of the row.
    upstream : tuple of int
        Runs it stands on directly.
    """
    values = {name: row[name] for name in row.keys() if name != "cancel_requested"}  # noqa: SIM118
    return Run(
        **{
            **values,
            "config": json.loads(row["config"]),
            "record": json.loads(row["record"]),
            "resources": Resources(**json.loads(row["resources"])),
            "status": status,
            "upstream": upstream,
            "has_runner": bool(row["has_runner"]),
        }
    )


def corrected_by(run: Run) -> int | None:
    """Return the correct run whose classifier a run of the step classifier uses; None for others."""
    weights = str(run.config.get("weights") or "") if run.step == "classifier" else ""
    return int(weights.removeprefix("corrected:")) if weights.startswith("corrected:") else None


def rounds(runs: Sequence[Run]) -> dict[int, int]:
    """Return the round of each run: the correct run that the round began with, 0 for the first round.

    Parameters
    ----------
    runs : sequence of Run
        Of a project, by number.
    """
    by_run: dict[int, int] = {}
    for run in runs:
        began = (by_run.get(i, 0) for i in run.upstream)
        by_run[run.id] = corrected_by(run) or next((i for i in began if i), 0)
    return by_run


def mark_stale(runs: Sequence[Run], newest_labels: Mapping[int, int]) -> list[Run]:
    """Return the runs with `stale` set.

    A run is stale if a run it stands on is stale, finished after it started, or has a newer one that is
    done; or if the labels it used changed. A further round makes no run of an earlier round stale.

    Parameters
    ----------
    runs : sequence of Run
        Of a project, by number.
    newest_labels : mapping of int to int
        Id of the newest event that can change a verdict, by distill run.
    """
    of = rounds(runs)
    newest = {(run.step, of[run.id]): run.id for run in runs if run.status == "done"}  # the last one stays
    by_id: dict[int, Run] = {}
    for run in runs:  # what a run stands on comes before it
        stale = any(
            newest.get((by_id[i].step, of[i]), i) > i
            or by_id[i].stale
            or (run.started_at is not None and (by_id[i].finished_at or 0.0) > run.started_at)
            for i in (*run.upstream, corrected_by(run))
            if i in by_id
        )
        if run.last_annotation is not None:
            stale = stale or any(newest_labels.get(i, 0) > run.last_annotation for i in run.upstream)
        by_id[run.id] = Run(**{**vars(run), "stale": stale})
    return list(by_id.values())
