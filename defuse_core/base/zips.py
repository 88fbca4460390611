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
        If the directory is longer, before it is read; and whatever else `zipfile` raises.
    """
    with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
        file.free = True
        yield archive
