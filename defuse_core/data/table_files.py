"""Reads tables as texts: CSV of any delimiter and usual encoding, and Parquet."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from defuse_core.base.files import plain
from defuse_core.base.limits import MAX_IMAGES, MAX_TABLE_BYTES
from defuse_core.data.parquet import read_parquet_texts
from defuse_core.data.splits import DataError

_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Table:
    """The cells of a table as texts; `header` is empty where its first line is a row like the others."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def read_table(path: Path) -> Table:
    """Read a CSV by its own delimiter and encoding, or a Parquet file, as texts.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        If it cannot be read, or is larger than the limit.
    """
    if not path.is_file():
        raise DataError(f"{plain(path)} is no regular file; give a table")
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise DataError(f"{plain(path)} has over {MAX_TABLE_BYTES / 2**20:.0f} MB; name fewer images in it")
    if path.suffix.lower() == ".parquet":
        header, rows = read_parquet_texts(path)
        return Table(header, rows, [])
    text, notes = _decoded(path)
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:  # a line for Excel alone
        delimiter, text = first.strip()[-1], rest
    else:
        delimiter = max(_DELIMITERS, key=first.count)
    try:
        lines = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter)]
    except csv.Error as error:
        raise DataError(f"{plain(path)} is no readable CSV ({error}); save it again") from error
    lines = [row for row in lines if any(row)]
    if len(lines) > MAX_IMAGES:
        raise DataError(f"{plain(path)} has {len(lines):,} rows, at most {MAX_IMAGES:,} are read")
    return Table(lines[0] if lines else [], lines[1:], notes)


def _decoded(path: Path) -> tuple[str, list[str]]:
    """The text of a CSV: UTF-8, UTF-16 with its mark, else as Windows saves it, which is said."""
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding).replace("\r\n", "\n"), []
    except UnicodeDecodeError:
        pass
    try:
        return content.decode("cp1252").replace("\r\n", "\n"), [
            f"{plain(path)} is not UTF-8, so read as Windows-1252"
        ]
    except UnicodeDecodeError as error:
        raise DataError(f"{plain(path)} is text of no known encoding; save it as UTF-8") from error
