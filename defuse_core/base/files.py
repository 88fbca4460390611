"""Write files that are whole or absent: temporary name, fsync, rename, fsync of the folder.

Imports no torch: the launcher and the dashboard use it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path

from defuse_core.base.errors import CheckpointError


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading, unless it is a folder, a pipe or a device: those may never end.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CheckpointError
        If it is none, does not exist or cannot be read; the message is printable whatever the name.
    """
    name = printable_name(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else a pipe would wait for its writer
    except FileNotFoundError:
        raise CheckpointError(f"{name} does not exist; check the path") from None
    except (OSError, ValueError) as error:  # a ValueError for a byte that no path can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{name} cannot be read ({reason}); check the path") from error
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
    raise CheckpointError(f"{name} is {kind}, not a file; check the path")


def printable_name(path: str | Path) -> str:
    """Return a file's name with a question mark for every byte that is not UTF-8."""
    return str(path).encode("utf-8", "replace").decode()


def plain(path: Path) -> str:
    """Return a path as text that can be printed, whatever bytes its name has."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; into a pipe or a device as it comes.

    Parameters
    ----------
    path : Path
        Its folder is created where it is missing. A link is followed: it stays, and its target is written.
    content : bytes
    """
    if is_special(path):
        with path.open("wb") as file:
            file.write(content)
        return
    path = followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, _ = _write_temporary(path.parent, path.name, [content])
    _rename(temporary, path)


def followed(path: Path) -> Path:
    """Return the file that a path names, through links: renaming over a link would replace the link."""
    return Path(os.path.realpath(path))


def is_special(path: Path) -> bool:
    """Whether there is a pipe, a device or a socket at a path, over which no file may be renamed."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def store_chunks(folder: Path, chunks: Iterable[bytes]) -> tuple[str, int]:
    """Write chunks to `folder/<SHA-256 of the content>`, one chunk in memory at a time.

    Parameters
    ----------
    folder : Path
        Created where it is missing.
    chunks : iterable of bytes

    Returns
    -------
    sha256 : str
        In hexadecimal; the file's name.
    size : int
        Bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()

    def hashed() -> Iterable[bytes]:
        for chunk in chunks:
            digest.update(chunk)
            yield chunk

    temporary, size = _write_temporary(folder, "upload", hashed())
    _rename(temporary, folder / digest.hexdigest())
    return digest.hexdigest(), size


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_temporary(folder: Path, name: str, chunks: Iterable[bytes]) -> tuple[Path, int]:
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    size = 0
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp gives 0o600
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return Path(temporary), size


def _rename(temporary: Path, path: Path) -> None:
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut may lose the new name
    finally:
        os.close(folder)
