"""Opens zip archives that strangers made: their directory is read only up to a limit. Imports no torch."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from defuse_core.base.limits import MAX_ZIP_DIRECTORY


class _BoundedFile(io.FileIO):
    """A file of which no more than the directory of a zip archive may be read at once, until `free`."""

    free = False

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `MAX_ZIP_DIRECTORY` bytes."""
        if self.free or (size is not None and 0 <= size <= MAX_ZIP_DIRECTORY):
            return super().read(size) or b""
        if size is not None and size > MAX_ZIP_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory takes more than {MAX_ZIP_DIRECTORY:,} bytes")
        # as much memory is taken as is asked for: no more than is left
        rest = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(min(rest, MAX_ZIP_DIRECTORY)) or b""  # the end, where zipfile looks for it


@contextmanager
def bounded_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive with a directory of at most `MAX_ZIP_DIRECTORY` bytes.

    Parameters
    ----------
    path : Path

    Raises
    ------
    zipfile.BadZipFile
        If the directory is longer, before it is read, or a member lies beyond the file; and whatever else
        `zipfile` raises.
    """
    with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
        check_offsets(archive, os.fstat(file.fileno()).st_size)
        file.free = True
        yield archive


def check_offsets(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse members that would begin beyond the file: no operating system takes every such place.

    Parameters
    ----------
    archive : ZipFile
    size : int
        Bytes of the file.

    Raises
    ------
    zipfile.BadZipFile
    """
    if bad := next((info for info in archive.infolist() if not 0 <= info.header_offset < size), None):
        raise zipfile.BadZipFile(f"{bad.filename[:60]!r} begins beyond the end of the file")
