"""Keep a little disk space back, for what ends runs and frees space on a full disk. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from defuse_core.base.limits import RESERVE_BYTES, RESERVE_LEAST_FREE_BYTES, RESERVE_PIECE_BYTES

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system reports where a file cannot grow."""


class Reserve:
    """A file that takes disk space and is given up in pieces.

    Parameters
    ----------
    path : Path
        In the folder whose disk may fill.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self) -> None:
        """Set the reserve aside, unless the disk is nearly full."""
        with contextlib.suppress(OSError):  # without a reserve all works, except on a full disk
            whole = self._path.exists() and self._path.stat().st_size >= RESERVE_BYTES
            if not whole and shutil.disk_usage(self._path.parent).free >= RESERVE_LEAST_FREE_BYTES:
                with self._path.open("ab") as file:
                    _allocate(file.fileno(), RESERVE_BYTES)

    def make_room(self, needed: int = 0) -> bool:
        """Give up as many pieces as a change needs; return whether any was given up.

        Parameters
        ----------
        needed : int
            Bytes; half a piece suffices for a small change.
        """
        given_up, size = False, max(RESERVE_PIECE_BYTES // 2, needed)
        while not self._has_room(size) and self._give_up():
            given_up = True
        return given_up

    def _has_room(self, size: int) -> bool:
        try:
            with tempfile.TemporaryFile(dir=self._path.parent) as file:
                _allocate(file.fileno(), size)
        except OSError as error:
            return error.errno not in DISK_FULL
        return True

    def _give_up(self) -> bool:
        try:
            size = self._path.stat().st_size
            if size <= RESERVE_PIECE_BYTES:
                self._path.unlink()
            else:
                os.truncate(self._path, size - RESERVE_PIECE_BYTES)
        except OSError:
            return False
        return True


def _allocate(handle: int, size: int) -> None:
    """Let an open file take so many bytes of the disk; OSError where they are not free."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:  # zeros take disk space only once they are written
        os.write(handle, bytes(size - os.fstat(handle).st_size))
        os.fsync(handle)
