"""Read runs from their rows, with the status that they have now. Imports no torch."""

from __future__ import annotations

import sqlite3

from defuse_core.workspace.database import Database, WorkspaceError
from defuse_core.workspace.runs import Run, RunStatus, mark_stale, observed_status, read_run


class RunReader:
    """Reads the runs of a workspace."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        return observe(self._database, rows[0])[1]

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
        with self._database.explained():
            runs = [read_run(*observe(self._database, row), tuple(inputs.get(row["id"], ()))) for row in rows]
        marked = mark_stale(runs, newest_labels)
        return [run for run in marked if step in (None, run.step)]

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
        """Return the run and all it stands on, by step: of a step that is met twice, the nearer run.

        A second round searches a corrected classifier with a generator that may stand on the first one.
        """
        run = self.get(run_id)
        by_id = {other.id: other for other in self.of_project(run.project_id)}
        by_step: dict[str, Run] = {}
        level, met = [run_id], {run_id}
        while level:
            for current in level:
                by_step.setdefault(by_id[current].step, by_id[current])
            above = dict.fromkeys(i for current in level for i in by_id[current].upstream)
            level = [i for i in above if i not in met]
            met.update(level)
        return by_step


def observe(database: Database, row: sqlite3.Row) -> tuple[sqlite3.Row, RunStatus]:
    """Return the row of a run and its status; the row is read again if the process is gone.

    The runner may have written to the row after it was read, and then ended.

    Parameters
    ----------
    database : Database
    row : sqlite3.Row
        Of the table runs.
    """
    while (status := observed_status(row)) != row["status"]:
        again = database.read("SELECT * FROM runs WHERE id = ?", (row["id"],))
        if not again or tuple(again[0]) == tuple(row):
            break
        row = again[0]
    return row, status
