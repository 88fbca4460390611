"""What people say of regions, as events: appended, never changed; an undo is an event, too.

An event is about one draw of a region, or with `sample_id` None about all its draws that have no
answer of their own. It carries what makes the draw again: τ, the seed, and how many were shown. The
later of two events of one annotator on the same subject counts. Imports no torch.
"""

from __future__ import annotations

import csv
import io
import math
import re
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from defuse_core.database import Database, WorkspaceError

NONE_OF_THE_ABOVE = "none of the above"
SINGLE_MISTAKES = -1
"""The region_id of labels of single mistakes, whose `sample_id` is an index into them."""

CSV_COLUMNS = ("region", "sample", "annotator", "label", "tau", "seed", "n_samples", "at")


@dataclass(frozen=True)
class LabelEvent:
    """One answer, or one undo.

    Attributes
    ----------
    region_id : int
        Of the distill run; `SINGLE_MISTAKES` for mistakes that are labelled one by one.
    annotator : str
    label : int or None
        Class index; None is "none of the above".
    sample_id : int or None
    tau : float
        τ at which the draws were shown.
    seed, n_samples : int
        Of the draws, and how many were shown.
    undoes : int or None
        The event taken back; nothing else of an undo counts.
    id : int
        Ascending in the order of storing; 0 before that.
    at : float
        Seconds since 1970.
    """

    region_id: int
    annotator: str
    label: int | None
    sample_id: int | None = None
    tau: float = 0.5
    seed: int = 0
    n_samples: int = 10
    undoes: int | None = None
    id: int = 0
    at: float = 0.0


class Annotations:
    """All label events of a workspace, by the distill run that they are about."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, run_id: int, events: Iterable[LabelEvent]) -> list[int]:
        """Store events in order, all or none; return their ids once they are on disk.

        Raises
        ------
        WorkspaceError
            If the run does not exist, or an annotator has no name.
        """
        given = list(events)
        if any(not event.annotator.strip() for event in given):
            raise WorkspaceError("an annotation needs the name of its annotator; give one")
        with self._database.write() as connection:
            return store_events(connection, run_id, given)

    def undo(self, run_id: int, annotator: str) -> LabelEvent | None:
        """Take back the annotator's last answer that counts; None where there is none."""
        with self._database.write() as connection:
            row = connection.execute(
                "SELECT * FROM annotations a WHERE run_id = ? AND annotator = ? AND undoes IS NULL"
                " AND NOT EXISTS (SELECT 1 FROM annotations u WHERE u.undoes = a.id)"
                " ORDER BY id DESC LIMIT 1",
                (run_id, annotator),
            ).fetchone()
            if row is None:
                return None
            event = _event(row)
            _insert(connection, run_id, replace(event, undoes=event.id))
        return event

    def events(self, run_id: int, *, up_to: int | None = None) -> list[LabelEvent]:
        """Return every event in order, those undone and the undos included."""
        rows = self._database.read(
            "SELECT * FROM annotations WHERE run_id = ? AND id <= COALESCE(?, id) ORDER BY id",
            (run_id, up_to),
        )
        return [_event(row) for row in rows]

    def counting(self, run_id: int, *, up_to: int | None = None) -> list[LabelEvent]:
        """Return the answers that count, in order: without undone ones and undos."""
        events = self.events(run_id, up_to=up_to)
        undone = {event.undoes for event in events}
        return [event for event in events if event.undoes is None and event.id not in undone]

    def last_id(self, run_id: int) -> int:
        """Return the id of the newest event, 0 where there is none."""
        rows = self._database.read(
            "SELECT COALESCE(MAX(id), 0) AS newest FROM annotations WHERE run_id = ?", (run_id,)
        )
        return int(rows[0]["newest"])


def to_csv(events: Iterable[LabelEvent], class_names: Sequence[str]) -> str:
    """Write answers as CSV with class names; an empty sample is the whole region."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(CSV_COLUMNS)
    for e in events:
        label = NONE_OF_THE_ABOVE if e.label is None else class_names[e.label]
        sample = "" if e.sample_id is None else e.sample_id
        writer.writerow((e.region_id, sample, e.annotator, label, e.tau, e.seed, e.n_samples, e.at))
    return out.getvalue()


def from_csv(
    text: str, class_names: Sequence[str], region_ids: Iterable[int], *, n_mistakes: int = 0
) -> list[LabelEvent]:
    """Read what `to_csv` wrote, or a person did in a spreadsheet.

    Parameters
    ----------
    text : str
        Columns region, annotator, label; and sample, tau, seed, n_samples where they differ from
        the whole region, .5, 0 and 10.
    class_names : sequence of str
    region_ids : iterable of int
        Those that exist.
    n_mistakes : int
        How many single mistakes there are, labelled under region -1.

    Raises
    ------
    WorkspaceError
        If any line is malformed; the message names the line, and nothing is returned.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    try:
        header = list(reader.fieldnames or [])
    except csv.Error as error:
        raise WorkspaceError(f"line 1: {error}; the first line should be {','.join(CSV_COLUMNS)}") from None
    if missing := [name for name in ("region", "annotator", "label") if name not in header]:
        raise WorkspaceError(
            f"the CSV lacks the columns {', '.join(missing)}; its first line is {','.join(header)!r}, "
            f"and should be {','.join(CSV_COLUMNS)}"
        )
    sizes = dict.fromkeys(region_ids) | ({SINGLE_MISTAKES: n_mistakes} if n_mistakes else {})
    try:
        return [_parse(row, reader.line_num, class_names, sizes) for row in reader]
    except csv.Error as error:
        raise WorkspaceError(
            f"line {reader.line_num + 1}: {error}; check the quotes, and save the file as CSV again"
        ) from None


def _parse(
    row: Mapping[str, str | None], line: int, class_names: Sequence[str], sizes: Mapping[int, int | None]
) -> LabelEvent:
    def whole(name: str, default: str, lowest: int) -> int:
        text = (row.get(name) or "").strip() or default
        if not re.fullmatch(r"-?\d{1,19}", text) or not lowest <= int(text) < 2**63:
            raise WorkspaceError(f"line {line}: {name} must be a whole number from {lowest} up, got {text!r}")
        return int(text)

    region = whole("region", "", SINGLE_MISTAKES)
    seed, n_samples = whole("seed", "0", 0), whole("n_samples", "10", 1)
    sample = whole("sample", "", 0) if (row.get("sample") or "").strip() else None
    label, annotator = row.get("label") or "", (row.get("annotator") or "").strip()
    try:
        tau = float((row.get("tau") or "").strip() or "0.5")
    except ValueError:
        tau = math.nan
    if not 0 < tau < math.inf:
        raise WorkspaceError(f"line {line}: tau must be a positive number, got {row.get('tau')!r}")
    if not annotator:
        raise WorkspaceError(f"line {line}: annotator must be named")
    if region not in sizes:
        known = ", ".join(map(str, sorted(sizes))) or "none"
        raise WorkspaceError(f"line {line}: there is no region {region}; there are: {known}")
    if label not in (NONE_OF_THE_ABOVE, *class_names):
        label = label.strip()  # as a person may have typed it
    if label not in (NONE_OF_THE_ABOVE, *class_names):
        known = ", ".join([*class_names[:20], NONE_OF_THE_ABOVE])
        raise WorkspaceError(f"line {line}: label must be one of {known}, got {label!r}")
    n_images = sizes[region] or n_samples
    if sample is not None and sample >= n_images:
        raise WorkspaceError(f"line {line}: sample must be in 0 … {n_images - 1}, got {sample}")
    index = None if label == NONE_OF_THE_ABOVE else class_names.index(label)
    return LabelEvent(region, annotator, index, sample, tau, seed, n_samples)


def store_events(connection: sqlite3.Connection, run_id: int, events: Iterable[LabelEvent]) -> list[int]:
    """Store events in a transaction that is open; return their ids."""
    return [_insert(connection, run_id, event) for event in events]


def _insert(connection: sqlite3.Connection, run_id: int, event: LabelEvent) -> int:
    *values, _, _ = astuple(event)
    try:
        cursor = connection.execute(
            "INSERT INTO annotations (region_id, annotator, label, sample_id, tau, seed, n_samples, undoes,"
            " run_id, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, run_id, time.time()),
        )
    except sqlite3.IntegrityError as error:
        raise WorkspaceError(f"run {run_id} does not exist, or the answer is undone already") from error
    return int(cursor.lastrowid or 0)


def _event(row: sqlite3.Row) -> LabelEvent:
    return LabelEvent(**{name: row[name] for name in row.keys() if name != "run_id"})  # noqa: SIM118
