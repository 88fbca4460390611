"""Store what runs leave behind: their tasks, events and artifacts. Imports no torch."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from defuse_core.workspace.database import Database
from defuse_core.workspace.run_reading import observe
from defuse_core.workspace.runs import Artifact, Event, Task, TaskStatus


class TaskStore:
    """Tasks, events and artifacts of all runs of a workspace."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        dead = (
            not run or observe(self._database, run[0])[1] != "running"
        )  # before the tasks: they may end meanwhile
        rows = self._database.read("SELECT * FROM tasks WHERE run_id = ? ORDER BY position", (run_id,))
        with self._database.explained():
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
        with self._database.explained():
            return [
                Event(r["id"], r["kind"], r["task"], r["key"], json.loads(r["data"]), r["at"]) for r in rows
            ]

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


def _name_artifact(connection: sqlite3.Connection, run_id: int, artifact: Artifact) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?)",
        (run_id, artifact.name, artifact.sha256, artifact.size),
    )
