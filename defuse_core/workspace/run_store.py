"""Store the rows of runs: queue, start, heartbeat, finish.

`run_reading` reads them; `task_store` has their tasks, events and artifacts.

While its runner lives, only the runner writes a run's rows, except requests to cancel. An index of
the database allows one live run per project and step. Imports no torch.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.labels import LabelEvent, store_events
from defuse_core.workspace.run_reading import RunReader
from defuse_core.workspace.runs import Resources, Run, RunStatus, observed_status, process_started
from defuse_core.workspace.task_store import TaskStore

_LABEL_BYTES = 200
"""That one label takes in the log of the database, its index included: 89 were measured."""


class LiveRunError(WorkspaceError):
    """The step already has a run that is queued or running."""


class RunStore(RunReader, TaskStore):
    """All runs of a workspace, with their tasks, events and artifacts."""

    def add(
        self, project_id: int, step: str, config: Mapping[str, Any], *, seed: int,
        resources: Resources, upstream: Sequence[int] = (), last_annotation: int | None = None,
    ) -> Run:  # fmt: skip
        """Queue a run, owned by this process until its runner takes it.

        Parameters
        ----------
        project_id : int
        step : str
        config : mapping
            Of the step; not checked here.
        seed : int
            0 or more.
        resources : Resources
        upstream : sequence of int
            Runs of the project that it stands on directly.
        last_annotation : int, optional
            The last label that it uses; see `fix_labels`.

        Raises
        ------
        LiveRunError
            If the project's step has a live run.
        WorkspaceError
            If the project does not exist, or has no such upstream run.
        """
        now = time.time()
        upstream = list(dict.fromkeys(upstream))
        with self._database.write() as connection:
            self._settle(connection, project_id)
            mine = {
                i for (i,) in connection.execute("SELECT id FROM runs WHERE project_id = ?", (project_id,))
            }
            if foreign := [i for i in upstream if i not in mine]:
                raise WorkspaceError(f"project {project_id} has no run {foreign[0]}; see: defuse runs")
            try:
                cursor = connection.execute(
                    "INSERT INTO runs (project_id, step, config, seed, resources, status, created_at,"
                    " last_annotation, pid, pid_started, heartbeat_at)"
                    " VALUES (?, ?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?)",
                    (project_id, step, json.dumps(config), seed, json.dumps(vars(resources)), now,
                     last_annotation, os.getpid(), process_started(os.getpid()), now),
                )  # fmt: skip
                run_id = int(cursor.lastrowid or 0)
                connection.executemany(
                    "INSERT INTO run_inputs VALUES (?, ?)", [(run_id, other) for other in upstream]
                )
            except sqlite3.IntegrityError as error:
                raise _explain(error, connection, project_id, step) from error
            _log(connection, run_id, "queued")
        return self.get(run_id)

    def requeue(
        self, run_id: int, *, resources: Resources | None = None, config: Mapping[str, Any] | None = None
    ) -> Run:
        """Queue a run again that failed, was cancelled or interrupted, or lacks tasks.

        With a `config` a run that is done goes on, too; the runs that stand on it are stale then.

        Parameters
        ----------
        run_id : int
        resources : Resources, optional
            By default those it had.
        config : mapping, optional
            By default the one it had.

        Raises
        ------
        WorkspaceError
            If it is live; or, without `config`, if it is done and lacks no task or another run stands on it.
        """
        run = self.get(run_id)
        with self._database.write() as connection:
            self._settle(connection, run.project_id)
            (status,) = connection.execute("SELECT status FROM runs WHERE id = ?", (run_id,)).fetchone()
            (missing,) = connection.execute(
                "SELECT COUNT(*) FROM tasks WHERE run_id = ? AND status != 'done'", (run_id,)
            ).fetchone()
            if status == "done" and not missing and config is None:
                raise WorkspaceError(f"run {run_id} is done; submit the step again for a new run")
            above = connection.execute("SELECT run_id FROM run_inputs WHERE upstream_id = ?", (run_id,))
            if status == "done" and config is None and (standing := above.fetchone()):
                raise WorkspaceError(
                    f"run {run_id} is done, and run {standing[0]} stands on what it left out, too; "
                    "submit the step again for a new run"
                )
            if status in ("queued", "running"):
                raise LiveRunError(f"run {run_id} is {status}; cancel it first, or wait")
            connection.execute(
                "UPDATE tasks SET status = 'queued', error = NULL, cancel_requested = 0"
                " WHERE run_id = ? AND status != 'done'",
                (run_id,),
            )
            try:
                connection.execute(
                    "UPDATE runs SET status = 'queued', error = NULL, cancel_requested = 0,"
                    " has_runner = 0, pid = ?, pid_started = ?, heartbeat_at = ?, finished_at = NULL,"
                    " attempt_at = NULL, resources = ?, config = ? WHERE id = ?",
                    (os.getpid(), process_started(os.getpid()), time.time(),
                     json.dumps(vars(resources or run.resources)), json.dumps(config or run.config), run_id),
                )  # fmt: skip
            except sqlite3.IntegrityError as error:
                raise _explain(error, connection, run.project_id, run.step) from error
            _log(connection, run_id, "queued")
        return self.get(run_id)

    def hand_over(self, run_id: int, pid: int) -> None:
        """Give a queued run to the process of its runner.

        Parameters
        ----------
        run_id, pid : int
        """
        with self._database.write() as connection:
            connection.execute(
                "UPDATE runs SET has_runner = 1, pid = ?, pid_started = ?, heartbeat_at = ?"
                " WHERE id = ? AND status = 'queued'",
                (pid, process_started(pid) or 0.0, time.time(), run_id),
            )

    def start(self, run_id: int, record: Mapping[str, Any]) -> None:
        """Mark a queued run of this process as running.

        The record keeps those of all attempts, as "attempts".

        Parameters
        ----------
        run_id : int
        record : mapping
            Versions, device and threads of this attempt.
        """
        with self._database.write() as connection:
            (old,) = connection.execute("SELECT record FROM runs WHERE id = ?", (run_id,)).fetchone() or (
                "{}",
            )
            earlier = json.loads(old)
            record = {**earlier, **record, "attempts": [*earlier.get("attempts", ()), dict(record)]}
            changed = connection.execute(
                "UPDATE runs SET status = 'running', started_at = COALESCE(started_at, :now),"
                " attempt_at = :now, record = :record, heartbeat_at = :now"
                " WHERE id = :id AND status = 'queued' AND pid = :pid AND has_runner",
                {"now": time.time(), "record": json.dumps(record), "id": run_id, "pid": os.getpid()},
            ).rowcount
            if not changed:
                raise WorkspaceError(
                    f"run {run_id} is not queued for this process; use: defuse resume {run_id}"
                )
            _log(connection, run_id, "running")

    def beat(self, run_id: int) -> tuple[bool, frozenset[str]]:
        """Show that the runner lives; return whether to stop, and the tasks to cancel."""
        with self._database.write() as connection:
            connection.execute("UPDATE runs SET heartbeat_at = ? WHERE id = ?", (time.time(), run_id))
            row = connection.execute("SELECT cancel_requested FROM runs WHERE id = ?", (run_id,)).fetchone()
            names = connection.execute(
                "SELECT name FROM tasks WHERE run_id = ? AND cancel_requested", (run_id,)
            ).fetchall()
        return row is None or bool(row[0]), frozenset(name for (name,) in names)

    def fix_labels(self, run_id: int, last_annotation: int) -> None:
        """Store the last label that a run uses; later ones make the run stale.

        Parameters
        ----------
        run_id : int
        last_annotation : int
            Id of an event of `Annotations`.
        """
        with self._database.write() as connection:
            connection.execute("UPDATE runs SET last_annotation = ? WHERE id = ?", (last_annotation, run_id))

    def finish(
        self, run_id: int, status: RunStatus, *, error: str | None = None,
        summary: Mapping[str, Any] | None = None, forget: Sequence[str] = (),
        labels: Sequence[LabelEvent] = (), labels_of: int = 0,
    ) -> None:  # fmt: skip
        """Write how a run ended; a run that has ended already stays as it is.

        Parameters
        ----------
        run_id : int
        status : RunStatus
        error : str, optional
        summary : mapping, optional
            Its results.
        forget : sequence of str
            Names of artifacts that others replaced; the caller removes their files.
        labels : sequence of LabelEvent
            Stored in the same transaction, without those of annotators whose labels this run stored before.
        labels_of : int
            The distill run of `labels`.
        """
        with self._database.write(on_reserve=True, needed=_LABEL_BYTES * len(labels)) as connection:
            row = connection.execute(
                "SELECT attempt_at, record FROM runs WHERE id = ? AND status IN ('queued', 'running')",
                (run_id,),
            ).fetchone()
            if row is None:
                return
            now = time.time()
            spent = now - row["attempt_at"] if row["attempt_at"] else 0.0
            record = json.loads(row["record"])
            if summary is not None:
                record["summary"] = summary
            labelled = set(record.get("labelled", ()))
            store_events(connection, labels_of, [e for e in labels if e.annotator not in labelled])
            if labels:
                record["labelled"] = sorted(labelled | {event.annotator for event in labels})
            connection.executemany(
                "DELETE FROM artifacts WHERE run_id = ? AND name = ?", [(run_id, name) for name in forget]
            )
            connection.execute(
                "UPDATE runs SET status = ?, error = ?, finished_at = ?, seconds = seconds + ?, record = ?"
                " WHERE id = ?",
                (status, error, now, spent, json.dumps(record), run_id),
            )
            connection.execute(
                "UPDATE tasks SET status = 'queued' WHERE run_id = ? AND status = 'running'", (run_id,)
            )
            _log(connection, run_id, status)

    def ask_to_cancel(self, run_id: int, task: str | None = None) -> bool:
        """Ask for a run, or one of its tasks, to be cancelled; False where that is too late.

        Parameters
        ----------
        run_id : int
        task : str, optional
            By default the whole run.

        Raises
        ------
        WorkspaceError
            If there is no such run, or it has no task of this name.
        """
        run = self.get(run_id)
        names = [t.name for t in self.tasks(run_id)]
        if task is not None and task not in names:
            known = ", ".join(names[:20]) or "none yet"
            raise WorkspaceError(f"run {run_id} has no task {task!r}; it has: {known}")
        with self._database.write(on_reserve=True) as connection:
            self._settle(connection, run.project_id)
            if task is None:
                sql, what = "UPDATE runs SET cancel_requested = 1 WHERE id = ?", (run_id,)
                live = "status IN ('queued', 'running')"
                return connection.execute(f"{sql} AND {live}", what).rowcount > 0
            return (
                connection.execute(
                    "UPDATE tasks SET cancel_requested = 1"
                    " WHERE run_id = ? AND name = ? AND status IN ('queued', 'running')"
                    " AND run_id IN (SELECT id FROM runs WHERE status IN ('queued', 'running'))",
                    (run_id, task),
                ).rowcount
                > 0
            )

    @staticmethod
    def _settle(connection: sqlite3.Connection, project_id: int) -> None:
        """Write how runs ended whose process is gone; else they would count as live."""
        rows = connection.execute(
            "SELECT * FROM runs WHERE project_id = ? AND status IN ('queued', 'running')", (project_id,)
        ).fetchall()
        for row in rows:
            status = observed_status(row)
            if status != row["status"]:
                spent = row["heartbeat_at"] - row["attempt_at"] if row["attempt_at"] else 0.0
                connection.execute(
                    "UPDATE runs SET status = ?, finished_at = heartbeat_at, seconds = seconds + ?"
                    " WHERE id = ?",
                    (status, max(spent, 0.0), row["id"]),
                )
                _log(connection, row["id"], status)


def _log(connection: sqlite3.Connection, run_id: int, status: str) -> None:
    connection.execute(
        "INSERT INTO events (run_id, kind, task, key, data, at) VALUES (?, 'status', '', ?, '{}', ?)",
        (run_id, status, time.time()),
    )


def _explain(
    error: sqlite3.IntegrityError, connection: sqlite3.Connection, project_id: int, step: str
) -> WorkspaceError:
    if "FOREIGN KEY" in str(error):
        return WorkspaceError(f"project {project_id} no longer exists; see: defuse projects")
    row = connection.execute(
        "SELECT id, status FROM runs WHERE project_id = ? AND step = ? AND status IN ('queued', 'running')",
        (project_id, step),
    ).fetchone()
    if row is None:
        return WorkspaceError(f"the run was refused: {error}")
    return LiveRunError(
        f"{step} is already {row['status']} as run {row['id']}; wait for it, or stop it with: "
        f"defuse cancel {row['id']}"
    )
