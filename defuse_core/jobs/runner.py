"""The process of a run: waits for its turn, runs the tasks, stores what they yield, writes a heartbeat.

`launcher` starts it: `python -m defuse_core.jobs.runner HOME RUN`. On SIGTERM it stops within a second, even
inside a long native call: a thread waits for the signal, and ends the process if the main thread does
not. What was stored by then is complete, and `resume` computes the rest.
"""

from __future__ import annotations

import fcntl
import os
import platform
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defuse_core.workspace.configs import STEPS
from defuse_core.workspace.database import BUSY_SECONDS, WorkspaceError, explain_os_error
from defuse_core.workspace.reserve import DISK_FULL
from defuse_core.workspace.runs import HEARTBEAT_SECONDS, Artifact, Run, RunStatus
from defuse_core.workspace.workspace import Workspace

if TYPE_CHECKING:
    from defuse_core.jobs.engine import Ended, Engine, Started
    from defuse_core.steps.base import Item, Merged, Step

_GRACE_SECONDS = 0.3  # between a signal and the end of the process
_PROGRESS_SECONDS = 0.1  # between two writes of a task's progress
_POLL_SECONDS = 0.1
_LIVE = ("queued", "running")
_VERSIONS = ("defuse", "torch", "numpy", "scikit-learn")


class Stopped(BaseException):
    """The run must end now; not an `Exception`, so that no step catches it."""


class Guard:
    """A thread that writes the heartbeat, and ends the process on a signal or when the run is cancelled."""

    def __init__(self, workspace: Workspace, run_id: int) -> None:
        self._workspace, self._run_id = workspace, run_id
        self._stop, self._over = threading.Event(), threading.Event()
        self._cancel_run = False
        self.cancelled: frozenset[str] = frozenset()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Install the signal handlers and start the heartbeat; call from the main thread."""
        signal.set_wakeup_fd(self._writing)  # written by C at once, whatever Python is busy with
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._thread.start()

    def check(self) -> None:
        """Raise `Stopped` if the run must end."""
        if self._stop.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep; raise `Stopped` as soon as the run must end."""
        if self._stop.wait(seconds):
            raise Stopped

    def end(self, status: RunStatus, **result: Any) -> None:
        """Store how the run ended; from now on the thread does not end the process."""
        self._over.set()
        durable = Workspace(self._workspace.home)  # a power cut must not lose this
        durable.runs.finish(self._run_id, status, **result)

    @property
    def status_when_stopped(self) -> RunStatus:
        """Cancelled if a person cancelled it, else interrupted."""
        return "cancelled" if self._cancel_run else "interrupted"

    def _watch(self) -> None:
        while not self._over.is_set():
            signals, _, _ = select.select([self._reading], [], [], HEARTBEAT_SECONDS / 2)
            try:
                self._cancel_run, self.cancelled = self._workspace.runs.beat(self._run_id)
            except WorkspaceError as error:  # a full disk: the main thread will raise it, too
                with suppress(OSError):  # the log is on that disk
                    print(f"heartbeat: {error}", file=sys.stderr)
            if signals or self._cancel_run:
                break
        self._stop.set()
        if not self._over.wait(_GRACE_SECONDS):
            try:
                self._workspace.runs.finish(self._run_id, self.status_when_stopped)
            finally:
                os._exit(1)  # even without the row: a process that is gone counts as ended


def main(home: Path, run_id: int) -> int:
    """Execute the run; return the exit code, 0 if it is done.

    Parameters
    ----------
    home : Path
        Of the workspace.
    run_id : int
    """
    workspace = Workspace(home, durable=False)
    run = _take_over(workspace, run_id)
    guard = Guard(workspace, run_id)
    guard.start()
    try:
        _await_upstream(workspace, run, guard)
        with _machine(workspace, run, guard):
            merged, done = _compute(workspace, run, guard)
        if merged is None:
            guard.end("cancelled")
            return 1
        result = _told_at_end(workspace, run_id, merged, done)
        guard.end("done", **result)
    except Stopped:
        guard.end(guard.status_when_stopped)
        return 1
    except Exception as error:
        guard.end("failed", error=_told(workspace, run_id, error))
        with suppress(OSError):  # the log may be on a full disk
            traceback.print_exc()
        return 1
    _remove_files(workspace, run_id, result["forget"])
    return 0


def _told(workspace: Workspace, run_id: int, error: Exception) -> str:
    """What a person reads of an error that ended the run."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return str(explain_os_error(Path(error.filename or workspace.run_folder(run_id)), error))
    return str(error) or type(error).__name__


def _told_at_end(workspace: Workspace, run_id: int, merged: Merged, done: list[str]) -> dict[str, Any]:
    """Arguments of `RunStore.finish` for a run whose tasks `done` are merged."""
    whole = len(done) == len(workspace.runs.tasks(run_id))
    replaced = [f"{task}.safetensors" for task in done] if merged.replaces_tasks and whole else []
    labels_of = workspace.runs.ancestry(run_id)["distill"].id if merged.labels else 0
    return {"summary": merged.summary, "forget": replaced, "labels": merged.labels, "labels_of": labels_of}


def _remove_files(workspace: Workspace, run_id: int, names: Sequence[str]) -> None:
    """Remove files after their rows: a file without a row is garbage, a row without a file is an error."""
    for name in names:
        (workspace.run_folder(run_id) / name).unlink(missing_ok=True)
    shutil.rmtree(workspace.run_folder(run_id) / "work", ignore_errors=True)


def _take_over(workspace: Workspace, run_id: int) -> Run:
    """Wait until the launcher has handed the run to this process."""
    deadline = time.monotonic() + BUSY_SECONDS + 10  # the launcher may wait for the database
    while time.monotonic() < deadline:
        run = workspace.runs.get(run_id)
        if run.has_runner and run.pid == os.getpid():
            return run
        if run.status != "queued":  # cancelled meanwhile, or not ours
            break
        time.sleep(0.01)  # the launcher writes a row, and SQLite sends no notice
    raise WorkspaceError(f"run {run_id} was not given to this process; use: defuse resume {run_id}")


def _await_upstream(workspace: Workspace, run: Run, guard: Guard) -> None:
    """Wait for live runs that this one stands on, and for annotate runs if it takes labels.

    Raises
    ------
    WorkspaceError
        If a run that it stands on ended without being done.
    """
    ground = [other for other in workspace.runs.ancestry(run.id).values() if other.id != run.id]
    for other in ground:
        while (status := workspace.runs.status(other.id)) in _LIVE:
            guard.wait(_POLL_SECONDS)
        if status != "done":
            raise WorkspaceError(
                f"{other.step} (run {other.id}) is {status}; resume it, then resume this run: "
                f"defuse resume {other.id}"
            )
    if STEPS[run.step].takes_labels:  # type: ignore[index]
        for other in workspace.runs.of_project(run.project_id, "annotate"):
            while set(other.upstream) & set(run.upstream) and workspace.runs.status(other.id) in _LIVE:
                guard.wait(_POLL_SECONDS)


@contextmanager
def _machine(workspace: Workspace, run: Run, guard: Guard) -> Iterator[None]:
    """Wait until no other run computes here: two at once slow each other about ten times."""
    if run.resources.engine != "local" or STEPS[run.step].shares_machine:  # type: ignore[index]
        yield
        return
    with (workspace.home / "machine.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process
                break
            except BlockingIOError:
                guard.wait(_POLL_SECONDS)
        yield


def _compute(workspace: Workspace, run: Run, guard: Guard) -> tuple[Merged | None, list[str]]:
    """Run the missing tasks and merge those that are done; None if all were cancelled."""
    from defuse_core.base import runtime  # imports torch, so only when it is this run's turn
    from defuse_core.base.checkpoints import load_artifact
    from defuse_core.steps import load_step

    threads = runtime.set_threads(run.resources.threads or None)
    engine, device = _make_engine(run)
    record = {
        "versions": {name: version(name) for name in _VERSIONS} | {"python": platform.python_version()},
        "machine": platform.machine(),
        "device": device,
        "threads": threads,
    }
    guard.check()
    workspace.runs.start(run.id, record)
    if STEPS[run.step].takes_labels and not workspace.runs.artifacts(run.id):  # type: ignore[index]
        last_annotation = run.config["last_annotation"]
        newest = workspace.annotations.last_id(workspace.runs.ancestry(run.id)["distill"].id)
        workspace.runs.fix_labels(run.id, newest if last_annotation is None else last_annotation)
    step = load_step(workspace, run.id)
    step.work = workspace.run_folder(run.id) / "work"
    stored = workspace.runs.artifacts(run.id)
    for file in step.files:
        if file.name not in stored:
            workspace.runs.name_artifact(run.id, workspace.store_artifact(run.id, file.name, file.content))
    failed, diverged = _run_tasks(workspace, run, step, engine, guard)
    tasks = workspace.runs.tasks(run.id)
    done = [task.name for task in tasks if task.status == "done"]
    if failed or (diverged and not step.suffices(done)):
        raise RuntimeError([*failed, *diverged][0])
    if not done:
        return None, []
    guard.check()
    merged = step.merge(
        done, lambda name: load_artifact(workspace.artifact_path(run.id, f"{name}.safetensors"))
    )
    for file in merged.files:
        workspace.runs.name_artifact(run.id, workspace.store_artifact(run.id, file.name, file.content))
    missing = [task.name for task in tasks if task.status != "done"]
    summary = {**merged.summary, "missing": missing} if missing else merged.summary
    return replace(merged, summary=summary), done


def _make_engine(run: Run) -> tuple[Engine, dict[str, Any]]:
    """Make the engine, and the record of the device."""
    from defuse_core.base import runtime
    from defuse_core.jobs.engine import LocalEngine

    if run.resources.engine == "ray":
        from defuse_core.jobs.ray_engine import RayEngine

        return RayEngine(run.resources), {"engine": "ray", "address": run.resources.address}
    device = runtime.resolve_device(run.resources.device)
    return LocalEngine(device), vars(runtime.describe_device(device))


def _run_tasks(
    workspace: Workspace, run: Run, step: Step, engine: Engine, guard: Guard
) -> tuple[list[str], list[str]]:
    """Run the tasks that are not done; return the errors of those that failed, and of those that diverged."""
    tasks = workspace.runs.plan_tasks(run.id, step.tasks())
    missing = [task.name for task in tasks if task.status != "done"]
    recorder = Recorder(workspace, run.id)
    failed: list[str] = []
    diverged: list[str] = []
    for task, item in engine.run(step, missing, lambda: guard.cancelled):
        guard.check()
        error = recorder.store(task, item)
        if error is not None:
            errors = diverged if getattr(item, "diverged", False) else failed
            errors.append(f"{task}: {error}" if len(tasks) > 1 else error)
    return failed, diverged


class Recorder:
    """Stores what tasks yield: points and files at once, progress at most ten times a second."""

    def __init__(self, workspace: Workspace, run_id: int) -> None:
        self._workspace, self._run_id = workspace, run_id
        self._files: defaultdict[str, list[Artifact]] = defaultdict(list)
        self._written: dict[str, float] = {}

    def store(self, task: str, item: Item | Started | Ended) -> str | None:
        """Store one item; return the error if it ends a task that failed.

        Parameters
        ----------
        task : str
        item : Item, Started or Ended
        """
        from defuse_core.jobs.engine import Ended, Started
        from defuse_core.steps.base import File, Point

        runs, run_id = self._workspace.runs, self._run_id
        if isinstance(item, Started):
            runs.report_progress(run_id, task, 0, 0, {})
        elif isinstance(item, Point):
            runs.add_point(run_id, task, item.key, item.data)
        elif isinstance(item, File):
            self._files[task].append(self._workspace.store_artifact(run_id, item.name, item.content))
        elif isinstance(item, Ended):
            # One transaction: a task is done when, and only when, rows name its files.
            files = self._files.pop(task, []) if item.status == "done" else []
            runs.finish_task(run_id, task, item.status, artifacts=files, error=item.error)
            return item.error
        else:
            now = time.monotonic()
            if item.step >= item.of or now - self._written.get(task, 0.0) >= _PROGRESS_SECONDS:
                self._written[task] = now
                runs.report_progress(run_id, task, item.step, item.of, item.metrics)
        return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
