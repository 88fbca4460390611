"""Store the rows of runs: queue, start, heartbeat, finish, and all that runs leave behind.

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

from defuse_core.workspace.database import Database, WorkspaceError
from defuse_core.workspace.labels import LabelEvent, store_events
from defuse_core.workspace.runs import (
    Artifact,
    Event,
    Resources,
    Run,
    RunStatus,
    Task,
    TaskStatus,
    mark_stale,
    observed_status,
    process_started,
    read_run,
)


class LiveRunError(WorkspaceError):
    """The step already has a run that is queued or running."""


class RunStore:
    """All runs of a workspace."""

    def __init__(self, database: Database) -> None:
        self._database = database

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

    def get(self, run_id: int) -> Run:
        """Return a run.

        Raises
        ------
        WorkspaceError
            If there is none of this number.
        """
        rows = self._database.read("SELECT project_id FROM runs WHERE id = ?", (run_id,))
        runs = [run for row in rows for run in self.of_project(row["project_id"]) if run.id == run_id]
        if not runs:
            raise WorkspaceError(f"there is no run {run_id}; see: defuse runs")
        return runs[0]

    def status(self, run_id: int) -> RunStatus:
        """Return the status of a run; faster than `get`, for polling."""
        rows = self._database.read("SELECT * FROM runs WHERE id = ?", (run_id,))
        if not rows:
            raise WorkspaceError(f"there is no run {run_id}; see: defuse runs")
        return self._observe(rows[0])[1]

    def of_project(self, project_id: int, step: str | None = None) -> list[Run]:
        """Return the runs of a project, in order of their numbers.

        Parameters
        ----------
        project_id : int
        step : str, optional
            By default all steps.
        """
        rows = self._database.read("SELECT * FROM runs WHERE project_id = ? ORDER BY id", (project_id,))
        inputs: dict[int, list[int]] = {}
        for row in self._database.read(
            "SELECT i.* FROM run_inputs i JOIN runs r ON r.id = i.run_id WHERE r.project_id = ?"
            " ORDER BY upstream_id",
            (project_id,),
        ):
            inputs.setdefault(row["run_id"], []).append(row["upstream_id"])
        newest_labels = {
            row["run_id"]: row["newest"]
            for row in self._database.read(
                # a name, a choice of τ and a second pass change no verdict
                "SELECT a.run_id, MAX(a.id) AS newest FROM annotations a JOIN runs r ON r.id = a.run_id"
                " WHERE r.project_id = ? AND a.round = 1"
                " AND COALESCE(json_extract(a.edit, '$.kind'), '') NOT IN ('rename', 'tau')"
                " GROUP BY a.run_id",
                (project_id,),
            )
        }
        runs = [read_run(*self._observe(row), tuple(inputs.get(row["id"], ()))) for row in rows]
        marked = mark_stale(runs, newest_labels)
        return [run for run in marked if step in (None, run.step)]

    def _observe(self, row: sqlite3.Row) -> tuple[sqlite3.Row, RunStatus]:
        """The row of a run and its status; the row is read again if the process is gone.

        The runner may have written to the row after it was read, and then ended.
        """
        while (status := observed_status(row)) != row["status"]:
            again = self._database.read("SELECT * FROM runs WHERE id = ?", (row["id"],))
            if not again or tuple(again[0]) == tuple(row):
                break
            row = again[0]
        return row, status

    def latest(self, project_id: int, step: str, *, done: bool = False) -> Run | None:
        """Return the newest run of a step that is done or live; None where there is none.

        Parameters
        ----------
        project_id : int
        step : str
        done : bool
            Whether only a run that is done counts.
        """
        runs = self.of_project(project_id, step)
        usable = [run for run in runs if run.status == "done" or (run.live and not done)]
        return usable[-1] if usable else None

    def ancestry(self, run_id: int) -> dict[str, Run]:
        """Return the run and all it stands on, by step."""
        run = self.get(run_id)
        by_id = {other.id: other for other in self.of_project(run.project_id)}
        by_step: dict[str, Run] = {}
        waiting = [by_id[run_id]]
        while waiting:
            current = waiting.pop()
            by_step[current.step] = current
            waiting += [by_id[i] for i in current.upstream]
        return by_step

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
        with self._database.write() as connection:
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
        with self._database.write() as connection:
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

    def plan_tasks(self, run_id: int, names: Sequence[str]) -> list[Task]:
        """Store the tasks of a run in order; those of earlier attempts keep their state.

        Parameters
        ----------
        run_id : int
        names : sequence of str
            Of all tasks.
        """
        with self._database.write() as connection:
            connection.executemany(
                "INSERT INTO tasks (run_id, name, position) VALUES (?, ?, ?)"
                " ON CONFLICT (run_id, name) DO UPDATE SET position = excluded.position",
                [(run_id, name, position) for position, name in enumerate(names)],
            )
        return self.tasks(run_id)

    def tasks(self, run_id: int) -> list[Task]:
        """Return the tasks of a run in order."""
        run = self._database.read("SELECT * FROM runs WHERE id = ?", (run_id,))
        dead = not run or self._observe(run[0])[1] != "running"  # before the tasks: they may end meanwhile
        rows = self._database.read("SELECT * FROM tasks WHERE run_id = ? ORDER BY position", (run_id,))
        return [
            Task(
                row["name"],
                "queued" if dead and row["status"] == "running" else row["status"],
                row["step"], row["steps"], json.loads(row["metrics"]), row["error"],
            )
            for row in rows
        ]  # fmt: skip

    def report_progress(
        self, run_id: int, task: str, step: int, steps: int, metrics: Mapping[str, float]
    ) -> None:
        """Overwrite the progress of a task that is running.

        Parameters
        ----------
        run_id : int
        task : str
        step, steps : int
            Steps that are done, and all.
        metrics : mapping of str to float
        """
        with self._database.write() as connection:
            connection.execute(
                "UPDATE tasks SET status = 'running', step = ?, steps = ?, metrics = ?"
                " WHERE run_id = ? AND name = ?",
                (step, steps, json.dumps(metrics), run_id, task),
            )

    def finish_task(
        self, run_id: int, task: str, status: TaskStatus, *, artifacts: Sequence[Artifact] = (),
        error: str | None = None,
    ) -> None:  # fmt: skip
        """Write how a task ended, and name its files in the same transaction.

        Parameters
        ----------
        run_id : int
        task : str
        status : TaskStatus
        artifacts : sequence of Artifact
            Whose files are written already.
        error : str, optional
        """
        with self._database.write() as connection:
            for artifact in artifacts:
                _name_artifact(connection, run_id, artifact)
            connection.execute(
                "UPDATE tasks SET status = ?, error = ? WHERE run_id = ? AND name = ?",
                (status, error, run_id, task),
            )

    def add_point(self, run_id: int, task: str, key: str, data: Mapping[str, Any]) -> None:
        """Store a point of a chart; it replaces one of the same task and key.

        Parameters
        ----------
        run_id : int
        task, key : str
        data : mapping
            Values for JSON.
        """
        with self._database.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO events (run_id, kind, task, key, data, at)"
                " VALUES (?, 'point', ?, ?, ?, ?)",
                (run_id, task, key, json.dumps(data), time.time()),
            )

    def events(self, run_id: int, *, after: int = 0, kind: str | None = None) -> list[Event]:
        """Return the events of a run whose id is above `after`, in order.

        Parameters
        ----------
        run_id : int
        after : int
        kind : {"status", "point"}, optional
            By default both.
        """
        rows = self._database.read(
            "SELECT * FROM events WHERE run_id = ? AND id > ? AND kind = COALESCE(?, kind) ORDER BY id",
            (run_id, after, kind),
        )
        return [Event(r["id"], r["kind"], r["task"], r["key"], json.loads(r["data"]), r["at"]) for r in rows]

    def name_artifact(self, run_id: int, artifact: Artifact) -> None:
        """Add a row for an artifact whose file is written already.

        Parameters
        ----------
        run_id : int
        artifact : Artifact
        """
        with self._database.write() as connection:
            _name_artifact(connection, run_id, artifact)

    def artifacts(self, run_id: int) -> dict[str, Artifact]:
        """Return the artifacts of a run by name."""
        rows = self._database.read("SELECT * FROM artifacts WHERE run_id = ? ORDER BY name", (run_id,))
        return {row["name"]: Artifact(row["name"], row["sha256"], row["size"]) for row in rows}

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


def _name_artifact(connection: sqlite3.Connection, run_id: int, artifact: Artifact) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?)",
        (run_id, artifact.name, artifact.sha256, artifact.size),
    )


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
