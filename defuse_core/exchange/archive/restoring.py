"""Import a project from an archive: first its files, then all its rows in one transaction.

The rows are read and checked into temporary tables before, so that no running step waits for long.

An import that ends before this transaction leaves files that no row names; `defuse gc` removes them. The
numbers of the runs are reserved beforehand, so that no other run uses their folders.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defuse_core.base.errors import CheckpointError
from defuse_core.base.files import write_bytes
from defuse_core.base.texts import without_control
from defuse_core.data.naming import absolute_source, from_elsewhere
from defuse_core.data.reading import READING_FIELDS
from defuse_core.exchange.archive.checking import check_rows
from defuse_core.exchange.archive.data import find_data, known_data
from defuse_core.exchange.archive.reading import Archive, open_archive
from defuse_core.exchange.archive.rows import (
    NO_RUN,
    AnnotationRow,
    ArtifactRow,
    BlobRow,
    EventRow,
    Renumbering,
    RunRow,
    TaskRow,
)
from defuse_core.networks.sniffing import PROGRAMS, sniff_format
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.database import Database, WorkspaceError, explain_os_error
from defuse_core.workspace.runs import Resources
from defuse_core.workspace.workspace import DATABASE, Project, Workspace


def import_project(
    workspace: Workspace, path: Path, *, name: str | None = None, data: str | None = None,
    trust_programs: bool = False, code_path: str | None = None, more_data: str | None = None,
) -> Project:  # fmt: skip
    """Import a project that `export_project` wrote: all of it, or nothing.

    The paths in an archive are of another machine. None is opened: data and code are where the user says.

    Parameters
    ----------
    workspace : Workspace
    path : Path
    name : str, optional
        Of the new project; by default the one in the archive.
    data : str, optional
        Where its data set is on this machine; it must be the same. By default where a project here has it.
    trust_programs : bool
        Import TorchScript and torch.export files, too: they are programs of whoever made the archive.
    code_path : str, optional
        The folder on this machine that networks of the user's own code are imported from.
    more_data : str, optional
        Where the additional training data of the annotators are on this machine.

    Raises
    ------
    WorkspaceError
        If the archive is damaged or was tampered with, is of a newer Defuse, would not fit, holds programs
        that are not trusted, or the name is taken.
    DataError
        If `data` is not the data set of the project.
    """
    with open_archive(path, home=workspace.home) as archive:
        name = _free_name(workspace, archive, name)
        n_runs, n_labels = check_rows(archive)
        dataset = archive.manifest.project.dataset.model_dump()
        for optional in (*READING_FIELDS, "notes"):  # a project has them only where they say something
            if optional != "image_size" and dataset[optional] is None:
                del dataset[optional]
        row = archive.manifest.project.dataset
        dataset["source"] = known_data(workspace, row) if data is None else find_data(row, data)
        paths = {
            "code_path": None if code_path is None else str(Path(code_path).expanduser().resolve()),
            "more_data": None if more_data is None else absolute_source(more_data),
        }
        with closing(Database(workspace.home / DATABASE)) as database:
            restore = _Restore(workspace, database, archive, paths, n_runs=n_runs, n_labels=n_labels)
            try:
                restore.place_files(trust_programs=trust_programs)
                restore.store_rows(name, dataset)
            except OSError as error:
                restore.take_back()
                raise explain_os_error(workspace.home, error) from error
            except BaseException:
                restore.take_back()
                raise
    return workspace.project(name)


def _free_name(workspace: Workspace, archive: Archive, name: str | None) -> str:
    name = (archive.manifest.project.name if name is None else name).strip()
    if not name or len(name) > 80 or not name.isprintable():
        raise WorkspaceError(f"a project's name has 1 to 80 printable characters, got {name[:100]!r}")
    if name in {project.name for project in workspace.projects()}:
        raise _taken(name)
    return name


def _taken(name: str) -> WorkspaceError:
    return WorkspaceError(f"there is a project {name!r} already; give another name: --name NAME")


@dataclass(frozen=True)
class _Numbers:
    """The last numbers before those that are reserved for the project."""

    run: int
    label: int


def _reserve(database: Database, n_runs: int, n_labels: int) -> _Numbers:
    """Reserve the next numbers of runs and label events for good."""
    before = {}
    with database.write() as connection:
        for table, n in (("runs", n_runs), ("annotations", n_labels)):
            row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
            before[table] = int(row[0]) if row else 0
            connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
            connection.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, before[table] + n))
    return _Numbers(before["runs"], before["annotations"])


class _Restore:
    """One import: files, then rows."""

    def __init__(
        self, workspace: Workspace, database: Database, archive: Archive, paths: Mapping[str, str | None],
        *, n_runs: int, n_labels: int,
    ) -> None:  # fmt: skip
        self._workspace, self._database, self._archive, self._paths = workspace, database, archive, paths
        before = self._before = _reserve(database, n_runs, n_labels)
        self._folders = [workspace.run_folder(before.run + n) for n in range(1, n_runs + 1)]
        self._new = Renumbering(
            lambda run: before.run + run if run <= n_runs else None,
            lambda label: before.label + label,
            unknown=NO_RUN,
        )

    def place_files(self, *, trust_programs: bool) -> None:
        """Write uploads, logs and artifacts, under names that are ours or were checked."""
        for blob in self._archive.rows("blobs", BlobRow):
            self._workspace.store_upload(blob.name, self._archive.chunks(f"blobs/{blob.sha256}"))
            if not trust_programs and _is_program(self._workspace.home / "blobs" / blob.sha256):
                raise self._archive.error(
                    f"its upload {blob.name!r} is a TorchScript or torch.export program, which runs on this "
                    "machine when it is used; if you trust who made the file, import with --trust-programs"
                )
        for folder, run in zip(self._folders, self._archive.rows("runs", RunRow), strict=True):
            about = {"step": run.step, "seed": run.seed, "config": self._config(run)}
            about["upstream"] = [self._before.run + above for above in run.inputs]
            write_bytes(folder / "config.json", (json.dumps(about, indent=2) + "\n").encode())
        for member, path in self._placed():
            _write(path, self._archive.chunks(member))
        for folder in self._folders:
            for inner, _, _ in os.walk(folder):
                _sync(Path(inner))
        if self._folders:
            _sync(self._folders[0].parent)

    def _placed(self) -> Iterator[tuple[str, Path]]:
        """The members that are files of runs, and their paths in the workspace."""
        for member in self._archive.manifest.members:
            kind, _, rest = member.partition("/")
            if kind == "runs":
                number, _, name = rest.partition("/")
                yield member, self._folders[int(number) - 1] / name

    def _config(self, run: RunRow) -> dict[str, Any]:
        """The config as it was, without fields that were added since, and with the paths of this machine."""
        config = self._new.value(run.config)
        if config.get("code_path"):
            config["code_path"] = self._paths["code_path"]
        if more := config.get("more_data"):
            config["more_data"] = self._paths["more_data"] or from_elsewhere(more)
        return check_config(run.step, config).model_dump(mode="json", exclude_unset=True)

    def take_back(self) -> None:
        """Remove the folders of the runs unless rows name them; unused uploads are left to `defuse gc`."""
        ours = (self._before.run, self._before.run + len(self._folders))
        if not self._database.read("SELECT 1 FROM runs WHERE id > ? AND id <= ?", ours):
            for folder in self._folders:
                shutil.rmtree(folder, ignore_errors=True)

    def store_rows(self, name: str, dataset: dict[str, Any]) -> None:
        """Insert everything, or nothing."""
        with self._database.snapshot() as connection:
            columns = self._gather(connection)
        with self._database.write() as connection:
            self._check_files()
            about = (name, json.dumps(dataset), self._archive.manifest.project.created_at)
            try:
                cursor = connection.execute(
                    "INSERT INTO projects (name, dataset, created_at) VALUES (?, ?, ?)", about
                )
            except sqlite3.IntegrityError:
                raise _taken(name) from None
            try:
                for table, names in columns.items():
                    _store(connection, table, names, project_id=int(cursor.lastrowid or 0))
            except sqlite3.IntegrityError as error:
                raise self._archive.error(f"its rows contradict each other ({error})") from error

    def _check_files(self) -> None:
        """Check that no file was collected as garbage meanwhile; from now on none can be."""
        members = self._archive.manifest.members
        placed = [path for _, path in self._placed()]
        placed += [self._workspace.home / name for name in members if name.startswith("blobs/")]
        if gone := next((path for path in placed if not path.is_file()), None):
            raise WorkspaceError(f"{gone} was removed during the import, by defuse gc perhaps; import again")

    def _gather(self, connection: sqlite3.Connection) -> dict[str, str]:
        """Write all rows to temporary tables; return the columns of each, in the order of storing."""
        columns: dict[str, str] = {}
        for table, values in self._coming():
            if table not in columns:
                columns[table] = ", ".join(values)
                connection.execute(
                    f"CREATE TEMP TABLE coming_{table} AS SELECT {columns[table]} FROM {table} WHERE 0"
                )
            marks = ", ".join(f":{name}" for name in values)
            connection.execute(f"INSERT INTO coming_{table} ({columns[table]}) VALUES ({marks})", values)
        return columns

    def _coming(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Table and values of every row; the number of the project is filled in when they are stored."""
        for blob in self._archive.rows("blobs", BlobRow):
            yield "blobs", {"project_id": 0, **blob.model_dump()}
        for number, run in enumerate(self._archive.rows("runs", RunRow), self._before.run + 1):
            yield "runs", {"id": number, "project_id": 0, **self._run(run)}
            for above in run.inputs:
                yield "run_inputs", {"run_id": number, "upstream_id": self._before.run + above}
        for task in self._archive.rows("tasks", TaskRow):
            error = without_control(self._new.text(task.error))
            yield "tasks", self._of_run(task) | {"metrics": json.dumps(task.metrics), "error": error}
        for event in self._archive.rows("events", EventRow):
            yield "events", self._of_run(event) | {"data": json.dumps(event.data)}
        for artifact in self._archive.rows("artifacts", ArtifactRow):
            yield "artifacts", self._of_run(artifact)
        labels = self._archive.rows("annotations", AnnotationRow)
        for number, label in enumerate(labels, self._before.label + 1):
            yield "annotations", {"id": number} | self._label(label)

    def _of_run(self, row: TaskRow | EventRow | ArtifactRow | AnnotationRow) -> dict[str, Any]:
        values = row.model_dump()
        return {"run_id": self._before.run + values.pop("run"), **values}

    def _run(self, run: RunRow) -> dict[str, Any]:
        """Values of a run that has ended; no process belongs to it."""
        last = run.last_annotation
        return run.model_dump(exclude={"inputs"}) | {
            "config": json.dumps(self._config(run)),
            "record": json.dumps(self._new.value(run.record)),
            "resources": json.dumps(vars(Resources(**run.resources.model_dump()))),
            "error": without_control(self._new.text(run.error)),
            "last_annotation": None if last is None else self._before.label + last,
            "pid": 0,
            "pid_started": 0.0,
            "heartbeat_at": run.finished_at or run.created_at,
        }

    def _label(self, row: AnnotationRow) -> dict[str, Any]:
        return self._of_run(row) | {
            "undoes": None if row.undoes is None else self._before.label + row.undoes,
            "edit": None if row.edit is None else json.dumps(row.edit.model_dump(), allow_nan=False),
        }


def _store(connection: sqlite3.Connection, table: str, names: str, *, project_id: int) -> None:
    """Move the rows of a temporary table to the stored one, as those of a project."""
    if table in ("blobs", "runs"):
        connection.execute(f"UPDATE coming_{table} SET project_id = ?", (project_id,))
    connection.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM coming_{table} ORDER BY rowid")


def _is_program(path: Path) -> bool:
    try:
        return sniff_format(path) in PROGRAMS
    except CheckpointError:  # a data set
        return False


def _write(path: Path, chunks: Iterator[bytes]) -> None:
    """Write a new file to the disk, a piece at a time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise explain_os_error(path, error) from error


def _sync(folder: Path) -> None:
    """Write the names in a folder to the disk, so that they survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
