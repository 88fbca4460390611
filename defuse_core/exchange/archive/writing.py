"""Write a project to one file.

No run of the project may be live. The rows are read in one transaction, so that all are of one moment; other
processes may write meanwhile. The files that rows name never change; each is compared with its checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
import zipfile
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from defuse_core.base.files import followed, is_special
from defuse_core.base.limits import (
    MAX_MANIFEST_BYTES,
    MAX_REGION_NAME,
    MAX_ROW_BYTES,
    MAX_ROWS,
    UNPACK_FREE_BYTES,
    UNPACK_RATIO,
)
from defuse_core.base.texts import without_control
from defuse_core.data.class_names import mend_key, mend_name
from defuse_core.exchange.archive.reading import CHUNK, MANIFEST, parse
from defuse_core.exchange.archive.rows import (
    FORMAT,
    NO_RUN,
    TABLES,
    VERSION,
    Manifest,
    Renumbering,
    ResourcesRow,
)
from defuse_core.workspace.database import Database, WorkspaceError, explain_os_error
from defuse_core.workspace.edits import ids_ever
from defuse_core.workspace.label_rules import SINGLE_MISTAKES, bounds_fault, count_mistakes, found_regions
from defuse_core.workspace.labels import read_event
from defuse_core.workspace.runs import observed_status
from defuse_core.workspace.workspace import DATABASE, Project, Workspace

_SAMPLE = 2**16  # bytes of a file that are packed to see if that pays
_WORTH = 0.9  # packing pays below this share of their size
_CHANGE = "change or delete it, then export again"
_DEFLATE_RATIO = 1032  # deflate packs no better than this

_QUERIES = {
    "blobs": "SELECT sha256, name, size, created_at FROM blobs WHERE project_id = ?"
    " ORDER BY created_at, sha256",
    "runs": "SELECT * FROM runs WHERE project_id = ? ORDER BY id",
    "tasks": "SELECT t.* FROM tasks t JOIN runs r ON r.id = t.run_id WHERE r.project_id = ?"
    " ORDER BY t.run_id, t.position, t.name",
    "events": "SELECT e.* FROM events e JOIN runs r ON r.id = e.run_id WHERE r.project_id = ? ORDER BY e.id",
    "artifacts": "SELECT a.* FROM artifacts a JOIN runs r ON r.id = a.run_id WHERE r.project_id = ?"
    " ORDER BY a.run_id, a.name",
    "annotations": "SELECT a.* FROM annotations a JOIN runs r ON r.id = a.run_id WHERE r.project_id = ?"
    " ORDER BY a.id",
}


@dataclass(frozen=True)
class Exported:
    """What was written: `size` in bytes; `files` counts uploads and artifacts, `labels` label events."""

    path: Path
    size: int
    runs: int
    labels: int
    files: int


def export_project(workspace: Workspace, project_id: int, path: Path) -> Exported:
    """Write a project with all its runs, labels and files to one file, which is whole or absent.

    Memory does not grow with the size of the files. What is at `path` is replaced.

    Parameters
    ----------
    workspace : Workspace
    project_id : int
    path : Path
        Usually named *.defuse.zip.

    Raises
    ------
    WorkspaceError
        If a run of the project is live, a file is missing or was changed, or `path` cannot be written.
    """
    project = workspace.project(project_id)
    try:
        with _replacing(path) as file, zipfile.ZipFile(file, "w") as zipped:
            writer = _Writer(zipped)
            with closing(Database(workspace.home / DATABASE)) as database, database.snapshot() as connection:
                rows = _Rows(workspace, project, connection)
                for table in TABLES:
                    writer.add_rows(table, rows.read(table))
            for name, source, sha256 in rows.files:
                writer.add_file(name, source, sha256)
            writer.add_manifest(project)
        return Exported(path, path.stat().st_size, len(rows.runs), len(rows.labels), rows.n_named)
    except OSError as error:
        raise explain_os_error(path, error) from error


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` once it is whole."""
    if path.is_dir() or is_special(path):
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise WorkspaceError(f"{path} is {kind}; give the name of a file")
    path = followed(path)
    if not path.parent.is_dir():
        raise WorkspaceError(f"there is no folder {path.parent}; create it, or give another file")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp gives 0o600
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class _Rows:
    """The rows of a project, renumbered, and the files that they name."""

    def __init__(self, workspace: Workspace, project: Project, connection: sqlite3.Connection) -> None:
        self._workspace, self._project, self._connection = workspace, project, connection
        runs = {run.id: run for run in workspace.runs.of_project(project.id)}
        if live := [run for run in runs.values() if run.live]:
            raise _live(live[0].id, live[0].step)
        self.runs = self._ids("SELECT id FROM runs WHERE project_id = ? ORDER BY id")
        self._n_mistakes = {  # by the run of the regions
            run.id: count_mistakes(runs[above].summary)
            for run in runs.values() if run.step == "distill"
            for above in run.upstream if above in runs and runs[above].step == "identify"
        }  # fmt: skip
        annotations = workspace.annotations
        self._regions = {  # that answers may be about, by the run of the regions
            run.id: {SINGLE_MISTAKES, *ids_ever(found_regions(run.summary), annotations.edits(run.id))}
            for run in runs.values() if run.step == "distill"
        }  # fmt: skip
        self.labels = array("q", (row["id"] for row in self._annotations()))
        self._new = Renumbering(self._number, self._label, unknown=NO_RUN)
        self.files: list[tuple[str, Path, str | None]] = []
        self.n_named = 0

    def _ids(self, sql: str) -> array[int]:
        return array("q", (i for (i,) in self._connection.execute(sql, (self._project.id,))))

    def _number(self, run_id: int) -> int | None:
        number = bisect_right(self.runs, run_id)
        return number if number and self.runs[number - 1] == run_id else None

    def _label(self, event_id: int) -> int:
        return bisect_right(self.labels, event_id)

    def read(self, table: str) -> Iterator[dict[str, Any]]:
        """Read the rows of a table as the archive holds them."""
        convert: dict[str, Callable[[sqlite3.Row], dict[str, Any]]] = {
            "blobs": self._blob, "runs": self._run, "tasks": self._task, "events": self._event,
            "artifacts": self._artifact, "annotations": self._annotation,
        }  # fmt: skip
        rows = self._connection.execute(_QUERIES[table], (self._project.id,))
        for row in self._annotations() if table == "annotations" else rows:
            yield convert[table](row)

    def _annotations(self) -> Iterator[sqlite3.Row]:
        """Edits and answers, without those that nobody could judge, which an older version stored."""
        n_classes = len(self._project.class_names)
        for row in self._connection.execute(_QUERIES["annotations"], (self._project.id,)):
            run_id = row["run_id"]
            if row["edit"] is None and (
                row["region_id"] not in self._regions.get(run_id, ())
                or bounds_fault(read_event(row), n_classes=n_classes, n_mistakes=self._n_mistakes.get(run_id))
            ):
                continue
            yield row

    def _blob(self, row: sqlite3.Row) -> dict[str, Any]:
        self._name(f"blobs/{row['sha256']}", self._workspace.home / "blobs" / row["sha256"], row["sha256"])
        return dict(row)

    def _run(self, row: sqlite3.Row) -> dict[str, Any]:
        log = self._workspace.run_folder(row["id"]) / "log.txt"
        if log.is_file():
            self.files.append((f"runs/{self._number(row['id'])}/log.txt", log, None))
        query = "SELECT upstream_id FROM run_inputs WHERE run_id = ? ORDER BY upstream_id"
        resources, last = json.loads(row["resources"]), row["last_annotation"]
        columns = ("step", "seed", "created_at", "started_at", "attempt_at")
        return {
            **{name: row[name] for name in columns},
            **_ending(row),
            "config": self._new.value(json.loads(row["config"])),
            "record": self._new.value(json.loads(row["record"])),
            "resources": {name: resources[name] for name in ResourcesRow.model_fields},
            "error": self._new.text(row["error"]),
            "last_annotation": None if last is None else self._label(last),
            "inputs": [self._number(i) for (i,) in self._connection.execute(query, (row["id"],))],
        }

    def _task(self, row: sqlite3.Row) -> dict[str, Any]:
        return {
            **self._of_run(row, "cancel_requested"),
            "metrics": json.loads(row["metrics"]),
            "error": self._new.text(row["error"]),
            "status": "queued" if row["status"] == "running" else row["status"],  # no run is live
        }

    def _event(self, row: sqlite3.Row) -> dict[str, Any]:
        return {**self._of_run(row, "id"), "data": json.loads(row["data"])}

    def _artifact(self, row: sqlite3.Row) -> dict[str, Any]:
        source = self._workspace.run_folder(row["run_id"]) / row["name"]
        self._name(f"runs/{self._number(row['run_id'])}/{row['name']}", source, row["sha256"])
        return self._of_run(row)

    def _annotation(self, row: sqlite3.Row) -> dict[str, Any]:
        undoes, edit, by = row["undoes"], row["edit"], row["annotator"]
        if edit is not None:
            edit = json.loads(edit)
            edit["name"] = edit["name"][:MAX_REGION_NAME]
        return {
            **self._of_run(row, "id"),
            "annotator": mend_name(by) if by or edit is None else by,  # an edit may have no author
            "key": mend_key(row["key"]),
            "undoes": None if undoes is None else self._label(undoes),
            "edit": edit,
        }

    def _of_run(self, row: sqlite3.Row, *left_out: str) -> dict[str, Any]:
        values = {name: value for name, value in dict(row).items() if name not in ("run_id", *left_out)}
        return {"run": self._number(row["run_id"]), **values}

    def _name(self, name: str, source: Path, sha256: str) -> None:
        self.files.append((name, source, sha256))
        self.n_named += 1


def _ending(row: sqlite3.Row) -> dict[str, Any]:
    """How a run ended; if its process is gone, what the next run of the project would store."""
    status = observed_status(row)
    if status in ("queued", "running"):  # it started while the rows were read
        raise _live(row["id"], row["step"])
    if status == row["status"]:
        return {"status": status, "finished_at": row["finished_at"], "seconds": row["seconds"]}
    spent = row["heartbeat_at"] - row["attempt_at"] if row["attempt_at"] else 0.0
    return {
        "status": status,
        "finished_at": row["heartbeat_at"],
        "seconds": row["seconds"] + max(spent, 0.0),
    }


def _live(run_id: int, step: str) -> WorkspaceError:
    return WorkspaceError(
        f"run {run_id} ({step}) is live; wait for it, or stop it: defuse cancel {run_id}; then export again"
    )


class _Writer:
    """Writes members and remembers their sizes and checksums."""

    def __init__(self, zipped: zipfile.ZipFile) -> None:
        self._zip = zipped
        self._members: dict[str, dict[str, Any]] = {}
        self._unpacked = 0

    def add_rows(self, table: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write a table; each row is checked as the import will read it."""
        name = f"rows/{table}.jsonl"

        def lines() -> Iterator[bytes]:
            for number, row in enumerate(rows, 1):
                line = json.dumps(without_control(row), separators=(",", ":"))
                where = f"the project cannot be exported: {name}, line {number}"
                if number > MAX_ROWS:
                    raise WorkspaceError(
                        f"the project cannot be exported: it has over {MAX_ROWS:,} {table}; divide it into "
                        "several projects"
                    )
                if len(line) > MAX_ROW_BYTES:
                    raise WorkspaceError(f"{where} has over {MAX_ROW_BYTES:,} bytes")
                parse(TABLES[table], line, where=where, remedy=_CHANGE)
                yield line.encode() + b"\n"

        self._add(name, lines(), packed=True)

    def add_file(self, name: str, source: Path, sha256: str | None) -> None:
        """Write a file, packed if that pays and the import will surely accept it."""
        if not source.is_file():
            raise WorkspaceError(f"{source} is gone; export again, or put it back from a copy")
        size = source.stat().st_size
        with source.open("rb") as file:
            file.seek(max(size // 2 - _SAMPLE, 0))
            sample = file.read(_SAMPLE)
            file.seek(0)
            limit = UNPACK_FREE_BYTES + UNPACK_RATIO * (self._zip.fp.tell() + size / _DEFLATE_RATIO)  # type: ignore[union-attr]
            pays = len(zlib.compress(sample, 1)) < _WORTH * len(sample)
            written = self._add(
                name, iter(lambda: file.read(CHUNK), b""), packed=pays and self._unpacked + size < limit
            )
        if sha256 not in (None, written):
            raise WorkspaceError(f"{source} was changed; put it back from a copy, then export again")

    def add_manifest(self, project: Project) -> None:
        """Write the project, and size and checksum of every other member."""
        dataset = {"image_size": None, **project.dataset}
        about = {"name": project.name, "dataset": dataset, "created_at": project.created_at}
        about = without_control(about)
        text = json.dumps(
            {
                "format": FORMAT, "version": VERSION, "defuse": version("defuse"), "project": about,
                "members": self._members,
            }
        )  # fmt: skip
        if len(text) > MAX_MANIFEST_BYTES:
            raise WorkspaceError(f"the project has {len(self._members):,} files, too many for one archive")
        parse(Manifest, text, where=f"the project cannot be exported: {MANIFEST}", remedy=_CHANGE)
        self._add(MANIFEST, [text.encode()], packed=True)

    def _add(self, name: str, chunks: Iterable[bytes], *, packed: bool) -> str:
        info = zipfile.ZipInfo(name)  # dated 1980: equal projects give equal files
        info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        info.external_attr = 0o100644 << 16
        digest, size = hashlib.sha256(), 0
        with self._zip.open(info, "w", force_zip64=True) as member:
            for chunk in chunks:
                member.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        self._members[name] = {"size": size, "sha256": digest.hexdigest()}
        self._unpacked += size
        return digest.hexdigest()
