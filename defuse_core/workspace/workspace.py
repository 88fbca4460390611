"""Store projects, their uploads, runs and labels in one folder, the workspace.

`DEFUSE_HOME` (by default ~/.defuse) holds `defuse.sqlite`, `blobs/<sha256>` and `runs/<id>/`. An
artifact is written to a temporary name, synced and renamed. Only then does a row name it, so every
file that a row names is complete. Nothing is pickled. The folder must be on a local file system, which
SQLite's locks need. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defuse_core.base.files import printable_name, store_chunks, write_bytes
from defuse_core.data.class_names import check_class_names
from defuse_core.workspace.database import Database, DiskFullError, WorkspaceError, explain_os_error
from defuse_core.workspace.garbage import Named, find_named, remove_garbage, remove_unnamed
from defuse_core.workspace.labels import Annotations
from defuse_core.workspace.run_store import RunStore
from defuse_core.workspace.runs import Artifact, Run

DATABASE = "defuse.sqlite"


@dataclass(frozen=True)
class Project:
    """A named data set with the runs made on it.

    Attributes
    ----------
    dataset : dict
        "source" as `data.sources.load_dataset` takes it, "image_size", "validation" where one was
        set apart, and properties of the data: "fingerprint", "class_names", "image_shape", "sizes" by split,
        and "notes" on what was converted or looks wrong, where there are any.
    """

    id: int
    name: str
    dataset: dict[str, Any]
    created_at: float

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by index."""
        return list(self.dataset["class_names"])

    @property
    def notes(self) -> list[str]:
        """What was converted when the data set was read, and what is odd about its images."""
        return list(self.dataset.get("notes", ()))


@dataclass(frozen=True)
class Blob:
    """An uploaded file: `name` is the user's name for it, `size` in bytes."""

    sha256: str
    name: str
    size: int


def default_home() -> Path:
    """Return the folder that DEFUSE_HOME names, ~/.defuse by default."""
    return Path(os.environ.get("DEFUSE_HOME") or Path.home() / ".defuse").expanduser().resolve()


class Workspace:
    """One folder with everything in it; safe for many processes and threads at once.

    Parameters
    ----------
    home : Path, optional
        By default `default_home()`.
    durable : bool
        See `Database`.

    Raises
    ------
    WorkspaceError
        If the folder cannot be used; see `Database`.
    """

    def __init__(self, home: Path | None = None, *, durable: bool = True) -> None:
        self.home = (home or default_home()).resolve()
        path = self.home / DATABASE
        try:
            folder = self.home / "runs"
            lost = not (path.exists() and path.stat().st_size) and folder.is_dir() and any(folder.iterdir())
        except OSError as error:
            raise explain_os_error(self.home, error) from error
        if lost:
            raise WorkspaceError(
                f"{path} is missing or empty, though {self.home / 'runs'} holds runs; restore it from a "
                "copy, or move runs/ away to begin anew"
            )
        self._database = Database(path, durable=durable)
        self.runs = RunStore(self._database)
        self.annotations = Annotations(self._database)

    def close(self) -> None:
        """Close this thread's connection."""
        self._database.close()

    def create_project(self, name: str, *, dataset: Mapping[str, Any], upload: Blob | None = None) -> Project:
        """Create a project; name the upload in it, if its data set is one.

        Parameters
        ----------
        name : str
        dataset : mapping
            See `Project`.
        upload : Blob, optional
            The data set, if it was uploaded.

        Raises
        ------
        WorkspaceError
            If the name is empty, unprintable, over 80 characters, or taken; or if the class names break
            the rule of `data.class_names`.
        """
        if "class_names" in dataset:
            try:
                check_class_names(dataset["class_names"])
            except ValueError as error:
                raise WorkspaceError(str(error)) from None
        name = name.strip()
        if not name or len(name) > 80 or not name.isprintable():
            raise WorkspaceError(f"a project's name has 1 to 80 printable characters, got {name!r}")
        try:
            with self._database.write() as connection:
                project_id = connection.execute(
                    "INSERT INTO projects (name, dataset, created_at) VALUES (?, ?, ?)",
                    (name, json.dumps(dataset), time.time()),
                ).lastrowid
                if upload is not None:
                    self._name_blob(connection, int(project_id or 0), upload)
        except sqlite3.IntegrityError:
            raise WorkspaceError(f"there is a project {name!r} already; give another name") from None
        return self.project(name)

    def projects(self) -> list[Project]:
        """Return all projects, the oldest first."""
        rows = self._database.read("SELECT * FROM projects ORDER BY id")
        with self._database.explained():
            return [Project(r["id"], r["name"], json.loads(r["dataset"]), r["created_at"]) for r in rows]

    def project(self, name: str | int) -> Project:
        """Return a project by name or by number.

        Raises
        ------
        WorkspaceError
            If there is none; the message lists those there are.
        """
        projects = self.projects()
        for project in projects:
            if name in (project.name, project.id):
                return project
        known = ", ".join(p.name for p in projects)
        hint = f"there are: {known}" if known else "create one with: defuse new NAME"
        raise WorkspaceError(f"there is no project {name!r}; {hint}")

    def delete_project(self, project_id: int) -> None:
        """Delete a project, its rows and its files; on a full disk the files first.

        Raises
        ------
        WorkspaceError
            If one of its runs is live.
        """
        self.project(project_id)
        try:
            runs, blobs = self._delete_rows(project_id)
        except DiskFullError:  # what the files took is enough for the rows
            runs, blobs = self._delete_rows(project_id, files_first=True)
        # Rows first: a file without a row is garbage, but a row must not name a file that is gone.
        self._remove_run_folders(runs)
        uploads = [Path("blobs", blob.sha256) for blob in blobs]
        remove_unnamed(self.home, self._database, self._named, uploads)

    def _delete_rows(self, project_id: int, *, files_first: bool = False) -> tuple[list[Run], list[Blob]]:
        """Delete the rows of a project; return the runs and uploads that it had."""
        with self._database.write(on_reserve=True) as connection:
            runs, blobs = self.runs.of_project(project_id), self.blobs(project_id)
            if live := [run.id for run in runs if run.live]:
                raise WorkspaceError(f"run {live[0]} is live; cancel it first: defuse cancel {live[0]}")
            if files_first:
                self._remove_run_folders(runs)
            connection.execute("DELETE FROM projects WHERE id = ?", (project_id,))
        return runs, blobs

    def _remove_run_folders(self, runs: Iterable[Run]) -> None:
        for run in runs:
            shutil.rmtree(self.run_folder(run.id), ignore_errors=True)

    def add_blob(self, project_id: int, name: str, chunks: Iterable[bytes]) -> Blob:
        """Store an upload of a project under its SHA-256; equal content is stored once.

        Parameters
        ----------
        project_id : int
        name : str
            The user's name for the file.
        chunks : iterable of bytes
        """
        self.project(project_id)
        blob = self.store_upload(name, chunks)
        with self._database.write() as connection:
            self._name_blob(connection, project_id, blob)
        return blob

    def store_upload(self, name: str, chunks: Iterable[bytes]) -> Blob:
        """Store an upload that no project names yet; `collect_garbage` removes it unless one does soon.

        Parameters
        ----------
        name : str
            The user's name for the file.
        chunks : iterable of bytes
        """
        sender_failed = False

        def sent() -> Iterator[bytes]:
            nonlocal sender_failed
            try:
                yield from chunks
            except OSError:
                sender_failed = True
                raise

        self.keep_reserve()  # an upload may fill the disk
        try:
            sha256, size = store_chunks(self.home / "blobs", sent())
        except OSError as error:
            if sender_failed:
                raise
            raise explain_os_error(self.home / "blobs", error) from error
        return Blob(sha256, printable_name(Path(name).name)[:200], size)

    def _name_blob(self, connection: sqlite3.Connection, project_id: int, blob: Blob) -> None:
        if not (self.home / "blobs" / blob.sha256).is_file():  # deleted with another project just now
            raise WorkspaceError(f"{blob.name} was deleted while it was stored; upload it again")
        connection.execute(
            "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?)",
            (project_id, blob.sha256, blob.name, blob.size, time.time()),
        )

    def blobs(self, project_id: int) -> list[Blob]:
        """Return the uploads of a project, the oldest first."""
        rows = self._database.read(
            "SELECT * FROM blobs WHERE project_id = ? ORDER BY created_at", (project_id,)
        )
        return [Blob(row["sha256"], row["name"], row["size"]) for row in rows]

    def blob_path(self, project_id: int, sha256: str) -> Path:
        """Return the path of an upload of a project.

        Parameters
        ----------
        project_id : int
        sha256 : str

        Raises
        ------
        WorkspaceError
            If the project has no such upload, or its file is gone.
        """
        path = self.home / "blobs" / sha256
        if sha256 not in {blob.sha256 for blob in self.blobs(project_id)} or not path.is_file():
            raise WorkspaceError(f"the project has no upload {sha256[:12]}…; upload the file again")
        return path

    def run_folder(self, run_id: int) -> Path:
        """Return the folder of a run's files."""
        return self.home / "runs" / str(run_id)

    def store_artifact(self, run_id: int, name: str, content: bytes) -> Artifact:
        """Write a file of a run; the caller adds the row that names it.

        Parameters
        ----------
        run_id : int
        name : str
        content : bytes
        """
        path = self.run_folder(run_id) / name
        try:
            write_bytes(path, content)
        except OSError as error:
            raise explain_os_error(path, error) from error
        return Artifact(name, hashlib.sha256(content).hexdigest(), len(content))

    def artifact_path(self, run_id: int, name: str) -> Path:
        """Return the path of an artifact.

        Parameters
        ----------
        run_id : int
        name : str

        Raises
        ------
        WorkspaceError
            If the run has no such artifact, or its file is gone.
        """
        path = self.run_folder(run_id) / name
        if name not in self.runs.artifacts(run_id):
            raise WorkspaceError(f"run {run_id} has no {name}; resume it: defuse resume {run_id}")
        if not path.is_file():
            raise WorkspaceError(f"{path} is gone; run the step again")
        return path

    def collect_garbage(self, *, min_age: float = 60.0) -> tuple[int, int]:
        """Remove files that no row names: of killed writers, deleted projects, replaced artifacts.

        Parameters
        ----------
        min_age : float
            Seconds since a file was last written to; younger ones may be about to be named.

        Returns
        -------
        files, size : int
            How many were removed, and their bytes.
        """
        removed = remove_garbage(self.home, self._database, self._named, min_age=min_age)
        self.keep_reserve()
        return removed

    def keep_reserve(self) -> None:
        """Keep disk space back for `collect_garbage` and its like, where there is enough of it."""
        self._database.reserve.keep()

    def _named(self) -> Named:
        runs = [run for project in self.projects() for run in self.runs.of_project(project.id)]
        return find_named(self._database, runs)
