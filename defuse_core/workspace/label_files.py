"""Read and write labels as CSV, which a person can fill in with a spreadsheet.

Imports no torch.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from defuse_core.base.limits import MAX_ANSWERS, MAX_LABEL_FILE
from defuse_core.base.spreadsheet import escape_formula, unescape_formula
from defuse_core.data.class_names import NONE_OF_THE_ABOVE, class_key
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import ids_ever
from defuse_core.workspace.label_rules import answer_fault, count_mistakes, person_fault
from defuse_core.workspace.labels import SINGLE_MISTAKES, LabelEvent
from defuse_core.workspace.results import region_ids
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Workspace

CSV_COLUMNS = (
    "region", "sample", "annotator", "label", "tau", "seed", "n_samples", "at", "round", "seconds",
)  # fmt: skip


_CLOSE = 0.75  # of difflib: "samples" is close to "n_samples", "date" is not to "at"


def read_label_file(path: Path) -> str:
    """Read a file of labels as text; of a file that is too large, no more than `MAX_LABEL_FILE`.

    Raises
    ------
    WorkspaceError
        If it is no plain file, is over `MAX_LABEL_FILE`, cannot be read, or is not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            kind = "a folder" if path.is_dir() else "not a plain file"
            raise WorkspaceError(f"{path} is {kind}; give a CSV file, or - to read from a pipe")
        with path.open("rb") as file:
            return decode_labels([file.read(MAX_LABEL_FILE + 1)], name=str(path))
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise WorkspaceError(f"{path} cannot be read ({reason}); check the path") from error


def decode_labels(chunks: Iterable[bytes], *, name: str) -> str:
    """Join and decode the pieces of a file of labels.

    Parameters
    ----------
    chunks : iterable of bytes
    name : str
        Of the file, for messages.

    Raises
    ------
    WorkspaceError
        If it is over `MAX_LABEL_FILE`, or not UTF-8.
    """
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > MAX_LABEL_FILE:
            raise WorkspaceError(
                f"{name} is over {MAX_LABEL_FILE >> 20} MB, too much for labels; divide it into several files"
            )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise WorkspaceError(
            f"{name} is not text in UTF-8 (line {line}: {error.reason}); save it as CSV UTF-8"
        ) from None


def label_subjects(workspace: Workspace, regions: Run) -> tuple[list[int], int]:
    """Return the ids of the regions that answers may be about, and how many single mistakes there are.

    Parameters
    ----------
    workspace : Workspace
    regions : Run
        Of the step distill.

    Raises
    ------
    WorkspaceError
        If its summary is damaged, or it stands on no search.
    """
    ids = ids_ever(region_ids(regions.summary), workspace.annotations.edits(regions.id))
    search = workspace.runs.ancestry(regions.id).get("identify")
    if search is None:
        raise WorkspaceError(f"run {regions.id} stands on no search for mistakes; run distill again")
    return ids, count_mistakes(search.summary) or 0


def to_csv(events: Iterable[LabelEvent], class_names: Sequence[str]) -> str:
    """Write answers as CSV with class names; an empty sample is the whole region.

    Names that a spreadsheet would run as formulas have an apostrophe before them, which `from_csv` removes.

    Parameters
    ----------
    events : iterable of LabelEvent
    class_names : sequence of str
    """
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(CSV_COLUMNS)
    for e in events:
        label = NONE_OF_THE_ABOVE if e.label is None else class_names[e.label]
        sample = "" if e.sample_id is None else e.sample_id
        seconds = "" if e.seconds is None else e.seconds
        names = escape_formula(e.annotator), escape_formula(label)
        writer.writerow((e.region_id, sample, *names, e.tau, e.seed, e.n_samples, e.at, e.round, seconds))
    return out.getvalue()


def from_csv(
    text: str, class_names: Sequence[str], region_ids: Iterable[int], *, n_mistakes: int = 0,
    tau: float = 0.5,
) -> list[LabelEvent]:  # fmt: skip
    """Read CSV that `to_csv` wrote, or a person with a spreadsheet.

    Parameters
    ----------
    text : str
        Columns region, annotator and label; optional are sample (by default the whole region), tau
        (see below), seed (0), n_samples (10), round (1) and seconds; "at" is not read. Case and spaces at the
        ends of their names do not count. Others are ignored, unless their name is close to one of these.
    class_names : sequence of str
    region_ids : iterable of int
        Those that exist.
    n_mistakes : int
        How many single mistakes there are, labelled under region -1.
    tau : float
        τ of the draws where a line does not say: the project's, at which its pages show them.

    Raises
    ------
    WorkspaceError
        If there are over `MAX_ANSWERS` lines, any line is malformed or has more cells than there are columns,
        or a column's name is misspelt or given twice; the message names the line, and nothing is returned.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    try:
        header = list(reader.fieldnames or [])
    except csv.Error as error:
        raise WorkspaceError(f"line 1: {error}; the first line should be {','.join(CSV_COLUMNS)}") from None
    reader.fieldnames = _read_columns(header)
    classes = ClassIndex(class_names)
    sizes = dict.fromkeys(region_ids) | ({SINGLE_MISTAKES: n_mistakes} if n_mistakes else {})
    try:
        events = []
        for number, row in enumerate(reader, 1):
            refuse_many(number, where=f"line {reader.line_num}")
            events.append(_parse(row, reader.line_num, classes, sizes, tau))
        return events
    except csv.Error as error:
        raise WorkspaceError(
            f"line {reader.line_num + 1}: {error}; check the quotes, and save the file as CSV again"
        ) from None


def _read_columns(header: Sequence[str]) -> list[str]:
    """Return the names of the columns, those that are known as `CSV_COLUMNS` has them."""
    names = [
        folded if (folded := name.strip().casefold()) in CSV_COLUMNS else name.strip() for name in header
    ]
    if missing := [name for name in ("region", "annotator", "label") if name not in names]:
        raise WorkspaceError(
            f"the CSV lacks the columns {', '.join(missing)}; its first line is {','.join(header)!r}, "
            f"and should be {','.join(CSV_COLUMNS)}"
        )
    if twice := next((name for name, n in Counter(filter(None, names)).items() if n > 1), None):
        raise WorkspaceError(
            f"line 1: the column {twice[:40]!r} is there twice; remove or rename one of them"
        )
    for name in (n for n in names if n not in CSV_COLUMNS):
        if close := get_close_matches(name[:40].casefold(), CSV_COLUMNS, n=2, cutoff=_CLOSE):
            raise WorkspaceError(
                f"line 1: there is no column {name[:40]!r}, did you mean {' or '.join(close)}? "
                f"Rename or remove it; there are: {', '.join(CSV_COLUMNS)}"
            )
    return names


def _parse(
    row: Mapping[str, str | None], line: int, classes: ClassIndex, sizes: Mapping[int, int | None],
    otherwise: float,
) -> LabelEvent:  # fmt: skip
    def whole(name: str, default: str, lowest: int) -> int:
        text = (row.get(name) or "").strip() or default
        if not re.fullmatch(r"-?\d{1,19}", text) or not lowest <= int(text) < 2**63:
            raise WorkspaceError(
                f"line {line}: {name} must be a whole number from {lowest} up, got {text[:40]!r}; correct it"
            )
        return int(text)

    _refuse_surplus(row, line)
    region = whole("region", "", SINGLE_MISTAKES)
    seed, n_samples = whole("seed", "0", 0), whole("n_samples", "10", 1)
    sample = whole("sample", "", 0) if (row.get("sample") or "").strip() else None
    label, annotator = row.get("label") or "", unescape_formula((row.get("annotator") or "").strip())
    try:
        tau = float((row.get("tau") or "").strip() or otherwise)
    except ValueError:
        raise WorkspaceError(
            f"line {line}: tau must be a number, got {row.get('tau')!r}; write it like 0.5"
        ) from None
    try:
        seconds = float(text) if (text := (row.get("seconds") or "").strip()) else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 <= seconds < math.inf:
        raise WorkspaceError(
            f"line {line}: seconds must be 0 or more, got {row.get('seconds')!r}; leave it empty if unknown"
        )
    if not annotator:
        raise WorkspaceError(f"line {line}: annotator must be named; say who gave the label")
    refuse_unknown(region, sizes, where=f"line {line}")
    index = classes.read(label, where=f"line {line}: label", escaped=True)
    if sample is not None and sample >= (n_images := sizes[region] or n_samples):
        raise WorkspaceError(f"line {line}: sample must be in 0 … {n_images - 1}, got {sample}; correct it")
    event = LabelEvent(
        region, annotator, index, sample, tau, seed, n_samples, round=whole("round", "1", 1), seconds=seconds
    )
    if fault := person_fault(annotator) or answer_fault(event, n_classes=len(classes)):
        raise WorkspaceError(f"line {line}: {fault}" + ("" if ";" in fault else "; correct it"))
    return event


def _refuse_surplus(row: Mapping[Any, Any], line: int) -> None:
    """Raise WorkspaceError if there is text beyond the columns, or in one without a name."""
    if any(cell.strip() for cell in [*(row.get(None) or []), row.get("") or ""]):
        raise WorkspaceError(
            f"line {line} has more cells than there are columns; check its commas and quotes"
        )


def refuse_unknown(region_id: int, known: Collection[int], *, where: str) -> None:
    """Raise WorkspaceError if there is no such region.

    Parameters
    ----------
    region_id : int
    known : set of int, or mapping from int
        The regions that exist.
    where : str
        The part of a file, for the message.
    """
    if region_id not in known:
        there = ", ".join(map(str, sorted(known)[:20])) or "none"
        more = " …" if len(known) > 20 else ""
        raise WorkspaceError(
            f"{where}: there is no region {region_id}; there are: {there}{more}; choose one of them"
        )


def refuse_many(number: int, *, where: str) -> None:
    """Raise WorkspaceError if a file has more answers than `MAX_ANSWERS`.

    Parameters
    ----------
    number : int
        Of the answers so far.
    where : str
        The part of a file, for the message.
    """
    if number > MAX_ANSWERS:
        raise WorkspaceError(f"{where}: a file may have {MAX_ANSWERS:,} answers; import it in several parts")


class ClassIndex:
    """The index of each class by its name, for a file of many labels.

    Names are compared as `class_key` does.

    Parameters
    ----------
    class_names : sequence of str
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._some = ", ".join([*class_names[:20], NONE_OF_THE_ABOVE])
        self._n = len(class_names)
        self._exact: dict[str, list[int]] = {}
        self._alike: dict[str, list[int]] = {}
        for index, name in enumerate(class_names):
            self._exact.setdefault(name, []).append(index)
            self._alike.setdefault(class_key(name), []).append(index)

    def __len__(self) -> int:
        return self._n

    def read(self, text: str, *, where: str, escaped: bool = False) -> int | None:
        """Return the index of a class name, None for none of the above.

        Parameters
        ----------
        text : str
        where : str
            The part of a file, for the message.
        escaped : bool
            Whether `to_csv` may have put an apostrophe before a formula, which is removed.

        Raises
        ------
        WorkspaceError
            If it is none of them, or the name of two classes.
        """
        for name in (unescape_formula(text), text) if escaped else (text,):  # an older export has none
            key = class_key(name)
            if key == NONE_OF_THE_ABOVE:
                return None
            same = self._exact.get(name) or self._alike.get(key) or []
            if len(same) > 1:
                raise WorkspaceError(
                    f"{where} {name[:40]!r} is the name of classes {same[0]} and {same[1]}; rename one"
                )
            if same and key:
                return same[0]
        raise WorkspaceError(f"{where} must be one of {self._some}, got {text[:100]!r}; choose one of them")
