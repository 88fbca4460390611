"""Open, check and migrate the SQLite file of a workspace.

The file has write-ahead logging, foreign keys and a busy timeout. `PRAGMA user_version` is the number
of the schema; `MIGRATIONS` are applied in order, in one transaction. A newer schema is refused. A
damaged file is refused, too, and no byte of it is changed. Imports no torch.

A process that has a connection must open the file through SQLite only. Closing any other handle drops
the process's POSIX locks, and the next process then believes that nobody uses the log.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from defuse_core.base.errors import DefuseError
from defuse_core.workspace.reserve import DISK_FULL, Reserve

_SMALLEST = 512  # bytes; SQLite treats a smaller file as empty, and would overwrite it

_FREE_SPACE = "free disk space, then resume; what was stored before is kept"

BUSY_SECONDS = 20.0
"""How long a writer waits for another one."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE projects (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        dataset TEXT NOT NULL,
        created_at REAL NOT NULL
    );
    CREATE TABLE blobs (
        project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
        sha256 TEXT NOT NULL,
        name TEXT NOT NULL,
        size INTEGER NOT NULL,
        created_at REAL NOT NULL,
        PRIMARY KEY (project_id, sha256)
    );
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
        step TEXT NOT NULL,
        config TEXT NOT NULL,
        seed INTEGER NOT NULL CHECK (seed >= 0),
        resources TEXT NOT NULL,
        status TEXT NOT NULL
            CHECK (status IN ('queued', 'running', 'done', 'failed', 'cancelled', 'interrupted')),
        error TEXT,
        record TEXT NOT NULL DEFAULT '{}',
        created_at REAL NOT NULL,
        started_at REAL,
        attempt_at REAL,
        finished_at REAL,
        seconds REAL NOT NULL DEFAULT 0,
        last_annotation INTEGER,
        has_runner INTEGER NOT NULL DEFAULT 0,
        pid INTEGER NOT NULL,
        pid_started REAL NOT NULL,
        heartbeat_at REAL NOT NULL,
        cancel_requested INTEGER NOT NULL DEFAULT 0
    );
    CREATE UNIQUE INDEX one_live_run ON runs (project_id, step) WHERE status IN ('queued', 'running');
    CREATE TABLE run_inputs (
        run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        upstream_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        PRIMARY KEY (run_id, upstream_id)
    );
    CREATE TABLE tasks (
        run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        position INTEGER NOT NULL,
        status TEXT NOT NULL DEFAULT 'queued'
            CHECK (status IN ('queued', 'running', 'done', 'failed', 'cancelled')),
        step INTEGER NOT NULL DEFAULT 0,
        steps INTEGER NOT NULL DEFAULT 0,
        metrics TEXT NOT NULL DEFAULT '{}',
        error TEXT,
        cancel_requested INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (run_id, name)
    );
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        kind TEXT NOT NULL CHECK (kind IN ('status', 'point')),
        task TEXT NOT NULL,
        key TEXT NOT NULL,
        data TEXT NOT NULL,
        at REAL NOT NULL
    );
    CREATE UNIQUE INDEX one_point_a_key ON events (run_id, task, key) WHERE kind = 'point';
    CREATE INDEX events_by_run ON events (run_id, id);
    CREATE TABLE artifacts (
        run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        size INTEGER NOT NULL,
        PRIMARY KEY (run_id, name)
    );
    CREATE TABLE annotations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        region_id INTEGER NOT NULL,
        sample_id INTEGER,
        annotator TEXT NOT NULL,
        label INTEGER,
        tau REAL NOT NULL,
        seed INTEGER NOT NULL,
        n_samples INTEGER NOT NULL,
        undoes INTEGER UNIQUE REFERENCES annotations (id) ON DELETE CASCADE,
        at REAL NOT NULL
    );
    CREATE INDEX annotations_by_run ON annotations (run_id, id);
    """,
    """
    ALTER TABLE annotations ADD COLUMN round INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE annotations ADD COLUMN seconds REAL;
    ALTER TABLE annotations ADD COLUMN key TEXT;
    ALTER TABLE annotations ADD COLUMN edit TEXT;
    CREATE UNIQUE INDEX one_annotation_a_key ON annotations (run_id, key) WHERE key IS NOT NULL;
    """,
)
"""SQL from each schema to the next; never edited once released, only added to."""


class WorkspaceError(DefuseError, RuntimeError):
    """A workspace that cannot be used or changed; the message names the remedy."""


class DiskFullError(WorkspaceError):
    """The disk is full; nothing that was stored before is lost."""


class Database:
    """Connections to one file, one a thread.

    Parameters
    ----------
    path : Path
        Created with the newest schema where it does not exist.
    durable : bool
        Whether a commit survives a power cut. A runner's need not: it computes again what it lost.

    Raises
    ------
    WorkspaceError
        If the file is damaged, of a newer schema, or cannot be written.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self.reserve = Reserve(path.with_name(f"{path.name}-reserve"))
        self._durable = durable
        self._local = threading.local()
        with self.explained():
            try:
                self._open()
            except sqlite3.OperationalError:
                self.close()
                if not self.reserve.make_room():
                    raise
                self._open()  # the log and its index are files that take space

    def _open(self) -> None:
        path = self.path
        if path.is_dir():
            raise WorkspaceError(f"{path} is a folder; move it away, or set DEFUSE_HOME to another one")
        size = path.stat().st_size if path.exists() else 0
        if 0 < size < _SMALLEST:
            raise sqlite3.DatabaseError("file is not a database")
        if size:
            self._refuse_unusable()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._migrate()

    @contextmanager
    def write(self, *, on_reserve: bool = False, needed: int = 0) -> Iterator[sqlite3.Connection]:
        """Open a transaction that holds the write lock from its start; roll back on an exception.

        Parameters
        ----------
        on_reserve : bool
            Whether it may use the disk space that is kept back: for what ends runs or frees space.
        needed : int
            Bytes that it writes, where they are many.

        Raises
        ------
        DiskFullError
            If the disk is full.
        WorkspaceError
            If the file is damaged or locked.
        """
        if on_reserve:
            self.reserve.make_room(needed)
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def snapshot(self) -> AbstractContextManager[sqlite3.Connection]:
        """Open a transaction that reads all of one moment while others write; temporary tables may change."""
        return self._transaction("BEGIN")

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self.explained():
            connection = self._connection()
            connection.execute(begin)
            try:
                yield connection
                connection.commit()
            except BaseException:  # also a full disk: the transaction would stay open
                connection.rollback()
                raise

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Return all rows of a query.

        Parameters
        ----------
        sql : str
        parameters : sequence
            Values for the placeholders of `sql`.
        """
        with self.explained():
            return self._connection().execute(sql, parameters).fetchall()

    def close(self) -> None:
        """Close this thread's connection; those of other threads close with them."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            del self._local.connection

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            connection.row_factory = sqlite3.Row
            _use_wal(connection)
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
            self._local.connection = connection
        return connection

    def _refuse_unusable(self) -> None:
        """Look at the file through a connection that cannot write."""
        with closing(sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True)) as connection:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (report,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if report != "ok":
            raise sqlite3.DatabaseError(report)
        if version > len(MIGRATIONS):
            raise WorkspaceError(
                f"{self.path} was written by a newer Defuse (schema {version}, this one knows "
                f"{len(MIGRATIONS)}); upgrade Defuse, or set DEFUSE_HOME to another folder"
            )

    def _migrate(self) -> None:
        connection = self._connection()
        if connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS):
            return
        with self.write() as connection:  # the lock first: another process may be migrating
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of SQLite, of the system and of damaged rows into those that name the remedy."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise  # a constraint of the schema, for the caller to explain
        except sqlite3.OperationalError as error:
            if str(error).startswith("Could not decode"):
                raise self._damaged("a text is not UTF-8") from error
            raise _full_or_other(self.path, str(error)) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            kind = "JSON" if isinstance(error, json.JSONDecodeError) else "UTF-8"
            raise self._damaged(f"a text is not {kind}") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(" ".join(str(error).split())) from error
        except OSError as error:
            raise explain_os_error(self.path, error) from error

    def _damaged(self, reason: str) -> WorkspaceError:
        return WorkspaceError(
            f"{self.path} is damaged ({reason}) and was left as it is; restore it "
            "from a copy, or recover it with: sqlite3 defuse.sqlite .recover"
        )


def explain_os_error(path: Path, error: OSError) -> WorkspaceError:
    """Return an error that says what the system reported at a path, and the remedy.

    Parameters
    ----------
    path : Path
    error : OSError
    """
    message = error.strerror or type(error).__name__
    if error.errno in DISK_FULL:
        return DiskFullError(f"{path}: {message}; {_FREE_SPACE}")
    return WorkspaceError(f"{path}: {message}; {_remedy(message)}")


def _full_or_other(path: Path, message: str) -> WorkspaceError:
    text = message.lower()
    if "full" in text or "disk i/o" in text:
        return DiskFullError(f"{path}: {message}; {_FREE_SPACE}")
    return WorkspaceError(f"{path}: {message}; {_remedy(message)}")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; unlike other statements this does not wait for another process."""
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)  # SQLite's busy timeout does not cover the change of mode


def _remedy(message: str) -> str:
    text = message.lower()
    if "is a directory" in text:
        return "move that folder away"
    if "locked" in text:
        return "another process is writing; try again, or end it (see: defuse runs)"
    if "readonly" in text or "read-only" in text or "unable to open" in text or "permission" in text:
        return "make the folder writable, or set DEFUSE_HOME to one that is"
    return "check the folder that DEFUSE_HOME names"
