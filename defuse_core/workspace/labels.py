"""Store labels of regions as events: appended, never changed; an undo is an event, too.

An event is about one draw of a region, or with `sample_id` None about all its draws that have no
answer of their own. It holds what reproduces the draw: τ, the seed, and the number of draws. The
later of two events of one annotator on the same subject counts. An event with a key is stored once,
even if it is sent again. Edits of the regions (`edits`) are in the same log, so that one id names a
state of both. Imports no torch.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields

from defuse_core.base.limits import MAX_LABELS, MAX_REGION_NAME, MAX_TAU
from defuse_core.data.class_names import mend_name
from defuse_core.workspace.database import Database, WorkspaceError
from defuse_core.workspace.edits import RegionEdit, newest_change
from defuse_core.workspace.label_events import BY_ID
from defuse_core.workspace.label_events import SIMULATED_PREFIX as SIMULATED_PREFIX
from defuse_core.workspace.label_events import LabelEvent as LabelEvent
from defuse_core.workspace.label_events import Undo as Undo
from defuse_core.workspace.label_rules import SINGLE_MISTAKES as SINGLE_MISTAKES
from defuse_core.workspace.label_rules import answer_fault, bounds_fault


class NoRunError(WorkspaceError):
    """Labels are for a run that does not exist, or no longer."""


_COLUMNS = tuple(field.name for field in fields(LabelEvent) if field.name not in ("id", "at"))


class Annotations:
    """All label events of a workspace, by the distill run that they are about."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, run_id: int, events: Iterable[LabelEvent | Undo]) -> list[int]:
        """Store events in order, all or none; return their ids once they are on disk.

        An event whose key is stored already keeps its id. An undo of an event that does not exist, or
        is undone already, is not stored, and has id 0.

        Parameters
        ----------
        run_id : int
            Of the distill run.
        events : iterable of LabelEvent or Undo

        Raises
        ------
        WorkspaceError
            If the run does not exist, an answer is beyond the limits of `label_rules`, or a key begins
            with "id:".
        """
        events = list(events)
        if taken := next((e.key for e in events if (e.key or "").startswith(BY_ID)), None):
            raise WorkspaceError(f"a key must not begin with {BY_ID!r}, got {taken!r}; give another one")
        with self._database.write() as connection:
            return store_events(connection, run_id, events)

    def append_new(self, run_id: int, events: Sequence[LabelEvent]) -> int:
        """Store the answers of a file that do not stand already, all or none; return how many are new.

        An answer stands if the annotator's last one on the same draw, in the same pass, is equal to the
        file's last one: a file that is imported twice adds nothing.

        Parameters
        ----------
        run_id : int
            Of the distill run.
        events : sequence of LabelEvent

        Raises
        ------
        WorkspaceError
            As `append` does.
        """
        with self._database.write() as connection:
            stands, last = ({_subject(e): e.label for e in of} for of in (self.counting(run_id), events))
            missing = [e for e in events if (s := _subject(e)) not in stands or stands[s] != last[s]]
            before = self.last_id(run_id)
            return sum(event_id > before for event_id in store_events(connection, run_id, missing))

    def undo(self, run_id: int, annotator: str) -> LabelEvent | None:
        """Undo the annotator's last answer that counts, and return it; None where there is none.

        Parameters
        ----------
        run_id : int
        annotator : str
        """
        with self._database.write() as connection:
            rows = connection.execute(
                "SELECT * FROM annotations a WHERE run_id = ? AND undoes IS NULL"
                " AND edit IS NULL AND NOT EXISTS (SELECT 1 FROM annotations u WHERE u.undoes = a.id)"
                " ORDER BY id DESC",
                (run_id,),
            )
            row = next((row for row in rows if mend_name(row["annotator"]) == annotator), None)
            if row is None:
                return None
            _take_back(connection, row["id"])
        return read_event(row)

    def edit(self, run_id: int, edit: RegionEdit, *, after: int | None = None) -> int:
        """Store an edit of the regions of a distill run; return its id.

        Parameters
        ----------
        run_id : int
        edit : RegionEdit
        after : int, optional
            The `newest_change` of the edits that the person saw.

        Raises
        ------
        WorkspaceError
            If regions changed since `after`, an id in `edit.into` was used before, τ is out of bounds,
            the name is too long, or the run does not exist.
        """
        if edit.tau is not None and not 0 < edit.tau <= MAX_TAU:
            raise WorkspaceError(f"tau must be above 0 and at most {MAX_TAU:g}, got {edit.tau:g}")
        if len(edit.name) > MAX_REGION_NAME:
            raise WorkspaceError(
                f"a region's name has at most {MAX_REGION_NAME} characters, got {len(edit.name):,}; "
                "shorten it"
            )
        with self._database.write() as connection:
            self._refuse_overtaken(connection, run_id, edit, after)
            first = edit.regions[0] if edit.regions else edit.into[0].region_id
            try:
                cursor = connection.execute(
                    "INSERT INTO annotations (run_id, region_id, annotator, tau, seed, n_samples, at, edit)"
                    " VALUES (?, ?, ?, ?, 0, 0, ?, ?)",
                    (run_id, first, edit.by, edit.tau or 0.0, time.time(), edit.to_json()),
                )
            except sqlite3.IntegrityError as error:
                raise WorkspaceError(f"run {run_id} does not exist") from error
            return int(cursor.lastrowid or 0)

    def undo_edit(self, run_id: int) -> RegionEdit | None:
        """Undo the last edit that counts and does not set τ, and return it; None where there is none."""
        with self._database.write() as connection:
            counting = [e for e in _edits(connection, run_id) if e.kind != "tau" and not e.undone]
            if not counting:
                return None
            _take_back(connection, counting[-1].id)
        return counting[-1]

    def edits(self, run_id: int, *, up_to: int | None = None) -> list[RegionEdit]:
        """Return every edit in order, those undone included; `undone` as it was at `up_to`.

        Parameters
        ----------
        run_id : int
        up_to : int, optional
            Id of the last event that counts; by default all do.
        """
        rows = self._database.read(_SELECT_EDITS, (run_id, up_to))
        with self._database.explained():
            return _read_edits(rows)

    @staticmethod
    def _refuse_overtaken(
        connection: sqlite3.Connection, run_id: int, edit: RegionEdit, after: int | None
    ) -> None:
        before = _edits(connection, run_id)
        used = {region.region_id for earlier in before for region in earlier.into}
        if (after is not None and newest_change(before) > after) or used & {g.region_id for g in edit.into}:
            raise WorkspaceError("the regions were changed in another tab or terminal; look again")

    def events(self, run_id: int, *, up_to: int | None = None) -> list[LabelEvent]:
        """Return every answer in order, undone ones and undos included.

        Answers that nobody could judge, which an older version stored, are left out (`bounds_fault`).

        Parameters
        ----------
        run_id : int
        up_to : int, optional
            Id of the last event to return; by default all.
        """
        rows = self._database.read(
            "SELECT * FROM annotations WHERE run_id = ? AND id <= COALESCE(?, id) AND edit IS NULL"
            " ORDER BY id",
            (run_id, up_to),
        )
        n_classes = next(iter(self._database.read(_N_CLASSES, (run_id,))), (None,))[0]
        events = map(read_event, rows)
        return [event for event in events if bounds_fault(event, n_classes=n_classes) is None]

    def counting(self, run_id: int, *, up_to: int | None = None) -> list[LabelEvent]:
        """Return the answers that count, in order: without undone ones and undos.

        Parameters
        ----------
        run_id : int
        up_to : int, optional
            Id of the last event to look at; by default all.
        """
        events = self.events(run_id, up_to=up_to)
        undone = {event.undoes for event in events}
        return [event for event in events if event.undoes is None and event.id not in undone]

    def last_id(self, run_id: int) -> int:
        """Return the id of the newest event, 0 where there is none."""
        rows = self._database.read(
            "SELECT COALESCE(MAX(id), 0) AS newest FROM annotations WHERE run_id = ?", (run_id,)
        )
        return int(rows[0]["newest"])


def _subject(e: LabelEvent) -> tuple[object, ...]:
    return e.region_id, e.sample_id, e.tau, e.seed, e.n_samples, e.annotator, e.round


def store_events(
    connection: sqlite3.Connection, run_id: int, events: Iterable[LabelEvent | Undo]
) -> list[int]:
    """Store events in an open transaction; return their ids.

    Parameters
    ----------
    connection : sqlite3.Connection
    run_id : int
        Of the distill run.
    events : iterable of LabelEvent or Undo

    Raises
    ------
    WorkspaceError
        If an answer is beyond the limits of `label_rules`, or the project would have over `MAX_LABELS`.
    """
    n_classes = (connection.execute(_N_CLASSES, (run_id,)).fetchone() or (None,))[0]
    events = list(events)
    (n_stored,) = connection.execute(_N_LABELS, (run_id,)).fetchone()
    if n_stored + len(events) > MAX_LABELS:
        raise WorkspaceError(
            f"a project holds at most {MAX_LABELS:,} labels, this one has {n_stored:,} and would get "
            f"{len(events):,}; create another project for them"
        )
    faults = (answer_fault(e, n_classes=n_classes) for e in events if isinstance(e, LabelEvent))
    if fault := next(filter(None, faults), None):
        raise WorkspaceError(f"an answer cannot be stored: {fault}; correct it")
    return [
        _undo(connection, run_id, event) if isinstance(event, Undo) else _insert(connection, run_id, event)
        for event in events
    ]


def _insert(connection: sqlite3.Connection, run_id: int, event: LabelEvent) -> int:
    if (stored := _by_key(connection, run_id, event.key)) is not None:
        return int(stored["id"])
    values = {**{name: getattr(event, name) for name in _COLUMNS}, "run_id": run_id, "at": time.time()}
    values["key"] = event.key or None
    marks = ", ".join(f":{name}" for name in values)
    try:
        cursor = connection.execute(f"INSERT INTO annotations ({', '.join(values)}) VALUES ({marks})", values)
    except sqlite3.IntegrityError as error:
        raise NoRunError(f"run {run_id} does not exist, or the answer is undone already") from error
    return int(cursor.lastrowid or 0)


def _undo(connection: sqlite3.Connection, run_id: int, undo: Undo) -> int:
    if (stored := _by_key(connection, run_id, undo.key)) is not None:
        return int(stored["id"])
    target = _by_name(connection, run_id, undo.target)
    if target is None or target["undoes"] is not None or target["edit"] is not None:
        return 0
    if connection.execute("SELECT 1 FROM annotations WHERE undoes = ?", (target["id"],)).fetchone():
        return 0
    return _take_back(connection, target["id"], key=undo.key or None)


def _by_key(connection: sqlite3.Connection, run_id: int, key: str | None) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM annotations WHERE run_id = ? AND key = ?", (run_id, key or None)
    ).fetchone()
    return row


def _by_name(connection: sqlite3.Connection, run_id: int, name: str) -> sqlite3.Row | None:
    """The event of this `LabelEvent.name`."""
    number = name.removeprefix(BY_ID)
    if not name.startswith(BY_ID) or not number.isdecimal() or len(number) > 18:
        return _by_key(connection, run_id, name)
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM annotations WHERE run_id = ? AND id = ? AND key IS NULL", (run_id, int(number))
    ).fetchone()
    return row


def _take_back(connection: sqlite3.Connection, event_id: int, *, key: str | None = None) -> int:
    """Append the undo of a row: a copy with its own id, key and time."""
    columns = [*(name for name in _COLUMNS if name not in ("undoes", "key")), "run_id", "edit"]
    cursor = connection.execute(
        f"INSERT INTO annotations ({', '.join(columns)}, undoes, key, at)"
        f" SELECT {', '.join(columns)}, id, ?, ? FROM annotations WHERE id = ?",
        (key, time.time(), event_id),
    )
    return int(cursor.lastrowid or 0)


_N_CLASSES = (
    "SELECT json_array_length(p.dataset, '$.class_names')"
    " FROM runs r JOIN projects p ON p.id = r.project_id WHERE r.id = ?"
)

_N_LABELS = (
    "SELECT COUNT(*) FROM annotations WHERE run_id IN (SELECT id FROM runs WHERE project_id ="
    " (SELECT project_id FROM runs WHERE id = ?))"
)

_SELECT_EDITS = (
    "SELECT e.*, u.id AS undone_by FROM annotations e"
    " LEFT JOIN annotations u ON u.undoes = e.id AND u.id <= COALESCE(?2, u.id)"
    " WHERE e.run_id = ?1 AND e.edit IS NOT NULL AND e.undoes IS NULL AND e.id <= COALESCE(?2, e.id)"
    " ORDER BY e.id"
)


def _read_edits(rows: Iterable[sqlite3.Row]) -> list[RegionEdit]:
    return [
        RegionEdit.of_json(
            row["edit"], by=row["annotator"], id=row["id"], at=row["at"], undone_by=row["undone_by"] or 0
        )
        for row in rows
    ]


def _edits(connection: sqlite3.Connection, run_id: int) -> list[RegionEdit]:
    return _read_edits(connection.execute(_SELECT_EDITS, (run_id, None)))


def read_event(row: sqlite3.Row) -> LabelEvent:
    """Build an answer from its row in the database; an annotator's name of an older version is mended."""
    values = {name: row[name] for name in row.keys() if name not in ("run_id", "edit")}  # noqa: SIM118
    return LabelEvent(**{**values, "annotator": mend_name(row["annotator"])})
